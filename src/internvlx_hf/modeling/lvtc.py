# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LVTC, layer-wise visual token compression (InternVL-X, arXiv 2503.21307, section 3.2 and Algorithm 1).

The language model runs in two stages. In stage one, its first k layers, a tile is N₁² tokens; now and then the tokens of a
further low-resolution (LR) projector are added to them. At layer k each tile's grid is upsampled to N₂×N₂ and the tokens of
the high-resolution (HR) projector are added; stage two, the other layers, runs on that. Outside nothing changes: inputs and
outputs have a row for each of the prompt's tokens.

Symbols: k expand layer, T LR projectors, s and i where the first is added and how often, N₁ and N₂ tokens a side before
and after, B samples, L and L₂ their padded length in stages one and two, D width.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import is_tracing, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_internvlx import InternVLXConfig
from .lvtc_cache import ExpansionMemory, make_room, recall_expansion, remember_expansion, seen_length
from .lvtc_expansion import Expansion, expanded_sequence_lengths, plan_expansion
from .projectors import build_projector

logger = logging.get_logger(__name__)

MASK_FUNCTIONS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


@dataclass
class ImageTokens:
    """Tokens of a forward's tiles: `insertions[j]` (tiles, N₁², D) is added before layer s + i·j, `hr` (tiles, N₂², D)."""

    insertions: list[torch.Tensor]
    hr: torch.Tensor | None


class LVTC(nn.Module):
    """LVTC's own projectors, and the rotary embedding of stage two.

    Stage two has a rotary embedding of its own because dynamic NTK and longrope ones remember the longest sequence that
    they saw; the stages see different lengths.
    """

    def __init__(self, config: InternVLXConfig, language_model: PreTrainedModel):
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

    def project(self, features: torch.Tensor) -> list[torch.Tensor]:
        """(tiles, 1 + S², C) features, CLS first -> T − 1 of (tiles, N₁², D), then the HR tokens (tiles, N₂², D)."""
        tokens = [projector(features) for projector in self.lr_projectors]
        return tokens if self.hr_projector is None else [*tokens, self.hr_projector(features)]

    def split(self, image_tokens: torch.Tensor, later: list[torch.Tensor | list[torch.Tensor]] | None) -> ImageTokens:
        """Undo [`LVTC.project`]'s list. `generate` may have repeated its entries for beams, tile by tile.

        Raises:
            ValueError: if they are not one of each for every tile of `image_tokens` (tiles, N₁², D).
        """
        later = [torch.stack(tokens) if isinstance(tokens, list) else tokens for tokens in later or []]
        tiles = len(image_tokens)
        expected = [(tiles, self.config.image_seq_length)] * (1 + len(self.lr_projectors))
        if self.hr_projector is not None:
            expected.append((tiles, self.config.expanded_image_seq_length))
        got = [tuple(tokens.shape[:2]) for tokens in (image_tokens, *later)]
        if got != expected:
            raise ValueError(
                f"LVTC needs `pooler_output` and `deepstack_features` of (tiles, tokens) {expected}, got {got}. "
                "Give them as `get_image_features` returns them."
            )
        return ImageTokens(later[: len(self.lr_projectors)], later[-1] if self.hr_projector is not None else None)

    def resize(self, tiles: torch.Tensor) -> torch.Tensor:
        """(tiles, N₁², D) -> (tiles, N₂², D): upsampled, or the mean of each block where N₂ < N₁."""
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

    def expand(self, hidden_states: torch.Tensor, expansion: Expansion, image_tokens: ImageTokens) -> torch.Tensor:
        """(B, L, D) of stage one -> (B, L₂, D) of stage two: upsampled tiles plus HR tokens in their places."""
        tiles = self.resize(expansion.take_tiles(hidden_states).unflatten(0, (-1, self.config.image_seq_length)))
        if image_tokens.hr is not None:
            tiles = tiles + image_tokens.hr.to(tiles.device, tiles.dtype)
        return expansion.place(hidden_states, tiles.flatten(0, 1))


