# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Datasets of encoded samples for the `Trainer`: map-style, and streaming."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers.utils import logging

from .conversations import sample_from_record
from .encoding import SampleEncoder, TrainingSample
from .records import Records

logger = logging.get_logger(__name__)

# functions that return a sample, or None if it is skipped, and its place
Unencoded = tuple[Callable[[], TrainingSample | None], Callable[[], str]]
# this many broken samples in a row are not a coincidence
MAX_BROKEN_IN_A_ROW = 100


@dataclass
class RecordSet:
    """Records of one origin.

    Attributes:
        records: the records of a file or another source.
        image_root: folder that relative paths of images refer to.
        repeat: how often an epoch has each record. A fractional part adds a fixed random choice of the records.
        images_kwargs: arguments of the image processor for these records.
    """

    records: Records
    image_root: str | None = None
    repeat: float = 1.0
    images_kwargs: dict = field(default_factory=dict)

    def sample(self, record: int) -> dict:
        return sample_from_record(self.records[record], self.image_root, self.images_kwargs)

    def chosen(self, generator: np.random.Generator) -> np.ndarray:
        """The indices of an epoch's records, in order."""
        whole, fraction = divmod(self.repeat, 1)
        everything = np.arange(len(self.records))
        some = generator.choice(everything, round(fraction * len(everything)), replace=False)
        return np.concatenate([*[everything] * int(whole), np.sort(some)])


class TrainingData(Dataset):
    """A map-style dataset of `TrainingSample`s.

    A skipped sample (see `SampleEncoder`) is replaced by the next good sample, which is the same in every epoch and
    after resuming. `counts` holds the numbers of samples skipped so far, including those of the data loader's workers.

    Args:
        parts: the sets of records to train on.
        encoder: encodes them.
        seed: seed of the random choice of records for fractional repeats (default: 0).

    Attributes:
        records: index of each sample's record within its part.

    Raises:
        ValueError: if there are no records. On reading a sample, `BrokenSampleError`: see `SampleEncoder`.
    """

    def __init__(self, parts: Sequence[RecordSet], encoder: SampleEncoder, seed: int = 0):
        self.parts = list(parts)
        self.encoder = encoder
        chosen = [part.chosen(np.random.default_rng([seed, index])) for index, part in enumerate(self.parts)]
        self._part_ends = np.cumsum([len(records) for records in chosen])
        self.records = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
        if not len(self):
            raise _no_records(self.name)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def name(self) -> str:
        """The names of the parts, for messages."""
        return ", ".join(str(getattr(part.records, "path", part.records)) for part in self.parts) or "no data"

    @property
    def num_shards(self) -> int:
        """1: records are read by index, so that no process reads those of others."""
        return 1

    @property
    def counts(self) -> dict[str, int]:
        return self.encoder.counts.as_dict()

    def raw(self, index: int) -> dict:
        """The sample of messages and images, as `read_conversation` expects it."""
        part, record = self._locate(index)
        return part.sample(record)

    def place(self, index: int) -> str:
        """The sample's file and line, for messages."""
        part, record = self._locate(index)
        return part.records.place(record)

    def _locate(self, index: int) -> tuple[RecordSet, int]:
        part = int(np.searchsorted(self._part_ends, index, side="right"))
        return self.parts[part], int(self.records[index])

    def encode(self, index: int, decode: bool = True) -> TrainingSample | None:
        """The sample, or None if it is skipped. Without `decode`, only the headers of its images are read."""
        return self.encoder.encode_or_skip(partial(self.raw, index), partial(self.place, index), decode)

    def epoch(self, epoch: int, seed: int | None, num_parts: int, part: int) -> Iterator[Unencoded]:
        """The samples of one of an epoch's parts, not encoded yet. Not shuffled if `seed` is None."""
        order = np.arange(len(self))
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for index in order[part::num_parts].tolist():
            yield partial(self.encode, index), partial(self.place, index)

    def __getitem__(self, index: int) -> TrainingSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        for step in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            sample = self.encode((index + step) % len(self))
            if sample is not None:
                return sample
        raise _all_broken(self.place(index % len(self)))


def _no_records(name: str) -> ValueError:
    return ValueError(f"There is nothing to train on: {name} holds no records.")


def _all_broken(place: str) -> ValueError:
    return ValueError(
        f"None of the samples from {place} on can be trained on; the warnings above say why. Is the folder of the "
        "images right, and `max_length` large enough for an image?"
    )


