# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Masks and positions of LVTC's two stages: the same prompt has other columns before and after the expansion.

Symbols as in `lvtc.py`. "Seen" columns are those of earlier forwards on the same cache.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils import is_tracing, logging

from .configuration_internvlx import InternVLXConfig
from .lvtc_cache import ExpansionMemory, make_room, memory_after, recall_expansion, seen_length
from .lvtc_expansion import Expansion, expanded_sequence_lengths, plan_expansion

logger = logging.get_logger(__name__)

MASK_FUNCTIONS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
# by attention type, "full_attention" or "sliding_attention"; None where the kernel needs none
Masks = dict[str, torch.Tensor | BlockMask | None]


@dataclass
class Prompt:
    """A forward's prompt in the columns of one stage.

    Args:
        position_ids: (B, L) in stage one, (B, L₂) in stage two.
        attention_mask: (B, seen + L) or (B, seen + L₂); or masks that were made already, 4D or by [`decoding_masks`].
        layer_kwargs: what the layers take besides: the cache, bounds of packed samples.
    """

    position_ids: torch.Tensor
    attention_mask: torch.Tensor | Masks | None
    layer_kwargs: dict


@dataclass
class Stage:
    """One of the two runs through layers of the language model."""

    prompt: Prompt
    rotary_emb: nn.Module
    masks: Masks
    _position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def layer_inputs(self, attention_type: str, hidden_states: torch.Tensor) -> dict:
        """What a layer of the stage is called with besides `hidden_states`."""
        if self._position_embeddings is None:
            self.prompt.position_ids = self.prompt.position_ids.to(hidden_states.device)
            self._position_embeddings = self.rotary_emb(hidden_states, position_ids=self.prompt.position_ids)
        return {
            "attention_mask": self.masks[attention_type],
            "position_embeddings": self._position_embeddings,
            "position_ids": self.prompt.position_ids,
            **self.prompt.layer_kwargs,
        }


def read_prompt(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Masks | None,
    position_ids: torch.Tensor | None,
    layer_kwargs: dict,
) -> Prompt:
    """The prompt in the columns of stage one; positions as given, or counted without padding, anew in each packed sample.

    Raises:
        ValueError: if bounds of packed samples come with several rows.
    """
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    bounds, cache = layer_kwargs.get("cu_seq_lens_q"), layer_kwargs.get("past_key_values")
    if bounds is not None and batch > 1:
        raise ValueError(f"`cu_seq_lens_q` bounds the samples of one row, got {batch} rows. Pack them into one.")
    if position_ids is not None:
        positions = position_ids.to(device)
    elif bounds is not None:
        column, starts = torch.arange(length, device=device), bounds.to(device).long()
        positions = column - starts[torch.searchsorted(starts, column, right=True) - 1]
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        positions = (attention_mask.to(device).cumsum(-1) - 1).clamp(min=0)[:, -length:]
    else:
        positions = torch.arange(length, device=device) + (0 if cache is None else cache.get_seq_length())
    return Prompt(positions.expand(batch, -1), attention_mask, layer_kwargs)


def expand_prompt(
    config: InternVLXConfig, prompt: Prompt, placeholders: torch.Tensor | None, cache: Cache | None
) -> tuple[Prompt, Expansion | None, ExpansionMemory | None]:
    """The prompt in the columns of stage two.

    Args:
        prompt: as [`read_prompt`] gives it.
        placeholders: (B, L) bool, where the tiles are; None for a prompt without tiles.
        cache: what was seen before.

    Returns:
        The prompt; where its rows go, None without tiles; what the cache is to remember of all expansions so far.

    Raises:
        ValueError: for tiles that do not stand together, masks that cannot be expanded, a static cache that is too short.
    """
    k, length = config.lvtc_config.expand_layer, prompt.position_ids.shape[1]
    memory = recall_expansion(cache, k)
    if placeholders is not None:
        mask = _require_2d(prompt.attention_mask)
        expansion = plan_expansion(
            config,
            placeholders,
            None if mask is None else mask[:, -length:].to(placeholders.device, torch.bool),
            prompt.position_ids,
            0 if memory is None else memory.growth.to(placeholders.device),
        )
        make_room(cache, config.text_config, k, length, expansion.position_ids.shape[1])
        memory = memory_after(expansion, memory, mask, length, cache, k)
        _warn_of_positions(memory.last_position, config)
        layer_kwargs = prompt.layer_kwargs | expanded_sequence_lengths(expansion, config, prompt.layer_kwargs)
        return Prompt(expansion.position_ids, memory.mask, layer_kwargs), expansion, memory
    if cache is None or memory is None:
        return prompt, None, None
    expanded_mask = prompt.attention_mask
    if not isinstance(expanded_mask, dict):
        expanded_mask = memory.extend_mask(_require_2d(expanded_mask), seen_length(cache, length))
    seen = cache.get_seq_length()
    if isinstance(seen, int):  # a static cache's is on the device
        _warn_of_positions(memory.last_position + seen + length - memory.length, config)
    position_ids = prompt.position_ids + memory.growth.to(prompt.position_ids.device)
    return Prompt(position_ids, expanded_mask, prompt.layer_kwargs), None, memory


