# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Continuous batching, which transformers supports for text prompts only."""

from collections.abc import Iterable
from typing import Any

from transformers import GenerationMixin


class TextBatchMixin(GenerationMixin):
    """Continuous batching that refuses images instead of ignoring them."""

    config: Any

    def generate_batch(self, inputs, *args, **kwargs):
        """See transformers' `generate_batch`. Prompts must be text only.

        Raises:
            ValueError: if a prompt has image placeholders or `pixel_values` is given.
        """
        if kwargs.get("pixel_values") is not None:
            raise ValueError("`generate_batch` takes no `pixel_values`. Use `generate` for prompts with images.")
        for index, input_ids in enumerate(inputs):
            self._require_text(input_ids, f"Prompt {index}")
        return super().generate_batch(inputs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        manager = super().init_continuous_batching(*args, **kwargs)
        add_request = type(manager).add_request

        def add_text(input_ids, *args, **kwargs):
            self._require_text(input_ids, "The prompt")
            return add_request(manager, input_ids, *args, **kwargs)

        manager.add_request = add_text  # type: ignore[method-assign]
        return manager

    def _require_text(self, input_ids: Iterable[int], name: str) -> None:
        token = self.config.image_token_id
        if token in input_ids:
            raise ValueError(
                f"{name} has image placeholders (token {token}), but continuous batching supports text only. Use "
                "`generate` for prompts with images."
            )