class RecordStream:
    """Records of a `datasets.IterableDataset`, encoded.

    Args:
        records: the dataset, with undecoded images.
        name: its name in messages.
        image_root: folder that relative paths of images refer to.
        shuffle_buffer: number of records that are shuffled among each other (default: 1000). Shards are shuffled as
            well.
    """

    def __init__(self, records, encoder: SampleEncoder, name: str, image_root: str | None = None, shuffle_buffer=1000):
        self.records = records
        self.encoder = encoder
        self.name = name
        self.image_root = image_root
        self.shuffle_buffer = shuffle_buffer

    @property
    def num_shards(self) -> int:
        return self.records.num_shards

    def epoch(self, epoch: int, seed: int | None, num_parts: int, part: int) -> Iterator[Unencoded]:
        """See `TrainingData.epoch`. `num_parts` divides `num_shards`."""
        from datasets.distributed import split_dataset_by_node

        records = self.records
        if seed is not None:
            records = records.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
        if num_parts > 1:
            records = split_dataset_by_node(records, rank=part, world_size=num_parts)
        records.set_epoch(epoch)
        # unlike `iter(records)`, which gives a data loader's worker only some shards, or none
        for number, batch in enumerate(records.iter(batch_size=1)):
            record = {name: column[0] for name, column in batch.items()}
            place = partial(self._place, record, f"{number} of part {part} of {num_parts} in epoch {epoch}")
            yield partial(self._encode, record, place), place

    def _encode(self, record: dict, place: Callable[[], str]) -> TrainingSample | None:
        return self.encoder.encode_or_skip(partial(sample_from_record, record, self.image_root), place)

    def _place(self, record: Mapping, number: str) -> str:
        name = record.get("id", number) if isinstance(record, Mapping) else number
        return f"{self.name}, record {name}"


class StreamingTrainingData(IterableDataset):
    """A stream of encoded samples, shuffled in every epoch, without skipped samples.

    Each sample appears exactly once per epoch, over all workers of the data loader and all shards. Where the shards of
    a `datasets.IterableDataset` cannot be divided evenly among the workers of all processes, several workers read the
    same shards and encode every n-th record.
    Resuming reads the stream from its start, as the `Trainer` does.

    The `Trainer` needs `accelerator_config={"dispatch_batches": False}`: otherwise accelerate splits a stream's
    batches by rows, which `pixel_values` does not have. With several processes, its data loader then makes *every*
    process encode all samples and keeps a share of them. With `shard`, each sample is encoded once; the data loader
    must not split the shard again.

    Args:
        source: the samples.
        shuffle: use another order in each epoch (default: True).
        seed: seed of the order (default: 0).
        endless: start the next epoch automatically, so that no process runs out of samples before the others (default:
            False).

    Raises:
        ValueError: on reading, if the source or, in an endless stream, a worker's shards of it hold no records, or if
            many samples in a row are skipped.
    """

    def __init__(
        self, source: TrainingData | RecordStream, shuffle: bool = True, seed: int = 0, endless: bool = False
    ):
        self.source = source
        self.seed = seed if shuffle else None
        self.endless = endless
        self.num_shards, self.shard_index = 1, 0
        # in shared memory, so that persistent workers see a new epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def counts(self) -> dict[str, int]:
        return self.source.encoder.counts.as_dict()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def shard(self, num_shards: int, index: int) -> "StreamingTrainingData":
        """Shard `index` of `num_shards` shards of this stream, for process `index`.

        Raises:
            ValueError: if there is no such shard.
        """
        if not 0 <= index < num_shards:
            raise ValueError(f"index={index} of num_shards={num_shards}, expected 0 <= index < num_shards.")
        shard = copy(self)
        shard.num_shards, shard.shard_index = self.num_shards * num_shards, self.shard_index * num_shards + index
        return shard

    def __iter__(self) -> Iterator[TrainingSample]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        num_shares, share = self.num_shards * workers, self.shard_index * workers + own
        # as few shards as possible, and of their records every n-th, counted across epochs
        num_parts = math.gcd(self.source.num_shards, num_shares)
        part, step, turn = share % num_parts, num_shares // num_parts, share // num_parts
        if step > 1 and share == 0 and isinstance(self.source, RecordStream):
            logger.warning(
                f"{self.source.name} has num_shards={self.source.num_shards}, which {num_shares} readers (processes x "
                f"workers of the data loader) cannot divide evenly: {step} of them read each record, and one encodes "
                "it."
            )
        epoch, broken, records = int(self._epoch), 0, count()
        while True:
            is_empty = True
            for encode, place in self.source.epoch(epoch, self.seed, num_parts, part):
                is_empty = False
                if next(records) % step != turn:
                    continue
                sample = encode()
                if sample is not None:
                    broken = 0
                    yield sample
                    continue
                broken += 1
                if broken == MAX_BROKEN_IN_A_ROW:
                    raise _all_broken(place())
            if is_empty and (self.endless or num_parts == 1):
                share_of = f"part {part} of the {num_parts} parts of " if num_parts > 1 else ""
                raise _no_records(f"{share_of}{self.source.name}")
            if not self.endless:
                return
            epoch += 1
