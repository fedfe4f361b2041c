# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Masks and positions of LVTC's two stages: the same prompt has different columns before and after the expansion.

Symbols as in `lvtc.py`. "Seen" columns are those of earlier forwards on the same cache.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils import is_tracing, logging
from transformers.utils.generic import is_flash_attention_requested

from .attention_inputs import is_empty, is_prefix, is_static, read_on_host, runs_without_mask
from .configuration_internvlx import InternVLXConfig
from .lvtc_cache import ExpansionMemory, ensure_capacity, memory_after, recall_expansion, remember_text, seen_length
from .lvtc_expansion import Expansion, expanded_sequence_lengths, plan_expansion
from .outputs import CACHE

logger = logging.get_logger(__name__)

MASK_FUNCTIONS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# by attention type, "full_attention" or "sliding_attention"; None if the kernel needs no mask, a dict of sample bounds if
# these replace a mask of padding
Masks = dict[str, torch.Tensor | BlockMask | dict | None]


@dataclass
class Prompt:
    """A forward's prompt in the columns of one stage.

    Args:
        position_ids: (B, L) in stage one, (B, L₂) in stage two.
        attention_mask: (B, seen + L) or (B, seen + L₂); or finished masks, 4D or from [`decoding_masks`].
        layer_kwargs: other arguments of the layers, such as bounds of packed samples.
        is_padded: whether the mask hides anything; None if not known.
        is_left_padded: whether the mask is known to hide columns at the left only.
        is_packed: whether rows hold several samples; None if not known.
        rotary_positions: (B, L₂), the positions of the rotary embedding if they are not `position_ids`, from which samples
            in a row are told apart.
    """

    position_ids: torch.Tensor
    attention_mask: torch.Tensor | Masks | None
    layer_kwargs: dict
    is_padded: bool | None = None
    is_left_padded: bool = False
    is_packed: bool | None = None
    rotary_positions: torch.Tensor | None = None

    @property
    def samples_are_known(self) -> bool:
        """Whether flash attention needs no positions: each row is one sample, or the samples' bounds are given."""
        return self.is_packed is False or all(self.layer_kwargs.get(name) is not None for name in BOUNDS)

    def without_mask(self) -> "Prompt":
        """The prompt without its mask, for a mask that hides nothing from causal attention."""
        return replace(self, attention_mask=None, is_padded=False)


@dataclass
class Stage:
    """One of the two runs of layers of the language model.

    Args:
        layer_kwargs: other arguments of the layers of both stages.
        layers_see_positions: False if the samples in each row are known, so that flash attention does not search the
            positions for them in every layer.
    """

    prompt: Prompt
    rotary_emb: nn.Module
    masks: Masks
    layer_kwargs: dict
    layers_see_positions: bool = True
    _position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def layer_inputs(self, attention_type: str, hidden_states: torch.Tensor) -> dict:
        """The arguments of a layer of the stage besides `hidden_states`."""
        if self._position_embeddings is None:
            self.prompt.position_ids = self.prompt.position_ids.to(hidden_states.device)
            positions = self.prompt.position_ids
            if self.prompt.rotary_positions is not None:
                positions = self.prompt.rotary_positions.to(hidden_states.device)
            self._position_embeddings = self.rotary_emb(hidden_states, position_ids=positions)
        mask = self.masks[attention_type]
        padding = {"attention_mask": None, **mask} if isinstance(mask, dict) else {"attention_mask": mask}
        return {
            "position_embeddings": self._position_embeddings,
            "position_ids": self.prompt.position_ids if self.layers_see_positions else None,
            **self.layer_kwargs,
            **self.prompt.layer_kwargs,
            **padding,
        }


@dataclass
class Plan:
    """What a forward does with its tiles, decided before its first layer. It does not depend on hidden states.

    Args:
        prompts: the prompt in the columns of stage one and of stage two.
        expansion: where the prompt's rows go; None without tiles.
        memory: what the cache stores about all expansions so far.
    """

    prompts: tuple[Prompt, Prompt]
    expansion: Expansion | None
    memory: ExpansionMemory | None


