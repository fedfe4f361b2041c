# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Packing without padding: rows of whole samples, up to a budget of tokens.

A batch is one row, (1, tokens), whose `position_ids` restart with each sample. transformers separates the samples by
these (in eager, sdpa and flex attention) or by the bounds in the batch (`cu_seq_lens_q`, `cu_seq_lens_k`, for flash
attention and "varlen_sdpa"), and so does LVTC. So a loss summed over a row's tokens equals the sum over its samples
one by one. Several rows of a batch become one, since the bounds are those of one row. Load the model with flash
attention or "varlen_sdpa": sdpa and eager need a mask of tokens x tokens.

    data = load_training_data(...)
    Trainer(..., train_dataset=PackedData(data, sizes.tokens, 8192), data_collator=InternVLXDataCollator(...,
    packing=True))
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, IterableDataset
from transformers.utils import logging

from .datasets import MAX_BROKEN_IN_A_ROW, StreamingTrainingData, TrainingData
from .encoding import TrainingSample

logger = logging.get_logger(__name__)
# samples that are packed together: enough to fill rows almost completely, few enough to remain a random choice
_WINDOW = 1024
_OPEN_ROWS = 8


def pack_rows(lengths: Sequence[int] | np.ndarray, budget: int, seed: int = 0) -> list[list[int]]:
    """Pack shuffled samples into rows of at most `budget` tokens, by best fit.

    Args:
        lengths: tokens of each sample. Samples of length 0 are skipped; one above the budget gets its own row.
        budget: tokens per row.
        seed: seed of the order (default: 0).

    Returns:
        The indices of each row's samples.

    Raises:
        ValueError: if the budget is not positive.
    """
    _check_budget(budget)
    order = np.random.default_rng(seed).permutation(len(lengths))
    tokens = np.asarray(lengths)
    if too_long := int((tokens > budget).sum()):
        logger.warning(f"{too_long} samples have more than {budget} tokens and get their own rows.")
    rows: list[list[int]] = []
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        window = window[np.argsort(-tokens[window], kind="stable")]
        rows += _best_fit([index for index in window.tolist() if tokens[index]], tokens, budget)
    return rows


def _best_fit(indices: list[int], lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Put each of `indices`, longest first, into the row with the least room in which it fits."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in indices:
        length = int(lengths[index])
        place = bisect_left(rooms, (length, -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = budget, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > length:
            insort(rooms, (room - length, row))
    return rows


def pack_stream(samples: Iterable[TrainingSample], budget: int) -> Iterator[list[TrainingSample]]:
    """Pack a stream of samples into rows of at most `budget` tokens.

    A few rows are open at a time; a sample goes into the one with the least room in which it fits. If it fits into
    none, the fullest row is yielded. A sample above the budget gets its own row.
    """
    _check_budget(budget)
    open_rows: list[tuple[int, list[TrainingSample]]] = []
    for sample in samples:
        if len(sample) > budget:
            logger.warning_once(
                f"A sample has {len(sample)} tokens, more than the row's {budget}, and gets its own row."
            )
            yield [sample]
            continue
        fitting = [entry for entry in open_rows if entry[0] >= len(sample)]
        if not fitting:
            fitting = [(budget, [])]
            open_rows += fitting
        chosen = min(fitting, key=lambda entry: entry[0])
        chosen[1].append(sample)
        open_rows[open_rows.index(chosen)] = (chosen[0] - len(sample), chosen[1])
        if len(open_rows) > _OPEN_ROWS:
            fullest = min(open_rows, key=lambda entry: entry[0])
            open_rows.remove(fullest)
            yield fullest[1]
    for _, row in open_rows:
        yield row


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"A row's budget is {budget} tokens, expected a positive number.")


class PackedData(Dataset):
    """A map-style dataset of rows; which samples share a row stays the same in all epochs.

    A sample that proves to be broken makes its row shorter.

    Args:
        data: the samples to pack.
        lengths: tokens of each sample, as `measure_sizes` returns them.
        budget: tokens per row.
        seed: see `pack_rows`.
    """

    def __init__(self, data: TrainingData, lengths: Sequence[int] | np.ndarray, budget: int, seed: int = 0):
        if len(lengths) != len(data):
            raise ValueError(f"There are {len(lengths)} lengths for {len(data)} samples, expected one for each.")
        self.data = data
        self.budget = budget
        self.rows = pack_rows(lengths, budget, seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        return self.data.counts

    def __getitem__(self, index: int) -> list[TrainingSample]:
        for step in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            encoded = [self.data.encode(sample) for sample in self.rows[(index + step) % len(self)]]
            if row := [sample for sample in encoded if sample is not None]:
                return row
        raise ValueError(f"None of the samples of row {index} and those after it can be trained on; see the warnings.")


class PackedStream(IterableDataset):
    """A stream of rows, packed from a stream of samples by `pack_stream`."""

    def __init__(self, data: StreamingTrainingData, budget: int):
        _check_budget(budget)
        self.data = data
        self.budget = budget

    @property
    def counts(self) -> dict[str, int]:
        return self.data.counts

    def set_epoch(self, epoch: int) -> None:
        self.data.set_epoch(epoch)

    def shard(self, num_shards: int, index: int) -> "PackedStream":
        """See `StreamingTrainingData.shard`."""
        return PackedStream(self.data.shard(num_shards, index), self.budget)

    def __iter__(self) -> Iterator[list[TrainingSample]]:
        return pack_stream(self.data, self.budget)
