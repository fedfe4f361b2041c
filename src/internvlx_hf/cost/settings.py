# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What decides a picture's cost: a model and how it cuts pictures. Read from a checkpoint or a preset, and varied."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.json_files import read_json
from ..checkpoints.names import PROCESSOR_FILES, WEIGHTS
from ..conversion.sources import Tiling, read_source
from ..modeling import InternVLXConfig, InternVLXLVTCConfig, InternVLXProjectorConfig
from ..processing import InternVLXImageProcessor
from ..processing.rvtc import SLICING_STRATEGIES, TilingRule
from .presets import nearest_preset, preset, preset_name, preset_tiling

# most tiles of a picture that InternVL2 and 2.5 were trained with, and that their own processor asks for
NATIVE_MAX_TILES = (6, 12)


@dataclass(frozen=True, eq=False)
class Setting:
    """A model's configuration and how it cuts pictures.

    Args:
        name: the preset, the folder, or what was changed.
        config: the model's.
        tiling: `tiling.plan(width, height).num_tiles` tiles a picture.
    """

    name: str
    config: InternVLXConfig
    tiling: TilingRule

    @property
    def projector(self) -> str:
        return self.config.projector_config.projector_type

    @property
    def is_native(self) -> bool:
        """Whether it costs as with InternVL's own code: its projector, its way to cut, no LVTC."""
        shuffles = self.projector == "pixel_shuffle" and self.config.downsample_ratio == 0.5
        return shuffles and self.tiling.slicing == "ratio" and not self.has_lvtc

    @property
    def has_lvtc(self) -> bool:
        return self.config.lvtc_config is not None

    def costs_as(self, other: "Setting") -> bool:
        """Whether every picture costs the same in both."""
        return self.tiling == other.tiling and self.config.to_dict() == other.config.to_dict()


def load_setting(model: str | Path) -> Setting:
    """The setting of a checkpoint folder, ours or one that `internvlx convert` reads, or of a preset. Reads no weights.

    Raises:
        ValueError: neither is there, or the folder's configuration is of an unknown kind.
    """
    folder = Path(model)
    if not folder.is_dir():
        name = preset_name(str(model))
        if name is None:
            raise ValueError(
                f"{str(model)!r} is neither a folder nor a preset. Expected a checkpoint's folder or a preset; the nearest "
                f"is {nearest_preset(str(model))!r}."
            )
        return Setting(name, preset(name), preset_tiling(name))
    return _read_folder(folder)


def _read_folder(folder: Path) -> Setting:
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


def tiling_rule(settings: InternVLXImageProcessor | Tiling, config: InternVLXConfig) -> TilingRule:
    """How an image processor cuts, or what the conversion has read of it; both name things alike."""
    cuts = settings.crop_to_patches is not False  # None: undecided, a processor cuts then
    return TilingRule(
        config.tile_size,
        config.tile_size,
        min_tiles=settings.min_patches if cuts else 1,
        max_tiles=settings.max_patches if cuts else 1,
        slicing=settings.slicing,
        use_thumbnail=settings.use_thumbnail,
    )


def with_lvtc(config: InternVLXConfig, lvtc: InternVLXLVTCConfig | None) -> InternVLXConfig:
    """The configuration with these settings of LVTC, or without it.

    Raises:
        ValueError: LVTC does not fit the model.
    """
    config = copy.deepcopy(config)
    config.lvtc_config = copy.deepcopy(lvtc)
    config.check_geometry()
    return config


def native(setting: Setting, max_tiles: int) -> Setting:
    """The same model as InternVL2 and 2.5 have it: pixel shuffle by 2, no LVTC, cut by aspect ratio."""
    config = copy.deepcopy(setting.config)
    config.lvtc_config, config.downsample_ratio = None, 0.5
    config.projector_config = InternVLXProjectorConfig(projector_type="pixel_shuffle")
    config.check_geometry()
    tiling = replace(setting.tiling, min_tiles=1, max_tiles=max_tiles, slicing="ratio", use_thumbnail=True)
    return Setting(f"native InternVL, max {max_tiles}", config, tiling)


def side_by_side(setting: Setting) -> tuple[list[Setting], list[str]]:
    """The setting first; then each way to cut pictures without and with LVTC; then InternVL2's and 2.5's own settings.

    LVTC is the model's own, or the default one where it has none. What the setting itself is does not come twice.

    Returns:
        The settings, and why some are left out.
    """
    found, notes = [setting], []
    own = setting.config.lvtc_config
    for lvtc in (None, own or InternVLXLVTCConfig()):
        try:
            config = with_lvtc(setting.config, lvtc)
        except ValueError as error:
            notes.append(f"without LVTC, for it does not fit this model: {error}")
            continue
        for slicing in reversed(SLICING_STRATEGIES):
            name = f"{slicing}, LVTC {'off' if lvtc is None else 'on'}"
            found.append(Setting(name, config, replace(setting.tiling, slicing=slicing)))
    for max_tiles in NATIVE_MAX_TILES:
        try:
            found.append(native(setting, max_tiles))
        except ValueError as error:
            notes.append(f"without InternVL's own settings, for they do not fit this model: {error}")
            break
    others = [other for other in found[1:] if not other.costs_as(setting)]
    return [setting, *others], notes
