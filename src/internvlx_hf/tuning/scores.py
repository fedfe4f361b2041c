# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How well an answer matches a reference, by two of the measures of `evaluation.BENCHMARKS`, under their names in
lmms-eval.
"""

ANLS_THRESHOLD = 0.5


def exact_match(answer: str, reference: str) -> float:
    """1 if the texts are equal but for case, white space and a full stop at the end, else 0."""
    return float(_plain(answer) == _plain(reference))


def anls(answer: str, reference: str) -> float:
    """Average normalized Levenshtein similarity of one answer, as for DocVQA: 0 below one half."""
    answer, reference = _plain(answer), _plain(reference)
    longest = max(len(answer), len(reference))
    similarity = 1 - _edits(answer, reference) / longest if longest else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


SCORES = {"exact_match": exact_match, "anls": anls}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _edits(text: str, other: str) -> int:
    """The fewest letters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(text, 1):
        diagonal, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            fewest = min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != wanted))
            diagonal, row[place] = row[place], fewest
    return row[-1]
