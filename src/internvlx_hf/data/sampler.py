# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Batches of samples of similar cost."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# with 50, as in transformers, a tenth of a batch of 16 samples is still padding
_BATCHES_SORTED_TOGETHER = 100


class CostGroupedSampler(Sampler[int]):
    """Shuffles samples so that every batch holds samples of similar cost.

    As in transformers' `LengthGroupedSampler`, random samples form groups of a hundred batches and are sorted within
    each group. Unlike there, the batches are then shuffled, since training would otherwise see the cost fall again and
    again. The order depends only on seed and epoch, so that a resumed epoch matches the interrupted one.

    The order is the same in every process: accelerate gives adjacent batches to different processes, which then work
    on batches of similar cost at the same time.

    Args:
        costs: cost of each sample.
        batch_size: number of samples of similar cost: a device's batch size times the number of processes.
        seed: seed of the order (default: 0).

    Raises:
        ValueError: if there are no samples, or the batch size is not positive.
    """

    def __init__(self, costs: Sequence[float] | np.ndarray, batch_size: int, seed: int = 0):
        if not len(costs):
            raise ValueError("costs is empty, expected the cost of each sample.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, expected a positive number of samples.")
        self.costs = np.asarray(costs)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.costs)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self))
        group = self.batch_size * _BATCHES_SORTED_TOGETHER
        for start in range(0, len(order), group):
            members = order[start : start + group]
            order[start : start + group] = members[np.argsort(-self.costs[members], kind="stable")]
        whole = len(order) - len(order) % self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        # an incomplete batch stays last, since it would shift all batches after it
        yield from batches[generator.permutation(len(batches))].flatten().tolist()
        yield from order[whole:].tolist()
