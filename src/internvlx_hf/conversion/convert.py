# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting a checkpoint: plan, then one pass over its tensors, then everything that goes beside the weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checkpoints.atomic_folder import require_room, resolve_out
from ..checkpoints.folders import copy_companions, find_companions, find_source, require_apart, source_name
from ..checkpoints.names import NATIVE, REPORT
from ..checkpoints.shards import ShardWriter, plan_shards, shard_names, write_index
from ..checkpoints.weights import TensorInfo
from ..hub.checkpoint_folder import checkpoint_folder
from .native import save_native_sidecar
from .options import ConversionOptions
from .prepare import Conversion, prepare
from .report import ConversionReport, make_report
from .upgrades import InitialValues
from .verify import verify

GIGABYTE = 10**9


def convert_checkpoint(
    source: str | Path, out: str | Path, options: ConversionOptions | None = None, **changes: Any
) -> ConversionReport:
    """Convert an InternVL checkpoint to an InternVL-X checkpoint that carries its code, or back.

    With the defaults the converted model answers as the original does: same weights, same tiles. The weights are streamed,
    a tensor at a time; `out` appears when it is complete, and not at all if anything fails.

        convert_checkpoint("OpenGVLab/InternVL2-1B", "converted", projector="pvtc", lvtc=True)

    Args:
        source: a folder, or the id of a model on the Hub.
        out: the folder to make.
        options: what to change about the model, and how to write it; by default nothing is changed.
        changes: fields of [`ConversionOptions`] in place of those of `options`: `to`, `projector`, `lvtc`,
            `downsample_ratio`, `init`, `slicing`, `max_patches`, `dtype`, `revision`, `base_model`, `max_shard_gigabytes`,
            `seed`, `verify`, `overwrite`.

    Returns:
        What was done, as it is saved in `conversion_report.json`.

    Raises:
        CheckpointError: the checkpoint is of an unknown kind, or has tensors that are missing, unexpected, misshapen or
            not finite; a shard is missing or damaged. A `ValueError`.
        FileExistsError: `out` exists, and `overwrite` is not set, or it holds what this package did not write.
        OSError: the disk is full, or another process is writing `out`.
        ValueError: an option is not possible or does not fit the checkpoint.
        TypeError: there is no such option.
    """
    for name, path in (("source", source), ("out", out)):
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise ValueError(f"{name}={path!r}, expected a path.")
    options = replace(options or ConversionOptions(), **changes)
    out = resolve_out(out)
    require_apart(out, source)
    with checkpoint_folder(out, overwrite=options.overwrite) as partial:
        folder = find_source(source, options.revision)
        licences = find_companions(folder)
        conversion = prepare(folder, options)
        shards = plan_shards(tensor_groups(conversion), int(options.max_shard_gigabytes * GIGABYTE))
        require_room(partial, num_bytes(shards))
        write_weights(conversion, partial, shards)
        write_sidecar(conversion, partial)
        report = make_report(conversion, source_name(source))
        if options.verify:
            report.checks = verify(conversion, partial)
        (partial / REPORT).write_text(report.to_json())
        copy_companions(licences, partial)
    return report


def tensor_groups(conversion: Conversion) -> list[dict[str, TensorInfo]]:
    """Target tensors in the order in which they will be written, those of one source tensor together."""
    plan, rename = conversion.plan, conversion.rename
    stored = [
        plan.groups[name] for contents in conversion.weights.shards.values() for name in contents if name in plan.steps
    ]
    groups = [*stored, *({name: info} for name, info in plan.new.items())]
    return [{rename(name): info for name, info in group.items()} for group in groups]


def num_bytes(shards: list[dict[str, TensorInfo]]) -> int:
    return sum(info.num_bytes for tensors in shards for info in tensors.values())


def write_weights(conversion: Conversion, folder: Path, shards: list[dict[str, TensorInfo]]) -> None:
    """One pass over the source's tensors, each converted, checked and written at once; then the new ones."""
    files = dict(zip(shard_names(len(shards)), shards, strict=True))
    writers = {file: ShardWriter(folder / file, tensors) for file, tensors in files.items()}
    writer_of = {name: writers[file] for file, tensors in files.items() for name in tensors}
    try:
        with _one_thread(), tqdm(total=num_bytes(shards), unit="B", unit_scale=True, desc="Converting") as progress:
            for source, target, tensor in _tensors(conversion):
                name = conversion.rename(target)
                writer_of[name].write(name, tensor, source)
                progress.update(writer_of[name].tensors[name].num_bytes)
    finally:
        for writer in writers.values():
            writer.close()
    if len(files) > 1:
        write_index(folder, files)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing out pieces that take less time than waking a thread, tens of times on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tensors(conversion: Conversion) -> Iterator[tuple[str | None, str, torch.Tensor]]:
    """Source name, target name and value of everything that is to be written."""
    plan = conversion.plan
    for path in conversion.weights.shards:
        with conversion.weights.open(path) as tensors:
            for name, tensor in tensors:
                if name in plan.steps:
                    for target, part in plan.convert(name, tensor):
                        yield name, target, part
    if plan.new:
        initial_value = InitialValues(conversion.config, conversion.upgrade, conversion.options.seed)
        for name, info in plan.new.items():
            yield None, name, initial_value(name, info)


def write_sidecar(conversion: Conversion, folder: Path) -> None:
    """Write the configuration and the processor, ours with their code, and the generation settings."""
    if conversion.options.to == NATIVE:
        save_native_sidecar(folder, conversion.config, conversion.tokenizer, conversion.source.tiling)
    else:
        conversion.config.save_pretrained(folder)
        conversion.processor().save_pretrained(folder)
    conversion.generation_config.save_pretrained(folder)
