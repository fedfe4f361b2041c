# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Batches of samples that cost about the same."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# with 50 of them, as transformers has it, batches of 16 samples still hold a tenth of padding
_BATCHES_SORTED_TOGETHER = 100


class CostGroupedSampler(Sampler[int]):
    """Shuffles samples so that every batch holds samples of like cost.

    As in transformers' `LengthGroupedSampler`, random samples make up groups of a hundred batches, within which they are
    sorted. Unlike there, the batches are then shuffled, for training would see the cost fall and fall again; and the order
    follows from seed and epoch alone, so that a resumed epoch is the interrupted one.

    It gives the same order in every process: accelerate deals its batches out, neighbours to different processes, so that
    these work on batches of like cost at a time.

    Args:
        costs: of each sample.
        batch_size: samples that should be alike: those of a device's batch, times the processes.
        seed: of the order.

    Raises:
        ValueError: there are no samples, or the batch size is not positive.
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
        # what does not fill a batch stays last, or it would shift all batches after it
        yield from batches[generator.permutation(len(batches))].flatten().tolist()
        yield from order[whole:].tolist()
