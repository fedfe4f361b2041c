# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Masks of the tokens that the assistant wrote, for transformers before 5.18, whose masks ignore that images lengthen
a prompt.
"""


def assistant_mask(spans: list[tuple[int, int]], offsets, replacements: list[dict]) -> list[int]:
    """1 for each token that overlaps a span that the assistant wrote, 0 for the others.

    Args:
        spans: (start, end) of these spans, in characters of the prompt that the chat template rendered.
        offsets: (start, end) of each token, in characters of the prompt with its images' placeholders.
        replacements: which texts the placeholders replaced, as `ProcessorMixin` reports them.
    """

    def expanded_position(position: int) -> int:
        before = [each for each in replacements if each["span"][1] <= position]
        return position + sum(len(each["replacement"]) - len(each["text"]) for each in before)

    written = [tuple(map(expanded_position, span)) for span in spans]
    return [int(any(start < last and end > first for first, last in written)) for start, end in offsets]
