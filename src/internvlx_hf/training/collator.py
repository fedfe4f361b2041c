# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The data collator: all that a plain `Trainer` needs to train InternVL-X."""

from collections.abc import Mapping

import torch
from torch.nn.utils.rnn import pad_sequence

from ..processing import InternVLXProcessor
from .samples import conversation_of

IGNORE_INDEX = -100


class InternVLXDataCollator:
    """Turns samples `{"messages": [...], "images": [...]}` into a batch for the `Trainer`.

    Only what the assistant writes carries loss, its end marker included. Rows are padded on the right: there every sample's
    positions start at 0 whether or not a model derives them from the attention mask.

    Use it with `TrainingArguments(remove_unused_columns=False)`, or the `Trainer` drops the columns before they get here.

    Args:
        processor: tokenizes, and cuts images into tiles.
        pad_to_multiple_of: pad rows to a multiple of this many tokens.
    """

    def __init__(self, processor: InternVLXProcessor, pad_to_multiple_of: int | None = None):
        self.processor = processor
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, samples: list[Mapping]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, L), and `pixel_values` (tiles, 3, H, W) if there are images."""
        encoded = [self._encode(sample) for sample in samples]
        length = max(len(sample["input_ids"]) for sample in encoded)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        fill = {"input_ids": self.processor.tokenizer.pad_token_id or 0, "attention_mask": 0, "labels": IGNORE_INDEX}
        batch = {}
        for name, value in fill.items():
            rows = pad_sequence([sample[name] for sample in encoded], batch_first=True, padding_value=value)
            batch[name] = torch.nn.functional.pad(rows, (0, length - rows.shape[1]), value=value)
        tiles = [sample["pixel_values"] for sample in encoded if "pixel_values" in sample]
        if tiles:
            batch["pixel_values"] = torch.cat(tiles)
        return batch

    def _encode(self, sample: Mapping) -> dict[str, torch.Tensor]:
        encoded = self.processor.apply_chat_template(
            [conversation_of(sample)], return_labels=True, return_tensors="pt"
        )
        return {name: tensor if name == "pixel_values" else tensor[0] for name, tensor in encoded.items()}
