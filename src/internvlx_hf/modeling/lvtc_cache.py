# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a key/value cache has to remember of LVTC's expansion, and how it travels with the cache.

Callers see the short prompt: their `attention_mask` and `position_ids` have a column for each row of stage one. Stage two
has other columns, and its mask and positions follow from theirs only together with what the expansion did.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from .lvtc_expansion import Expansion


@dataclass(frozen=True)
class ExpansionMemory:
    """State of stage two's cache layers right after an expansion; what comes later is text, a column for a column.

    Args:
        mask: (B, `expanded_length`) bool, which columns of stage two may be attended to; None for all.
        length: columns of stage one that the expansion covers.
        expanded_length: columns of stage two that it covers.
        growth: (B, 1), by how many tokens each sample has grown; what its positions are ahead in stage two.
        trailing_text: how many of the last columns are text in every sample, padding excluded, and can be cropped away.
        last_position: the highest of stage two.
        is_left_padded: whether what `mask` hides comes before all that is visible.
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
                f"The cache can be cropped by {self.trailing_text} tokens into the prompt, back to its last image or padding, got "
                f"{surplus}. Run the prompt again to go back further."
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
            (B, `expanded_length` + what came later) bool, or None if everything may be attended to.
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
    """What a cache is to remember after an expansion.

    Args:
        memory: of earlier expansions on the cache.
        attention_mask: (B, seen + `length`), the caller's.
        length: columns of stage one that this forward brings.
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


class RemembersExpansion(CacheLayerMixin):
    """Mixed into the class of a cache's first layer, so that the memory follows all that happens to the cache.

    A cache hands every change of its batch and length to its layers, one after another, and to nobody else. The memory is
    with the first of them because what a cache with images cannot do, to crop one in the middle, must be refused before any
    layer is changed. The layer's own class stays a base: it may be of any kind (dynamic, static, quantized).
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
                f"Crop a cache with images by a negative number, the tokens to remove, got {tokens_to_remove}: "
                "as a length to keep it would be another one in each of LVTC's stages."
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
def _with_memory(layer_class: type) -> type[RemembersExpansion]:
    return type(layer_class.__name__, (RemembersExpansion, layer_class), {"layer_class": layer_class})


def _restore_layer(layer_class: type, state: dict) -> RemembersExpansion:
    layer = object.__new__(_with_memory(layer_class))
    layer.__dict__ = state
    return layer


def remember_expansion(cache: Cache, memory: ExpansionMemory | None) -> None:
    """Put the memory into the cache's first layer, so that it goes wherever the cache goes."""
    layer = cache.layers[0]
    if not isinstance(layer, RemembersExpansion):
        layer_class: type = type(layer)
        layer = cache.layers[0] = _restore_layer(layer_class, vars(layer))
    layer.expansion = memory


def recall_expansion(cache: Cache | None, expand_layer: int) -> ExpansionMemory | None:
    """The memory of a cache; None if it has seen no images.

    Raises:
        ValueError: if the stages' lengths say that it has, but the memory is lost.
    """
    if cache is None or not cache.layers:
        return None
    memory = getattr(cache.layers[0], "expansion", None)
    if memory is None and len(cache.layers) > expand_layer:
        lengths = cache.get_seq_length(0), cache.get_seq_length(expand_layer)
        # a static cache's are on the device
        if all(isinstance(length, int) for length in lengths) and lengths[0] != lengths[1]:
            raise ValueError(
                f"The cache holds {lengths[0]} tokens before LVTC's expansion and {lengths[1]} after it, but not where its "
                "images are: it was made of another one's keys and values. Hand on the cache object itself (it can be "
                "copied, pickled and reordered), or run the prompt again."
            )
    return memory


def seen_length(cache: Cache, new: int) -> int:
    """Columns of stage one with `new` ones; all that there is room for in a static cache, whose length is on the device."""
    seen = cache.get_seq_length()
    return cache.get_max_length(0) if isinstance(seen, torch.Tensor) else seen + new


@dataclass
class ExpandedLength:
    """Columns that the static caches of a model's `generate` have in stage two.

    As transformers does for stage one, a later cache is as long as the longest before it: a compiled decoding step is
    compiled again for another length.
    """

    longest: int = 0


def allow_growth(cache: Cache, text_config, expand_layer: int, max_cache_len: int, expanded: ExpandedLength) -> None:
    """Let a new static cache's layers from `expand_layer` on be longer than the others, by what the expansion adds.

    Args:
        max_cache_len: what this generation needs in stage one; the cache may be longer already.
        expanded: what earlier ones needed in stage two, and where this one's need will be noted.
    """
    for layer in cache.layers[expand_layer:]:
        if isinstance(layer, StaticLayer):
            layer.length_before_expansion, layer.expanded_length = max_cache_len, expanded  # type: ignore[attr-defined]
            if not layer.is_initialized:
                _lengthen(layer, text_config, expanded.longest)


def remember_text(cache: Cache, expand_layer: int, growth: torch.Tensor) -> ExpansionMemory | None:
    """Have a new static cache of [`allow_growth`] remember a prompt without tiles as one that has grown by nothing.

    So a compiled decoding step is the same after all prompts.

    Args:
        growth: (B, 1) zeros.
    """
    layer = cache.layers[expand_layer]
    if not isinstance(layer, StaticLayer) or not hasattr(layer, "expanded_length") or layer.is_initialized:
        return None
    memory = ExpansionMemory(None, 0, 0, growth, trailing_text=0, last_position=-1)
    remember_expansion(cache, memory)
    return memory


def _lengthen(layer: StaticLayer, text_config, length: int) -> None:
    if layer.is_sliding:
        length = min(length, text_config.sliding_window)
    layer.max_cache_len = max(layer.max_cache_len, length)


def make_room(cache: Cache | None, text_config, expand_layer: int, length: int, expanded_length: int) -> None:
    """Check that `expanded_length` columns fit into stage two's layers, where stage one gets `length`.

    Raises:
        ValueError: if a static cache that was handed in is too short.
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
        if layer.max_cache_len == window or needed <= layer.max_cache_len:  # a whole window has room for any length
            continue
        raise ValueError(
            f"The static cache has room for {layer.max_cache_len} tokens, but the layers after LVTC's expansion need "
            f"{needed} ({expanded_length} for the {length} of this prompt). Make it with "
            f"`max_cache_len` of at least {needed} and the tokens to generate, or let `generate` make it."
        )
