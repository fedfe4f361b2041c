# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a key/value cache stores about LVTC's expansion, and how this travels with the cache.

Callers see the short prompt: their `attention_mask` and `position_ids` have one column per row of stage one. To derive the
mask and positions of stage two, a later forward needs to know what the expansion did.
"""

import sys
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from .layout import is_static


def join_masks(like: torch.Tensor, *parts: tuple[torch.Tensor | None, int]) -> torch.Tensor | None:
    """Join masks (B, columns), each given with its number of columns, to one of bool. None hides nothing.

    Args:
        like: (B, ...), for its length and device.
    """
    if all(mask is None for mask, _ in parts):
        return None
    masks = [like.new_ones(len(like), columns) if mask is None else mask for mask, columns in parts]
    return torch.cat([mask.to(like.device, torch.bool) for mask in masks], dim=-1)


@dataclass(frozen=True)
class Memory:
    """State of stage two's cache layers right after an expansion. Later columns are text and the same in both stages.

    Args:
        growth: (B, 1), tokens that each sample has gained, which is how far its positions in stage two are ahead.
        mask: (B, `expanded_length`) bool, which columns of stage two may be attended to; None for all.
        length: columns of stage one that the expansion covers.
        expanded_length: columns of stage two that it covers.
        trailing_text: columns at the end that are text in every sample, padding excluded, and can be cropped.
        last_position: the highest position in stage two.
        is_left_padded: whether `mask` hides columns at the left only.
    """

    growth: torch.Tensor
    mask: torch.Tensor | None = None
    length: int = 0
    expanded_length: int = 0
    trailing_text: int = 0
    last_position: int = -1
    is_left_padded: bool = False

    @classmethod
    def of_text(cls, batch: int, device: torch.device) -> "Memory":
        """The memory of no expansion."""
        return cls(torch.zeros(batch, 1, dtype=torch.long, device=device))

    def crop(self, surplus: int) -> "Memory":
        """Forget the last `surplus` columns.

        Raises:
            ValueError: if they are not text in every sample.
        """
        if surplus > self.trailing_text:
            raise ValueError(
                f"The cache can be cropped by at most {self.trailing_text} tokens of the prompt, back to its last image or "
                f"padding, got {surplus}. To go back further, run the prompt again."
            )
        names = ("length", "expanded_length", "trailing_text", "last_position")
        mask = None if self.mask is None else self.mask[:, : self.expanded_length - surplus]
        return replace(self, mask=mask, **{name: getattr(self, name) - surplus for name in names})

    def extend_mask(self, attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """Mask of stage two, from the caller's (B, `length`) mask of stage one.

        Returns:
            (B, `expanded_length` + later columns) bool, or None if everything may be attended to.
        """
        later = None if attention_mask is None else attention_mask[:, self.length :]
        return join_masks(self.growth, (self.mask, self.expanded_length), (later, length - self.length))


class MemoryMixin(CacheLayerMixin):
    """Mixed into the class of a cache's first layer, so that the memory follows every change of the cache.

    A cache passes every change of its batch and length to its layers one after another, and to nothing else. The first
    layer holds the memory because cropping into an image must be refused before any layer is changed. The layer's own class
    stays a base class: it may be of any kind (dynamic, static, quantized).
    """

    layer_class: type[CacheLayerMixin]
    expansion: Memory | None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """As in transformers, with the memory."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.select_samples(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """As in transformers, with the memory."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.select_samples(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As in transformers, with the memory."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.expansion is not None:
            self.select_samples(torch.arange(len(self.expansion.growth)).repeat_interleave(repeats))

    def select_samples(self, indices: torch.Tensor) -> None:
        """Keep the memory of these samples, in their order."""
        memory = self.expansion
        if memory is not None:
            indices = indices.to(memory.growth.device)
            mask = None if memory.mask is None else memory.mask[indices]
            self.expansion = replace(memory, growth=memory.growth[indices], mask=mask)

    def crop(self, tokens_to_remove: int) -> None:
        """As in transformers, for a negative number of tokens.

        Raises:
            ValueError: if the tokens are not text after the last image.
        """
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
        """As in transformers, with the memory."""
        super().reset()
        self.expansion = None

    def __reduce__(self):
        return _restore_layer, (self.layer_class, self.__dict__)