def _require_2d(attention_mask: torch.Tensor | Masks | None) -> torch.Tensor | None:
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return attention_mask
    got = f"one of shape {tuple(attention_mask.shape)}" if isinstance(attention_mask, torch.Tensor) else "several"
    raise ValueError(
        f"LVTC makes the masks of samples with images itself, from a 2D `attention_mask` (samples, tokens), got {got}."
    )


def _warn_of_positions(last_position: int, config: InternVLXConfig) -> None:
    if not is_tracing() and last_position >= (limit := config.position_limit):
        logger.warning_once(
            f"Positions after LVTC's expansion pass {limit}, which is what the language model is made for (its "
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles per prompt (`max_patches`) or less text."
        )


def attention_types(text_config: PretrainedConfig) -> list[str]:
    """Mask pattern of every layer, as transformers' own models choose it."""
    if getattr(text_config, "layer_types", None):
        return text_config.layer_types
    sliding = getattr(text_config, "sliding_window", None) is not None
    return ["sliding_attention" if sliding else "full_attention"] * text_config.num_hidden_layers


def prompt_masks(
    text_config: PretrainedConfig, layers: range, prompt: Prompt, inputs_embeds: torch.Tensor, cache: Cache | None
) -> Masks:
    """Masks of the layers of a stage; where [`decoding_masks`] made them ahead, picked from those."""
    if isinstance(prompt.attention_mask, dict):
        made, prefix = prompt.attention_mask, "expanded_" if layers.start else ""
        return {kind: made.get(prefix + kind, made.get(kind)) for kind in attention_types(text_config)}
    return stage_masks(
        text_config,
        layers,
        inputs_embeds=inputs_embeds.new_empty(*prompt.position_ids.shape, 0),
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        past_key_values=cache,
    )


def stage_masks(text_config: PretrainedConfig, layers: range, **mask_kwargs) -> Masks:
    """Masks of the layers of a stage, each sized for the cache of the first layer of its attention type."""
    types = attention_types(text_config)
    first = {types[i]: i for i in reversed(layers)}
    return {kind: MASK_FUNCTIONS[kind](config=text_config, layer_idx=i, **mask_kwargs) for kind, i in first.items()}


def decoding_masks(
    config: InternVLXConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache
) -> Masks:
    """Masks of both stages for a step on text, made ahead of a compiled forward; stage two's are `expanded_...`."""
    text, k = config.text_config, config.lvtc_config.expand_layer
    memory, expanded_mask = recall_expansion(cache, k), attention_mask
    if memory is not None:
        expanded_mask = memory.extend_mask(attention_mask, seen_length(cache, inputs_embeds.shape[1]))
    layers, mask_kwargs = range(text.num_hidden_layers), {"inputs_embeds": inputs_embeds, "past_key_values": cache}
    masks = stage_masks(text, layers[:k], attention_mask=attention_mask, **mask_kwargs)
    expanded = stage_masks(text, layers[k:], attention_mask=expanded_mask, **mask_kwargs)
    return masks | {f"expanded_{kind}": mask for kind, mask in expanded.items()}
