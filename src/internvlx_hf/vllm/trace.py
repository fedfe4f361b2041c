# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A record of the steps that the model ran in this process, for tests. Off by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step of the model.

    Args:
        query_lengths: number of rows of each request in stage two.
        stage_one_rows: number of rows of all requests in stage one.
        stage_two_rows: number of rows of all requests in stage two.
        tiles: number of tiles in the step.
    """

    query_lengths: tuple[int, ...]
    stage_one_rows: int
    stage_two_rows: int
    tiles: int

    @property
    def is_mixed(self) -> bool:
        """Whether some requests decode while others are in prefill."""
        return min(self.query_lengths) == 1 < max(self.query_lengths)


_records: list[list[Step]] = []


def is_recording() -> bool:
    return bool(_records)


def add(step: Step) -> None:
    for record in _records:
        record.append(step)


@contextmanager
def record_steps() -> Iterator[list[Step]]:
    """Yield a list to which each step of a model with LVTC is appended within the context."""
    record: list[Step] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [other for other in _records if other is not record]