def plan_forward(
    config: InternVLXConfig,
    inputs_embeds: torch.Tensor,
    placeholders: torch.Tensor | None,
    attention_mask: torch.Tensor | Masks | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    trains: bool = False,
    use_cache: bool | None = None,
    **layer_kwargs,
) -> Plan:
    """Make a forward's [`Plan`].

    Args:
        inputs_embeds: (B, L, D), for its shape and device.
        placeholders: (B, L) bool, where the tiles are; None for a prompt without tiles.
        attention_mask: (B, seen + L), 1 for what may be attended to; or the masks of [`decoding_masks`]; or, without
            tiles, any 4D mask.
        position_ids: (B, L); they restart at each sample if several are packed into a row.
        past_key_values: the cache of earlier forwards.
        trains: whether this is a training step, which does not use a cache unless one is given.
        use_cache: None for the configuration's value.
        layer_kwargs: other arguments of the layers; `cu_seq_lens_q` bounds packed samples.

    Raises:
        ValueError: if a tile's placeholders are not contiguous, a mask cannot be expanded or a static cache is too short.
    """
    use_cache = getattr(config.text_config, "use_cache", True) if use_cache is None else use_cache
    is_continued = past_key_values is not None or (use_cache and not trains)
    prompt = read_prompt(inputs_embeds, attention_mask, position_ids, past_key_values, layer_kwargs)
    prompt, expanded_prompt, expansion, memory = expand_prompt(
        config, prompt, placeholders, past_key_values, "left" if is_continued else "right"
    )
    return Plan((prompt, expanded_prompt), expansion, memory)


def read_prompt(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Masks | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    layer_kwargs: dict,
) -> Prompt:
    """The prompt in the columns of stage one. Unless given, positions skip padding and restart in each packed sample.

    Raises:
        ValueError: if bounds of packed samples are given for several rows.
    """
    (batch, length), device = inputs_embeds.shape[:2], inputs_embeds.device
    bounds = layer_kwargs.get("cu_seq_lens_q")
    if bounds is not None and batch > 1:
        raise ValueError(f"`cu_seq_lens_q` needs all samples packed into one row, got {batch} rows.")
    if position_ids is not None:
        positions = position_ids.to(device)
    elif bounds is not None:
        column, starts = torch.arange(length, device=device), bounds.to(device).long()
        positions = column - starts[torch.searchsorted(starts, column, right=True) - 1]
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        positions = (attention_mask.to(device).cumsum(-1) - 1).clamp(min=0)[:, -length:]
    else:
        positions = torch.arange(length, device=device) + (0 if cache is None else cache.get_seq_length())
    # A mask or a filled cache means that each row is one sample.
    is_packed = None if attention_mask is None and is_empty(cache) else False
    return Prompt(positions.expand(batch, -1), attention_mask, layer_kwargs, is_packed=is_packed)


def expand_prompt(
    config: InternVLXConfig,
    prompt: Prompt,
    placeholders: torch.Tensor | None,
    cache: Cache | None,
    padding_side: str = "left",
) -> tuple[Prompt, Prompt, Expansion | None, ExpansionMemory | None]:
    """The prompt in the columns of both stages, each with a mask only if attention needs one.

    Args:
        prompt: the result of [`read_prompt`].
        placeholders: (B, L) bool, where the tiles are; None for a prompt without tiles.
        cache: the cache of earlier forwards.
        padding_side: see [`plan_expansion`].

    Returns:
        The prompts of stage one and stage two; where rows go, None without tiles; what the cache stores about all
        expansions so far.

    Raises:
        ValueError: see [`plan_forward`].
    """
    k, length = config.lvtc_config.expand_layer, prompt.position_ids.shape[1]
    memory = recall_expansion(cache, k)
    if placeholders is None:
        if cache is not None and memory is None:
            memory = remember_text(cache, k, prompt.position_ids.new_zeros(len(prompt.position_ids), 1))
        if cache is None or memory is None:
            return prompt, prompt, None, None
        return *_continue_prompt(config, prompt, memory, cache), None, memory
    mask = _require_2d(prompt.attention_mask)
    mask = None if mask is None else mask.to(placeholders.device, torch.bool)
    expansion = plan_expansion(
        config,
        placeholders,
        mask,
        prompt.position_ids,
        0 if memory is None else memory.growth.to(placeholders.device),
        bounds=prompt.layer_kwargs.get("cu_seq_lens_q"),
        padding_side=padding_side,
    )
    ensure_capacity(cache, config.text_config, k, length, expansion.position_ids.shape[1])
    memory = memory_after(expansion, memory, mask if expansion.is_padded else None, length, cache, k)
    _warn_about_positions(memory.last_position, config)
    layer_kwargs = prompt.layer_kwargs | expanded_sequence_lengths(expansion, config, prompt.layer_kwargs)
    prompt = replace(
        prompt,
        attention_mask=mask,
        is_padded=expansion.is_padded,
        is_left_padded=expansion.is_left_padded,
        is_packed=expansion.is_packed,
    )
    expanded = Prompt(
        expansion.position_ids,
        memory.mask,
        layer_kwargs,
        is_padded=memory.mask is not None,
        is_left_padded=memory.is_left_padded,
        is_packed=expansion.is_packed,
        rotary_positions=expansion.kept_positions,
    )
    return *_drop_masks(config.text_config, prompt, expanded, expansion, cache, padding_side), expansion, memory


