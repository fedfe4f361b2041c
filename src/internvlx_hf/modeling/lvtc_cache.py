# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a key/value cache stores about LVTC's expansion, and how this travels with the cache.

Callers see the short prompt: their `attention_mask` and `position_ids` have one column per row of stage one. To derive the
mask and positions of stage two, a later forward needs to know what the expansion did.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from .lvtc_expansion import Expansion


@dataclass(frozen=True)
class ExpansionMemory:
    """State of stage two's cache layers right after an expansion. Later columns are text and the same in both stages.

    Args:
        mask: (B, `expanded_length`) bool, which columns of stage two may be attended to; None for all.
        length: columns of stage one that the expansion covers.
        expanded_length: columns of stage two that it covers.
        growth: (B, 1), tokens that each sample has gained, which is how far its positions in stage two are ahead.
        trailing_text: columns at the end that are text in every sample, padding excluded, and can be cropped.
        last_position: the highest position in stage two.
        is_left_padded: whether `mask` hides columns at the left only.
    """

    mask: torch.Tensor | None
    length: int
    expanded_length: int
    growth: torch.Tensor
    trailing_text: int
    last_position: int
    is_left_padded: bool = False

    def select(self, indices: torch.Tensor) -> "ExpansionMemory":
        indices = indices.to(self.growth.device)
        return replace(self, growth=self.growth[indices], mask=None if self.mask is None else self.mask[indices])

    def crop(self, surplus: int) -> "ExpansionMemory":
        if surplus > self.trailing_text:
            raise ValueError(
                f"The cache can be cropped by at most {self.trailing_text} tokens of the prompt, back to its last image or "
                f"padding, got {surplus}. To go back further, run the prompt again."
            )
        mask = None if self.mask is None else self.mask[:, : self.expanded_length - surplus]
        return replace(
            self,
            mask=mask,
            length=self.length - surplus,
            expanded_length=self.expanded_length - surplus,
            trailing_text=self.trailing_text - surplus,
            last_position=self.last_position - surplus,
        )

    def extend_mask(self, attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """Mask of stage two, from the caller's (B, `length`) mask of stage one.

        Returns:
            (B, `expanded_length` + later columns) bool, or None if everything may be attended to.
        """
        if self.mask is None and attention_mask is None:
            return None
        batch, device = len(self.growth), self.growth.device
        mask = (
            torch.ones(batch, self.expanded_length, dtype=torch.bool, device=device)
            if self.mask is None
            else self.mask
        )
        if attention_mask is None:
            later = mask.new_ones(batch, length - self.length)
        else:
            later = attention_mask[:, self.length :].to(device, torch.bool)
        return torch.cat([mask, later], dim=-1)


def memory_after(
    expansion: Expansion,
    memory: ExpansionMemory | None,
    attention_mask: torch.Tensor | None,
    length: int,
    cache: Cache | None,
    expand_layer: int,
) -> ExpansionMemory:
    """The memory that a cache keeps after an expansion.

    Args:
        memory: memory of earlier expansions on the cache.
        attention_mask: (B, seen + `length`), the caller's.
        length: columns of stage one that this forward adds.
    """
    batch, expanded_length = expansion.position_ids.shape
    seen = expanded_seen = 0
    if cache is not None:
        seen, expanded_seen = int(cache.get_seq_length()), int(cache.get_seq_length(expand_layer))
    past_mask = attention_mask[:, :seen] if attention_mask is not None and seen else None
    is_left_padded = expanded_seen == 0 and expansion.padding_side == "left"
    if memory is not None:
        is_left_padded |= memory.is_left_padded and attention_mask is None and expansion.mask is None
        past_mask = memory.extend_mask(past_mask, seen)
    mask = expansion.mask
    if mask is not None or past_mask is not None:
        device = expansion.position_ids.device
        past_mask = torch.ones(batch, expanded_seen) if past_mask is None else past_mask
        mask = torch.ones(batch, expanded_length) if mask is None else mask
        mask = torch.cat([past_mask.to(device, torch.bool), mask.to(device, torch.bool)], dim=-1)
    return ExpansionMemory(
        mask=mask,
        length=seen + length,
        expanded_length=expanded_seen + expanded_length,
        growth=expansion.growth,
        trailing_text=expansion.trailing_text,
        last_position=expansion.last_position,
        is_left_padded=is_left_padded,
    )


class ExpansionMemoryMixin(CacheLayerMixin):
    """Mixed into the class of a cache's first layer, so that the memory follows every change of the cache.

    A cache passes every change of its batch and length to its layers one after another, and to nothing else. The first
    layer holds the memory because cropping into an image must be refused before any layer is changed. The layer's own class
    stays a base class: it may be of any kind (dynamic, static, quantized).
    """

    layer_class: type[CacheLayerMixin]
    expansion: ExpansionMemory | None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.select_samples(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.select_samples(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.expansion is not None:
            self.select_samples(torch.arange(len(self.expansion.growth)).repeat_interleave(repeats))

    def select_samples(self, indices: torch.Tensor) -> None:
        if self.expansion is not None:
            self.expansion = self.expansion.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        expansion, length = self.expansion, self.get_seq_length()
        if expansion is not None and tokens_to_remove > 0:
            raise ValueError(
                f"Crop a cache with images by a negative number, the tokens to remove, got {tokens_to_remove}. "
                "A length to keep is ambiguous: LVTC's two stages have different lengths."
            )
        left = length + tokens_to_remove
        if expansion is not None and left < expansion.length:
            expansion = expansion.crop(expansion.length - left)
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self.expansion = expansion

    def reset(self) -> None:
        super().reset()
        self.expansion = None

    def __reduce__(self):
        return _restore_layer, (self.layer_class, self.__dict__)


@lru_cache
def _with_memory(layer_class: type) -> type[ExpansionMemoryMixin]:
    return type(layer_class.__name__, (ExpansionMemoryMixin, layer_class), {"layer_class": layer_class})


def _restore_layer(layer_class: type, state: dict) -> ExpansionMemoryMixin:
    layer = object.__new__(_with_memory(layer_class))
    layer.__dict__ = state
    return layer


def remember_expansion(cache: Cache, memory: ExpansionMemory | None) -> None:
    """Store the memory in the cache's first layer, so that it travels with the cache."""
    layer = cache.layers[0]
    if not isinstance(layer, ExpansionMemoryMixin):
        layer_class: type = type(layer)
        layer = cache.layers[0] = _restore_layer(layer_class, vars(layer))
    layer.expansion = memory


def recall_expansion(cache: Cache | None, expand_layer: int) -> ExpansionMemory | None:
    """The memory of a cache; None if it has seen no images.

    Raises:
        ValueError: if the lengths of the two stages show that it has seen images, but the memory is lost.
    """
    if cache is None or not cache.layers:
        return None
    memory = getattr(cache.layers[0], "expansion", None)
    if memory is None and len(cache.layers) > expand_layer:
        lengths = cache.get_seq_length(0), cache.get_seq_length(expand_layer)
        # a static cache keeps its lengths on the device
        if all(isinstance(length, int) for length in lengths) and lengths[0] != lengths[1]:
            raise ValueError(
                f"The cache holds {lengths[0]} tokens before LVTC's expansion and {lengths[1]} after it, but not where its "
                "images are: it was built from another cache's keys and values. Pass the cache object itself (it can be "
                "copied, pickled and reordered), or run the prompt again."
            )
    return memory


def seen_length(cache: Cache, new: int) -> int:
    """Columns of stage one including `new` ones; for a static cache, whose length is on the device, its full size."""
    seen = cache.get_seq_length()
    return cache.get_max_length(0) if isinstance(seen, torch.Tensor) else seen + new


@dataclass
class ExpandedLength:
    """Columns of stage two in the static caches that a model's `generate` makes.

    As in transformers for stage one, a cache is as long as the longest before it, because a new length recompiles the
    decoding step.
    """

    longest: int = 0


def allow_growth(cache: Cache, text_config, expand_layer: int, max_cache_len: int, expanded: ExpandedLength) -> None:
    """Allow a new static cache's layers from `expand_layer` on to grow by the tokens that the expansion adds.

    Args:
        max_cache_len: columns that this generation needs in stage one; the cache may be longer already.
        expanded: columns that earlier generations needed in stage two; updated with what this one needs.
    """
    for layer in cache.layers[expand_layer:]:
        if isinstance(layer, StaticLayer):
            layer.length_before_expansion, layer.expanded_length = max_cache_len, expanded  # type: ignore[attr-defined]
            if not layer.is_initialized:
                _lengthen(layer, text_config, expanded.longest)


def remember_text(cache: Cache, expand_layer: int, growth: torch.Tensor) -> ExpansionMemory | None:
    """Store a memory of zero growth in a new static cache of [`allow_growth`] after a prompt without tiles.

    This way the same compiled decoding step serves all prompts.

    Args:
        growth: (B, 1) zeros.
    """
    layer = next(iter(cache.layers[expand_layer:]), None)  # a cache without a configuration has no layers yet
    if not isinstance(layer, StaticLayer) or not hasattr(layer, "expanded_length") or layer.is_initialized:
        return None
    memory = ExpansionMemory(None, 0, 0, growth, trailing_text=0, last_position=-1)
    remember_expansion(cache, memory)
    return memory


def _lengthen(layer: StaticLayer, text_config, length: int) -> None:
    if layer.is_sliding:
        length = min(length, text_config.sliding_window)
    layer.max_cache_len = max(layer.max_cache_len, length)


def ensure_capacity(cache: Cache | None, text_config, expand_layer: int, length: int, expanded_length: int) -> None:
    """Ensure that `expanded_length` columns fit into stage two's layers when stage one gets `length`.

    Raises:
        ValueError: if a static cache that the caller made is too short.
    """
    for layer in [] if cache is None else cache.layers[expand_layer:]:
        if not isinstance(layer, StaticLayer):
            continue
        window = text_config.sliding_window if layer.is_sliding else None
        if hasattr(layer, "expanded_length") and not layer.is_initialized:
            needed = layer.length_before_expansion + expanded_length - length  # type: ignore[attr-defined]
            layer.expanded_length.longest = max(layer.expanded_length.longest, needed)
            _lengthen(layer, text_config, layer.expanded_length.longest)
        needed = int(layer.get_seq_length()) + expanded_length
        if layer.max_cache_len == window or needed <= layer.max_cache_len:  # a sliding window fits any length
            continue
        raise ValueError(
            f"The static cache has room for {layer.max_cache_len} tokens, but the layers after LVTC's expansion need "
            f"{needed} ({expanded_length} for the {length} of this prompt). Create it with a `max_cache_len` of at least "
            f"{needed} plus the tokens to generate, or let `generate` create it."
        )
