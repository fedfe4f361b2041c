# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A summary of the training data for the console."""

import math

import numpy as np
from transformers import TrainingArguments

from ..checkpoints.numbers import counted
from ..cost.report import table
from ..data import PackedData
from ..modeling import InternVLXConfig
from .run_data import RunData


def data_summary(data: RunData, arguments: TrainingArguments, config: InternVLXConfig) -> str:
    """The datasets, the sizes of their samples if these were measured, and the number of steps."""
    parts = [_sources(data)]
    if data.sizes is not None:
        parts += [_sizes(data, config), "\n".join(_remarks(data))]
    parts.append(_steps(data, arguments))
    return "\n\n".join(parts)


def _sources(data: RunData) -> str:
    """One row per dataset. The number of samples of a stream is unknown."""
    rows = []
    for use, sources in (("train", data.sources), ("eval", data.evaluation_sources)):
        for source in sources:
            records, repeat = source.get("samples"), source.get("repeat_time", 1)
            counts = ["?", "", "?"] if records is None else [f"{records:,}", f"{repeat:g}", f"{records * repeat:,.0f}"]
            rows.append([source["name"], use, *counts])
    return table(["data", "use", "records", "repeat", "samples"], rows, left=(0, 1))


def _sizes(data: RunData, config: InternVLXConfig) -> str:
    sizes = data.sizes
    assert sizes is not None
    kept = sizes.tokens > 0
    columns = {"images": sizes.images, "tiles": sizes.tiles, "tokens": sizes.tokens}
    if ((later := sizes.stage_two_tokens(config)) != sizes.tokens).any():
        del columns["tokens"]
        columns |= {"tokens in stage one": sizes.tokens, "tokens in stage two": later}
    columns["supervised tokens"] = sizes.supervised
    rows = [
        [name, f"{values[kept].mean():,.1f}", f"{np.median(values[kept]):,.0f}", f"{values[kept].max():,}"]
        for name, values in columns.items()
        if values is not None
    ]
    return table(["per sample", "mean", "median", "max"], rows, left=(0,))


def _remarks(data: RunData) -> list[str]:
    sizes, limit = data.sizes, data.settings.get("max_length")
    assert sizes is not None
    lines = []
    reasons = {"broken": "cannot be read", "too_long": f"longer than max_length={limit}"}
    for kind, count in data.skipped.items():
        if count:
            lines.append(f"Skipped: {counted(count, 'sample')}, {reasons[kind]} (see the warnings above).")
    if sizes.cut is not None and (cut := int(sizes.cut.sum())):
        lines.append(f"Truncated: {counted(cut, 'sample')}, to max_length={limit}.")
    if sizes.supervised is not None:
        lines.append(f"Supervised: {sizes.supervised.sum() / max(sizes.tokens.sum(), 1):.1%} of all tokens.")
    if isinstance(data.train, PackedData):
        rows, budget = len(data.train), data.train.budget
        filled = sizes.tokens.sum() / (rows * budget)
        lines.append(f"Packed: {rows:,} rows of {budget:,} tokens, {filled:.1%} of them filled.")
    return lines


def _steps(data: RunData, arguments: TrainingArguments) -> str:
    """The number of steps, as the `Trainer` counts them: the rest of an epoch is a step as well."""
    accumulation = arguments.gradient_accumulation_steps
    batch = arguments.train_batch_size * arguments.world_size
    unit = "row" if data.settings.get("packing_tokens") else "sample"
    each = f"{counted(batch * accumulation, unit)} per step"
    if not hasattr(data.train, "__len__"):
        return f"{counted(arguments.max_steps, 'step')}, {each}"
    count = len(data.train)
    batches = count // batch if arguments.dataloader_drop_last else math.ceil(count / batch)
    steps = max(math.ceil(batches / accumulation), 1)
    total = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * steps)
    return f"{counted(total, 'step')}, {each}; {counted(steps, 'step')} per epoch"
