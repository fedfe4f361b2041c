# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The setting of a checkpoint's folder. Reads no weights."""

from pathlib import Path

from ..checkpoints.json_files import read_json
from ..checkpoints.names import PROCESSOR_FILES, WEIGHTS
from ..conversion.sources import read_source
from ..processing import InternVLXImageProcessor
from .settings import Setting, tiling_rule


def read_folder(folder: Path) -> Setting:
    """The setting of a checkpoint, ours or one that `internvlx convert` reads.

    Raises:
        ValueError: there is no configuration, or one of an unknown kind.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, expected a checkpoint's folder or the name of a preset.")
    raw = read_json(folder / "config.json")
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    # whether a released checkpoint has PVTC shows in the names of its tensors alone
    needs_names = has_weights and raw.get("model_type") == "internvl_chat"
    source = read_source(folder, None if needs_names else {})
    processor = None
    if source.layout == "internvl_x":
        has_processor = any((folder / name).is_file() for name in PROCESSOR_FILES)
        size = {"height": source.config.tile_size, "width": source.config.tile_size}
        processor = (
            InternVLXImageProcessor.from_pretrained(folder) if has_processor else InternVLXImageProcessor(size=size)
        )
    tiling = tiling_rule(source.tiling if processor is None else processor, source.config)
    return Setting(folder.resolve().name, source.config, tiling)
