# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LVTC, layer-wise visual token compression (InternVL-X, arXiv 2503.21307, section 3.2 and Algorithm 1).

The language model runs in two stages. In stage one, its first k layers, a tile is N₁² tokens; before some of these layers
the tokens of another low-resolution (LR) projector are added to them. Before layer k each tile's grid is upsampled to
N₂×N₂ and the tokens of the high-resolution (HR) projector are added. Stage two, the remaining layers, runs on the result.
Calling code is unchanged: inputs and outputs have one row for each token of the prompt.

This file has the projectors and the algorithm. `lvtc_expansion.py` computes where each row goes at the expansion,
`lvtc_stages.py` the masks and positions of the two stages, `lvtc_cache.py` what a cache keeps for the next forward, and
`lvtc_generation.py` what `generate` does differently.

Symbols: k expand layer, T LR projectors, s and i first insertion and interval, N₁ and N₂ tokens per side before and after,
B samples, L and L₂ their padded length in stages one and two, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_internvlx import InternVLXConfig
from .lvtc_cache import remember_expansion
from .lvtc_expansion import Expansion
from .lvtc_stages import Plan, Stage, attention_types, make_stages
from .outputs import CACHE
from .projector import project
from .projectors import build_projector


class LanguageModel(Protocol):
    """The attributes of a language model that LVTC uses."""

    config: PretrainedConfig
    training: bool
    layers: nn.ModuleList
    rotary_emb: nn.Module
    norm: nn.Module


@dataclass
class ImageTokens:
    """The tokens that LVTC adds to a forward's tiles.

    Args:
        lr: V_LR[1:], T − 1 tensors (tiles, N₁², D); the j-th is added before layer s + i·j.
        hr: V_HR (tiles, N₂², D), added at the expansion; None without an HR projector.
    """

    lr: list[torch.Tensor]
    hr: torch.Tensor | None


