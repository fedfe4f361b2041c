# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The data collator, which is all that a plain `Trainer` needs to train InternVL-X."""

from collections.abc import Mapping, Sequence
from itertools import chain, groupby

import numpy as np
import torch

from ..processing import InternVLXProcessor
from ..processing.processing_internvlx import IGNORE_INDEX
from ..processing.size_choices import read_choice
from .encoding import SampleEncoder, TrainingSample


class InternVLXDataCollator:
    """Turns samples `{"messages": [...], "images": [...]}` into a batch for the `Trainer`.

        Trainer(model, TrainingArguments(..., remove_unused_columns=False), train_dataset=dataset,
                data_collator=InternVLXDataCollator(processor))

    (`remove_unused_columns` would remove the columns before they get here.) Messages are as for `apply_chat_template`;
    see `read_conversation` for the places of images. Only the assistant's text carries loss, including its end marker.

    Rows are padded on the right, so that every sample's positions start at 0, even in a model that does not derive
    them from the attention mask, and a causal row never sees its padding. With `packing`, nothing is padded: see
    `packing.py`.

    Args:
        processor: tokenizes texts and splits images into tiles.
        max_length, on_too_long, on_broken, share_tiles: see `SampleEncoder`. A collator cannot replace a sample that
            it skips, so the batch becomes smaller. (The datasets of `load_training_data` replace it before it gets
            here.)
        packing: put all samples of a batch into one row without padding, (1, tokens), whose `position_ids` restart
            with every sample (default: False).
        pad_to_multiple_of: pad rows to a multiple of this many tokens (default: no padding beyond the longest row).
            With `packing`, the padding is one more sample without loss.
        sampled_sizes: sizes that the processor offers, of which every step of a training takes one (default: none). A
            batch then also holds `of_sizes`, its texts for each of them, by the size's index; `InternVLXTrainer` takes
            those of the step.
        teacher_processor: processor of a teacher's model (default: no teacher). The batch then also holds `teacher`,
            the same samples in the teacher's tiles and tokens. Samples of a dataset without a teacher give a batch
            without it.

    Raises:
        ValueError: if an argument is out of range or the processor has no chat template for training; on a call, also
            if a sample is broken (a `BrokenSampleError`, see `on_broken`) or if no sample of the batch is left.
    """

    def __init__(
        self,
        processor: InternVLXProcessor,
        max_length: int | None = None,
        on_too_long: str = "truncate",
        on_broken: str = "error",
        packing: bool = False,
        pad_to_multiple_of: int | None = None,
        share_tiles: bool = False,
        teacher_processor: InternVLXProcessor | None = None,
        sampled_sizes: Sequence[str] = (),
    ):
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of}, expected a positive number of tokens.")
        self.encoder = SampleEncoder(processor, max_length, on_too_long, on_broken, share_tiles, teacher_processor)
        self.packing = packing
        self.pad_to_multiple_of = pad_to_multiple_of
        self.sampled_sizes = [read_choice(size, processor.sizes).tiles for size in sampled_sizes]

    @property
    def processor(self) -> InternVLXProcessor:
        return self.encoder.processor

    def __call__(self, samples: Sequence[Mapping | TrainingSample | list[TrainingSample]]) -> dict[str, torch.Tensor]:
        """Collate samples; rows (lists of samples) are flattened.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, L), or with `packing` `input_ids`, `position_ids`, `labels` (1,
            L) and the arguments of variable-length attention; `pixel_values` (tiles, 3, H, W) if there are images, and
            `tile_sizes` (tiles,) if a tile has another size than the first that the model offers.
        """
        flat = [sample for row in samples for sample in (row if isinstance(row, list) else [row])]
        encoded = [sample for sample in map(self._encoded, flat) if sample is not None]
        if not encoded:
            raise ValueError(f"None of the batch's {len(flat)} samples can be trained on; see the warnings above.")
        batch = self._batch(encoded, self.processor)
        if self.sampled_sizes:
            batch["of_sizes"] = {
                size: self._texts([sample.resized(size, self.processor) for sample in encoded])
                for size in self.sampled_sizes
            }
        taught = [sample.teacher for sample in encoded if sample.teacher is not None]
        if taught and self.encoder.teacher is not None:
            batch["teacher"] = self._batch(taught, self.encoder.teacher.processor)
        return batch

    def _batch(self, samples: list[TrainingSample], processor: InternVLXProcessor) -> dict:
        batch, tiles = self._texts(samples), make_tiles(samples, processor)
        return batch if tiles is None else batch | {"pixel_values": tiles}

    def _texts(self, samples: list[TrainingSample]) -> dict:
        batch = self._packed(samples) if self.packing else self._padded(samples)
        sizes = [size for sample in samples for own in sample.tile_sizes for size in own]
        return batch | {"tile_sizes": torch.tensor(sizes)} if any(sizes) else batch

    def _encoded(self, sample: Mapping | TrainingSample) -> TrainingSample | None:
        if isinstance(sample, TrainingSample):
            return sample
        return self.encoder.encode_or_skip(lambda: sample, lambda: "a sample of the batch")

    def _length(self, tokens: int) -> int:
        return tokens + -tokens % (self.pad_to_multiple_of or 1)

    def _padded(self, samples: list[TrainingSample]) -> dict[str, torch.Tensor]:
        shape = len(samples), self._length(max(map(len, samples)))
        pad = self.processor.tokenizer.pad_token_id
        input_ids = np.full(shape, 0 if pad is None else pad)
        attention_mask, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX)
        for row, sample in enumerate(samples):
            input_ids[row, : len(sample)] = sample.input_ids
            labels[row, : len(sample)] = sample.labels
            attention_mask[row, : len(sample)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _packed(self, samples: list[TrainingSample]) -> dict:
        lengths = [len(sample) for sample in samples]
        missing = self._length(sum(lengths)) - sum(lengths)
        pad = self.processor.tokenizer.pad_token_id or 0
        padding = [(np.full(missing, pad), np.full(missing, IGNORE_INDEX))] if missing else []
        rows = [(sample.input_ids, sample.labels) for sample in samples] + padding
        input_ids, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*rows, strict=True))
        lengths = lengths + [missing] * bool(missing)
        bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return {
            "input_ids": input_ids[None],
            "labels": labels[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            # with a cache, transformers would not detect several samples in a row
            "use_cache": False,
        }


def make_tiles(samples: list[TrainingSample], processor: InternVLXProcessor) -> torch.Tensor | None:
    """The tiles of all images. One call for all images avoids a copy, which would take a third more time."""
    parts, image_processor = [], processor.image_processor
    with_images = [sample for sample in samples if sample.images]
    for images_kwargs, neighbours in groupby(with_images, key=lambda sample: sample.images_kwargs):
        group = list(neighbours)
        images = [image for sample in group for image in sample.images]
        own = {}
        if any(sample.tile_limits for sample in group):
            most = image_processor.tiling_rule(images_kwargs).max_tiles
            limits = (sample.tile_limits or [most] * len(sample.images) for sample in group)
            own = {"max_patches": list(chain.from_iterable(limits))}
        features = image_processor(images, return_tensors="pt", **images_kwargs | own)
        expected = sum(sum(sample.num_tiles) for sample in group)
        if len(features.pixel_values) != expected:
            raise ValueError(f"Images have {len(features.pixel_values)} tiles, their samples {expected}.")
        parts.append(features.pixel_values)
    return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None
