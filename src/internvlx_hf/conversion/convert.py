# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting a checkpoint: a plan, one pass over its tensors, then all other files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checkpoints.atomic_folder import require_room, resolve_out
from ..checkpoints.folders import copy_companions, find_companions, find_source, require_apart, source_name
from ..checkpoints.names import LLAVA, NATIVE, RECIPE, REPORT
from ..checkpoints.shards import ShardWriter, plan_shards, shard_names, write_index
from ..checkpoints.weights import TensorInfo
from ..hub.checkpoint_folder import checkpoint_folder
from .llava import save_llava_sidecar
from .native import save_native_sidecar
from .options import ConversionOptions
from .prepare import Conversion, prepare
from .report import ConversionReport, make_report, read_history
from .target_settings import shared_settings
from .upgrades import InitialValues
from .verify import verify

GIGABYTE = 10**9


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    options: ConversionOptions | None = None,
    *,
    notes: Sequence[str] = (),
    size: str | int | None = None,
    **changes: Any,
) -> ConversionReport:
    """Convert an InternVL or LLaVA checkpoint to an InternVL-X checkpoint that carries its code, or back.

    With the defaults, the converted model gives the same answers as the original: same weights, same tiles. The
    weights are streamed one tensor at a time. `out` appears only when it is complete.

        convert_checkpoint("OpenGVLab/InternVL2-1B", "converted", projector="pvtc", lvtc=True)

    Args:
        source: a folder, or the id of a model on the Hub.
        out: the folder to make.
        options: what to change about the model and how to write it (default: change nothing).
        notes: sentences that the report and the model card get too (default: none).
        size: which of the sizes that the model offers the processor takes by default (default: the source's).
        changes: fields of [`ConversionOptions`] that override those of `options`: `to`, `projector`, `lvtc`,
            `downsample_ratio`, `init`, `router`, `slicing`, `max_patches`, `max_image_tokens`, `dtype`, `revision`,
            `base_model`, `max_shard_gigabytes`, `seed`, `verify`, `overwrite`.

    Returns:
        What was done, as saved in `conversion_report.json`.

    Raises:
        CheckpointError: if the checkpoint is of an unknown kind, if tensors are missing, unexpected, misshapen or not
            finite, or if a shard is missing or damaged. It is a `ValueError`.
        FileExistsError: if `out` exists and `overwrite` is not set, or if it holds files that this package did not
            write.
        OSError: if the disk is full or another process is writing `out`.
        ValueError: if an option is invalid or does not fit the checkpoint.
        TypeError: if there is no such option.
    """
    for name, path in (("source", source), ("out", out)):
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise ValueError(f"{name}={path!r}, expected a path.")
    options = replace(options or ConversionOptions(), **changes)
    out = resolve_out(out)
    require_apart(out, source)
    with checkpoint_folder(out, overwrite=options.overwrite) as partial:
        folder = find_source(source, options.revision)
        companions = find_companions(folder)
        conversion = prepare(folder, options)
        conversion.source.notes.extend(notes)
        if size is not None:
            conversion.source.tiling.change(tokens_per_tile=size)
        if history := read_history(conversion.source):
            companions |= find_companions(folder, (RECIPE,))
        shards = plan_shards(tensor_groups(conversion), int(options.max_shard_gigabytes * GIGABYTE))
        require_room(partial, num_bytes(shards))
        write_weights(conversion, partial, shards)
        write_sidecar(conversion, partial)
        report = make_report(conversion, source_name(source), history)
        if options.verify:
            report.checks = verify(conversion, partial)
        (partial / REPORT).write_text(report.to_json())
        copy_companions(companions, partial)
    return report


def tensor_groups(conversion: Conversion) -> list[dict[str, TensorInfo]]:
    """Target tensors in the order in which they are written, grouped by source tensor."""
    plan, rename = conversion.plan, conversion.rename
    stored = [
        plan.groups[name] for contents in conversion.weights.shards.values() for name in contents if name in plan.steps
    ]
    groups = [*stored, *({name: info} for name, info in plan.new.items())]
    return [{rename(name): info for name, info in group.items()} for group in groups]


def num_bytes(shards: list[dict[str, TensorInfo]]) -> int:
    return sum(info.num_bytes for tensors in shards for info in tensors.values())


def write_weights(conversion: Conversion, folder: Path, shards: list[dict[str, TensorInfo]]) -> None:
    """Convert, check and write the source's tensors in one pass, then write the new tensors."""
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
    """Run torch on one thread: the pieces are so small that waking other threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tensors(conversion: Conversion) -> Iterator[tuple[str | None, str, torch.Tensor]]:
    """Source name, target name and value of every tensor to write."""
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
    """Write the configuration, the processor (both with their code in our layout) and the generation settings."""
    config, images = conversion.config, conversion.image_processor
    if conversion.options.to == NATIVE:
        videos = conversion.processor().video_processor
        save_native_sidecar(folder, config, conversion.tokenizer, images, videos)
    elif conversion.options.to == LLAVA:
        save_llava_sidecar(folder, config, conversion.tokenizer, shared_settings(images))
    else:
        config.save_pretrained(folder)
        conversion.processor().save_pretrained(folder)
    conversion.generation_config.save_pretrained(folder)
