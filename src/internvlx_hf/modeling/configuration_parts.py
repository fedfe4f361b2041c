# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X's own sub-configurations: the projector's and LVTC's."""

from math import inf
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from .projectors import PROJECTORS
from .pvtc import DEFAULT_HEADS, QUERY_MLPS
from .setting_checks import require, require_choice, require_dtype
from .setting_names import refuse_unknown_names, with_value_errors

GLOBAL_QUERIES = ("cls", "pooled", "mean")


class _SubConfig(PretrainedConfig):
    """A sub-configuration, which accepts only known names."""

    def __post_init__(self, **kwargs):
        refuse_unknown_names(type(self), kwargs)
        require_choice(
            f"{self.base_config_key}.model_type", kwargs.pop("model_type", self.model_type), [self.model_type]
        )
        require_dtype(self.base_config_key, self.dtype)
        super().__post_init__(**kwargs)

    def update(self, config_dict: dict) -> None:
        """As in transformers, but an unknown name raises a `ValueError`."""
        refuse_unknown_names(type(self), config_dict)
        super().update(config_dict)


if TYPE_CHECKING:  # unset until the language model is known
    Layers = int | Any
else:
    Layers = int | None


@with_value_errors
@strict
class InternVLXProjectorConfig(_SubConfig):
    r"""
    Configuration of the projector between vision tower and language model.

    Args:
        projector_type (`str`, defaults to `"pvtc"`):
            `"pvtc"` (paper, section 3.1), `"pixel_shuffle"` (InternVL2's own), `"linear"` (two-layer MLP, which with
            `downsample_ratio=1` keeps every patch: LLaVA's), `"token_packer"` (arXiv 2407.02392) or `"ldpv2"`
            (MobileVLM V2, arXiv 2402.03766).
        num_layers (`int`, defaults to 1): PVTC's attention layers per branch, L in the paper.
        num_heads (`int`, *optional*):
            Attention heads, which must divide the language width D for PVTC and the vision width C for TokenPacker.
            Defaults to 16 for PVTC and to C / 128 for `projector_type="token_packer"`.
        use_local (`bool`, defaults to `True`): use PVTC's local branch (a query from each window).
        use_global (`bool`, defaults to `True`): use PVTC's global branch (a query from the global feature).
        use_cls_scale (`bool`, defaults to `True`): scale the global query by a learnable vector for each position.
        global_query (`str`, *optional*):
            The tile's global feature: `"cls"`, the tower's CLS token (as released), `"pooled"`, its pooled output, or
            `"mean"`, the mean of its patches. Defaults to the first of these that the tower has, filled in when the
            model is built. CLS token and mean come from `vision_feature_layer`, the pooled output always from the last
            layer.
        query_mlp (`str`, defaults to `"released"`):
            What forms PVTC's local query: `"released"` (norm, linear, SiLU), `"internvl2"`, InternVL2's own projector
            (LayerNorm, linear, GELU, linear), or `"llava"`, LLaVA's (linear, GELU, linear). With the latter two, a
            converted checkpoint can start from its old weights.
        mlp_ratio (`int`, defaults to 4): width of PVTC's SwiGLU MLP in units of D.
        drop_path_rate (`float`, defaults to 0.1): stochastic depth of PVTC's residual branches, in training only.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP projectors.
        rms_norm_eps (`float`, defaults to 1e-6): epsilon of PVTC's RMSNorms.
        token_packer_form (`str`, defaults to `"original"`):
            `"original"`, TokenPacker as published, is the only one: one linear layer without bias forms the query, and
            its LayerNorms have an epsilon of 1e-6.
        token_packer_layers (`list[int]`, *optional*):
            The tower's hidden states that are concatenated for TokenPacker's keys and values, `[12, 16, 22, 23]` of
            CLIP's 24 layers as published. Defaults to `vision_feature_layer`, so that all projectors see the same
            features.
    """

    model_type = "internvl_x_projector"
    base_config_key = "projector_config"

    projector_type: str = "pvtc"
    num_layers: int = 1
    num_heads: int | None = None
    use_local: bool = True
    use_global: bool = True
    use_cls_scale: bool = True
    global_query: str | None = None
    query_mlp: str = "released"
    mlp_ratio: int | float = 4
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    rms_norm_eps: float = 1e-6
    token_packer_form: str = "original"
    token_packer_layers: list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        require_choice("projector_type", self.projector_type, PROJECTORS)
        require_choice("global_query", self.global_query, (*GLOBAL_QUERIES, None))
        require_choice("query_mlp", self.query_mlp, QUERY_MLPS)
        require_choice("token_packer_form", self.token_packer_form, ("original",))
        if self.num_heads is None and self.projector_type != "token_packer":
            self.num_heads = DEFAULT_HEADS
        require(
            self.use_local or self.use_global,
            "`use_local` and `use_global` are both False, which leaves PVTC without a branch. Switch one on, or take "
            "`projector_type='pixel_shuffle'`.",
        )
        require(
            self.query_mlp == "released" or self.use_local,
            f"`query_mlp={self.query_mlp!r}` forms the local query, but `use_local` is False.",
        )
        require(
            self.num_layers >= 1,
            f"`num_layers` must be at least 1, got {self.num_layers}. Without attention layers the projector is "
            "`projector_type='pixel_shuffle'`.",
        )
        require(
            self.num_heads is None or self.num_heads >= 1, f"`num_heads` must be at least 1, got {self.num_heads}."
        )
        require(0 < self.mlp_ratio < inf, f"`mlp_ratio` must be positive, got {self.mlp_ratio}.")
        require(0 < self.rms_norm_eps < inf, f"`rms_norm_eps` must be positive, got {self.rms_norm_eps}.")
        require(0 <= self.drop_path_rate < 1, f"`drop_path_rate` must be in [0, 1), got {self.drop_path_rate}.")


