# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Image placeholders: those of a prompt must match the tiles that come with it, and an answer has none."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.cache_utils import Cache
from transformers.utils import is_tracing, logging
from transformers.utils.import_utils import torch_compilable_check

from .outputs import CACHE

logger = logging.get_logger(__name__)


def check_placeholders(placeholders: torch.Tensor, tokens: Sequence[int] | torch.Tensor, is_chunked: bool) -> None:
    """Check that every tile has its placeholders.

    Args:
        placeholders: (B, L) bool.
        tokens: N₁² of each tile; or (tiles, N₁², D), the tokens of tiles that have as many each.
        is_chunked: whether a single "tile" may hold the tokens of several, as `generate`'s chunked prefill slices
            them.

    Raises:
        ValueError: if the number of placeholders is wrong, in the whole prompt or in a row.
    """
    counts = placeholders.sum(-1)
    if isinstance(tokens, torch.Tensor):
        tiles, each = tokens.shape[:2]  # `len` would make the number of tiles a constant of an exported model
        total, kinds = tiles * each, [each]
    else:
        tiles, total, kinds = len(tokens), sum(tokens), list(dict.fromkeys(tokens))
    matches = counts.sum() == total
    if len(kinds) > 1:  # every row must end with a tile
        ends = torch.tensor([0, *accumulate(tokens)], device=counts.device)
        matches &= torch.isin(counts.cumsum(0), ends).all()
    elif tiles > 1 or not is_chunked:
        matches &= (counts % kinds[0] == 0).all()

    def message() -> str:
        return (
            f"Image features and image tokens do not match: {tiles} tiles of {' or '.join(map(str, kinds))} "
            f"tokens need {total} image placeholders, those of whole tiles in every row, but the rows of the prompt "
            f"have {counts.tolist()}."
        )

    torch_compilable_check(matches, message)


def warn_about_placeholders(
    input_ids: torch.Tensor | None, image_token_id: int, cache: Cache | None, is_training: bool
) -> None:
    """Warn once if a prompt without tiles has placeholders.

    Input on a filled cache is not checked: it may continue an image's prompt. Neither is a training step on a GPU,
    because the check waits for the device.
    """
    if input_ids is None or getattr(cache, "is_initialized", False) or input_ids.is_meta or is_tracing(input_ids):
        return
    if is_training and input_ids.device.type != "cpu":
        return
    if (input_ids == image_token_id).any():
        logger.warning_once(
            f"The prompt has image placeholders (token {image_token_id}) but no `pixel_values`: they are read as "
            "text. Pass everything that the processor returns."
        )


class NoPlaceholders(SuppressTokensLogitsProcessor):
    """Logits without the image token."""

    supports_continuous_batching = True


class NoPlaceholdersMixin(GenerationMixin):
    """Generation that writes no image placeholder: one without a tile would break the next forward or turn.

    A prompt whose own placeholders are read as text, since it has no tiles, may be continued with more of them.
    """

    config: Any
    device: Any

    def _get_logits_processor(self, generation_config, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)  # type: ignore[misc]
        inputs = kwargs.get("model_kwargs") or {}
        has_tiles = inputs.get("pixel_values") is not None or inputs.get("mm_encoder_outputs")
        is_continued = getattr(inputs.get(CACHE), "is_initialized", False)
        is_text = torch.as_tensor(kwargs.get("encoder_input_ids") == self.config.image_token_id).any()
        if has_tiles or is_continued or generation_config.is_assistant or not is_text:
            suppressed = NoPlaceholders([self.config.image_token_id], kwargs.get("device") or self.device)
            processors.insert(0, suppressed)  # before `top_k` and its like, which choose from what is left
        return processors
