# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The settings that are tried: a model's own with some of its image settings changed, and what each costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import Any

from torch import nn

from ..cost import CostModel, ModelSetup
from ..cost.images import Size
from ..evaluation.answering import Answerer
from ..modeling import InternVLXConfig
from ..modeling.lvtc import LVTC
from ..modeling.tile_sizes import size_name
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_STRATEGIES
from .items import Item


@dataclass(frozen=True, kw_only=True)
class Setting(ImageSettings):
    """What is changed about how a model reads images.

    With a `merge_layer`, the model merges or drops the tokens of a tile before that layer, from `tokens_per_tile`'s
    first number to its second, whether it offers that size or not.
    """

    merge_layer: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes, by name."""
        return self.given | ({} if self.merge_layer is None else {"merge_layer": self.merge_layer})


OWN = Setting()  # changes nothing
# shares of the language model's layers, after which tokens of a tile are merged or dropped
DEPTHS = (1 / 2, 3 / 4, 7 / 8)
# of the largest number of tiles, or of visual tokens of a prompt
PARTS = (2, 3, 4, 6, 8, 12)


def named(setting: Setting) -> str:
    """A setting as it is given to a function: "slicing=edge, max_patches=3"."""
    return ", ".join(f"{name}={value}" for name, value in setting.changes.items()) or "the model's own"


def changed_config(config: InternVLXConfig, setting: Setting) -> InternVLXConfig:
    """A model's configuration with the size and the layer of a setting, if it has any.

    Raises:
        ValueError: if they do not fit the model.
    """
    if setting.merge_layer is None:
        return config
    config = copy(config)
    config.tokens_per_tile = list(dict.fromkeys([*map(str, config.sizes), setting.tokens_per_tile]))
    config.merge_layer = setting.merge_layer
    config.check_geometry()
    return config


def merges(config: InternVLXConfig) -> Iterator[tuple[str, int]]:
    """Sizes that shrink, and layers before which they do, other than a model's own: no weight belongs to them.

    The sizes are those that the model offers, and the default's tokens merged by the smallest block, and dropped. A
    router has none: it has been trained for its own two sizes.
    """
    if config.has_router:
        return
    before, layers = config.sizes[0].before, config.text_config.num_hidden_layers
    grid = isqrt(before)
    fewer = [(grid // side) ** 2 for side in range(2, grid + 1) if grid % side == 0][:1]
    own = [str(size) for size in config.sizes if size.after < size.before]
    for size in dict.fromkeys([*own, *(size_name(before, after) for after in (*fewer, 0))]):
        for layer in dict.fromkeys(round(share * layers) for share in DEPTHS):
            if 0 < layer < layers and (size not in own or layer != config.merge_layer):
                yield size, layer


@contextmanager
def under(setting: Setting, answerer: Answerer) -> Iterator[Answerer]:
    """The answerer under a setting. Within it the model merges tiles where the setting says; afterwards it is as
    before.
    """
    model, kwargs = answerer.model, answerer.images_kwargs | setting.given
    if setting.merge_layer is None:
        yield Answerer(model, answerer.processor, kwargs)
        return
    config, inner, processor = model.config, model.model, copy(answerer.processor)
    own, changed = (config.tokens_per_tile, config.merge_layer, inner.lvtc), changed_config(config, setting)
    lvtc = LVTC(config, inner.language_model) if inner.lvtc is None else inner.lvtc
    rotary_embs, rotary_emb = lvtc.rotary_embs, type(inner.language_model.rotary_emb)
    try:
        processor.offered_sizes = config.tokens_per_tile = changed.tokens_per_tile
        config.merge_layer, inner.lvtc = changed.merge_layer, lvtc
        embs = (rotary_emb(config.text_config) for _ in config.boundaries)
        lvtc.rotary_embs = nn.ModuleList(embs).to(model.device)
        yield Answerer(model, processor, kwargs)
    finally:
        lvtc.rotary_embs = rotary_embs
        config.tokens_per_tile, config.merge_layer, inner.lvtc = own


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
        self._models: dict[Setting, CostModel] = {}
        self._processors: dict[tuple, Any] = {}

    def model(self, setting: Setting) -> CostModel:
        """Raises: ValueError: if the setting does not fit the model."""
        if setting not in self._models:
            config = changed_config(self.own.config, setting)
            self._models[setting] = CostModel(replace(self.own, config=config).changed(setting))
        return self._models[setting]

    def flops(self, setting: Setting) -> float:
        """The mean FLOPs before the first token, over all items."""
        model = self.model(setting)
        return sum(model.together(sizes).prefill_flops for sizes in self.sizes.values()) / len(self.sizes)

    def tiles(self, setting: Setting, item: Item) -> str:
        """The tiles of an item's images and their sizes. Under settings with the same ones, a model reads the same."""
        return self._tiles(setting, self.sizes[item.key])

    def all_tiles(self, setting: Setting) -> tuple[str, ...]:
        """The tiles of every item's images: what a setting changes."""
        return tuple(self._tiles(setting, sizes) for sizes in self.sizes.values())

    def _tiles(self, setting: Setting, sizes: list[Size]) -> str:
        processor, names = self._processor(setting), []
        rules, choices = processor.plan_images(sizes, setting.given)
        for rule, choice, size in zip(rules, choices, sizes, strict=True):
            plan = rule.plan(*size)
            taken = dict.fromkeys(choice[: 1 + plan.has_thumbnail])
            sized = f" of {'+'.join(processor.sizes[index] for index in taken)}" if any(taken) else ""
            sized += "" if setting.merge_layer is None else f" at layer {setting.merge_layer}"
            names.append(f"{plan.columns}x{plan.rows}" + "+1" * plan.has_thumbnail + sized)
        return ", ".join(names)

    def _processor(self, setting: Setting) -> Any:
        """The model's, which offers a setting's size where that has a layer. Made once: every image asks for it."""
        if setting.merge_layer is None:
            return self.processor
        key = setting.tokens_per_tile, setting.merge_layer
        if key not in self._processors:
            self._processors[key] = processor = copy(self.processor)
            processor.offered_sizes = changed_config(self.own.config, setting).tokens_per_tile
        return self._processors[key]

    @cached_property
    def axes(self) -> dict[str, list[dict[str, Any]]]:
        """For each image setting, changes that may be cheaper than the model's own. With tokens per tile goes the
        boundary layer.
        """
        tiling, own = self.own.tiling, self.model(OWN)
        most_tiles = [max(tiling.max_tiles // part, 1) for part in PARTS]
        tokens = max(own.together(sizes).stage_one_tokens for sizes in self.sizes.values())
        budgets = [tokens // part for part in PARTS]
        values: dict[str, list] = {
            "slicing": [name for name in SLICING_STRATEGIES if name != tiling.slicing],
            "max_patches": [n for n in dict.fromkeys(most_tiles) if tiling.min_tiles <= n < tiling.max_tiles],
            "max_image_tokens": [n for n in dict.fromkeys(budgets) if n >= own.sizes.image_seq_length],
        }
        sizes = [*((size, None) for size in self.processor.sizes[1:]), *merges(self.own.config)]
        return {name: [{name: value} for value in each] for name, each in values.items()} | {
            "tokens_per_tile": [{"tokens_per_tile": size, "merge_layer": layer} for size, layer in sizes]
        }

    def cheaper(self, start: Setting, axis: str, seen: set[tuple[str, ...]] | None = None) -> list[Setting]:
        """The settings along an axis that cost less than `start`, the cheapest first, each with tiles of its own.

        Args:
            seen: tiles of settings that are left out too.
        """
        before, seen = self.flops(start), seen or set()
        found: dict[tuple[str, ...], Setting] = {}
        for change in self.axes[axis]:
            setting = replace(start, **change)
            try:
                tiles = self.all_tiles(setting)
                if tiles not in seen and self.flops(setting) < before:
                    found.setdefault(tiles, setting)
            except ValueError:  # a budget without room for the images
                continue
        return sorted(found.values(), key=self.flops)
