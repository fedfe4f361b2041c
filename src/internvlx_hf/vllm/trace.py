# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A record of the steps that the model ran in this process, for tests. Off unless somebody asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Args: query_lengths: rows of each request in stage two; stage_one_rows, stage_two_rows: of all; tiles: encoded in it."""

    query_lengths: tuple[int, ...]
    stage_one_rows: int
    stage_two_rows: int
    tiles: int

    @property
    def is_mixed(self) -> bool:
        """Whether some requests decode while others are filled in."""
        return min(self.query_lengths) == 1 < max(self.query_lengths)


_records: list[list[Step]] = []


def is_recording() -> bool:
    return bool(_records)


def add(step: Step) -> None:
    for record in _records:
        record.append(step)


@contextmanager
def record_steps() -> Iterator[list[Step]]:
    """Give a list that every step of a model with LVTC is appended to, as long as the context lasts."""
    record: list[Step] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [other for other in _records if other is not record]
