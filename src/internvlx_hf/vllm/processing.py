# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""From images to tiles and placeholders, by the checkpoint's own image processor.

A tile takes N₂² placeholders, the tokens of the long sequence. The tokens that surround an image are text: an image's features
are its placeholders and nothing else.
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
from ..processing import InternVLXImageProcessor, InternVLXProcessor


class InternVLXProcessingInfo(BaseProcessingInfo):
    def get_hf_config(self) -> InternVLXConfig:
        return self.ctx.get_hf_config(InternVLXConfig)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_image_processor(self, **settings: object) -> InternVLXImageProcessor:
        """The image processor with the engine's and a request's settings."""
        return self.get_hf_processor(**settings).image_processor  # type: ignore[attr-defined]

    @cached_property
    def largest_image(self) -> tuple[int, ImageSize]:
        """The most tiles that an image takes with the engine's settings, and the size of such an image."""
        processor = self.get_image_processor()
        settings = self.image_settings({})
        side = self.get_hf_config().tile_size
        most = settings.get("max_patches") or processor.max_patches
        grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
        sizes = [ImageSize(width=columns * side, height=rows * side) for columns, rows in grids]
        return max((processor.get_number_of_image_patches(size.height, size.width, settings), size) for size in sizes)

    def image_settings(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """The image processor's of `mm_processor_kwargs`, given flat or as `images_kwargs`."""
        merged = self.ctx.get_merged_mm_kwargs(settings)
        merged |= merged.pop("images_kwargs", None) or {}
        known = InternVLXImageProcessor.valid_kwargs.__annotations__
        return {name: value for name, value in merged.items() if name in known}

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
        processor = self.info.get_image_processor(**hf_kwargs)
        return self.info.ctx.call_hf_processor(lambda **kwargs: processor(**kwargs, **settings), hf_data)

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs) -> Mapping[str, MultiModalFieldConfig]:
        tiles = hf_inputs.get("num_patches", torch.empty(0))  # nothing where all images are cached
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", tiles),
            "num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """Put the start and the end token around each image's token."""
        processor: Any = self.info.get_hf_processor()
        image = processor.image_token_id
        surrounded = [processor.start_image_token_id, image, processor.end_image_token_id]
        return [token for found in prompt for token in (surrounded if found == image else [found])]

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs) -> Sequence[PromptReplacement]:
        processor: InternVLXProcessor = self.info.get_hf_processor()  # type: ignore[assignment]
        tokens = self.info.get_hf_config().expanded_image_seq_length
        image = processor.image_token_id
        tiles = [int(item["num_patches"].data) for item in out_mm_kwargs.get("image", [])]
        return [
            PromptReplacement(
                modality="image", target=[image], replacement=lambda index: [image] * (tokens * tiles[index])
            )
        ]
