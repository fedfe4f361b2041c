# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of InternVL-X (arXiv 2503.21307): vision tower, projector, layer-wise compression, language model."""

import os
import re
import shutil
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .setting_names import (
    misspelt_names,
    refuse_misspelt_names,
    refuse_unknown_names,
    unknown_names,
    with_value_errors,
)

logger = logging.get_logger(__name__)

# The package's version. It is here because a checkpoint's own code, which saves configurations too, has no package.
VERSION = "0.1.0"

# What every saved checkpoint says about the code that it carries.
AUTO_MAP = {
    "AutoConfig": "configuration_internvlx.InternVLXConfig",
    "AutoModel": "modeling_internvlx.InternVLXForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_internvlx.InternVLXForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_internvlx.InternVLXForConditionalGeneration",
}

SUPPORTED_TEXT_MODELS = ("llama", "qwen2", "qwen3", "phi3", "mistral")
PROJECTOR_TYPES = ("pvtc", "pixel_shuffle", "linear", "token_packer", "ldpv2")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_choice(name: str, value, choices) -> None:
    _require(value in choices, f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _require_dtype(place: str, dtype) -> None:
    known = dtype is None or isinstance(getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype)
    _require(known, f"`dtype` of {place} must be a torch dtype or the name of one ('bfloat16'), got {dtype!r}.")


def window_size(downsample_ratio: float, grid: int, name: str) -> int:
    """Side M of the window that one token stands for, M = 1 / ratio (paper, section 3.1: N = S / M).

    Args:
        downsample_ratio: tokens per patch along one side, in (0, 1].
        grid: side S of the patch grid.
        name: what the ratio belongs to, for the message.

    Raises:
        ValueError: if 1 / ratio is not a whole number, or does not divide S.
    """
    _require(
        0 < downsample_ratio <= 1 and (1 / downsample_ratio).is_integer(),
        f"`{name}` must be 1 / M with a whole window side M (1, 0.5, 0.25, ...), got {downsample_ratio}.",
    )
    side = int(1 / downsample_ratio)
    _require(
        grid % side == 0,
        f"`{name}`={downsample_ratio} means windows of {side}x{side} patches, which do not divide the {grid}x{grid} "
        f"grid of patches. Take a ratio whose inverse divides {grid}.",
    )
    return side


def _is_newer(version: str | None) -> bool:
    numbers = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version or "0", VERSION))
    return next(numbers) > next(numbers)


class _PartConfig(PretrainedConfig):
    """A part of an InternVL-X configuration, which takes only the names that it knows."""

    def __post_init__(self, **kwargs):
        refuse_unknown_names(type(self), kwargs)
        _require_choice(
            f"{self.base_config_key}.model_type", kwargs.pop("model_type", self.model_type), [self.model_type]
        )
        _require_dtype(self.base_config_key, self.dtype)
        super().__post_init__(**kwargs)

    def update(self, config_dict: dict) -> None:
        """As transformers'; raises a `ValueError` for names that are not known."""
        refuse_unknown_names(type(self), config_dict)
        super().update(config_dict)


# What is given may be a dictionary or None; what is read is a configuration or a number. `Any` lets a type checker accept both.
if TYPE_CHECKING:
    ModelConfig = PretrainedConfig | Any
    ProjectorConfig: TypeAlias = "InternVLXProjectorConfig | Any"
    LVTCConfig: TypeAlias = "InternVLXLVTCConfig | Any"
    Layers = int | Any
else:
    ModelConfig = ProjectorConfig = LVTCConfig = dict | PretrainedConfig | None
    Layers = int | None


