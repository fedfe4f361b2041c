# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a key/value cache stores about LVTC's expansion, and how this travels with the cache.

Callers see the short prompt: their `attention_mask` and `position_ids` have one column per row of stage one. To derive
the mask and positions of stage two, a later forward needs to know what the expansion did.
"""

import sys
from collections.abc import Sequence
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
    """State of the cache layers of one of the later stages right after an expansion. Later columns are
    text and the same in all stages.

    Args:
        growth: (B, 1), tokens that each sample has gained, which is how far its positions are ahead when they are
            counted anew.
        shift: (B, 1), how far its rotary positions are ahead; less than `growth`, since some sizes keep their
            positions.
        mask: (B, `expanded_length`) bool, which columns of stage two may be attended to; None for all.
        length: columns of stage one that the expansion covers.
        expanded_length: columns of stage two that it covers.
        trailing_text: columns at the end that are text in every sample, padding excluded, and can be cropped.
        last_position: the highest position in stage two.
        is_left_padded: whether `mask` hides columns at the left only.
    """

    growth: torch.Tensor
    shift: torch.Tensor
    mask: torch.Tensor | None = None
    length: int = 0
    expanded_length: int = 0
    trailing_text: int = 0
    last_position: int = -1
    is_left_padded: bool = False

    @classmethod
    def of_text(cls, batch: int, device: torch.device) -> "Memory":
        """The memory of no expansion."""
        return cls(*torch.zeros(2, batch, 1, dtype=torch.long, device=device))

    def select(self, indices: torch.Tensor) -> "Memory":
        """The memory of these samples, in their order."""
        indices = indices.to(self.growth.device)
        mask = None if self.mask is None else self.mask[indices]
        return replace(self, growth=self.growth[indices], shift=self.shift[indices], mask=mask)

    def crop(self, surplus: int) -> "Memory":
        """Forget the last `surplus` columns.

        Raises:
            ValueError: if they are not text in every sample.
        """
        if surplus > self.trailing_text:
            raise ValueError(
                f"The cache can be cropped by at most {self.trailing_text} tokens of the prompt, back to its last "
                f"image or padding, got {surplus}. To go back further, run the prompt again."
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


Memories = tuple[Memory, ...]  # one for each boundary


class MemoryMixin(CacheLayerMixin):
    """Mixed into the class of a cache's first layer, so that the memory follows every change of the cache.

    A cache passes every change of its batch and length to its layers one after another, and to nothing else. The first
    layer holds the memory because cropping into an image must be refused before any layer is changed. The layer's own
    class stays a base class: it may be of any kind (dynamic, static, quantized).
    """

    layer_class: type[CacheLayerMixin]
    expansion: Memories | None

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
            self.select_samples(torch.arange(len(self.expansion[0].growth)).repeat_interleave(repeats))

    def select_samples(self, indices: torch.Tensor) -> None:
        """Keep the memory of these samples, in their order."""
        if self.expansion is not None:
            self.expansion = tuple(memory.select(indices) for memory in self.expansion)

    def crop(self, tokens_to_remove: int) -> None:
        """As in transformers, for a negative number of tokens.

        Raises:
            ValueError: if the tokens are not text after the last image.
        """
        expansion, length = self.expansion, self.get_seq_length()
        if expansion is not None and tokens_to_remove > 0:
            raise ValueError(
                f"Crop a cache with images by a negative number, the tokens to remove, got {tokens_to_remove}. "
                "A length to keep is ambiguous: the stages have different lengths."
            )
        left = length + tokens_to_remove
        if expansion is not None and left < expansion[0].length:
            expansion = tuple(memory.crop(memory.length - left) for memory in expansion)
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


def remember_expansion(cache: Cache, memories: Memories | None) -> None:
    """Store the memories in the cache's first layer, so that it travels with the cache."""
    layer = cache.layers[0]
    if not isinstance(layer, MemoryMixin):
        layer_class: type = type(layer)
        layer = cache.layers[0] = _restore_layer(layer_class, vars(layer))
    layer.expansion = memories


def recall_expansion(cache: Cache | None, boundaries: Sequence[int]) -> Memories | None:
    """The memories of a cache, one for each boundary; None if it has seen no images.

    Raises:
        ValueError: if the lengths of two stages show that it has seen images, but the memory is lost.
    """
    if cache is None or not cache.layers:
        return None
    memories = getattr(cache.layers[0], "expansion", None)
    for boundary in boundaries if memories is None and len(cache.layers) > boundaries[-1] else ():
        lengths = cache.get_seq_length(0), cache.get_seq_length(boundary)
        if not is_static(cache) and lengths[0] != lengths[1]:
            raise ValueError(
                f"The cache holds {lengths[0]} tokens before LVTC's expansion and {lengths[1]} after it, but not "
                "where its images are: it was built from another cache's keys and values. Pass the cache object "
                "itself (it can be copied, pickled and reordered), or run the prompt again."
            )
    return memories


@dataclass
class ExpandedLength:
    """Columns of the later stages in the static caches that a model's `generate` makes.

    As in transformers for stage one, a cache is as long as the longest before it, because a new length recompiles the
    decoding step.
    """

    longest: int = 0


def allow_growth(cache: Cache, config, max_cache_len: int, expanded: ExpandedLength, memory: Memory) -> None:
    """Allow a new static cache's layers of the later stages to grow by the tokens that an expansion adds.

    Args:
        max_cache_len: columns that this generation needs in stage one; the cache may be longer already.
        expanded: columns that earlier generations needed in later stages; updated with what this one needs.
        memory: that of a text, which a cache has even for a prompt without tiles, so that the same compiled decoding
            step serves all prompts.
    """
    boundaries = config.boundaries
    for layer in cache.layers[boundaries[0] :]:
        layer.growth = max_cache_len, expanded  # type: ignore[union-attr]
    ensure_capacity(cache, config, boundaries[0], 0, 0)
    remember_expansion(cache, (memory,) * len(boundaries))


def ensure_capacity(cache: Cache | None, config, start: int, length: int, expanded_length: int) -> None:
    """Ensure that `expanded_length` columns fit into the layers from `start` on when stage one gets `length`.

    Raises:
        ValueError: if a static cache that the caller made is too short.
    """
    for layer in [] if cache is None else cache.layers[start:]:
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
                f"The static cache has room for {layer.max_cache_len} tokens, but the layers after LVTC's expansion "
                f"need {needed} ({expanded_length} for the {length} of this prompt). Create it with a `max_cache_len` "
                f"of at least {needed} plus the tokens to generate, or let `generate` create it."
            )
