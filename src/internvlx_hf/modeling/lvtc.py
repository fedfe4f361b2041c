# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LVTC, layer-wise visual token compression (InternVL-X, arXiv 2503.21307, section 3.2 and Algorithm 1).

The language model runs in two stages. In stage one, its first k layers, a tile is N₁² tokens; before some of these
layers the tokens of another low-resolution (LR) projector are added to them. Before layer k each tile's grid is
upsampled to N₂×N₂ and the tokens of the high-resolution (HR) projector are added. Stage two, the remaining layers,
runs on the result. Where sizes shrink, tokens are merged or dropped instead; if that is before another layer than k,
there are three stages. Calling code is unchanged: inputs and outputs have one row for each token of the prompt.

This file has the projectors and the algorithm. `lvtc_layout.py` decides where the prompt's rows are in each stage,
`lvtc_rows.py` maps a stage's rows to the next one's, `lvtc_masks.py` makes the masks, `lvtc_cache.py` has what a cache
keeps for the next forward, and `lvtc_generation.py` what `generate` does differently.

Symbols: k expand layer, T LR projectors, s and i first insertion and interval, N₁ and N₂ tokens per side before and
after, B samples, L and L₂ their padded length in stages one and two, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_internvlx import InternVLXConfig
from .layout import BOUNDS, Layout, Masks
from .lvtc_cache import remember_expansion
from .lvtc_layout import Plan
from .lvtc_masks import attention_types, make_masks
from .lvtc_rows import add_to_rows, take_rows
from .merge_mean import merge_mean
from .merge_rules import MOVING_RULES, SCORED_RULES, MergeRule, find_rule
from .merge_scores import last_token_scores
from .outputs import CACHE
from .projector import project_tiles
from .projectors import build_projector
from .tile_sizes import TileSize
from .tile_tokens import ImageTokens, Tokens, flat, put, take


class LanguageModel(Protocol):
    """The attributes of a language model that LVTC uses."""

    config: PretrainedConfig
    training: bool
    layers: nn.ModuleList
    rotary_emb: nn.Module
    norm: nn.Module