@with_value_errors
@strict
class InternVLXProjectorConfig(_PartConfig):
    r"""
    The projector between vision tower and language model.

    Args:
        projector_type (`str`, defaults to `"pvtc"`):
            `"pvtc"` (paper, section 3.1), `"pixel_shuffle"` (InternVL2's own), `"linear"` (two-layer MLP, keeps every
            patch), `"token_packer"` (arXiv 2407.02392) or `"ldpv2"` (MobileVLM V2, arXiv 2402.03766).
        num_layers (`int`, defaults to 1): PVTC's attention layers per branch, L in the paper.
        num_heads (`int`, defaults to 16): heads of PVTC's and TokenPacker's attention; must divide the width D.
        use_local (`bool`, defaults to `True`): PVTC's local branch (a query from each window).
        use_global (`bool`, defaults to `True`): PVTC's global branch (a query from the CLS token).
        use_cls_scale (`bool`, defaults to `True`): scale the global query by a learnable vector at every position.
        query_mlp (`str`, defaults to `"released"`):
            What forms PVTC's local query: `"released"` (norm, linear, SiLU) or `"internvl2"`, InternVL2's own projector
            (LayerNorm, linear, GELU, linear), so that a converted checkpoint can start where it was.
        mlp_ratio (`int`, defaults to 4): width of PVTC's SwiGLU MLP in units of D.
        drop_path_rate (`float`, defaults to 0.1): stochastic depth of PVTC's residual branches, in training only.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP projectors.
        rms_norm_eps (`float`, defaults to 1e-6): epsilon of PVTC's RMSNorms.
    """

    model_type = "internvl_x_projector"
    base_config_key = "projector_config"

    projector_type: str = "pvtc"
    num_layers: int = 1
    num_heads: int = 16
    use_local: bool = True
    use_global: bool = True
    use_cls_scale: bool = True
    query_mlp: str = "released"
    mlp_ratio: int | float = 4
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    rms_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _require_choice("projector_type", self.projector_type, PROJECTOR_TYPES)
        _require_choice("query_mlp", self.query_mlp, ("released", "internvl2"))
        _require(
            self.use_local or self.use_global,
            "`use_local` and `use_global` are both False, which leaves PVTC without a branch. Switch one on, or take "
            "`projector_type='pixel_shuffle'`.",
        )
        _require(
            self.query_mlp == "released" or self.use_local,
            "`query_mlp='internvl2'` forms the local query, but `use_local` is False.",
        )
        _require(
            self.num_layers >= 1,
            f"`num_layers` must be at least 1, got {self.num_layers}. Without attention layers the projector is "
            "`projector_type='pixel_shuffle'`.",
        )
        _require(self.num_heads >= 1, f"`num_heads` must be at least 1, got {self.num_heads}.")
        _require(0 < self.mlp_ratio < inf, f"`mlp_ratio` must be positive, got {self.mlp_ratio}.")
        _require(0 < self.rms_norm_eps < inf, f"`rms_norm_eps` must be positive, got {self.rms_norm_eps}.")
        _require(0 <= self.drop_path_rate < 1, f"`drop_path_rate` must be in [0, 1), got {self.drop_path_rate}.")


