# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The model's outputs, and the name that transformers gives a key/value cache: `past_key_values` before 5.24, then
`cache`.

Callers may use both names with every release. What transformers itself calls or is called with needs its own:
[`CACHE`]. Symbols: B samples, L their padded length, N₁² tokens per tile, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg

CACHE_NAMES = ("cache", "past_key_values")
# the name in the installed transformers, of arguments and of outputs
CACHE = next(field.name for field in fields(BaseModelOutputWithPast) if field.name in CACHE_NAMES)


def one_cache(past_key_values: Cache | None, cache: Any, kwargs: dict) -> Cache | None:
    """The cache that a forward was given under either name.

    Continuous batching passes its paged cache as `cache`. It is no [`Cache`]: only attention uses it, so it goes to
    `kwargs`.

    Raises:
        ValueError: if both names are given with different caches.
    """
    if cache is not None and not isinstance(cache, Cache):
        kwargs["cache"] = cache
    elif cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError(
            "`cache` and `past_key_values` are two names of one argument, got two caches. Give one of them."
        )
    elif cache is not None:
        return cache
    return past_key_values


def deprecates_other_name(forward: Callable) -> Callable:
    """Decorates a forward that takes both names: it warns of the old name where transformers' own models do."""
    return deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")(forward) if CACHE == "cache" else forward


@dataclass
class InternVLXImageFeatures(BaseModelOutputWithPooling):
    """The vision tower's output and the projectors' tokens.

    Args:
        pooler_output: (tiles, N₁², D), the tokens that replace the placeholders; a list of (N₁², D) if tiles have
            several sizes.
        deepstack_features: with LVTC, the tokens that later layers add: T − 1 tensors (tiles, N₁², D), then, with an
            HR projector, one (tiles, N₂², D), or lists. With `tile_sizes`, these come last. `generate` repeats both
            fields for its beams.
    """

    deepstack_features: list[torch.Tensor | list[torch.Tensor]] | None = None


class InternVLXOutput(ModelOutput):
    """What both outputs share. The cache can be read under both names; as a field it has transformers' own,
    [`CACHE`].
    """

    image_outputs: InternVLXImageFeatures | None

    if TYPE_CHECKING:
        cache: Cache | None
        past_key_values: Cache | None
    elif CACHE == "cache":
        past_key_values = property(lambda self: self.cache)
    else:
        cache = property(lambda self: self.past_key_values)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(CACHE if key in CACHE_NAMES else key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(CACHE if key in CACHE_NAMES else key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(CACHE if key in CACHE_NAMES else key, default)

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())

    @property
    def image_hidden_states(self) -> torch.Tensor | None:
        """(tiles, N₁², D), the tokens that replaced the placeholders; None without tiles."""
        return None if self.image_outputs is None else self.image_outputs.pooler_output


@dataclass
class InternVLXModelOutputWithPast(InternVLXOutput):
    """The model's output.

    Args:
        last_hidden_state: (B, L, D).
        cache: the key/value cache, also as `past_key_values`.
        hidden_states, attentions: with `output_hidden_states` and `output_attentions`, a tensor for each layer. With
            LVTC, the layers of each stage have its length.
        image_outputs: the result of `get_image_features`, or the given one; None without tiles.
        router_logits: with `output_router_logits`, a tensor (rows, experts) for each layer with experts.
        aux_loss: with `output_router_logits`, the load-balancing loss, a scalar.
    """

    last_hidden_state: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_outputs: InternVLXImageFeatures | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None


@dataclass
class InternVLXCausalLMOutputWithPast(InternVLXOutput):
    """The model's output with logits.

    Args:
        loss: with labels, a scalar. It has `aux_loss` in it, times the configuration's `router_aux_loss_coef`.
        logits: (B, L, vocabulary).

    The other fields are those of [`InternVLXModelOutputWithPast`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_outputs: InternVLXImageFeatures | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None
