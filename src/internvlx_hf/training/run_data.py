# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Preparing the data of a run by its settings: loading, measuring, packing, and the collator."""

import os
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainingArguments
from transformers.utils import logging

from ..data import (
    InternVLXDataCollator,
    PackedData,
    PackedStream,
    StreamingTrainingData,
    TrainingData,
    load_training_data,
    measure_sizes,
)
from ..data.sizes import SampleSizes
from ..modeling import InternVLXConfig
from ..processing import InternVLXProcessor
from .arguments import DataArguments
from .size_sampling import sampled_sizes

logger = logging.get_logger(__name__)


@dataclass
class RunData:
    """The data of a run, for a `Trainer`.

    Attributes:
        train, evaluation: datasets of training samples or of rows of samples.
        collator: makes batches of either.
        costs: cost of each sample, for batches of similar cost; None without such batches.
        sizes: sizes of each sample, if they were measured.
        sources, evaluation_sources: the datasets in the record of the run, each `{"name", "samples", ...}`.
        settings: settings of the data in the record of the run.
        skipped: number of samples skipped while measuring, by reason.
        size: index of the size in which samples are encoded, of tiles other than thumbnails: the largest of those
            that the run samples.
    """

    train: Dataset | IterableDataset
    collator: InternVLXDataCollator
    evaluation: Dataset | None = None
    costs: np.ndarray | None = None
    sizes: SampleSizes | None = None
    sources: list[dict] = field(default_factory=list)
    evaluation_sources: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    size: int = 0


def load_run_data(
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    processor: InternVLXProcessor,
    config: InternVLXConfig,
    teacher_processor: InternVLXProcessor | None = None,
) -> RunData:
    """Load the data of a run.

    Packing and batches of similar cost measure the samples: they read every text and every image's header once and
    cache the sizes next to the caches of `datasets`.

    If the run samples sizes (`tokens_per_tile_sampling`), training data are truncated, measured and packed as with the
    largest of them, so that the size of a step changes neither its samples nor their text.

    Args:
        teacher_processor: the teacher's processor; only batches for training have its inputs (default: no teacher).

    Raises:
        ValueError: if the settings contradict each other, or the data are of an unknown kind or broken.
        OSError: if a file cannot be read.
    """
    _check_settings(data_arguments, arguments)
    sampled = sampled_sizes(arguments, config)
    largest = max(sampled, key=lambda size: (config.sizes[size].before, config.sizes[size].after), default=None)
    of_training = processor if largest is None else copy(processor)
    if largest is not None:
        of_training.tokens_per_tile = str(config.sizes[largest])
    budget, streaming = data_arguments.packing_tokens, data_arguments.streaming
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    load = partial(
        load_training_data,
        image_root=data_arguments.image_root,
        max_length=data_arguments.max_length,
        on_too_long=data_arguments.on_too_long,
        on_broken=data_arguments.on_broken,
        share_tiles=data_arguments.share_tiles,
    )
    data = load(
        data_arguments.train_data,
        processor=of_training,
        split=data_arguments.train_split,
        streaming=streaming,
        shuffle_buffer=data_arguments.shuffle_buffer,
        teacher_processor=teacher_processor,
        endless=streaming,
        seed=seed,
    )
    collator = InternVLXDataCollator(
        processor,
        packing=bool(budget),
        pad_to_multiple_of=data_arguments.pad_to_multiple_of,
        teacher_processor=teacher_processor,
        sampled_sizes=[str(config.sizes[size]) for size in sampled],
    )
    run = RunData(data, collator, sources=_sources(data, data_arguments.train_data))
    run.size = of_training.read_choices(None, 1)[0].tiles
    run.settings = {
        "max_length": data_arguments.max_length,
        "packing_tokens": budget,
        "share_tiles": data_arguments.share_tiles,
    }
    if data_arguments.eval_data:
        run.evaluation = load(data_arguments.eval_data, processor=processor, split=data_arguments.eval_split)
        run.evaluation_sources = _sources(run.evaluation, data_arguments.eval_data)
    if isinstance(data, StreamingTrainingData):
        if arguments.train_sampling_strategy == "sequential":
            data = StreamingTrainingData(data.source, shuffle=False, endless=True)
        run.train = PackedStream(data, budget) if budget else data
    elif budget:
        run.sizes = _measure(data, arguments, config)
        run.train = PackedData(data, run.sizes.tokens, budget, seed)
    elif arguments.train_sampling_strategy == "group_by_cost":
        run.sizes = _measure(data, arguments, config)
        run.costs = run.sizes.costs(config)
    if run.sizes is not None:
        run.skipped = {kind: count for kind, count in data.counts.items() if kind != "cut"}
    return run


