# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LVTC, layer-wise visual token compression (InternVL-X, arXiv 2503.21307, section 3.2 and Algorithm 1).

The language model runs in two stages. In stage one, its first k layers, a tile is N₁² tokens; before some of these layers
the tokens of another low-resolution (LR) projector are added to them. Before layer k each tile's grid is upsampled to
N₂×N₂ and the tokens of the high-resolution (HR) projector are added. Stage two, the remaining layers, runs on the result.
Calling code is unchanged: inputs and outputs have one row for each token of the prompt.

This file has the projectors and the algorithm. `lvtc_layout.py` decides where the prompt's rows are in each stage,
`lvtc_rows.py` maps a stage's rows to the next one's, `lvtc_masks.py` makes the masks, `lvtc_cache.py` has what a cache keeps for
the next forward, and `lvtc_generation.py` what `generate` does differently.

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
from .layout import Layout, Masks
from .lvtc_cache import remember_expansion
from .lvtc_layout import Plan
from .lvtc_masks import attention_types, layers_see_positions, make_masks
from .lvtc_rows import RowMap
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

    def expand(self, hidden_states: torch.Tensor, row_map: RowMap, hr: torch.Tensor | None) -> torch.Tensor:
        """(B, L, D) -> (B, L₂, D): tiles are upsampled, and the HR tokens (tiles, N₂², D) are added to them."""
        tiles = row_map.take_tiles(hidden_states).unflatten(0, (-1, self.config.image_seq_length))
        tiles = self.upsample(tiles)  # [tiles, N₂², D]
        if hr is not None:
            tiles = tiles + hr.to(tiles.device, tiles.dtype)
        return row_map.place(hidden_states.flatten(0, 1), tiles.flatten(0, 1))


@capture_outputs
def run_layers(
    language_model: LanguageModel,
    lvtc: LVTC,
    hidden_states: torch.Tensor,
    image_tokens: ImageTokens | None,
    plan: Plan,
    masks: list[Masks],
    layer_kwargs: dict,
    **output_flags,
) -> BaseModelOutputWithPast:
    """Run the layers of Algorithm 1.

    Args:
        hidden_states: X (B, L, D), the text's embeddings and V_LR[0].
        image_tokens: what to add to the tiles; None if there are none.
        masks: those of each stage, by attention type.
        layer_kwargs: other arguments of all layers.
        output_flags: `output_hidden_states`, `output_attentions` and `output_router_logits`, for the decorator.

    Returns:
        `last_hidden_state` (B, L₂, D).
    """
    insertion_layers, types = lvtc.config.lvtc_config.insertion_layers, attention_types(language_model.config)
    for stage, layers in enumerate(plan.split(range(len(types)))):
        if stage and image_tokens is not None:
            hidden_states = lvtc.expand(hidden_states, plan.row_maps[stage - 1], image_tokens.hr)  # [B, L₂, D]
        inputs = layer_kwargs | _stage_inputs(language_model, lvtc, plan.layouts[stage], stage, hidden_states)
        for index in layers:
            if image_tokens is not None and index in insertion_layers:
                tokens = image_tokens.lr[insertion_layers.index(index)]  # [tiles, N₁², D]
                hidden_states = plan.row_maps[0].add_to_tiles(hidden_states, tokens.flatten(0, 1))
            mask = masks[stage][types[index]]
            padding = {"attention_mask": None, **mask} if isinstance(mask, dict) else {"attention_mask": mask}
            hidden_states = language_model.layers[index](hidden_states, **{**inputs, **padding})
    return BaseModelOutputWithPast(last_hidden_state=language_model.norm(hidden_states))


def _stage_inputs(
    language_model: LanguageModel, lvtc: LVTC, layout: Layout, stage: int, hidden_states: torch.Tensor
) -> dict:
    """What the layers of a stage are told of positions and samples."""
    positions = layout.positions.to(hidden_states.device)
    rotary = positions if layout.rotary_positions is None else layout.rotary_positions.to(positions.device)
    rotary_emb = lvtc.rotary_emb if stage else language_model.rotary_emb
    return {
        "position_embeddings": rotary_emb(hidden_states, position_ids=rotary),
        "position_ids": positions if layers_see_positions(language_model.config, layout) else None,
        **layout.bounds,
    }


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
        plan: the result of [`lvtc_layout.lay_out`] for the same prompt and cache.
        image_tokens: what later layers add to the tiles; None if this forward has no tiles.
        past_key_values: the cache; its layers have the length of their own stage. (A sliding window counts padding between
            two turns as tokens, as in transformers' own masks.)

    Returns:
        The language model's output: `last_hidden_state` (B, L, D) and the cache; `hidden_states` and `attentions` have each
        layer's own length.
    """
    text, cache = language_model.config, past_key_values
    if use_cache and cache is None:
        cache = DynamicCache(config=text)
    # The caller's cache, not a new one: given any cache, even an empty one, transformers ignores packed samples.
    masks = make_masks(text, plan, inputs_embeds, past_key_values)
    layer_kwargs = {CACHE: cache, "use_cache": use_cache, **kwargs}
    flags = ("output_attentions", "output_hidden_states", "output_router_logits")
    output_flags = {name: kwargs[name] for name in flags if name in kwargs}
    outputs = run_layers(
        language_model, lvtc, inputs_embeds, image_tokens, plan, masks, layer_kwargs, return_dict=True, **output_flags
    )
    setattr(outputs, CACHE, cache)
    for row_map in reversed(plan.row_maps):
        outputs.last_hidden_state = row_map.undo(outputs.last_hidden_state)  # [B, L, D]
    if plan.row_maps and cache is not None and cache.layers:  # gradient checkpointing leaves a cache empty
        remember_expansion(cache, plan.memory)
    return outputs