def attention_types(text_config) -> list[str]:
    """Mask pattern of every layer, as transformers' own models choose it."""
    if getattr(text_config, "layer_types", None):
        return text_config.layer_types
    sliding = getattr(text_config, "sliding_window", None) is not None
    return ["sliding_attention" if sliding else "full_attention"] * text_config.num_hidden_layers


def stage_masks(text_config, layers: range, **mask_kwargs) -> dict[str, torch.Tensor | None]:
    """Masks of a stage by attention type, each sized for the cache of the stage's first layer of that type."""
    types = attention_types(text_config)
    first = {types[i]: i for i in reversed(layers)}
    return {kind: MASK_FUNCTIONS[kind](config=text_config, layer_idx=i, **mask_kwargs) for kind, i in first.items()}


def decoding_masks(
    config: InternVLXConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache,
    **mask_kwargs,
) -> dict[str, torch.Tensor | None]:
    """Masks of both stages for a step on text, made ahead of a compiled forward; stage two's are `expanded_...`."""
    text, k = config.text_config, config.lvtc_config.expand_layer
    mask_kwargs |= {"inputs_embeds": inputs_embeds, "past_key_values": past_key_values}
    memory = recall_expansion(past_key_values, k)
    expanded = attention_mask
    if memory is not None:
        expanded = memory.extend_mask(attention_mask, seen_length(past_key_values, inputs_embeds.shape[1]))
    masks = stage_masks(text, range(k), attention_mask=attention_mask, **mask_kwargs)
    later = stage_masks(text, range(k, text.num_hidden_layers), attention_mask=expanded, **mask_kwargs)
    return masks | {f"expanded_{kind}": mask for kind, mask in later.items()}