def _drop_masks(
    text_config: PretrainedConfig,
    prompt: Prompt,
    expanded: Prompt,
    expansion: Expansion,
    cache: Cache | None,
    padding_side: str,
) -> tuple[Prompt, Prompt]:
    """Both stages' prompts, without masks that attention does not need."""
    is_flash = is_flash_attention_requested(text_config)
    if is_flash and is_static(cache):  # flash attention needs a mask to know which columns of the cache are in use
        if expanded.attention_mask is None and prompt.attention_mask is not None:
            ones = torch.ones_like(expansion.position_ids, dtype=torch.bool)
            expanded = replace(expanded, attention_mask=ones)
        return prompt, expanded
    # On a filled cache, SDPA's causal kernel would let the first query see only the first column.
    causal_is_enough = runs_without_mask(text_config) and is_empty(cache)
    if not expansion.is_padded or (causal_is_enough and expansion.is_right_padded):
        prompt = prompt.without_mask()
    if causal_is_enough and padding_side == "right":
        expanded = expanded.without_mask()
    return prompt, expanded


def _continue_prompt(
    config: InternVLXConfig, prompt: Prompt, memory: ExpansionMemory, cache: Cache
) -> tuple[Prompt, Prompt]:
    """A text prompt in the columns of both stages, after tiles that the cache has seen."""
    length, mask = prompt.position_ids.shape[1], prompt.attention_mask
    expanded_mask: torch.Tensor | Masks | None
    is_padded = is_padded_later = None
    is_left_padded = False
    if isinstance(mask, dict):
        expanded_mask = mask
    else:
        mask = _require_2d(mask)
        expanded_mask = memory.extend_mask(mask, seen_length(cache, length))
        if mask is None:
            is_padded = is_padded_later = False
        elif runs_without_mask(config.text_config) and not is_static(cache) and not is_tracing(mask):
            hidden = ~mask.bool()
            later = hidden[:, memory.length :]
            flags = read_on_host(hidden.any(), later.any(), is_prefix(hidden))
            is_padded, is_padded_later, is_left_padded = map(bool, flags)
    seen = cache.get_seq_length()
    if isinstance(seen, int):  # a static cache keeps its length on the device
        _warn_about_positions(memory.last_position + seen + length - memory.length, config)
    position_ids = prompt.position_ids + memory.growth.to(prompt.position_ids.device)
    keeps = config.lvtc_config.expanded_positions == "kept"
    expanded = Prompt(
        position_ids,
        expanded_mask,
        prompt.layer_kwargs,
        is_packed=False,
        rotary_positions=prompt.position_ids if keeps else None,
    )
    if is_padded is None:
        return prompt, expanded
    prompt = replace(prompt, is_padded=True, is_left_padded=is_left_padded) if is_padded else prompt.without_mask()
    if memory.mask is None and not is_padded_later:
        return prompt, expanded.without_mask()
    is_left_padded = memory.is_left_padded and not is_padded_later
    return prompt, replace(expanded, is_padded=True, is_left_padded=is_left_padded)


def _require_2d(attention_mask: torch.Tensor | Masks | None) -> torch.Tensor | None:
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return attention_mask
    got = f"one of shape {tuple(attention_mask.shape)}" if isinstance(attention_mask, torch.Tensor) else "several"
    raise ValueError(
        f"With images, LVTC needs a 2D `attention_mask` (samples, tokens) to make its masks from, got {got}."
    )


def _warn_about_positions(last_position: int, config: InternVLXConfig) -> None:
    if not is_tracing() and last_position >= (limit := config.position_limit):
        logger.warning_once(
            f"Positions after LVTC's expansion exceed {limit}, the limit of the language model (its "
            "`max_position_embeddings`), so answers may be poor. Use fewer tiles (`max_patches`, or `max_image_tokens` for all "
            "images of a prompt) or less text."
        )


def make_stages(
    text_config: PretrainedConfig,
    expand_layer: int,
    prompts: tuple[Prompt, Prompt],
    rotary_embs: tuple[nn.Module, nn.Module],
    inputs_embeds: torch.Tensor,
    cache: Cache | None,
    layer_kwargs: dict,
) -> tuple[Stage, Stage]:
    """Both stages, each from the prompt in its own columns."""
    layers = range(text_config.num_hidden_layers)
    parts = layers[:expand_layer], layers[expand_layer:]
    if prompts[0] is prompts[1] and not is_static(cache):  # no tiles so far: both stages have the same columns
        masks = [prompt_masks(text_config, layers, prompts[0], inputs_embeds, cache)] * 2
    else:
        masks = [
            prompt_masks(text_config, part, prompt, inputs_embeds, cache)
            for part, prompt in zip(parts, prompts, strict=True)
        ]
    is_flash = is_flash_attention_requested(text_config)
    first, second = (
        Stage(prompt, rotary_emb, mask, layer_kwargs, layers_see_positions=not (is_flash and prompt.samples_are_known))
        for prompt, rotary_emb, mask in zip(prompts, rotary_embs, masks, strict=True)
    )
    return first, second


