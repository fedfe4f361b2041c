# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The settings that are tried: a model's own with some of its image settings changed, and what each costs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..cost import CostModel, ModelSetup
from ..cost.images import Size
from ..evaluation.answering import Answerer
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_STRATEGIES
from .items import Item

# a setting is what it changes; this one changes nothing
OWN = ImageSettings()
# of the largest number of tiles, or of visual tokens of a prompt
PARTS = (2, 3, 4, 6, 8, 12)


def named(setting: ImageSettings) -> str:
    """A setting as it is given to a function: "slicing=edge, max_patches=3"."""
    return ", ".join(f"{name}={value}" for name, value in setting.given.items()) or "the model's own"


class Costs:
    """What questions cost under each setting, as `internvlx cost` counts it, and the tiles that they read.

    Args:
        answerer: the model with its own settings.
        items: the questions.
    """

    def __init__(self, answerer: Answerer, items: Sequence[Item]):
        self.processor, config = answerer.changed_processor, answerer.model.config
        upright = self.processor.image_processor.do_exif_transpose is not False
        self.sizes = {item.key: item.sizes_seen(upright) for item in items}
        self.own = ModelSetup.reading("own", config, answerer.image_settings)
        self._models: dict[ImageSettings, CostModel] = {}

    def model(self, setting: ImageSettings) -> CostModel:
        """Raises: ValueError: if the setting does not fit the model."""
        if setting not in self._models:
            self._models[setting] = CostModel(self.own.changed(setting))
        return self._models[setting]

    def flops(self, setting: ImageSettings) -> float:
        """The mean FLOPs before the first token, over all items."""
        model = self.model(setting)
        return sum(model.together(sizes).prefill_flops for sizes in self.sizes.values()) / len(self.sizes)

    def tiles(self, setting: ImageSettings, item: Item) -> str:
        """The tiles of an item's images and their sizes. Under settings with the same ones, a model reads the same."""
        return self._tiles(setting, self.sizes[item.key])

    def all_tiles(self, setting: ImageSettings) -> tuple[str, ...]:
        """The tiles of every item's images: what a setting changes."""
        return tuple(self._tiles(setting, sizes) for sizes in self.sizes.values())

    def _tiles(self, setting: ImageSettings, sizes: list[Size]) -> str:
        rules, choices = self.processor.plan_images(sizes, setting.given)
        names = []
        for rule, choice, size in zip(rules, choices, sizes, strict=True):
            plan = rule.plan(*size)
            taken = dict.fromkeys(choice[: 1 + plan.has_thumbnail])
            sized = f" of {'+'.join(self.processor.sizes[index] for index in taken)}" if any(taken) else ""
            names.append(f"{plan.columns}x{plan.rows}" + "+1" * plan.has_thumbnail + sized)
        return ", ".join(names)

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each image setting that may be cheaper than the model's own."""
        tiling, own = self.own.tiling, self.model(OWN)
        most_tiles = [max(tiling.max_tiles // part, 1) for part in PARTS]
        tokens = max(own.together(sizes).stage_one_tokens for sizes in self.sizes.values())
        budgets = [tokens // part for part in PARTS]
        return {
            "slicing": [name for name in SLICING_STRATEGIES if name != tiling.slicing],
            "max_patches": [n for n in dict.fromkeys(most_tiles) if tiling.min_tiles <= n < tiling.max_tiles],
            "max_image_tokens": [n for n in dict.fromkeys(budgets) if n >= own.sizes.image_seq_length],
            "tokens_per_tile": self.processor.sizes[1:],
        }

    def cheaper(
        self, start: ImageSettings, axis: str, seen: set[tuple[str, ...]] | None = None
    ) -> list[ImageSettings]:
        """The settings along an axis that cost less than `start`, the cheapest first, each with tiles of its own.

        Args:
            seen: tiles of settings that are left out too.
        """
        before, seen = self.flops(start), seen or set()
        found: dict[tuple[str, ...], ImageSettings] = {}
        for value in self.axes[axis]:
            setting = replace(start, **{axis: value})
            try:
                tiles = self.all_tiles(setting)
                if tiles not in seen and self.flops(setting) < before:
                    found.setdefault(tiles, setting)
            except ValueError:  # a budget without room for the images
                continue
        return sorted(found.values(), key=self.flops)