@dataclass
class Stage:
    """One of the two runs through layers of the language model, on (B, L or L₂, D)."""

    layers: range
    rotary_emb: nn.Module
    position_ids: torch.Tensor  # (B, L or L₂)
    masks: dict[str, torch.Tensor | None]
    kwargs: dict

    def run(
        self,
        language_model: PreTrainedModel,
        hidden_states: torch.Tensor,
        insertions: dict[int, torch.Tensor] | None = None,
        tile_rows: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        types = attention_types(language_model.config)
        position_ids = self.position_ids.to(hidden_states.device)
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for i in self.layers:
            if insertions and i in insertions:
                tokens = insertions[i].flatten(0, 1).to(hidden_states.device, hidden_states.dtype)
                rows = hidden_states.flatten(0, 1).index_add(0, tile_rows.to(hidden_states.device), tokens)
                hidden_states = rows.view_as(hidden_states)
            hidden_states = language_model.layers[i](
                hidden_states,
                attention_mask=self.masks[types[i]],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                **(self.kwargs | kwargs),
            )
        return hidden_states


@capture_outputs
def _run_stages(
    language_model: PreTrainedModel,
    lvtc: LVTC,
    inputs_embeds: torch.Tensor,
    image_tokens: ImageTokens | None,
    stages: tuple[Stage, Stage],
    expansion: Expansion | None,
    **kwargs,
) -> BaseModelOutputWithPast:
    """The pipeline; as a forward of the language model, whose layers' hidden states and attentions can be captured."""
    insertions, tile_rows = None, None
    if expansion is not None:
        insertions = dict(zip(lvtc.config.lvtc_config.insertion_layers, image_tokens.insertions, strict=True))
        tile_rows = expansion.tile_rows
    hidden_states = stages[0].run(language_model, inputs_embeds, insertions, tile_rows, **kwargs)  # [B, L, D]
    if expansion is not None:
        hidden_states = lvtc.expand(hidden_states, expansion, image_tokens)
    hidden_states = stages[1].run(language_model, hidden_states, **kwargs)  # [B, L₂, D]
    return BaseModelOutputWithPast(
        last_hidden_state=language_model.norm(hidden_states), past_key_values=kwargs["past_key_values"]
    )


@merge_with_config_defaults
def layerwise_forward(
    language_model: PreTrainedModel,
    lvtc: LVTC,
    inputs_embeds: torch.Tensor,
    placeholders: torch.Tensor | None = None,
    image_tokens: ImageTokens | None = None,
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    **kwargs,
) -> BaseModelOutputWithPast:
    """Algorithm 1 in place of the language model's own forward.

    Args:
        inputs_embeds: (B, L, D), the tokens of LR projector 0 already in the tiles' places.
        placeholders: (B, L) bool, where they are; None if this forward brings no tiles.
        image_tokens: what is added to them further on.
        attention_mask: (B, seen + L), 1 for what may be attended to; or what [`decoding_masks`] gives; or, without
            tiles, any 4D mask.
        position_ids: (B, L); may restart where several samples are packed into a row (as may `cu_seq_lens_q`).
        past_key_values: has `seen` columns in stage one's layers, and what they have grown to in the others. (A sliding
            window counts padding between two turns as tokens, as transformers' own masks do.)

    Returns:
        As the language model: `last_hidden_state` (B, L, D) and `past_key_values`; the `hidden_states` and `attentions`
        of each layer at its own length.

    Raises:
        ValueError: for tiles that do not stand together, masks that cannot be expanded, a static cache that is too short.
    """
    text, k, length = language_model.config, lvtc.config.lvtc_config.expand_layer, inputs_embeds.shape[1]
    # Masks follow the cache that was handed in: with one, even an empty one, transformers sees no packed samples.
    stage = partial(_stage, language_model, like=inputs_embeds, past_key_values=past_key_values)
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=text)
    memory = recall_expansion(past_key_values, k)
    if placeholders is not None or memory is not None:
        _check_mask(attention_mask)
    position_ids = _positions(inputs_embeds, attention_mask, position_ids, past_key_values, kwargs)
    stage_one = stage(range(k), language_model.rotary_emb, position_ids, attention_mask, kwargs)

    expansion = None
    if placeholders is not None:
        expansion = _plan(lvtc.config, placeholders, attention_mask, position_ids, memory)
        make_room(past_key_values, text, k, length, expansion.position_ids.shape[1])
        memory = _expanded_memory(expansion, memory, attention_mask, length, past_key_values, k)
        position_ids, attention_mask = expansion.position_ids, memory.mask
        _check_positions(memory.last_position, lvtc.config)
        kwargs = kwargs | expanded_sequence_lengths(expansion, lvtc.config, kwargs)
    elif memory is not None:
        position_ids = position_ids + memory.growth.to(position_ids.device)
        if not isinstance(attention_mask, dict):
            attention_mask = memory.extend_mask(attention_mask, seen_length(past_key_values, length))
        seen = past_key_values.get_seq_length()
        if isinstance(seen, int):  # a static cache's is on the device
            _check_positions(memory.last_position + seen + length - memory.length, lvtc.config)
    stage_two = stage(range(k, text.num_hidden_layers), lvtc.rotary_emb, position_ids, attention_mask, kwargs)

    outputs = _run_stages(
        language_model,
        lvtc,
        inputs_embeds,
        image_tokens,
        (stage_one, stage_two),
        expansion,
        past_key_values=past_key_values,
        use_cache=use_cache,
        return_dict=True,
        **{key: kwargs[key] for key in ("output_attentions", "output_hidden_states") if key in kwargs},
    )
    if expansion is not None:
        outputs.last_hidden_state = expansion.undo(outputs.last_hidden_state)
        if past_key_values is not None and past_key_values.layers:  # gradient checkpointing leaves a cache empty
            remember_expansion(past_key_values, memory)
    return outputs


def _check_positions(last_position: int, config: InternVLXConfig) -> None:
    if not is_tracing() and last_position >= (limit := config.position_limit):
        logger.warning_once(
            f"Positions after LVTC's expansion pass {limit}, which is what the language model is made for (its "
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles per prompt (`max_patches`) or less text."
        )


