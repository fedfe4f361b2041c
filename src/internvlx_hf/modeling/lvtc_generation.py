# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What `generate` does differently for a model with LVTC: masks made ahead of compiled steps, and longer static
caches.
"""

from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from .configuration_internvlx import InternVLXConfig
from .layout import Masks
from .lvtc_cache import ExpandedLength, Memory, ensure_capacity, remember_expansion
from .lvtc_masks import decoding_masks
from .outputs import one_cache


class LVTCGenerationMixin(GenerationMixin):
    """Generation for a model that may have LVTC as `model.lvtc`."""

    config: Any
    model: Any
    device: Any
    _expanded_cache_length: ExpandedLength

    def create_masks_for_generate(
        self,
        config: InternVLXConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        is_first_iteration: bool = False,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor | Masks | None:
        """Make the masks of a compiled step ahead of it.

        With LVTC, the prompt's forward is not compiled and makes its own masks: those of stage two depend on where the
        images are.
        """
        cache = one_cache(past_key_values, cache, kwargs)
        if self.model.lvtc is None or cache is None:
            return create_masks_for_generate(config, inputs_embeds, attention_mask, cache, **kwargs)
        if is_first_iteration:
            return attention_mask
        return decoding_masks(config, inputs_embeds, attention_mask, cache)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs):  # type: ignore[override]
        has_features = (model_kwargs.get("mm_encoder_outputs") or {}).get("image") is not None
        # features of tiles with sizes of their own, too
        has_features &= self.config.tokens_per_tile is not None or self.model.lvtc is not None
        # before transformers 5.18, which encodes images ahead of the prompt
        has_pixels = model_kwargs.get("pixel_values") is not None
        if (has_features or has_pixels) and generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"`prefill_chunk_size`={generation_config.prefill_chunk_size} would split tiles between chunks. LVTC "
                "cannot expand a split tile, and transformers before 5.18 cannot encode one. Leave it unset for "
                "prompts with images."
            )
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]

    def _prepare_static_cache(self, *args, batch_size: int, max_cache_len: int, **kwargs) -> Cache:  # type: ignore[override]
        cache = super()._prepare_static_cache(  # type: ignore[misc]
            *args, batch_size=batch_size, max_cache_len=max_cache_len, **kwargs
        )
        if self.model.lvtc is not None:
            stages = len(self.config.boundaries)
            cache.growth = max_cache_len, self._expanded_cache_length  # type: ignore[attr-defined]
            ensure_capacity(cache, self.config, [0] * (1 + stages))
            # even for a prompt without tiles, so that the same compiled decoding step serves all prompts
            remember_expansion(cache, Memory.of_text(stages, batch_size, self.device))
        return cache
