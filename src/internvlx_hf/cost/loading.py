# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The setup of a preset or of a checkpoint's folder. A preset loads without transformers."""

from pathlib import Path
from typing import TYPE_CHECKING

from .presets import nearest_preset, preset_name, preset_tiling
from .setups import ModelSetup, PresetSetup

if TYPE_CHECKING:
    from ..conversion.sources import Source
    from ..processing import InternVLXVideoProcessor


def load_setup(model: str | Path) -> ModelSetup:
    """The setup of a preset, or of a checkpoint folder of this package or one that can be converted. Reads no weights.

    Raises:
        ValueError: if there is no such folder or preset, or the folder's configuration is of an unknown kind.
    """
    folder = Path(model)
    if folder.is_dir():
        return _read_folder(folder)
    name = preset_name(str(model))
    if name is None:
        raise ValueError(
            f"{str(model)!r} is neither a folder nor a preset. Expected a checkpoint's folder or a preset. Did you "
            f"mean {nearest_preset(str(model))!r}?"
        )
    return PresetSetup(name, preset_tiling(name), name)


def _read_folder(folder: Path) -> ModelSetup:
    source = _source(folder)
    return ModelSetup.reading(folder.resolve().name, source.config, source.tiling.effective)


def load_video_processor(model: str | Path) -> "InternVLXVideoProcessor":
    """The video processor of a checkpoint folder, as [`load_setup`] reads it; that of a preset has the default
    settings.

    Raises:
        ValueError: if the folder's configuration is of an unknown kind.
    """
    from ..processing import InternVLXVideoProcessor

    folder = Path(model)
    return InternVLXVideoProcessor(**_source(folder).tiling.video if folder.is_dir() else {})


def _source(folder: Path) -> "Source":
    from ..checkpoints.json_files import read_json
    from ..checkpoints.names import WEIGHTS
    from ..conversion.sources import read_source

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, expected a checkpoint's folder or the name of a preset.")
    raw = read_json(folder / "config.json")
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    # only the names of a released checkpoint's tensors show whether it has PVTC
    needs_names = has_weights and raw.get("model_type") == "internvl_chat"
    return read_source(folder, None if needs_names else {})
