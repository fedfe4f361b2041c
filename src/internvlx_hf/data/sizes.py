# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Measuring samples without decoding a pixel: their tokens in both stages of the language model, and their tiles."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..cost.flops import prefill_flops, stages
from ..cost.measure import measure
from ..modeling import InternVLXConfig
from ..processing.processing_internvlx import IGNORE_INDEX
from .datasets import TrainingData

_COLUMNS = ("tokens", "tiles", "images", "supervised", "cut")  # of `SampleSizes` and of the cached files
_BATCH = 256  # samples that a worker measures at once


@dataclass
class SampleSizes:
    """Sizes of samples: arrays with one number per sample.

    Attributes:
        tokens: length of `input_ids`: text, image placeholders, start and end tokens. 0 for a skipped sample.
        tiles: tiles of all its images.
        images: number of images. None if unknown, as are the next two.
        supervised: tokens that carry loss.
        cut: 1 if the sample was truncated to `max_length`.
        of_sizes: (sizes, samples), tiles of each size that the processor offers. None if all have the first.
    """

    tokens: np.ndarray
    tiles: np.ndarray
    images: np.ndarray | None = None
    supervised: np.ndarray | None = None
    cut: np.ndarray | None = None
    of_sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def with_gains(self, gains: Sequence[float]) -> np.ndarray:
        """`tokens`, and for each tile the gain of its size."""
        of_sizes = self.tiles[None] if self.of_sizes is None else self.of_sizes
        return self.tokens + np.dot(gains[: len(of_sizes)], of_sizes)

    def stage_two_tokens(self, config: InternVLXConfig) -> np.ndarray:
        """Tokens in the layers after the boundary of each tile's size, if it has one."""
        return self.with_gains([size.after - size.before for size in config.sizes])

    def costs(self, config: InternVLXConfig) -> np.ndarray:
        """Cost of each sample, in tokens that pass through the whole language model.

        A token counts by the share of the layers that process it. A tile adds as many tokens as correspond to the
        operations of the vision tower and the projectors.
        """
        layers = config.text_config.num_hidden_layers
        gains = [(size.after - size.before) * (1 - (size.boundary or layers) / layers) for size in config.sizes]
        return self.with_gains(gains) + self.tiles * tile_cost(config)


def tile_cost(config: InternVLXConfig) -> float:
    """Operations of the vision tower and the projectors per tile, divided by those of the language model for one
    token.
    """
    sizes = measure(config)
    on_token = prefill_flops(sizes, [1] * len(stages(sizes)))
    return sum(sizes.tile_flops.values()) / sum(on_token[stage] for stage in stages(sizes))


class _Sizes(Dataset):
    """Tokens, tiles, images and supervised tokens of samples, whether they were truncated, and tiles of each size."""

    def __init__(self, data: TrainingData, indices: np.ndarray):
        self.data = data
        self.indices = indices
        self.sizes = range(len(data.encoder.processor.sizes))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        sample = self.data.encode(int(self.indices[index]), decode=False)
        if sample is None:
            return (0,) * (len(_COLUMNS) + len(self.sizes))
        supervised = int((sample.labels != IGNORE_INDEX).sum())
        tiles = list(chain(*sample.tile_sizes))
        own = len(sample), len(tiles), len(sample.num_tiles), supervised, int(sample.was_cut)
        return *own, *map(tiles.count, self.sizes)


def measure_sizes(
    data: TrainingData, num_workers: int = 0, cache: str | os.PathLike | None = None, again: bool = True
) -> SampleSizes:
    """Measure all samples of `data`: texts are tokenized, and only the headers of images are read.

    Args:
        num_workers: number of processes that share the work (default: 0, this process).
        cache: a folder where the sizes are saved (default: none). Saved sizes are used if the data's files and the
            processor's settings are unchanged; the images are not checked again. The sizes of a list of records are
            never saved.
        again: measure skipped samples again and warn of them, since a missing image may exist by now (default: True).
            With several processes, only the first should do so, or their sizes may differ.

    Raises:
        BrokenSampleError: if a sample is broken and may not be skipped.
    """
    file = None
    if cache is not None and (key := fingerprint(data)) is not None:
        file = Path(cache) / f"sizes-{key}.npy"
    sizes = np.zeros((len(_COLUMNS) + len(data.encoder.processor.sizes), len(data)), dtype=np.int64)
    if file is not None and file.exists():
        sizes = np.load(file)
    else:
        again = True
    (unknown,) = np.nonzero(sizes[0] == 0)
    if again and len(unknown):
        loader = DataLoader(_Sizes(data, unknown), batch_size=_BATCH, num_workers=num_workers, collate_fn=np.array)
        measured = logging.tqdm(loader, desc=f"Measuring {len(unknown)} samples", delay=2)
        sizes[:, unknown] = np.concatenate(list(measured)).T
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.tmp")
            with open(partial, "wb") as opened:
                np.save(opened, sizes)
            os.replace(partial, file)  # another process never sees a partial file
    return SampleSizes(*[*sizes[: len(_COLUMNS)], sizes[len(_COLUMNS) :]])


def fingerprint(data: TrainingData) -> str | None:
    """A hash of everything that determines the sizes of `data`: its files, the choice of records, the processor's
    settings.

    None if some of its records cannot be identified without reading them.
    """
    if any(part.records.fingerprint() is None for part in data.parts):
        return None
    encoder, processor = data.encoder, data.encoder.processor
    origins = [[part.records.fingerprint(), part.image_root, part.repeat, part.images_kwargs] for part in data.parts]
    settings = {
        "columns": [*_COLUMNS, "of_sizes"],
        "origins": origins,
        "records": hashlib.sha256(data.records.tobytes()).hexdigest(),
        "image_processor": processor.image_processor.to_dict(),
        "video_processor": processor.video_processor.to_dict(),
        "sizes": processor.sizes,
        "chat_template": processor.chat_template,
        "tokenizer": processor.tokenizer.backend_tokenizer.to_str(),
        "image_settings": processor.image_settings.given,
        "limits": [encoder.max_length, encoder.on_too_long, encoder.share_tiles],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
