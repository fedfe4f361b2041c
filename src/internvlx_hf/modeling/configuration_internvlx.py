# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of InternVL-X (arXiv 2503.21307): vision tower, projector, layer-wise compression, language model."""

import os
import re
import shutil
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .configuration_parts import InternVLXLVTCConfig, InternVLXProjectorConfig
from .projectors import PROJECTORS
from .setting_checks import pair, require, require_choice, require_dtype, window_size
from .setting_names import (
    misspelt_names,
    refuse_misspelt_names,
    unknown_names,
    with_value_errors,
)
from .tile_sizes import TileSize, check_change, check_grid, parse_size, size_name
from .version import VERSION

logger = logging.get_logger(__name__)

# `auto_map` of every saved checkpoint: which class of its own code each Auto class loads
AUTO_MAP = {
    "AutoConfig": "configuration_internvlx.InternVLXConfig",
    "AutoModel": "modeling_internvlx.InternVLXForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_internvlx.InternVLXForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_internvlx.InternVLXForConditionalGeneration",
}

# heads of the attention with which InternVL3.5-Flash's router pools a tile
ROUTER_HEADS = 16
SUPPORTED_TEXT_MODELS = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mistral")


def _is_newer(version: str | None) -> bool:
    numbers = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version or "0", VERSION))
    return next(numbers) > next(numbers)


# Sub-configurations may be given as dictionaries but are read as objects: `Any` lets a type checker accept both.
if TYPE_CHECKING:
    ModelConfig = PretrainedConfig | Any
    ProjectorConfig = InternVLXProjectorConfig | Any
    LVTCConfig = InternVLXLVTCConfig | Any
else:
    # `PretrainedConfig` first: for each type that does not match, validation formats an error with the whole value
    ModelConfig = ProjectorConfig = LVTCConfig = PretrainedConfig | dict | None