class LVTC(nn.Module):
    """LVTC's own projectors, and the rotary embedding of stage two.

    Stage two needs its own rotary embedding because dynamic NTK and longrope remember the longest sequence so far, and
    the two stages see different lengths.
    """

    def __init__(self, config: InternVLXConfig, language_model: LanguageModel):
        super().__init__()
        self.config = config
        built = {
            name: build_projector(config, kind, 1 / side, config.other_sides(name))
            for name, (kind, side) in config.projectors.items()
            if name.startswith("lvtc.")
        }
        self.hr_projector = built.pop("lvtc.hr_projector", None)
        self.lr_projectors = nn.ModuleList(built.values())
        self.rotary_embs = nn.ModuleList(
            type(language_model.rotary_emb)(config.text_config) for _ in config.boundaries
        )

    def project(
        self, features: torch.Tensor, layers: Sequence[torch.Tensor], sizes: Sequence[TileSize]
    ) -> list[Tokens]:
        """(tiles, 1 + S², C) features, CLS first -> T − 1 entries of N₁² tokens per tile, then the HR tokens, N₂² per
        tile.

        Tiles that LVTC does not expand have no tokens; without any that it does, the list is empty.

        Args:
            layers: see [`projector.project`].
            sizes: each tile's, or one that all have.
        """
        if not any(size.has_lvtc for size in sizes):
            return []
        grid = self.config.patch_grid
        sides = [grid // isqrt(size.before) if size.has_lvtc else None for size in sizes]
        tokens = [project_tiles(projector, features, layers, sides) for projector in self.lr_projectors]
        if self.hr_projector is not None:
            own = [side and 0 for side in sides]  # it has one side, for all tiles that grow
            tokens.append(project_tiles(self.hr_projector, features, layers, own))
        return tokens

    def upsample(self, tiles: torch.Tensor) -> torch.Tensor:
        """(tiles, N₁², D) -> (tiles, N₂², D). If N₂ < N₁ ("forward compression", Table 4), each block becomes its
        mean.
        """
        before, after = isqrt(tiles.shape[1]), self.config.hr_grid
        if after < before:
            return merge_mean(tiles, before // after)
        grid = rearrange(tiles, "t (h w) d -> t d h w", h=before)
        resized = F.interpolate(grid, size=after, mode=self.config.lvtc_config.upsample_mode)
        return rearrange(resized, "t d h w -> t (h w) d")

    def expand(
        self,
        rows: torch.Tensor,
        moved: torch.Tensor,
        tokens: ImageTokens,
        stage: int,
        rule: MergeRule,
        scores: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R₁, D) -> (R₂, D), the rows of all tiles in a stage from those in the stage before it.

        Tiles that LVTC expands are upsampled and the HR tokens are added to them; others are merged or dropped.

        Args:
            moved: (R₁,), how much later than the first of their blocks the rows stand.
            rule: merges the tokens of tiles whose size shrinks.
            scores: (R₁,), for rules that need them.

        Returns:
            The rows, and `moved` of them, (R₂,).
        """
        boundaries, index = self.config.boundaries, None
        tiles, later = (tokens.split(own, stage - 1, boundaries) for own in (rows, moved.to(rows.device)))
        of_tiles = None if scores is None else tokens.split(scores, stage - 1, boundaries)
        for size in dict.fromkeys(size for size in tokens.sizes if size.boundary == boundaries[stage - 1]):
            if len(tokens.sizes) > 1:
                index = [tile for tile, own in enumerate(tokens.sizes) if own == size]
            new, places = take(tiles, index), rows.new_zeros(1, size.after, dtype=torch.long)
            if size.has_lvtc:
                hr, new = take(tokens.hr, index), self.upsample(new)
                new = new if hr is None else new + hr.to(new.device, new.dtype)
            elif not size.after:
                new = new[:, :0]
            else:
                side = isqrt(size.before // size.after)
                new = rule(new, side, *([] if scores is None else [take(of_tiles, index)]))
            if isinstance(new, tuple):  # the rule says where the tokens were
                grid = torch.arange(size.before, device=rows.device).unflatten(0, (isqrt(size.before), -1))
                new, places = new[0], new[1] - grid[::side, ::side].flatten()
            tiles, later = put(tiles, index, new), put(later, index, places.expand(len(new), -1))
        return flat(tiles), flat(later)


@capture_outputs
def run_layers(
    language_model: LanguageModel,
    lvtc: LVTC,
    hidden_states: torch.Tensor,
    image_tokens: ImageTokens | None,
    plan: Plan,
    masks: list[Masks],
    rule: MergeRule,
    **kwargs,
) -> BaseModelOutputWithPast:
    """Run the layers of Algorithm 1.

    Args:
        hidden_states: X (B, L, D), the text's embeddings and V_LR[0].
        image_tokens: what to add to the tiles; None if there are none, or none whose tokens change.
        masks: those of each stage, by attention type.
        rule: merges the tokens of tiles whose size shrinks.
        kwargs: other arguments of all layers, among them those that the decorator reads.

    Returns:
        `last_hidden_state` (B, L₂, D).
    """
    types, maps, scores = attention_types(language_model.config), plan.row_maps, None
    modules = list(language_model.layers)  # an index into a ModuleList costs 8 calls
    insertions, scored = [], set()  # type: ignore[var-annotated]
    if image_tokens is not None:
        tiles = maps[0].tiles
        moved = torch.zeros_like(tiles)
        insertions = lvtc.config.lvtc_config.insertion_layers if image_tokens.lr else []
        if rule in SCORED_RULES:
            scored = {size.boundary for size in image_tokens.sizes if 0 < size.after < size.before}
    for stage, layers in enumerate(plan.split(range(len(types)))):
        layout = plan.layouts[stage]
        if stage and image_tokens is not None:
            rows, moved = lvtc.expand(take_rows(hidden_states, tiles), moved, image_tokens, stage, rule, scores)
            text = (hidden_states if stage == 1 else maps[stage - 2].undo(hidden_states)).flatten(0, 1)
            hidden_states, tiles = maps[stage - 1].place(text, rows), maps[stage - 1].tiles_to
            scores = None
            if rule in MOVING_RULES:
                later = maps[stage - 1].place(moved.new_zeros(text.shape[:1]), moved)
                layout = replace(layout, positions=layout.positions.to(later.device) + later)
        inputs = kwargs | _stage_inputs(language_model, lvtc, layout, stage, hidden_states)
        for index in layers:
            if image_tokens is not None and index in insertions:
                tokens = image_tokens.in_stage(insertions.index(index), stage, plan.boundaries)  # [R, D]
                hidden_states = add_to_rows(hidden_states, tiles, tokens)
            if index + 1 in scored:
                visible = layout.mask[:, -hidden_states.shape[1] :]
                scores = take_rows(last_token_scores(modules[index], hidden_states, inputs, layout, visible), tiles)
            mask = masks[stage][types[index]]
            padding = mask if isinstance(mask, dict) else {"attention_mask": mask}
            hidden_states = modules[index](hidden_states, **(inputs | padding))
    return BaseModelOutputWithPast(last_hidden_state=language_model.norm(hidden_states))


def _stage_inputs(
    language_model: LanguageModel, lvtc: LVTC, layout: Layout, stage: int, hidden_states: torch.Tensor
) -> dict:
    """What the layers of a stage are told of positions and samples."""
    positions = seen = layout.positions.to(hidden_states.device)
    if is_flash_attention_requested(language_model.config):  # it would search them for samples in every layer
        seen = layout.numbers if len(layout.bounds) < len(BOUNDS) else None
    rotary_emb = lvtc.rotary_embs[stage - 1] if stage else language_model.rotary_emb
    return {
        "position_embeddings": rotary_emb(hidden_states, position_ids=positions),
        "position_ids": seen,
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
    merge_rule: str = "mean",
    **kwargs,
) -> BaseModelOutputWithPast:
    """Run Algorithm 1 instead of the language model's own forward.

    Args:
        inputs_embeds: (B, L, D), with the tokens of LR projector 0 in place of the placeholders.
        plan: the result of [`lvtc_layout.lay_out`] for the same prompt and cache.
        image_tokens: what later layers add to the tiles; None if this forward has no tiles whose tokens change.
        merge_rule: a name in `merge_rules.py`.
        past_key_values: the cache; its layers have the length of their own stage. (A sliding window counts padding
            between two turns as tokens, as in transformers' own masks.)

    Returns:
        The language model's output: `last_hidden_state` (B, L, D) and the cache; `hidden_states` and `attentions` have
        each layer's own length.
    """
    text, cache = language_model.config, past_key_values
    if use_cache and cache is None:
        cache = DynamicCache(config=text)
    # The caller's cache, not a new one: given any cache, even an empty one, transformers ignores packed samples.
    masks = make_masks(text, plan, inputs_embeds, past_key_values)
    kwargs = {CACHE: cache, "use_cache": use_cache, **kwargs, "return_dict": True}  # a paged cache is in kwargs
    rule = find_rule(merge_rule)
    outputs = run_layers(language_model, lvtc, inputs_embeds, image_tokens, plan, masks, rule, **kwargs)
    setattr(outputs, CACHE, cache)
    if plan.row_maps:
        outputs.last_hidden_state = plan.row_maps[-1].undo(outputs.last_hidden_state)  # [B, L, D]
        if cache is not None and cache.layers:  # gradient checkpointing leaves a cache empty
            remember_expansion(cache, plan.memory)
    return outputs