@lru_cache
def _with_memory(layer_class: type) -> type[MemoryMixin]:
    return type(layer_class.__name__, (MemoryMixin, layer_class), {"layer_class": layer_class})


def _restore_layer(layer_class: type, state: dict) -> MemoryMixin:
    layer = object.__new__(_with_memory(layer_class))
    layer.__dict__ = state
    return layer


def remember_expansion(cache: Cache, memory: Memory | None) -> None:
    """Store the memory in the cache's first layer, so that it travels with the cache."""
    layer = cache.layers[0]
    if not isinstance(layer, MemoryMixin):
        layer_class: type = type(layer)
        layer = cache.layers[0] = _restore_layer(layer_class, vars(layer))
    layer.expansion = memory


def recall_expansion(cache: Cache | None, expand_layer: int) -> Memory | None:
    """The memory of a cache; None if it has seen no images.

    Raises:
        ValueError: if the lengths of the two stages show that it has seen images, but the memory is lost.
    """
    if cache is None or not cache.layers:
        return None
    memory = getattr(cache.layers[0], "expansion", None)
    if memory is None and len(cache.layers) > expand_layer:
        lengths = cache.get_seq_length(0), cache.get_seq_length(expand_layer)
        if not is_static(cache) and lengths[0] != lengths[1]:
            raise ValueError(
                f"The cache holds {lengths[0]} tokens before LVTC's expansion and {lengths[1]} after it, but not where its "
                "images are: it was built from another cache's keys and values. Pass the cache object itself (it can be "
                "copied, pickled and reordered), or run the prompt again."
            )
    return memory


@dataclass
class ExpandedLength:
    """Columns of stage two in the static caches that a model's `generate` makes.

    As in transformers for stage one, a cache is as long as the longest before it, because a new length recompiles the
    decoding step.
    """

    longest: int = 0


def allow_growth(cache: Cache, config, max_cache_len: int, expanded: ExpandedLength, memory: Memory) -> None:
    """Allow a new static cache's layers of stage two to grow by the tokens that the expansion adds.

    Args:
        max_cache_len: columns that this generation needs in stage one; the cache may be longer already.
        expanded: columns that earlier generations needed in stage two; updated with what this one needs.
        memory: that of a text, which a cache has even for a prompt without tiles, so that the same compiled decoding step
            serves all prompts.
    """
    for layer in cache.layers[config.lvtc_config.expand_layer :]:
        layer.growth = max_cache_len, expanded  # type: ignore[union-attr]
    ensure_capacity(cache, config, 0, 0)
    remember_expansion(cache, memory)


def ensure_capacity(cache: Cache | None, config, length: int, expanded_length: int) -> None:
    """Ensure that `expanded_length` columns fit into stage two's layers when stage one gets `length`.

    Raises:
        ValueError: if a static cache that the caller made is too short.
    """
    for layer in [] if cache is None else cache.layers[config.lvtc_config.expand_layer :]:
        if not isinstance(layer, StaticLayer):
            continue
        # a sliding window fits any length
        window = config.text_config.sliding_window if layer.is_sliding else sys.maxsize
        if hasattr(layer, "growth") and not layer.is_initialized:
            max_cache_len, expanded = layer.growth
            expanded.longest = max(expanded.longest, max_cache_len + expanded_length - length)
            layer.max_cache_len = max(layer.max_cache_len, min(expanded.longest, window))
        needed = int(layer.get_seq_length()) + expanded_length
        if needed > layer.max_cache_len != window:
            raise ValueError(
                f"The static cache has room for {layer.max_cache_len} tokens, but the layers after LVTC's expansion need "
                f"{needed} ({expanded_length} for the {length} of this prompt). Create it with a `max_cache_len` of at "
                f"least {needed} plus the tokens to generate, or let `generate` create it."
            )