@with_value_errors
@strict
class InternVLXLVTCConfig(_SubConfig):
    r"""
    Configuration of layer-wise visual token compression, LVTC (paper, section 3.2 and Algorithm 1): the layers before
    `expand_layer` see N₁² tokens per tile, the rest N₂².

    Args:
        expand_layer (`int`, *optional*):
            k, the first layer (counted from 0) that sees N₂² tokens. Defaults to max(1, ⌊3n/4⌋ − 1) for n layers, the
            paper's 17 of 24 and 23 of 32.
        downsample_ratio (`float`, defaults to 1.0): 1 / M₂; N₂ = S / M₂.
        hr_projector_type (`str`, *optional*, defaults to `"pixel_shuffle"`):
            The high-resolution projector, whose N₂² tokens are added at the expansion; `None` only upsamples.
        num_lr_projectors (`int`, *optional*):
            T, the number of low-resolution projectors including the model's `multi_modal_projector`; 1 adds none. The
            paper does not state T, s and i. Our defaults are T = min(4, k) and i = s = k // T, which spread the T − 1
            insertions evenly over the layers before k (4, 8, 12 for k = 17).
        lr_projector_type (`str`, defaults to `"pixel_shuffle"`): type of the T − 1 additional projectors.
        insert_start (`int`, *optional*): s, the layer before which the first of them is added.
        insert_interval (`int`, *optional*): i, the number of layers from one insertion to the next.
        upsample_mode (`str`, defaults to `"nearest"`): `"nearest"` or `"bilinear"`.
        expanded_positions (`str`, defaults to `"counted"`):
            Positions after the expansion: `"counted"` anew over all rows (paper), or `"kept"`: every row keeps its
            position from before, and the N₂² tokens of a tile have the positions of those that they were expanded
            from.
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
    expanded_positions: str = "counted"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        require_choice("hr_projector_type", self.hr_projector_type, (*PROJECTORS, None))
        require_choice("lr_projector_type", self.lr_projector_type, PROJECTORS)
        require_choice("upsample_mode", self.upsample_mode, ("nearest", "bilinear"))
        require_choice("expanded_positions", self.expanded_positions, ("counted", "kept"))

    def resolve(self, num_layers: int) -> None:
        """Fill in unset values for a language model of `num_layers` layers and check that all fit.

        Raises:
            ValueError: if `expand_layer` is not one of the layers, or an insertion does not come before it.
        """
        if self.expand_layer is None:
            self.expand_layer = max(1, 3 * num_layers // 4 - 1)
        k = self.expand_layer
        require(
            1 <= k < num_layers,
            f"`expand_layer` must be in 1...{num_layers - 1} for a language model of {num_layers} layers, got {k}.",
        )
        if self.num_lr_projectors is None:
            self.num_lr_projectors = min(4, k)
        require(self.num_lr_projectors >= 1, f"`num_lr_projectors` must be at least 1, got {self.num_lr_projectors}.")
        if self.insert_interval is None:
            self.insert_interval = max(1, k // self.num_lr_projectors)
        if self.insert_start is None:
            self.insert_start = self.insert_interval
        require(self.insert_start >= 0, f"`insert_start` must not be negative, got {self.insert_start}.")
        require(self.insert_interval >= 1, f"`insert_interval` must be at least 1, got {self.insert_interval}.")
        last = max(self.insertion_layers, default=-1)
        require(
            last < k,
            f"`insert_start`={self.insert_start}, `insert_interval`={self.insert_interval} and "
            f"`num_lr_projectors`={self.num_lr_projectors} put an insertion before layer {last}, but every insertion "
            f"must come before `expand_layer`={k}.",
        )

    @property
    def insertion_layers(self) -> list[int]:
        """The layers before which the tokens of LR projectors 1, 2, ... T − 1 are added (Algorithm 1's s + i·j)."""
        return [self.insert_start + self.insert_interval * j for j in range(self.num_lr_projectors - 1)]
