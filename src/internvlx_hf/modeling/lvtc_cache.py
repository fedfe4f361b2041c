# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a key/value cache stores about LVTC's expansion, and how this travels with the cache.

Callers see the short prompt: their `attention_mask` and `position_ids` have one column per row of stage one. To derive
the mask and positions of stage two, a later forward needs to know what the expansion did.
"""

import sys
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from .layout import Rows, is_static


@dataclass(frozen=True)
class Memory:
    """State of the cache layers of the later stages right after an expansion. Later columns are text and the same in
    all stages.

    Args:
        shift: (later stages, B, 1), how far each sample's positions are ahead of stage one's.
        masks: for each of these stages, (B, columns that the expansion covers) bool, which may be attended to.
        rows: what the masks hide: `WHOLE`, `PADDED_LEFT` or `PADDED`.
        length: columns of stage one that the expansion covers.
        trailing_text: columns at the end that are text in every sample, padding excluded, and can be cropped.
        last_position: the highest position in a later stage.
    """

    shift: torch.Tensor
    masks: list[torch.Tensor]
    rows: list[Rows]
    length: int = 0
    trailing_text: int = 0
    last_position: int = -1

    @classmethod
    def of_text(cls, stages: int, batch: int, device: torch.device) -> "Memory":
        """The memory of no expansion, of that many later stages."""
        shift = torch.zeros(stages, batch, 1, dtype=torch.long, device=device)
        return cls(shift, [shift.new_ones(batch, 0, dtype=torch.bool)] * stages, [Rows.WHOLE] * stages)

    def crop(self, surplus: int) -> "Memory":
        """Forget the last `surplus` columns, if that is more than 0.

        Raises:
            ValueError: if they are not text in every sample.
        """
        surplus = max(surplus, 0)
        if surplus > self.trailing_text:
            raise ValueError(
                f"The cache can be cropped by at most {self.trailing_text} tokens of the prompt, back to its last "
                f"image or padding, got {surplus}. To go back further, run the prompt again."
            )
        return replace(
            self,
            masks=[mask[:, : mask.shape[1] - surplus] for mask in self.masks],
            length=self.length - surplus,
            trailing_text=self.trailing_text - surplus,
            last_position=self.last_position - surplus,
        )

    def extend_mask(self, index: int, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, columns that the expansion covers + later ones) bool of a later stage, from the caller's mask of stage
        one, (B, its columns).
        """
        mask = self.masks[index]
        return torch.cat([mask, attention_mask[:, self.length :].to(mask)], dim=1)


class MemoryMixin(CacheLayerMixin):
    """Mixed into the class of a cache's first layer, so that the memory follows every change of the cache.

    A cache passes every change of its batch and length to its layers one after another, and to nothing else. The first
    layer holds the memory because cropping into an image must be refused before any layer is changed. The layer's own
    class stays a base class: it may be of any kind (dynamic, static, quantized).
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
            self.select_samples(torch.arange(self.expansion.shift.shape[1]).repeat_interleave(repeats))

    def select_samples(self, indices: torch.Tensor) -> None:
        """Keep the memory of these samples, in their order."""
        if (memory := self.expansion) is not None:
            indices = indices.to(memory.shift.device)
            masks = [mask[indices] for mask in memory.masks]
            self.expansion = replace(memory, shift=memory.shift[:, indices], masks=masks)

    def crop(self, tokens_to_remove: int) -> None:
        """As in transformers, for a negative number of tokens.

        Raises:
            ValueError: if the tokens are not text after the last image.
        """
        expansion = self.expansion
        if expansion is not None:
            if tokens_to_remove > 0:
                raise ValueError(
                    f"Crop a cache with images by a negative number, the tokens to remove, got {tokens_to_remove}. "
                    "A length to keep is ambiguous: the stages have different lengths."
                )
            expansion = expansion.crop(expansion.length - self.get_seq_length() - tokens_to_remove)
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self.expansion = expansion

    def reset(self) -> None:
        """As in transformers, with the memory."""
        super().reset()
        self.expansion = None

    def __reduce__(self):
        return _new_layer, (self.layer_class,), self.__dict__


@lru_cache
def _with_memory(layer_class: type) -> type[MemoryMixin]:
    return type(layer_class.__name__, (MemoryMixin, layer_class), {"layer_class": layer_class})


def _new_layer(layer_class: type) -> MemoryMixin:
    return object.__new__(_with_memory(layer_class))


def remember_expansion(cache: Cache, memory: Memory | None) -> None:
    """Store the memory in the cache's first layer, so that it travels with the cache."""
    layer: Any = cache.layers[0]
    if not isinstance(layer, MemoryMixin):
        layer.__class__ = _with_memory(type(layer))  # type: ignore[arg-type]
    layer.expansion = memory


def recall_expansion(cache: Cache | None, boundaries: Sequence[int]) -> Memory | None:
    """The memory of a cache; None if it has seen no images.

    Raises:
        ValueError: if the lengths of two stages show that it has seen images, but the memory is lost.
    """
    if cache is None or not cache.layers:
        return None
    memory = getattr(cache.layers[0], "expansion", None)
    if memory is None and not is_static(cache) and len(cache.layers) > boundaries[-1]:
        length, *later = (cache.get_seq_length(layer) for layer in (0, *boundaries))
        for other in later:
            if other != length:
                raise ValueError(
                    f"The cache holds {length} tokens before LVTC's expansion and {other} after it, but not where its "
                    "images are: it was built from another cache's keys and values. Pass the cache object itself (it "
                    "can be copied, pickled and reordered), or run the prompt again."
                )
    return memory


@dataclass
class ExpandedLength:
    """Columns of the later stages in the static caches that a model's `generate` makes.

    As in transformers for stage one, a cache is as long as the longest before it, because a new length recompiles the
    decoding step.
    """

    longest: int = 0


def ensure_capacity(cache: Cache | None, config, lengths: Sequence[int]) -> None:
    """Ensure that the layers of each later stage have room for a prompt.

    Before their first use, those of a cache with `growth` become longer: its first entry is the number of columns that
    this generation needs in stage one (the cache may be longer already), its second the [`ExpandedLength`], which is
    updated with what this generation needs.

    Args:
        lengths: the prompt's in each stage.

    Raises:
        ValueError: if a static cache that the caller made is too short.
    """
    growth = getattr(cache, "growth", None)
    for index, layer in enumerate([] if cache is None else cache.layers):
        stage = bisect(config.boundaries, index)
        if not stage or not isinstance(layer, StaticLayer):
            continue
        # a sliding window fits any length
        window = config.text_config.sliding_window if layer.is_sliding else sys.maxsize
        if growth is not None and not layer.is_initialized:
            max_cache_len, expanded = growth
            expanded.longest = max(expanded.longest, max_cache_len + lengths[stage] - lengths[0])
            layer.max_cache_len = max(layer.max_cache_len, min(expanded.longest, window))
        needed = int(layer.get_seq_length()) + lengths[stage]
        if needed > layer.max_cache_len != window:
            raise ValueError(
                f"The static cache has room for {layer.max_cache_len} tokens, but the layers after LVTC's expansion "
                f"need {needed} ({lengths[stage]} for the {lengths[0]} of this prompt). Create it with a "
                f"`max_cache_len` of at least {needed} plus the tokens to generate, or let `generate` create it."
            )