class LVTC(nn.Module):
    """LVTC's own projectors, and the rotary embedding of stage two.

    Stage two needs its own rotary embedding because dynamic NTK and longrope remember the longest sequence so far, and the
    two stages see different lengths.
    """

    def __init__(self, config: InternVLXConfig, language_model: LanguageModel):
        super().__init__()
        self.config = config
        lvtc = config.lvtc_config
        self.lr_projectors = nn.ModuleList(
            build_projector(config, lvtc.lr_projector_type, config.downsample_ratio)
            for _ in range(lvtc.num_lr_projectors - 1)
        )
        self.hr_projector = None
        if lvtc.hr_projector_type is not None:
            self.hr_projector = build_projector(config, lvtc.hr_projector_type, lvtc.downsample_ratio)
        self.rotary_emb = type(language_model.rotary_emb)(config.text_config)

    def project(self, features: torch.Tensor, layers: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """(tiles, 1 + S², C) features, CLS first -> T − 1 tensors (tiles, N₁², D), then the HR tokens (tiles, N₂², D).

        Args:
            layers: see [`projector.project`].
        """
        projectors = [*self.lr_projectors, *([] if self.hr_projector is None else [self.hr_projector])]
        return [project(projector, features, layers) for projector in projectors]

    def split(
        self, image_tokens: torch.Tensor, later: Sequence[torch.Tensor | list[torch.Tensor]] | None
    ) -> ImageTokens:
        """Read the list that [`LVTC.project`] returned. `generate` may have repeated its entries for beams, tile by tile.

        Args:
            image_tokens: (tiles, N₁², D), the tokens of LR projector 0.
            later: `deepstack_features`, the tokens of the other projectors.

        Raises:
            ValueError: if a tensor is missing or does not have one entry per tile.
        """
        tensors = [torch.stack(tokens) if isinstance(tokens, list) else tokens for tokens in later or []]
        tiles = image_tokens.shape[0]
        expected = [(tiles, self.config.image_seq_length)] * (1 + len(self.lr_projectors))
        if self.hr_projector is not None:
            expected.append((tiles, self.config.expanded_image_seq_length))
        got = [tuple(tokens.shape[:2]) for tokens in (image_tokens, *tensors)]
        if got != expected:
            raise ValueError(
                f"LVTC needs `pooler_output` and `deepstack_features` of (tiles, tokens) {expected}, got {got}. "
                "Pass them as `get_image_features` returns them."
            )
        return ImageTokens(tensors[: len(self.lr_projectors)], tensors[-1] if self.hr_projector is not None else None)

    def upsample(self, tiles: torch.Tensor) -> torch.Tensor:
        """(tiles, N₁², D) -> (tiles, N₂², D). If N₂ < N₁ ("forward compression", Table 4), each block becomes its mean."""
        before, after = self.config.token_grid, self.config.expanded_token_grid
        grid = rearrange(tiles, "t (h w) d -> t h w d", h=before)
        if after < before:
            side = before // after
            return reduce(grid, "t (h sh) (w sw) d -> t (h w) d", "mean", sh=side, sw=side)
        if self.config.lvtc_config.upsample_mode == "nearest":
            side = after // before
            return repeat(grid, "t h w d -> t (h sh w sw) d", sh=side, sw=side)
        channels_first = rearrange(grid, "t h w d -> t d h w")
        resized = F.interpolate(channels_first, size=(after, after), mode="bilinear", align_corners=False)
        return rearrange(resized, "t d h w -> t (h w) d")


@capture_outputs
def run_layers(
    language_model: LanguageModel,
    lvtc: LVTC,
    hidden_states: torch.Tensor,
    image_tokens: ImageTokens | None,
    expansion: Expansion | None,
    stages: tuple[Stage, Stage],
    **output_flags,
) -> BaseModelOutputWithPast:
    """Run the layers of Algorithm 1.

    Args:
        hidden_states: X (B, L, D), the text's embeddings and V_LR[0].
        image_tokens, expansion: what to add to the tiles, and where the tiles are; None if there are none.
        stages: the other inputs of the layers before k, and of the layers from k on.
        output_flags: `output_hidden_states`, `output_attentions` and `output_router_logits`, for the decorator.

    Returns:
        `last_hidden_state` (B, L₂, D).
    """
    config = lvtc.config.lvtc_config
    types = attention_types(language_model.config)
    for index, layer in enumerate(language_model.layers):
        if expansion is not None and image_tokens is not None:
            if index == config.expand_layer:
                tiles = lvtc.upsample(expansion.take_tiles(hidden_states))  # [tiles, N₂², D]
                if image_tokens.hr is not None:
                    tiles = tiles + image_tokens.hr.to(tiles.device, tiles.dtype)
                hidden_states = expansion.place(hidden_states, tiles)  # [B, L₂, D]
            elif index in config.insertion_layers:
                tokens = image_tokens.lr[config.insertion_layers.index(index)]  # [tiles, N₁², D]
                hidden_states = expansion.add_to_tiles(hidden_states, tokens)
        stage = stages[0] if index < config.expand_layer else stages[1]
        hidden_states = layer(hidden_states, **stage.layer_inputs(types[index], hidden_states))
    return BaseModelOutputWithPast(last_hidden_state=language_model.norm(hidden_states))


@merge_with_config_defaults
def layerwise_forward(
    language_model: LanguageModel,
    lvtc: LVTC,
    inputs_embeds: torch.Tensor,
    plan: Plan,
    image_tokens: ImageTokens | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    **kwargs,
) -> BaseModelOutputWithPast:
    """Run Algorithm 1 instead of the language model's own forward.

    Args:
        inputs_embeds: (B, L, D), with the tokens of LR projector 0 in place of the placeholders.
        plan: the result of [`lvtc_stages.plan_forward`] for the same prompt and cache.
        image_tokens: what later layers add to the tiles; None if this forward has no tiles.
        past_key_values: the cache; its layers have the length of their own stage. (A sliding window counts padding between
            two turns as tokens, as in transformers' own masks.)

    Returns:
        The language model's output: `last_hidden_state` (B, L, D) and the cache; `hidden_states` and `attentions` have each
        layer's own length.
    """
    text, k = language_model.config, lvtc.config.lvtc_config.expand_layer
    cache, expansion = past_key_values, plan.expansion
    if use_cache and cache is None:
        cache = DynamicCache(config=text)
    layer_kwargs = {CACHE: cache, "use_cache": use_cache, **kwargs}
    stages = make_stages(
        text,
        k,
        plan.prompts,
        (language_model.rotary_emb, lvtc.rotary_emb),
        inputs_embeds,
        # The caller's cache, not a new one: given any cache, even an empty one, transformers ignores packed samples.
        past_key_values,
        layer_kwargs,
    )
    flags = ("output_attentions", "output_hidden_states", "output_router_logits")
    output_flags = {name: kwargs[name] for name in flags if name in kwargs}
    outputs = run_layers(
        language_model, lvtc, inputs_embeds, image_tokens, expansion, stages, return_dict=True, **output_flags
    )
    setattr(outputs, CACHE, cache)
    if expansion is not None:
        outputs.last_hidden_state = expansion.undo(outputs.last_hidden_state)  # [B, L, D]
        if cache is not None and cache.layers:  # gradient checkpointing leaves a cache empty
            remember_expansion(cache, plan.memory)
    return outputs
