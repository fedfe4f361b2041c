# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Turns images into tiles and placeholders with the checkpoint's image processor.

A tile has N₂² placeholders, its tokens in the long sequence. The start and end tokens around an image are text, so that an
image's features are exactly its placeholders.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageSize
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor


class InternVLXProcessingInfo(BaseProcessingInfo):
    def get_hf_config(self) -> InternVLXConfig:
        return self.ctx.get_hf_config(InternVLXConfig)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_image_processor(self) -> InternVLXImageProcessor:
        return self.get_hf_processor().image_processor  # type: ignore[attr-defined]

    @cached_property
    def largest_image(self) -> tuple[int, ImageSize]:
        """The maximum number of tiles of an image with the engine's settings, and the size of such an image."""
        processor = self.get_image_processor()
        settings = self.image_settings({})
        side = self.get_hf_config().tile_size
        maximum = settings.get("max_patches") or processor.max_patches
        grids = [(columns, rows) for columns in range(1, maximum + 1) for rows in range(1, maximum // columns + 1)]
        sizes = [ImageSize(width=columns * side, height=rows * side) for columns, rows in grids]
        return max((processor.get_number_of_image_patches(size.height, size.width, settings), size) for size in sizes)

    def image_settings(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """The image settings of a request: the engine's `mm_processor_kwargs`, overridden by the request's.

        Both can be flat or under `images_kwargs`.

        Raises:
            ValueError: if a setting is unknown to the image processor or out of range.
        """
        merged = self.ctx.get_merged_mm_kwargs(settings)
        merged |= merged.pop("images_kwargs", None) or {}
        known = InternVLXImageProcessor.valid_kwargs.__annotations__
        for name in merged.keys() - known.keys():
            raise ValueError(
                f"Unknown setting {name!r} in mm_processor_kwargs, expected one of {', '.join(sorted(known))}."
            )
        side = self.get_hf_config().tile_size
        self.get_image_processor().get_number_of_image_patches(
            side, side, merged
        )  # raises if a setting is out of range
        return merged

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        tiles, _ = self.largest_image
        return {"image": tiles * self.get_hf_config().expanded_image_seq_length}


class InternVLXDummyInputs(BaseDummyInputsBuilder[InternVLXProcessingInfo]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        processor: Any = self.info.get_hf_processor()
        return processor.image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> dict:
        _, size = self.info.largest_image
        images = self._get_dummy_images(
            width=size.width,
            height=size.height,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


class InternVLXMultiModalProcessor(BaseMultiModalProcessor[InternVLXProcessingInfo]):
    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]):
        settings = self.info.image_settings(hf_kwargs)
        processor = self.info.get_image_processor()

        def slice_images(images, return_tensors, **engine_settings):  # `settings` includes the engine's
            return processor(images, return_tensors=return_tensors, **settings)

        return self.info.ctx.call_hf_processor(slice_images, hf_data)

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs) -> Mapping[str, MultiModalFieldConfig]:
        tiles = hf_inputs.get("num_patches", torch.empty(0))  # missing if all images are cached
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", tiles),
            "num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """Add the start and end tokens around each image token."""
        processor: Any = self.info.get_hf_processor()
        image = processor.image_token_id
        wrappers = processor.wrapper_ids
        surrounded = [*wrappers[:1], image, *wrappers[1:]]
        return [token for found in prompt for token in (surrounded if found == image else [found])]

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs) -> Sequence[PromptReplacement]:
        processor: Any = self.info.get_hf_processor()
        tokens = self.info.get_hf_config().expanded_image_seq_length
        image = processor.image_token_id
        tiles = [int(item["num_patches"].data) for item in out_mm_kwargs.get("image", [])]
        return [
            PromptReplacement(
                modality="image", target=[image], replacement=lambda index: [image] * (tokens * tiles[index])
            )
        ]
