# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""PVTC, the projector visual token compressor (InternVL-X, arXiv 2503.21307, section 3.1).

Every M×M window of patches becomes one token. Two queries attend to the window: a local one formed from its patches,
and a global one formed from the CLS token. Symbols: S patches per side, N = S / M tokens per side, C vision width, D
language width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .pixel_shuffle import InternVL2MLP, patch_windows
from .projector import MLP, Projector, recomputed, require_heads, tile_counts

# Heads are processed in groups of this size, (windows, heads, D), also in the backward pass: enough for large matrix
# products, few enough to stay in a CPU's cache.
HEADS_AT_ONCE = 4
DEFAULT_HEADS = 16  # as released
# `query_mlp` -> type of the projector that forms the local query
QUERY_MLPS = {"released": None, "internvl2": "pixel_shuffle", "llava": "linear"}
FLOAT32 = 4  # bytes; RMSNorm computes in float32


def num_heads(config: PretrainedConfig) -> int:
    return config.projector_config.num_heads or DEFAULT_HEADS


def rms_norm(config: PretrainedConfig, width: int) -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm(width, eps=config.projector_config.rms_norm_eps)


class PVTCEmbedding(nn.Module):
    """RMSNorm, linear, SiLU: (..., in_features) -> (..., D)."""

    def __init__(self, config: PretrainedConfig, in_features: int):
        super().__init__()
        self.norm = rms_norm(config, in_features)
        self.linear = nn.Linear(in_features, config.text_config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.silu(self.linear(recomputed(self.norm, hidden_states)))


class PVTCAttention(nn.Module):
    """Point-to-region cross-attention: one query per window, which sees only the M² patches of its own window.

    K and V of the patches are never formed. With one query q per window, for each head,

        q · (Wk x) = (q Wk) · x        and        Σ a (Wv x) = Wv (Σ a x),

    so Wk and Wv are applied to the N² queries instead of the S² patches, 1/M² of the work. They are plain parameters
    and not linear layers because they are never called on a tensor: anything that hooks into a layer's call (LoRA,
    quantization, offloading) must not find one here.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.num_heads = num_heads(config)
        self.scaling = (width // self.num_heads) ** -0.5
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.output = nn.Linear(width, width, bias=False)

    def reset_parameters(self) -> None:
        """Initialise as linear layers do."""
        for weight in (self.key, self.value):
            init.kaiming_uniform_(weight, a=5**0.5)

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """
        Args:
            query: (n, D), one per window.
            patches: (n, M², D).

        Returns:
            (n, D)
        """
        query = (self.query(query) * self.scaling).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # [H, n, d]
        # cast once: under autocast every product would cast its factors again and keep the copy for the backward pass
        patches = patches.to(query.dtype)
        key = self.key.to(query.dtype).unflatten(0, (self.num_heads, -1))  # [H, d, D]
        value = self.value.to(query.dtype).unflatten(0, (self.num_heads, -1)).transpose(1, 2)  # [H, D, d]
        groups = zip(*(tensor.split(HEADS_AT_ONCE) for tensor in (query, key, value)), strict=True)
        heads = [recomputed(self._attend_heads, *group, patches) for group in groups]
        return self.output(torch.cat(heads).transpose(0, 1).flatten(1))

    @staticmethod
    def _attend_heads(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, patches: torch.Tensor
    ) -> torch.Tensor:
        """Attention of a group of heads, [h, n, d]. Queries and attended patches have the full width D in every
        head.
        """
        query_on_patches = torch.bmm(query, key).transpose(0, 1)  # [n, h, D]
        weights = torch.bmm(query_on_patches, patches.transpose(1, 2)).softmax(-1, dtype=torch.float32)  # [n, h, M²]
        return torch.bmm(torch.bmm(weights.to(patches.dtype), patches).transpose(0, 1), value)


class PVTCMLP(nn.Module):
    """SwiGLU: (..., D) -> (..., D)."""

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        width = config.text_config.hidden_size
        inner = int(width * config.projector_config.mlp_ratio)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(hidden_states)) * self.up(hidden_states))


class StochasticDepth(nn.Dropout):
    """Drops a residual branch (n, D) for a random share of the n windows, in training only.

    It is a subclass of dropout so that tools which disable dropout find it (trl's `disable_dropout`).
    """

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * super().forward(branch.new_ones(branch.shape[0], 1))


class PVTCLayer(GradientCheckpointingLayer):
    """Pre-norm cross-attention and SwiGLU, both residual: query (n, D), patches (n, M², D) -> query (n, D)."""

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.drop_path = StochasticDepth(config.projector_config.drop_path_rate)
        self.query_norm = rms_norm(config, width)
        self.patch_norm = rms_norm(config, width)
        self.attention = PVTCAttention(config)
        self.mlp_norm = rms_norm(config, width)
        self.mlp = PVTCMLP(config)

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        seen = self.attention(recomputed(self.query_norm, query), recomputed(self.patch_norm, patches))
        query = query + self.drop_path(seen)
        return query + self.drop_path(self.mlp(recomputed(self.mlp_norm, query)))


def build_local_query(config: PretrainedConfig, side: int) -> nn.Module:
    """What forms the local query of windows of `side`² patches."""
    if config.projector_config.query_mlp == "internvl2":
        return InternVL2MLP(config, side)
    features, width = config.vision_config.hidden_size * side**2, config.text_config.hidden_size
    if config.projector_config.query_mlp == "llava":
        return MLP(config, features, width)
    return PVTCEmbedding(config, features)


class PVTCSize(nn.Module):
    """What PVTC does not share among window sides: what forms the local query, and the CLS scales."""

    cls_scale: nn.Parameter | None

    def add_own_parts(self, config: PretrainedConfig, side: int) -> None:
        projector, self.side = config.projector_config, side
        if projector.use_local:
            self.local_query = build_local_query(config, side)
        self.cls_scale = None
        if projector.use_global and projector.use_cls_scale:
            tokens = (config.patch_grid // side) ** 2
            self.cls_scale = nn.Parameter(torch.ones(tokens, config.text_config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw the CLS scales from N(0, 1), as released, so that every position has a different global query."""
        if self.cls_scale is not None:
            init.normal_(self.cls_scale)


class PVTCProjector(PVTCSize, Projector):
    """The PVTC projector: (B, 1 + S², C) features of the vision tower, CLS first -> (B, N², D) tokens in raster
    order.
    """

    projector_type = "pvtc"
    zero_parameters = (
        "local_query.linear.weight",
        "local_query.linear_2.*",
        "global_query.linear.weight",
        "*.attention.output.weight",
        "*.mlp.down.weight",
    )
    is_whole = True
    shares_sizes = True
    is_recomputed = False

    def __init__(self, config: PretrainedConfig, side: int):
        super().__init__()
        projector, width = config.projector_config, config.vision_config.hidden_size
        self.patch_embedding = PVTCEmbedding(config, width)
        self.add_own_parts(config, side)
        if projector.use_local:
            self.local_layers = nn.ModuleList(PVTCLayer(config) for _ in range(projector.num_layers))
        if projector.use_global:
            self.global_query = PVTCEmbedding(config, width)
            self.global_layers = nn.ModuleList(PVTCLayer(config) for _ in range(projector.num_layers))

    def add_sizes(self, config: PretrainedConfig, sides: Sequence[int]) -> None:
        self.sizes = nn.ModuleDict({str(side): PVTCSize() for side in sides})
        for side, size in self.sizes.items():
            size.add_own_parts(config, int(side))  # type: ignore[operator]

    def forward(self, features: torch.Tensor, side: int | None = None) -> torch.Tensor:
        own: PVTCSize = self if side is None else self.sizes[str(side)]  # type: ignore[assignment]
        windows = patch_windows(features, own.side)  # [B, N², M², C]
        shape = windows.shape[:2]
        # three dimensions, since 8-bit linear layers accept no more
        patches = self.patch_embedding(windows.flatten(0, 1))  # [B·N², M², D]
        branches = []
        if hasattr(self, "local_layers"):
            query = own.local_query(windows.flatten(2)).flatten(0, 1)  # [B·N², D]
            branches.append(self.attend(self.local_layers, query, patches))
        if hasattr(self, "global_layers"):
            query = self.global_query(features[:, :1])  # [B, 1, D]
            query = query.expand(*shape, -1) if own.cls_scale is None else query * own.cls_scale  # [B, N², D]
            branches.append(self.attend(self.global_layers, query.flatten(0, 1), patches))
        # `sum` makes a new tensor: FSDP warns about modules that return a view
        return sum(branch.unflatten(0, shape) for branch in branches)

    @staticmethod
    def attend(layers: nn.ModuleList, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            query = layer(query, patches)
        return query

    @classmethod
    def check_config(cls, config: PretrainedConfig, side: int) -> None:
        require_heads(num_heads(config), cls.projector_type, config.text_config.hidden_size)

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        patches, tokens = tile_counts(config, side)
        c, d = config.vision_config.hidden_size, config.text_config.hidden_size
        projector, e = config.projector_config, element_size
        in_float32 = FLOAT32 if e != FLOAT32 else 0  # a copy, unless the numbers are float32 already
        windows, embedded = e * patches * c, e * patches * d
        heads = min(HEADS_AT_ONCE, num_heads(config))
        norm = patches * d * (in_float32 + FLOAT32 + (e if e == FLOAT32 else 0))
        look = e * (patches * d + 2 * heads * tokens * d + 4 * tokens * d)
        mlp = e * tokens * (3 * int(d * projector.mlp_ratio) + 4 * d)
        embedding = max(patches * c * (in_float32 + 2 * FLOAT32), embedded)
        branches = e * tokens * d * (projector.use_local + projector.use_global)
        return windows + branches + embedded + max(norm, look, mlp, embedding - embedded)

    @classmethod
    def part_of_type(cls, config: PretrainedConfig, projector_type: str) -> str | None:
        is_query = projector_type == QUERY_MLPS[config.projector_config.query_mlp]
        return "local_query" if is_query else super().part_of_type(config, projector_type)