@with_value_errors
@strict
class InternVLXConfig(PretrainedConfig):
    r"""
    Configuration of an InternVL-X model. `InternVLXConfig()` is InternViT-300M with PVTC and a Qwen2 language model.

    Args:
        vision_config (`dict` or `PretrainedConfig`, *optional*):
            The vision tower: `internvl_vision` (the default), or any vision model that `AutoModel` builds and that
            returns a square grid of patches, with or without a CLS token and registers before it (`clip_vision_model`,
            `siglip_vision_model`, `dinov2`, ...).
        text_config (`dict` or `PretrainedConfig`, *optional*, `qwen2` by default):
            The language model: llama, qwen2, qwen3, qwen3_moe, phi3 or mistral.
        image_token_id (`int`, defaults to 151667): id of the placeholder that image tokens replace.
        downsample_ratio (`float`, defaults to 0.5): 1 / M, tokens per patch along one side (`1 / 3` for M = 3).
        vision_feature_layer (`int`, defaults to -1): the hidden state of the tower to project (0: embeddings).
        projector_config (`dict` or [`InternVLXProjectorConfig`], *optional*): the projector.
        lvtc_config (`dict` or [`InternVLXLVTCConfig`], *optional*): layer-wise compression; `None` for none.
        tokens_per_tile (`list[str]`, *optional*):
            The sizes that the model offers, the default first: `["256", "64:256", "256:64"]`, see `tile_sizes.py`.
            `None` is the one size that `downsample_ratio` and `lvtc_config` give. In a list, LVTC applies to the sizes
            that grow. With a router, `None` is both of its sizes.
        merge_layer (`int`, *optional*): the first layer that sees fewer tokens of a tile whose size shrinks.
        router_relative_threshold, router_absolute_threshold (`float`, *optional*): thresholds of InternVL3.5-Flash's
            router, see `tile_router.py`; `None` for a model without one.
        tie_word_embeddings (`bool`, *optional*): share input and output embeddings (default: `text_config`'s value).
        internvlx_version (`str`, *optional*): the version of this package that saved the configuration.

    Other names are kept with a warning, since other tools add their own. In a configuration that a newer version
    saved, names that would raise are dropped with a warning.

    Raises:
        ValueError: if values cannot work together (the message gives them and what would be right), if a name is a
            near miss of one above, or if `projector_config` or `lvtc_config` has an unknown name.
    """

    model_type = "internvl_x"
    # A batch of text has no image outputs, so a Trainer cannot concatenate them over the batches of an evaluation.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_outputs", "router_logits", "aux_loss"]
    sub_configs = {
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "projector_config": InternVLXProjectorConfig,
        "lvtc_config": InternVLXLVTCConfig,
    }

    vision_config: ModelConfig = None
    text_config: ModelConfig = None
    image_token_id: int = 151667
    downsample_ratio: float | int = 0.5
    vision_feature_layer: int = -1
    projector_config: ProjectorConfig = None
    lvtc_config: LVTCConfig = None
    tokens_per_tile: list[Any] | None = None
    merge_layer: int | None = None
    router_relative_threshold: float | int | None = None
    router_absolute_threshold: float | int | None = None
    tie_word_embeddings: bool | None = None
    internvlx_version: str | None = None

    def __post_init__(self, **kwargs):
        unknown = unknown_names(type(self), kwargs)
        if _is_newer(self.internvlx_version):
            kwargs = {name: kwargs[name] for name in kwargs.keys() - misspelt_names(type(self), kwargs)}
        refuse_misspelt_names(type(self), kwargs)
        require_dtype("the configuration", kwargs.get("torch_dtype") if self.dtype is None else self.dtype)
        self._warn_about_unused(unknown, "the configuration")
        self._build_sub_configs()
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self.check_geometry()

    def _build_sub_configs(self) -> None:
        """Turn sub-configurations that are given as dictionaries into objects."""
        self.vision_config = _auto_sub_config("vision_config", self.vision_config, "internvl_vision")
        self.text_config = _auto_sub_config("text_config", self.text_config, "qwen2")
        self.projector_config = self._own_sub_config(InternVLXProjectorConfig, self.projector_config or {})
        if self.lvtc_config is not None:
            self.lvtc_config = self._own_sub_config(InternVLXLVTCConfig, self.lvtc_config)

    def _own_sub_config(
        self, config_class: type[PretrainedConfig], values: dict | PretrainedConfig
    ) -> PretrainedConfig:
        if isinstance(values, PretrainedConfig):
            require(
                values.model_type == config_class.model_type,
                f"`{config_class.base_config_key}` must be a dict or {config_class.__name__}, got "
                f"{type(values).__name__}.",
            )
            return values
        if _is_newer(self.internvlx_version):
            unknown = unknown_names(config_class, values)
            self._warn_about_unused(unknown, f"`{config_class.base_config_key}`")
            values = {name: value for name, value in values.items() if name not in unknown}
        return config_class(**values)

    def _warn_about_unused(self, names: list[str], place: str) -> None:
        if not names:
            return
        text = f"InternVL-X {VERSION} does not use {', '.join(map(repr, names))} of {place}."
        if _is_newer(self.internvlx_version):
            text += f" Version {self.internvlx_version} saved it."
        logger.warning_once(text)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, which sets `kwargs` on the finished configuration; the result is checked afterwards."""
        refuse_misspelt_names(cls, kwargs)
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).check_geometry()
        return loaded

    def update(self, config_dict: dict) -> None:
        """As in transformers, but a misspelt name raises a `ValueError` and leaves the configuration unchanged."""
        refuse_misspelt_names(type(self), config_dict)
        before = dict(self.__dict__)
        try:
            super().update(config_dict)
            self._build_sub_configs()
        except ValueError:
            self.__dict__ = before
            raise

    def to_dict(self) -> dict:
        """As in transformers, with this package's version added, and without sizes where there is only one."""
        values = {**super().to_dict(), "internvlx_version": VERSION}
        for name in ("tokens_per_tile", "merge_layer"):
            if values.get(name) is None:
                values.pop(name, None)
        return values

    def check_geometry(self) -> None:
        """Check that the parts fit together. Models check again, since a configuration may have been edited.

        Raises:
            ValueError: if they do not; the message names the value and what would fit.
        """
        self._build_sub_configs()
        text = self.text_config
        require_choice("text_config.model_type", text.model_type, SUPPORTED_TEXT_MODELS)
        require(
            0 <= self.image_token_id < text.vocab_size,
            f"`image_token_id`={self.image_token_id} is outside the vocabulary of {text.vocab_size} tokens.",
        )
        layers = self.vision_config.num_hidden_layers
        require(
            -layers - 1 <= self.vision_feature_layer <= layers,
            f"`vision_feature_layer` must be in {-layers - 1}...{layers} for a tower of {layers} layers, got "
            f"{self.vision_feature_layer}.",
        )
        for layer in self.projector_config.token_packer_layers or ():
            require(
                -layers - 1 <= layer <= layers,
                f"`projector_config.token_packer_layers` must be in {-layers - 1}...{layers} for a tower of {layers} "
                f"layers, got {layer}.",
            )
        if self.lvtc_config is not None:
            self.lvtc_config.resolve(text.num_hidden_layers)
        self._check_router()
        self._check_sizes()
        if self.lvtc_config is not None and self.tokens_per_tile is None:
            small, large = sorted((self.token_grid, self.expanded_token_grid))
            require(
                large % small == 0,
                f"LVTC needs token grids of which one divides the other, got {small} and {large} tokens per side.",
            )
        for name, (projector_type, side) in self.projectors.items():
            for each in (side, *self.other_sides(name)):
                PROJECTORS[projector_type].check_config(self, each)

    def _check_sizes(self) -> None:
        if self.tokens_per_tile is None:
            require(
                self.merge_layer is None,
                f"`merge_layer`={self.merge_layer} needs a size that shrinks in `tokens_per_tile`, got none.",
            )
            return
        require(
            bool(self.tokens_per_tile), "`tokens_per_tile` is empty. Expected at least one size, the default first."
        )
        self.tokens_per_tile = names = [size_name(*parse_size(size)) for size in self.tokens_per_tile]
        require(len(set(names)) == len(names), f"`tokens_per_tile` names a size twice: {names}.")
        sizes, layers, lvtc = self.sizes, self.text_config.num_hidden_layers, self.lvtc_config
        shrinking = [str(size) for size in sizes if size.after < size.before]
        require(
            (self.merge_layer is None) == (not shrinking)
            and (self.merge_layer is None or 1 <= self.merge_layer < layers),
            f"`merge_layer` must be in 1...{layers - 1} for a language model of {layers} layers and sizes that "
            f"shrink, and unset without any, got {self.merge_layer} with {', '.join(shrinking) or 'none'}.",
        )
        expanded = None if lvtc is None or lvtc.hr_projector_type is None else self.hr_grid**2
        for size in sizes:
            check_grid(str(size), size.before, self.patch_grid)
            check_change(size, expanded)
        require(
            lvtc is None or any(size.has_lvtc for size in sizes),
            f"`lvtc_config` is given, but no size grows in `tokens_per_tile`={names}.",
        )
        require(
            sizes[0].before == self.token_grid**2,
            f"`tokens_per_tile` starts with the default '{sizes[0]}', but `downsample_ratio`={self.downsample_ratio} "
            f"gives {self.token_grid**2} tokens per tile.",
        )

    def _check_router(self) -> None:
        thresholds = {name: getattr(self, name) for name in ("router_relative_threshold", "router_absolute_threshold")}
        given = [value for value in thresholds.values() if value is not None]
        require(len(given) != 1, f"A tile router needs both thresholds, got {thresholds}.")
        if not self.has_router:
            return
        require(
            all(0 <= value <= 1 for value in given), f"A tile router's thresholds must be in 0...1, got {thresholds}."
        )
        require(
            self.lvtc_config is None, "A tile router does not go with LVTC: set one of `router_...` and `lvtc_config`."
        )
        require(
            self.vision_feature_layer == -1,
            f"A tile router needs `vision_feature_layer`=-1, got {self.vision_feature_layer}.",
        )
        width = self.vision_config.hidden_size
        require(width % ROUTER_HEADS == 0, f"A tile router needs a tower of {ROUTER_HEADS} n channels, got {width}.")
        sizes = [str(self.image_seq_length), str((self.patch_grid // self.router_side) ** 2)]
        given = sizes if self.tokens_per_tile is None else [str(size) for size in self.tokens_per_tile]
        require(given == sizes, f"A tile router chooses between {sizes}, got `tokens_per_tile`={given}.")
        self.tokens_per_tile = sizes

    @property
    def has_router(self) -> bool:
        """Whether InternVL3.5-Flash's router chooses the sizes of tiles in `generate`."""
        return self.router_relative_threshold is not None

    @property
    def router_side(self) -> int:
        """M = m², the side of the windows of a tile that the router compresses."""
        name = "downsample_ratio (squared, of a compressed tile)"
        return window_size(self.downsample_ratio**2, self.patch_grid, name)

    @property
    def projectors(self) -> dict[str, tuple[str, int]]:
        """Type and window side M of each projector, keyed by module name, in the order in which they run."""
        side = window_size(self.downsample_ratio, self.patch_grid, "downsample_ratio")
        found = {"multi_modal_projector": (self.projector_config.projector_type, side)}
        if (lvtc := self.lvtc_config) is not None:
            lr = (lvtc.lr_projector_type, self._sides(lvtc_only=True)[0])
            found |= {f"lvtc.lr_projectors.{i}": lr for i in range(lvtc.num_lr_projectors - 1)}
            if lvtc.hr_projector_type is not None:
                found["lvtc.hr_projector"] = (lvtc.hr_projector_type, self.patch_grid // self.hr_grid)
        return found

    def other_sides(self, projector: str) -> list[int]:
        """Window sides M of a projector (a name in `projectors`) for the sizes besides its first."""
        # a router has its own projector of the smaller windows
        is_single = projector == "lvtc.hr_projector" or self.has_router
        return [] if is_single else self._sides(projector != "multi_modal_projector")[1:]

    def _sides(self, lvtc_only: bool) -> list[int]:
        sizes = [size for size in self.sizes if size.has_lvtc or not lvtc_only]
        return list(dict.fromkeys(self.patch_grid // isqrt(size.before) for size in sizes))

    @property
    def sizes(self) -> tuple[TileSize, ...]:
        """The sizes that a tile may have, the default first."""
        lvtc, grid = self.lvtc_config, self.token_grid
        k = None if lvtc is None else lvtc.expand_layer
        keeps = lvtc is not None and lvtc.expanded_positions == "kept"
        if self.tokens_per_tile is None:
            return (TileSize(grid**2, (grid if lvtc is None else self.hr_grid) ** 2, k, lvtc is not None, keeps),)
        found = []
        for before, after in map(parse_size, self.tokens_per_tile):
            grows = after > before
            boundary = None if before == after else k if grows else self.merge_layer
            found.append(TileSize(before, after, boundary, grows, keeps if grows else before != after))
        return tuple(found)

    @property
    def boundaries(self) -> list[int]:
        """The layers before which the number of tokens of a tile may change, in ascending order."""
        k = None if self.lvtc_config is None else self.lvtc_config.expand_layer
        return sorted({layer for layer in (k, self.merge_layer) if layer is not None})

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        height, width = pair(self.vision_config.image_size)
        require(
            height == width and height > 0, f"Tiles must be square, got `vision_config.image_size`={(height, width)}."
        )
        return height

    @property
    def patch_grid(self) -> int:
        """S, the side of a tile's grid of patches; pixels beyond the last whole patch are ignored."""
        height, width = pair(self.vision_config.patch_size)
        require(
            height == width and 0 < height <= self.tile_size,
            f"`vision_config.patch_size`={(height, width)} must be square and at most the tile size {self.tile_size}.",
        )
        return self.tile_size // height

    @property
    def token_grid(self) -> int:
        """N₁ = S / M₁, the side of a tile's token grid in `input_ids`."""
        return self.patch_grid // window_size(self.downsample_ratio, self.patch_grid, "downsample_ratio")

    @property
    def hr_grid(self) -> int:
        """N₂ = S / M₂, the side of the token grid of a tile that LVTC expands."""
        ratio = self.lvtc_config.downsample_ratio
        return self.patch_grid // window_size(ratio, self.patch_grid, "lvtc_config.downsample_ratio")

    @property
    def expanded_token_grid(self) -> int:
        """The side of the token grid of a tile of the default size after the boundary layer; N₁ if it has none."""
        return isqrt(self.sizes[0].after)

    @property
    def image_seq_length(self) -> int:
        """N₁², the tokens that a tile of the default size takes in `input_ids`."""
        return self.token_grid**2

    @property
    def expanded_image_seq_length(self) -> int:
        """The tokens that a tile of the default size takes after the boundary layer: N₂² with LVTC."""
        return self.sizes[0].after

    @property
    def tile_positions(self) -> int:
        """Positions that a tile of the default size takes in the stage where it takes more."""
        return self.sizes[0].positions

    def count_tokens(self, num_tiles: int, tile_sizes: Sequence[int] | None = None) -> tuple[int, int, int]:
        """Tokens of tiles before and after the boundary layer, and their positions.

        Args:
            tile_sizes: the index of each tile's size in `tokens_per_tile` (default: the first).
        """
        sizes = self.sizes
        own = [sizes[0]] * num_tiles if tile_sizes is None else [sizes[int(index)] for index in tile_sizes]
        return sum(size.before for size in own), sum(size.after for size in own), sum(size.positions for size in own)

    @property
    def position_limit(self) -> int:
        """Number of positions that the language model's rotary embedding supports.

        This is `max_position_embeddings`, times the factor for linear and dynamic NTK scaling. YaRN checkpoints store
        either the original or the extended number there, so the larger of it and factor × original counts.
        """
        limit, rope = self.text_config.max_position_embeddings, self.text_config.rope_parameters or {}
        kind, factor = rope.get("rope_type"), rope.get("factor") or 1
        if kind in ("linear", "dynamic"):
            return int(factor * limit)
        return max(limit, int(factor * rope["original_max_position_embeddings"])) if kind == "yarn" else limit

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Save the configuration with the code and the `auto_map` that `trust_remote_code=True` loads.

        A model's `save_pretrained` calls this, so every checkpoint carries them, including a `Trainer`'s.
        """
        if not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            self.auto_map = dict(AUTO_MAP)
            _copy_code(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)


def _copy_code(folder: Path) -> None:
    for module in {reference.split(".")[0] for reference in AUTO_MAP.values()}:
        source = Path(__file__).with_name(f"{module}.py")
        if source.is_file():  # not for a configuration loaded as remote code without its model
            for file in {str(source), *get_relative_import_files(str(source))}:
                if not (folder / Path(file).name).exists() or not os.path.samefile(file, folder / Path(file).name):
                    shutil.copy(file, folder)


def _auto_sub_config(name: str, config: dict | PretrainedConfig | None, default_type: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    config = dict(config or {})
    model_type = config.pop("model_type", default_type)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"Unknown model type {model_type!r} of `{name}`: the installed transformers has no configuration for it."
        )
    require_dtype(name, config.get("dtype", config.get("torch_dtype")))
    try:
        return CONFIG_MAPPING[model_type](**config)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"`{name}` is not a valid {model_type} configuration. {error}") from error


__all__ = ["InternVLXConfig", "InternVLXLVTCConfig", "InternVLXProjectorConfig"]
