# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What decides an image's cost: a model and how it slices images; and the same varied."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..processing.rvtc import SLICING_STRATEGIES, TilingRule
from .presets import preset
from .sizes import Sizes, preset_sizes
from .variants import vary

if TYPE_CHECKING:
    from ..conversion.sources import Tiling
    from ..modeling import InternVLXConfig
    from ..processing import InternVLXImageProcessor

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
    config: "InternVLXConfig"
    tiling: TilingRule

    @property
    def sizes(self) -> Sizes:
        """All that a prompt's cost follows from."""
        from .measure import measure

        return measure(self.config)

    @property
    def projector(self) -> str:
        return self.sizes.projector_type

    @property
    def is_native(self) -> bool:
        """Whether it costs as with InternVL's own code: its projector, its way to cut, no LVTC."""
        shuffles = self.projector == "pixel_shuffle" and self.sizes.downsample_ratio == 0.5
        return shuffles and self.tiling.slicing == "ratio" and not self.has_lvtc

    @property
    def has_lvtc(self) -> bool:
        return self.sizes.lvtc_config is not None

    def costs_as(self, other: "Setting") -> bool:
        """Whether every picture costs the same in both."""
        return self.tiling == other.tiling and self.sizes == other.sizes

    def varied(self, variant: str, name: str, tiling: TilingRule) -> "Setting":
        """One of `variants.VARIANTS` of the model.

        Raises:
            ValueError: the variant does not fit the model.
        """
        return Setting(name, vary(self.config, variant), tiling)


@dataclass(frozen=True, eq=False)
class PresetSetting(Setting):
    """A preset or a variant of it: its sizes are known, its configuration is built when it is asked for."""

    config: "InternVLXConfig" = field(init=False, repr=False)
    preset: str
    variant: str = "own"

    def __getattr__(self, name: str):
        if name != "config":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, "config", vary(preset(self.preset), self.variant))
        return self.config

    @property
    def sizes(self) -> Sizes:
        # a configuration that was asked for may have been edited
        return super().sizes if "config" in vars(self) else preset_sizes(self.preset, self.variant)

    def varied(self, variant: str, name: str, tiling: TilingRule) -> Setting:
        if self.variant != "own":
            return super().varied(variant, name, tiling)
        return PresetSetting(name, tiling, self.preset, variant)


def tiling_rule(settings: "InternVLXImageProcessor | Tiling", config: "InternVLXConfig") -> TilingRule:
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


def native(setting: Setting, max_tiles: int) -> Setting:
    """The same model as InternVL2 and 2.5 have it: pixel shuffle by 2, no LVTC, cut by aspect ratio."""
    tiling = replace(setting.tiling, min_tiles=1, max_tiles=max_tiles, slicing="ratio", use_thumbnail=True)
    return setting.varied("native", f"native InternVL, max {max_tiles}", tiling)


def side_by_side(setting: Setting) -> tuple[list[Setting], list[str]]:
    """The setting first; then each way to cut pictures without and with LVTC; then InternVL2's and 2.5's own settings.

    LVTC is the model's own, or the default one where it has none. What the setting itself is does not come twice.

    Returns:
        The settings, and why some are left out.
    """
    found, notes = [setting], []
    for variant in ("LVTC off", "LVTC on"):
        try:
            for slicing in reversed(SLICING_STRATEGIES):
                tiling = replace(setting.tiling, slicing=slicing)
                found.append(setting.varied(variant, f"{slicing}, {variant}", tiling))
        except ValueError as error:
            notes.append(f"without LVTC, for it does not fit this model: {error}")
    for max_tiles in NATIVE_MAX_TILES:
        try:
            found.append(native(setting, max_tiles))
        except ValueError as error:
            notes.append(f"without InternVL's own settings, for they do not fit this model: {error}")
            break
    others = [other for other in found[1:] if not other.costs_as(setting)]
    return [setting, *others], notes
