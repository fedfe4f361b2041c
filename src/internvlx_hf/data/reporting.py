# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Counting what was skipped, across the workers of a data loader."""

import torch
from torch.utils.data import get_worker_info

KINDS = ("broken", "too_long", "cut")
_WORKERS = 256


class SampleCounts:
    """How many samples were skipped as `broken` or `too_long`, and how many `cut` to fit.

    The counts live in shared memory, a row for each worker, so that the process that made them sees what its workers
    count. A sample that is met again in a later epoch is counted again.
    """

    def __init__(self):
        self._rows = torch.zeros(1 + _WORKERS, len(KINDS), dtype=torch.int64).share_memory_()

    def add(self, kind: str, number: int) -> None:
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % _WORKERS
        self._rows[row, KINDS.index(kind)] += int(number)

    def as_dict(self) -> dict[str, int]:
        return dict(zip(KINDS, self._rows.sum(0).tolist(), strict=True))

    @property
    def skipped(self) -> int:
        counts = self.as_dict()
        return counts["broken"] + counts["too_long"]
