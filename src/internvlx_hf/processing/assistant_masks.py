# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Which tokens the assistant wrote, for transformers before 5.18: its own masks ignore how images lengthen a prompt."""


def assistant_mask(spans: list[tuple[int, int]], offsets, replacements: list[dict]) -> list[int]:
    """1 for each token that overlaps what the assistant wrote, 0 for the others.

    Args:
        spans: what it wrote, (start, end) in characters of the prompt as the chat template wrote it.
        offsets: (start, end) of each token, in characters of the prompt with its images' placeholders.
        replacements: what the placeholders took the place of, as `ProcessorMixin` says it.
    """

    def with_placeholders(place: int) -> int:
        before = [each for each in replacements if each["span"][1] <= place]
        return place + sum(len(each["replacement"]) - len(each["text"]) for each in before)

    written = [tuple(map(with_placeholders, span)) for span in spans]
    return [int(any(start < last and end > first for first, last in written)) for start, end in offsets]