@with_value_errors
@strict
class InternVLXLVTCConfig(_PartConfig):
    r"""
    Layer-wise visual token compression, LVTC (paper, section 3.2 and Algorithm 1): the layers before `expand_layer` see
    N₁² tokens a tile, the others N₂².

    Args:
        expand_layer (`int`, *optional*):
            k, the first layer (counted from 0) that sees N₂² tokens. Unset: max(1, ⌊3n/4⌋ − 1) of n layers, the paper's
            17 of 24 and 23 of 32.
        downsample_ratio (`float`, defaults to 1.0): 1 / M₂; N₂ = S / M₂.
        hr_projector_type (`str`, *optional*, defaults to `"pixel_shuffle"`):
            The high-resolution projector, whose N₂² tokens are added at the expansion; `None` for upsampling alone.
        num_lr_projectors (`int`, *optional*):
            T, low-resolution projectors, the model's `multi_modal_projector` included; 1 adds none. The paper does not
            state T, s and i. Our choice where unset: T = min(4, k), i = s = k // T, which spreads the T − 1 insertions
            evenly over the layers before k (4, 8, 12 for k = 17).
        lr_projector_type (`str`, defaults to `"pixel_shuffle"`): type of the T − 1 further projectors.
        insert_start (`int`, *optional*): s, the layer before which the first of them is added.
        insert_interval (`int`, *optional*): i, layers between one insertion and the next.
        upsample_mode (`str`, defaults to `"nearest"`): `"nearest"` or `"bilinear"`.
    """

    model_type = "internvl_x_lvtc"
    base_config_key = "lvtc_config"

    expand_layer: Layers = None
    downsample_ratio: float | int = 1.0
    hr_projector_type: str | None = "pixel_shuffle"
    num_lr_projectors: Layers = None
    lr_projector_type: str = "pixel_shuffle"
    insert_start: Layers = None
    insert_interval: Layers = None
    upsample_mode: str = "nearest"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _require_choice("hr_projector_type", self.hr_projector_type, (*PROJECTOR_TYPES, None))
        _require_choice("lr_projector_type", self.lr_projector_type, PROJECTOR_TYPES)
        _require_choice("upsample_mode", self.upsample_mode, ("nearest", "bilinear"))

    def resolve(self, num_layers: int) -> None:
        """Fill in what is unset for a language model of `num_layers` layers, and check that it fits.

        Raises:
            ValueError: if the expansion is outside the model, or an insertion does not come before it.
        """
        if self.expand_layer is None:
            self.expand_layer = max(1, 3 * num_layers // 4 - 1)
        k = self.expand_layer
        _require(
            1 <= k < num_layers,
            f"`expand_layer` must be in 1...{num_layers - 1} for a language model of {num_layers} layers, got {k}.",
        )
        if self.num_lr_projectors is None:
            self.num_lr_projectors = min(4, k)
        _require(self.num_lr_projectors >= 1, f"`num_lr_projectors` must be at least 1, got {self.num_lr_projectors}.")
        if self.insert_interval is None:
            self.insert_interval = max(1, k // self.num_lr_projectors)
        if self.insert_start is None:
            self.insert_start = self.insert_interval
        _require(self.insert_start >= 0, f"`insert_start` must not be negative, got {self.insert_start}.")
        _require(self.insert_interval >= 1, f"`insert_interval` must be at least 1, got {self.insert_interval}.")
        last = max(self.insertion_layers, default=-1)
        _require(
            last < k,
            f"`insert_start`={self.insert_start}, `insert_interval`={self.insert_interval} and "
            f"`num_lr_projectors`={self.num_lr_projectors} put an insertion before layer {last}, but every insertion must "
            f"come before `expand_layer`={k}.",
        )

    @property
    def insertion_layers(self) -> list[int]:
        """Layers before which LR projector 1, 2, ... T − 1 is added (Algorithm 1's s + i·j)."""
        return [self.insert_start + self.insert_interval * j for j in range(self.num_lr_projectors - 1)]


@with_value_errors
@strict
class InternVLXConfig(PretrainedConfig):
    r"""
    Configuration of an InternVL-X model. `InternVLXConfig()` is InternViT-300M with PVTC and a Qwen2 language model.

    Args:
        vision_config (`dict` or `PretrainedConfig`, *optional*):
            The vision tower: `internvl_vision`, or any vision model that `AutoModel` builds and that gives a CLS token
            and a square grid of patches.
        text_config (`dict` or `PretrainedConfig`, *optional*, `qwen2` by default):
            The language model: llama, qwen2, qwen3, phi3 or mistral.
        image_token_id (`int`, defaults to 151667): id of the placeholder that image tokens take the place of.
        downsample_ratio (`float`, defaults to 0.5): 1 / M, tokens per patch along one side.
        vision_feature_layer (`int`, defaults to -1): which of the tower's hidden states is projected (0: embeddings).
        projector_config (`dict` or [`InternVLXProjectorConfig`], *optional*): the projector.
        lvtc_config (`dict` or [`InternVLXLVTCConfig`], *optional*): layer-wise compression; `None` for none.
        tie_word_embeddings (`bool`, *optional*): share input and output embeddings; unset: as `text_config` says.
        internvlx_version (`str`, *optional*): the version of this package that saved the configuration.

    Other names are kept, with a warning: tools add their own. Names of a newer version that would
    raise are left out, with a warning.

    Raises:
        ValueError: for every combination that cannot work, with the values and what would be right; for a name that is
            nearly one of these; for an unknown one in `projector_config` or `lvtc_config`.
    """

    model_type = "internvl_x"
    # a batch of texts has no image hidden states: a Trainer that evaluates must not put them beside those of other batches
    keys_to_ignore_at_inference = ["past_key_values", "image_hidden_states"]
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
    tie_word_embeddings: bool | None = None
    internvlx_version: str | None = None

    def __post_init__(self, **kwargs):
        unknown = unknown_names(type(self), kwargs)
        if _is_newer(self.internvlx_version):
            kwargs = {name: kwargs[name] for name in kwargs.keys() - misspelt_names(type(self), kwargs)}
        refuse_misspelt_names(type(self), kwargs)
        _require_dtype("the configuration", kwargs.get("torch_dtype") if self.dtype is None else self.dtype)
        self._warn_of_unused(unknown, "the configuration")
        self._build_parts()
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self.check_geometry()

    def _build_parts(self) -> None:
        """Make configurations of the parts that are given as dictionaries."""
        self.vision_config = _auto_sub_config("vision_config", self.vision_config, "internvl_vision")
        self.text_config = _auto_sub_config("text_config", self.text_config, "qwen2")
        self.projector_config = self._own_part(InternVLXProjectorConfig, self.projector_config or {})
        if self.lvtc_config is not None:
            self.lvtc_config = self._own_part(InternVLXLVTCConfig, self.lvtc_config)

    def _own_part(self, part_class: type[PretrainedConfig], values: dict | PretrainedConfig) -> PretrainedConfig:
        if isinstance(values, PretrainedConfig):
            _require(
                values.model_type == part_class.model_type,
                f"`{part_class.base_config_key}` must be a dict or {part_class.__name__}, got {type(values).__name__}.",
            )
            return values
        if _is_newer(self.internvlx_version):
            unknown = unknown_names(part_class, values)
            self._warn_of_unused(unknown, f"`{part_class.base_config_key}`")
            values = {name: value for name, value in values.items() if name not in unknown}
        return part_class(**values)

    def _warn_of_unused(self, names: list[str], place: str) -> None:
        if not names:
            return
        text = f"InternVL-X {VERSION} does not use {', '.join(map(repr, names))} of {place}."
        if _is_newer(self.internvlx_version):
            text += f" Version {self.internvlx_version} saved it."
        logger.warning_once(text)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As transformers', which sets `kwargs` on the finished configuration: what they change is checked here."""
        refuse_misspelt_names(cls, kwargs)
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).check_geometry()
        return loaded

    def update(self, config_dict: dict) -> None:
        """As transformers'; raises a `ValueError` for misspelt names and changes nothing then."""
        refuse_misspelt_names(type(self), config_dict)
        before = dict(self.__dict__)
        try:
            super().update(config_dict)
            self._build_parts()
        except ValueError:
            self.__dict__ = before
            raise

    def to_dict(self) -> dict:
        """As transformers', with the version that saves it."""
        return {**super().to_dict(), "internvlx_version": VERSION}

    def check_geometry(self) -> None:
        """Check that the parts fit each other. Models call it again, since a configuration may have been edited.

        Raises:
            ValueError: naming the value that does not fit and what would.
        """
        self._build_parts()
        text = self.text_config
        _require_choice("text_config.model_type", text.model_type, SUPPORTED_TEXT_MODELS)
        _require(
            0 <= self.image_token_id < text.vocab_size,
            f"`image_token_id`={self.image_token_id} is outside the vocabulary of {text.vocab_size} tokens.",
        )
        grid, layers = self.patch_grid, self.vision_config.num_hidden_layers
        _require(
            -layers - 1 <= self.vision_feature_layer <= layers,
            f"`vision_feature_layer` must be in {-layers - 1}...{layers} for a tower of {layers} layers, got "
            f"{self.vision_feature_layer}.",
        )
        window_size(self.downsample_ratio, grid, "downsample_ratio")
        projectors = [(self.projector_config.projector_type, self.downsample_ratio)]
        if self.lvtc_config is not None:
            window_size(self.lvtc_config.downsample_ratio, grid, "lvtc_config.downsample_ratio")
            self.lvtc_config.resolve(text.num_hidden_layers)
            small, large = sorted((self.token_grid, self.expanded_token_grid))
            _require(
                large % small == 0, f"LVTC needs grids that divide one another, got {small} and {large} tokens a side."
            )
            projectors += [(self.lvtc_config.lr_projector_type, self.downsample_ratio)]
            projectors += [(self.lvtc_config.hr_projector_type, self.lvtc_config.downsample_ratio)]
        attention_widths = {"pvtc": text.hidden_size, "token_packer": self.vision_config.hidden_size}
        for kind, ratio in projectors:
            _require(
                kind != "linear" or ratio == 1,
                f"The 'linear' projector keeps every patch, which needs a downsample ratio of 1, got {ratio}.",
            )
            heads, width = self.projector_config.num_heads, attention_widths.get(kind, 0)
            _require(
                width % heads == 0,
                f"`projector_config.num_heads`={heads} does not divide the width {width} of {kind!r}.",
            )

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        height, width = _pair(self.vision_config.image_size)
        _require(
            height == width and height > 0, f"Tiles must be square, got `vision_config.image_size`={(height, width)}."
        )
        return height

    @property
    def patch_grid(self) -> int:
        """S, the side of a tile's grid of patches."""
        height, width = _pair(self.vision_config.patch_size)
        _require(
            height == width and height > 0 and self.tile_size % height == 0,
            f"`vision_config.patch_size`={(height, width)} must be square and divide the tile size {self.tile_size}.",
        )
        return self.tile_size // height

    @property
    def token_grid(self) -> int:
        """N₁ = S / M₁, the side of the grid of tokens that a tile takes in `input_ids`."""
        return self.patch_grid // window_size(self.downsample_ratio, self.patch_grid, "downsample_ratio")

    @property
    def expanded_token_grid(self) -> int:
        """N₂ = S / M₂, the side of a tile's grid of tokens in the layers after LVTC's expansion; N₁ without LVTC."""
        if self.lvtc_config is None:
            return self.token_grid
        ratio = self.lvtc_config.downsample_ratio
        return self.patch_grid // window_size(ratio, self.patch_grid, "lvtc_config.downsample_ratio")

    @property
    def image_seq_length(self) -> int:
        """N₁², the tokens that a tile takes in `input_ids`."""
        return self.token_grid**2

    @property
    def expanded_image_seq_length(self) -> int:
        """N₂², the tokens that a tile takes in the layers after LVTC's expansion."""
        return self.expanded_token_grid**2

    @property
    def position_limit(self) -> int:
        """Positions that the language model's rotary embedding is made for.

        `max_position_embeddings`; times the factor for linear and dynamic NTK scaling, which extend it; for YaRN, of which
        both are seen, whichever is more of `max_position_embeddings` and what the factor makes of the original number.
        """
        limit, rope = self.text_config.max_position_embeddings, self.text_config.rope_parameters or {}
        kind, factor = rope.get("rope_type"), rope.get("factor") or 1
        if kind in ("linear", "dynamic"):
            return int(factor * limit)
        return max(limit, int(factor * rope["original_max_position_embeddings"])) if kind == "yarn" else limit

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Save the configuration together with the code and the `auto_map` that `trust_remote_code=True` loads.

        A model's `save_pretrained` comes through here, so every checkpoint, a `Trainer`'s too, carries them.
        """
        if not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            self.auto_map = dict(AUTO_MAP)
            _copy_code(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)


def _copy_code(folder: Path) -> None:
    for module in {reference.split(".")[0] for reference in AUTO_MAP.values()}:
        source = Path(__file__).with_name(f"{module}.py")
        if source.is_file():  # a configuration alone, loaded from a checkpoint, does not come with the model's code
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
            f"Unknown model type {model_type!r} of `{name}`: this transformers has no configuration for it."
        )
    _require_dtype(name, config.get("dtype", config.get("torch_dtype")))
    try:
        return CONFIG_MAPPING[model_type](**config)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"`{name}` is no {model_type} configuration. {error}") from error


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


__all__ = ["InternVLXConfig", "InternVLXLVTCConfig", "InternVLXProjectorConfig"]
