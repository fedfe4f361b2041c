# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The data of a run as its settings say: loaded, measured, packed, and with the collator that goes with it."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
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

logger = logging.get_logger(__name__)


@dataclass
class RunData:
    """What a `Trainer` is given.

    Attributes:
        train, evaluation: datasets of training samples, or of rows of them.
        collator: makes batches of either.
        costs: of each sample, for batches of like cost; None where there is no choice.
        sizes: of each sample, where they were measured.
        sources, evaluation_sources: for the record of the run, `{"name", "samples", ...}` each.
        settings: for the record too, what was done to them.
        skipped: how many samples measuring left out, by why.
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


def load_run_data(
    data_arguments: DataArguments,
    arguments: TrainingArguments,
    processor: InternVLXProcessor,
    config: InternVLXConfig,
) -> RunData:
    """Load the data of a run.

    Measuring, which packing and batches of like cost need, reads every text and every image's header once; what it finds is
    kept beside the caches of `datasets`.

    Raises:
        ValueError: the settings contradict themselves, or the data are of no known kind or broken.
        OSError: something cannot be read.
    """
    _check(data_arguments, arguments)
    budget, streaming = data_arguments.packing_tokens, data_arguments.streaming
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    load = partial(
        load_training_data,
        processor=processor,
        image_root=data_arguments.image_root,
        max_length=data_arguments.max_length,
        on_too_long=data_arguments.on_too_long,
        on_broken=data_arguments.on_broken,
        share_tiles=data_arguments.share_tiles,
    )
    data = load(
        data_arguments.train_data,
        split=data_arguments.train_split,
        streaming=streaming,
        shuffle_buffer=data_arguments.shuffle_buffer,
        endless=streaming,
        seed=seed,
    )
    collator = InternVLXDataCollator(
        processor, packing=bool(budget), pad_to_multiple_of=data_arguments.pad_to_multiple_of
    )
    run = RunData(data, collator, sources=_sources(data, data_arguments.train_data))
    run.settings = {
        "max_length": data_arguments.max_length,
        "packing_tokens": budget,
        "share_tiles": data_arguments.share_tiles,
    }
    if data_arguments.eval_data:
        run.evaluation = load(data_arguments.eval_data, split=data_arguments.eval_split)
        run.evaluation_sources = _sources(run.evaluation, data_arguments.eval_data)
    if isinstance(data, StreamingTrainingData):
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
    """The most tokens that a batch of packed rows, which becomes one row, can have before and after LVTC's expansion.

    Of a stream, where nothing is measured: what so many full rows of nothing but images would have.
    """
    if isinstance(data.train, PackedData) and data.sizes is not None:
        stages = (data.sizes.tokens, data.sizes.stage_two_tokens(config))
        sums = [sorted((int(tokens[row].sum()) for row in data.train.rows), reverse=True) for tokens in stages]
        length, expanded = (sum(lengths[:rows]) for lengths in sums)
    else:
        length = rows * data.train.budget  # type: ignore[union-attr]
        gain = config.expanded_image_seq_length - config.image_seq_length
        expanded = length + max(gain, 0) * (length // config.image_seq_length)
    multiple = data.collator.pad_to_multiple_of or 1
    return length + -length % multiple, expanded + multiple - 1


def _check(data_arguments: DataArguments, arguments: TrainingArguments) -> None:
    """Raises `ValueError` for settings that contradict themselves."""
    if data_arguments.streaming and arguments.max_steps <= 0:
        raise ValueError("`streaming` data do not say how many there are: set `max_steps`.")
    source, splits = data_arguments.eval_data, {data_arguments.train_split, data_arguments.eval_split}
    if source == data_arguments.train_data and len(splits) == 1 and not Path(source).is_file():
        raise ValueError(
            f"`eval_data` is {source}, of which `eval_split` is {data_arguments.eval_split!r} as `train_split` is: these "
            "data are trained on. Choose another `eval_split`."
        )


def _measure(data: TrainingData, arguments: TrainingArguments, config: InternVLXConfig) -> SampleSizes:
    """The sizes of all samples; the first process warns of those that are left out or exceed the model's positions."""
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "internvlx_sizes"
    with arguments.main_process_first(desc="measuring samples"):
        is_first = arguments.local_process_index == 0
        sizes = measure_sizes(data, arguments.dataloader_num_workers, cache, again=is_first)
    if not sizes.tokens.any():
        raise ValueError(f"None of the {len(sizes)} samples can be trained on; the warnings above say why.")
    left_out = int((sizes.tokens == 0).sum())
    if left_out and arguments.process_index == 0:
        logger.warning(f"{left_out} of {len(sizes)} samples are left out: they are broken or too long.")
    past = int((np.maximum(sizes.tokens, sizes.stage_two_tokens(config)) > config.position_limit).sum())
    if past and arguments.process_index == 0:
        logger.warning(
            f"{past} of {len(sizes)} samples take more positions than the {config.position_limit} that the language model "
            "is made for, before or after LVTC's expansion. Lower `max_length` or the tiles per image."
        )
    return sizes


def _sources(data: TrainingData | StreamingTrainingData, source: str) -> list[dict]:
    """Names without where they lie, and how much there is."""
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
