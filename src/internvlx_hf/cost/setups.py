# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Setups, which determine an image's cost: a model and how it tiles images; and variants of them."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_STRATEGIES, TilingRule
from ..processing.size_choices import frame_size
from .presets import preset
from .sizes import Sizes, preset_sizes
from .variants import vary

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

# maximum tiles per image in the training of InternVL2 and 2.5, and in their own processor
NATIVE_MAX_TILES = (6, 12)


@dataclass(frozen=True, eq=False)
class ModelSetup:
    """A model's configuration and how it tiles images.

    Args:
        name: name of the preset, the folder or the variant.
        config: the model's configuration.
        tiling: bounds the tiles of each image.
        settings: the settings of images that `tiling` does not have, such as the budget of a prompt (default: none).
    """

    name: str
    config: "InternVLXConfig"
    tiling: TilingRule
    settings: ImageSettings = field(default=ImageSettings(), kw_only=True)

    @classmethod
    def reading(cls, name: str, config: "InternVLXConfig", settings: ImageSettings) -> "ModelSetup":
        """A model that reads images with settings."""
        return cls(name, config, TilingRule(config.tile_size, config.tile_size)).changed(settings)

    def changed(self, settings: ImageSettings) -> "ModelSetup":
        """The setup with the settings that are given. Raises: ValueError: if they contradict each other."""
        tiling, rest = settings.applied(self.tiling)
        return replace(self, tiling=tiling, settings=replace(self.settings, **rest.given))

    @property
    def max_image_tokens(self) -> int | None:
        """The budget of visual tokens of a prompt, see `token_budget.fit_rules`."""
        return self.settings.max_image_tokens

    @property
    def sizes(self) -> Sizes:
        """The numbers from which a prompt's cost is computed."""
        from .measure import measure

        return measure(self.config)

    @property
    def projector(self) -> str:
        return self.sizes.projector_type

    @property
    def is_native(self) -> bool:
        """Whether it costs the same as with InternVL's own code: its projector and slicing, no LVTC, no budget."""
        shuffles = self.projector == "pixel_shuffle" and self.sizes.downsample_ratio == 0.5
        changes = self.has_lvtc or self.max_image_tokens or self.settings.tokens_per_tile is not None
        return shuffles and self.tiling.slicing == "ratio" and not changes

    @property
    def has_lvtc(self) -> bool:
        return self.sizes.lvtc_config is not None

    @property
    def frame_size(self) -> str:
        """The size of a frame of a video, and of an image's tiles where the settings choose one size for all
        images.
        """
        return list(self.sizes.tiles)[frame_size(self.settings.tokens_per_tile, list(self.sizes.tiles))]

    def tokens_of_tiles(self, of: str = "") -> str:
        """The tokens of a tile in words: "64 tokens per tile, 256 from layer 17 on"; `of` follows the layer."""
        tile, layers = self.sizes.tiles[self.frame_size], [0, *self.sizes.boundaries]
        words = f"{tile.in_stages[0]} tokens per tile"
        for layer, (before, after) in zip(layers[1:], pairwise(tile.in_stages), strict=False):
            words += f", {after} from layer {layer}{of} on" if before != after else ""
        return words

    def costs_as(self, other: "ModelSetup") -> bool:
        """Whether every image costs the same with both."""
        return (self.tiling, self.settings) == (other.tiling, other.settings) and self.sizes == other.sizes

    def varied(self, variant: str, name: str, tiling: TilingRule) -> "ModelSetup":
        """The setup with one of `variants.VARIANTS` of the model.

        Raises:
            ValueError: if the variant does not fit the model.
        """
        settings = self.settings if variant == "own" else replace(self.settings, tokens_per_tile=None)
        return ModelSetup(name, vary(self.config, variant), tiling, settings=settings)


@dataclass(frozen=True, eq=False)
class PresetSetup(ModelSetup):
    """A preset or a variant of it. Its sizes are stored; its configuration is built on first use."""

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
        # once built, the configuration may have been edited
        return super().sizes if "config" in vars(self) else preset_sizes(self.preset, self.variant)

    def varied(self, variant: str, name: str, tiling: TilingRule) -> ModelSetup:
        if self.variant != "own":
            return super().varied(variant, name, tiling)
        return PresetSetup(name, tiling, self.preset, variant, settings=self.settings)


def native(setup: ModelSetup, max_tiles: int) -> ModelSetup:
    """The same model as in InternVL2 and 2.5: pixel shuffle by 2, no LVTC, slicing "ratio", no budget."""
    tiling = replace(setup.tiling, min_tiles=1, max_tiles=max_tiles, slicing="ratio", use_thumbnail=True)
    return replace(setup, settings=ImageSettings()).varied("native", f"native InternVL, max {max_tiles}", tiling)


def by_slicing(setup: ModelSetup) -> list[ModelSetup]:
    """The given setup, and the same with the other slicing strategies, if an image may have more than one tile."""
    others = [each for each in SLICING_STRATEGIES if each != setup.tiling.slicing and setup.tiling.max_tiles > 1]
    return [setup, *(replace(setup, tiling=replace(setup.tiling, slicing=each)) for each in others)]


def side_by_side(setup: ModelSetup) -> tuple[list[ModelSetup], list[str]]:
    """Setups to compare: the given one, each slicing strategy without and with LVTC, and InternVL2's and 2.5's own.

    LVTC is the model's own, or the default if it has none. Setups that cost the same are not repeated, nor slicing
    strategies where an image is one tile.

    Returns:
        The setups, and notes on those that are left out.
    """
    found, notes = [setup], []
    slicings = SLICING_STRATEGIES[::-1] if setup.tiling.max_tiles > 1 else (setup.tiling.slicing,)
    for variant in ("LVTC off", "LVTC on"):
        try:
            for slicing in slicings:
                tiling = replace(setup.tiling, slicing=slicing)
                found.append(setup.varied(variant, f"{slicing}, {variant}", tiling))
        except ValueError as error:
            notes.append(f"LVTC, which does not fit this model: {error}")
    for max_tiles in NATIVE_MAX_TILES if setup.projector != "linear" else ():  # LLaVA's
        try:
            found.append(native(setup, max_tiles))
        except ValueError as error:
            notes.append(f"InternVL's own settings, which do not fit this model: {error}")
            break
    distinct = [setup]
    for other in reversed(found[1:]):  # of equal ones, the one that is named native
        if not any(map(other.costs_as, distinct)):
            distinct.insert(1, other)
    return distinct, notes