def attention_types(text_config: PretrainedConfig) -> list[str]:
    """Attention type of every layer, as transformers' own models choose it."""
    if getattr(text_config, "layer_types", None):
        return text_config.layer_types
    sliding = getattr(text_config, "sliding_window", None) is not None
    return ["sliding_attention" if sliding else "full_attention"] * text_config.num_hidden_layers


def prompt_masks(
    text_config: PretrainedConfig, layers: range, prompt: Prompt, inputs_embeds: torch.Tensor, cache: Cache | None
) -> Masks:
    """Masks of the layers of a stage, selected from those of [`decoding_masks`] if they were made ahead."""
    if isinstance(prompt.attention_mask, dict):
        made, prefix = prompt.attention_mask, "expanded_" if layers.start else ""
        return {kind: made.get(prefix + kind, made.get(kind)) for kind in attention_types(text_config)}
    return stage_masks(
        text_config,
        layers,
        inputs_embeds=inputs_embeds.new_empty(*prompt.position_ids.shape, 0),
        attention_mask=prompt.attention_mask,
        position_ids=None if prompt.is_packed is False else prompt.position_ids,
        cache=cache,
        is_padded=prompt.is_padded,
        is_left_padded=prompt.is_left_padded,
    )


def stage_masks(
    text_config: PretrainedConfig,
    layers: range,
    cache: Cache | None,
    is_padded: bool | None = None,
    is_left_padded: bool = False,
    **mask_kwargs,
) -> Masks:
    """Masks of the layers of a stage, each sized for the cache of the first layer of its attention type.

    Args:
        is_padded, is_left_padded: see [`Prompt`]; they save transformers a check that waits for the device.
        mask_kwargs: see transformers' `create_causal_mask`.
    """
    types = attention_types(text_config)
    first = {types[i]: i for i in reversed(layers)}
    if is_padded and is_flash_attention_requested(text_config):
        padding = _padding_bounds if is_left_padded and not is_static(cache) else _padding_mask
        return {kind: padding(layer, cache=cache, **mask_kwargs) for kind, layer in first.items()}
    mask_kwargs[CACHE] = cache
    if is_padded:
        mask_kwargs["allow_is_causal_skip"] = False
    return {kind: MASK_FUNCTIONS[kind](config=text_config, layer_idx=i, **mask_kwargs) for kind, i in first.items()}


def _padding_mask(
    layer: int,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    cache: Cache | None,
    **_,
) -> torch.Tensor:
    """Flash attention's mask: which columns that a layer's cache returns are visible, (B, columns) bool."""
    columns = attention_mask.shape[1]
    if cache is not None:
        columns, _offset = cache.get_mask_sizes(inputs_embeds.shape[1], layer)
    return attention_mask[:, -columns:].to(inputs_embeds.device, torch.bool)


def _padding_bounds(layer: int, inputs_embeds: torch.Tensor, **mask_kwargs) -> dict:
    """Sample bounds that replace flash attention's mask of left padding: each row is two samples, padding and tokens.

    With a mask, every layer would wait twice for the device and copy keys and values without the padding.
    """
    mask = _padding_mask(layer, inputs_embeds, **mask_kwargs)
    (batch, columns), queries = mask.shape, inputs_embeds.shape[1]
    hidden = columns - mask.sum(1)
    row = torch.arange(batch, device=mask.device)
    bounds: dict[str, torch.Tensor | int] = {}
    for side, length, padding in (("q", queries, (hidden - columns + queries).clamp(min=0)), ("k", columns, hidden)):
        starts = torch.stack([row * length, row * length + padding], dim=1).flatten()
        bounds[f"cu_seq_lens_{side}"] = F.pad(starts, (0, 1), value=batch * length).int()
        bounds[f"max_length_{side}"] = length
    return bounds


def decoding_masks(
    config: InternVLXConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache
) -> Masks:
    """Masks of both stages for a step on text, made ahead of a compiled forward; stage two's keys are `expanded_...`."""
    text, k = config.text_config, config.lvtc_config.expand_layer
    memory, expanded_mask = recall_expansion(cache, k), attention_mask
    if memory is not None:
        expanded_mask = memory.extend_mask(attention_mask, seen_length(cache, inputs_embeds.shape[1]))
    layers = range(text.num_hidden_layers)
    masks = stage_masks(text, layers[:k], cache, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    expanded = stage_masks(text, layers[k:], cache, inputs_embeds=inputs_embeds, attention_mask=expanded_mask)
    return masks | {f"expanded_{kind}": mask for kind, mask in expanded.items()}