def _check_mask(attention_mask: torch.Tensor | dict | None) -> None:
    if attention_mask is not None and not isinstance(attention_mask, dict) and not _is_2d(attention_mask):
        raise ValueError(
            "LVTC makes the masks of samples with images itself, from a 2D `attention_mask` (samples, tokens), got one of "
            f"shape {tuple(attention_mask.shape)}."
        )


def _stage(
    language_model: PreTrainedModel,
    layers: range,
    rotary_emb: nn.Module,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
    kwargs: dict,
    like: torch.Tensor,
    past_key_values: Cache | None,
) -> Stage:
    """A stage with its masks, made of `attention_mask` or, where [`decoding_masks`] made them ahead, picked from it."""
    types = attention_types(language_model.config)
    if isinstance(attention_mask, dict):
        prefix = "expanded_" if layers.start else ""
        masks = {kind: attention_mask.get(prefix + kind, attention_mask.get(kind)) for kind in types}
    else:
        masks = stage_masks(
            language_model.config,
            layers,
            inputs_embeds=like.new_empty(*position_ids.shape, 0),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
        )
    return Stage(layers, rotary_emb, position_ids, masks, kwargs)


def _plan(
    config: InternVLXConfig,
    placeholders: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    memory: ExpansionMemory | None,
) -> Expansion:
    device, visible = placeholders.device, None
    if attention_mask is not None:
        visible = attention_mask[:, -placeholders.shape[1] :].to(device, torch.bool)
    growth = 0 if memory is None else memory.growth.to(device)
    return plan_expansion(config, placeholders, visible, position_ids, growth)


def _is_2d(mask) -> bool:
    return isinstance(mask, torch.Tensor) and mask.ndim == 2


def _positions(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    kwargs: dict,
) -> torch.Tensor:
    """(B, L) positions of stage one: as given, or counted without padding, anew in each packed sample."""
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    packed = kwargs.get("cu_seq_lens_q") is not None
    if packed and batch > 1:
        raise ValueError(f"`cu_seq_lens_q` bounds the samples of one row, got {batch} rows. Pack them into one.")
    if position_ids is not None:
        return position_ids.to(device).expand(batch, -1)
    if packed:
        column = torch.arange(length, device=device)
        starts = kwargs["cu_seq_lens_q"].to(device).long()
        sample = torch.searchsorted(starts, column, right=True) - 1
        return (column - starts[sample]).expand(batch, -1)
    if _is_2d(attention_mask):
        return (attention_mask.to(device).cumsum(-1) - 1).clamp(min=0)[:, -length:]
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    return (torch.arange(length, device=device) + seen).expand(batch, -1)


def _expanded_memory(
    expansion: Expansion,
    memory: ExpansionMemory | None,
    attention_mask: torch.Tensor | None,
    length: int,
    past_key_values: Cache | None,
    expand_layer: int,
) -> ExpansionMemory:
    """What is known of stage two's columns after this expansion, those of earlier forwards included."""
    batch, expanded_length = expansion.position_ids.shape
    seen = expanded_seen = 0
    if past_key_values is not None:
        seen = int(past_key_values.get_seq_length())
        expanded_seen = int(past_key_values.get_seq_length(expand_layer))
    past_mask = attention_mask[:, :seen] if attention_mask is not None and seen else None
    if memory is not None:
        past_mask = memory.extend_mask(past_mask, seen)
    mask = expansion.mask
    if mask is not None or past_mask is not None:
        device = expansion.position_ids.device
        if past_mask is None:
            past_mask = torch.ones(batch, expanded_seen, device=device)
        if mask is None:
            mask = torch.ones(batch, expanded_length, device=device)
        mask = torch.cat([past_mask.to(device, torch.bool), mask.bool()], dim=-1)
    return ExpansionMemory(
        mask=mask,
        length=seen + length,
        expanded_length=expanded_seen + expanded_length,
        growth=expansion.growth,
        tail=expansion.tail,
        last_position=expansion.last_position,
    )