def longest_batch(data: RunData, rows: int, config: InternVLXConfig) -> tuple[int, int]:
    """The largest number of tokens of a batch of packed rows, as one row, before and after LVTC's expansion.

    A stream is not measured; for it, this is the number of tokens of full rows that consist only of images.
    """
    if isinstance(data.train, PackedData) and data.sizes is not None:
        stages = (data.sizes.tokens, data.sizes.stage_two_tokens(config))
        sums = [sorted((int(tokens[row].sum()) for row in data.train.rows), reverse=True) for tokens in stages]
        length, expanded = (sum(lengths[:rows]) for lengths in sums)
    else:
        length = rows * data.train.budget  # type: ignore[union-attr]
        size = config.sizes[data.size]
        expanded = length + max(size.after - size.before, 0) * (length // size.before)
    multiple = data.collator.pad_to_multiple_of or 1
    return length + -length % multiple, expanded + multiple - 1


def _check_settings(data_arguments: DataArguments, arguments: TrainingArguments) -> None:
    """Raises `ValueError` for settings that contradict each other."""
    if data_arguments.streaming and arguments.max_steps <= 0:
        raise ValueError("`streaming` data have an unknown number of samples: set `max_steps`.")
    if data_arguments.packing_tokens and arguments.train_sampling_strategy == "sequential":
        raise ValueError(
            f"`train_sampling_strategy` is 'sequential' with `packing_tokens`={data_arguments.packing_tokens}, but "
            "packing chooses which samples share a row. Leave one of them unset."
        )
    for which in ("train", "eval"):
        source, split = getattr(data_arguments, f"{which}_data"), getattr(data_arguments, f"{which}_split")
        if split != "train" and (source is None or Path(source).is_file()):
            reason = "not set" if source is None else f"{source}, a file, which has no splits"
            raise ValueError(
                f"`{which}_split` is {split!r}, but `{which}_data` is {reason}. Leave `{which}_split` unset."
            )
    source, splits = data_arguments.eval_data, {data_arguments.train_split, data_arguments.eval_split}
    if source == data_arguments.train_data and len(splits) == 1 and not Path(source).is_file():
        raise ValueError(
            f"`eval_data` is {source} with `eval_split` {data_arguments.eval_split!r}, which is also the training "
            "data. Choose another `eval_split`."
        )


def _measure(data: TrainingData, arguments: TrainingArguments, config: InternVLXConfig) -> SampleSizes:
    """The sizes of all samples. The first process warns of those that are skipped or exceed the model's positions."""
    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")).expanduser() / "internvlx_sizes"
    with arguments.main_process_first(desc="measuring samples"):
        is_first = arguments.local_process_index == 0
        sizes = measure_sizes(data, arguments.dataloader_num_workers, cache, again=is_first)
    if not sizes.tokens.any():
        raise ValueError(f"None of the {len(sizes)} samples can be trained on; the warnings above say why.")
    skipped = int((sizes.tokens == 0).sum())
    if skipped and arguments.process_index == 0:
        logger.warning(f"{skipped} of {len(sizes)} samples are skipped: they are broken or too long.")
    positions = sizes.with_gains([size.positions - size.before for size in config.sizes])
    past = int((positions > config.position_limit).sum())
    if past and arguments.process_index == 0:
        logger.warning(
            f"{past} of {len(sizes)} samples take more than the {config.position_limit} positions of the language "
            "model, before or after LVTC's expansion. Lower `max_length` or the tiles per image."
        )
    return sizes


def _sources(data: TrainingData | StreamingTrainingData, source: str) -> list[dict]:
    """Names of datasets, without their path, and their sizes."""
    hub = {} if Path(source).exists() else {"hub_id": source}
    inner = data.source if isinstance(data, StreamingTrainingData) else data
    if not isinstance(inner, TrainingData):
        return [{"name": hub.get("hub_id", Path(source).name)} | hub]
    return [
        {
            "name": hub.get("hub_id") or Path(getattr(part.records, "path", source)).name,
            "samples": len(part.records),
            "repeat_time": part.repeat,
        }
        | hub
        for part in inner.parts
    ]
