# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Turns images into tiles and placeholders with the checkpoint's image processor.

A tile has N₂² placeholders, its tokens in the long sequence. The start and end tokens around an image are text, so that an
image's features are exactly its placeholders.

With a budget of visual tokens, the tiles of an image depend on the request's other images. vLLM caches each image by itself, so
the maximum of its tiles becomes part of its name in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
)

from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor
from ..processing.image_settings import ImageSettings, split_by_owner

TILE_LIMITS = "tile_limits"  # names the maximum of each image's tiles among the arguments of a call


def _flat(settings: Mapping[str, object]) -> dict[str, Any]:
    """Image settings without the level `images_kwargs`."""
    flat: dict[str, Any] = dict(settings)
    return flat | (flat.pop("images_kwargs", None) or {})


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
        processor: Any = self.get_hf_processor()
        settings = self.image_settings({})
        side = self.get_hf_config().tile_size
        maximum = processor.image_processor.tiling_rule(split_by_owner(settings)[0]).max_tiles
        grids = [(columns, rows) for columns in range(1, maximum + 1) for rows in range(1, maximum // columns + 1)]
        sizes = [ImageSize(width=columns * side, height=rows * side) for columns, rows in grids]
        rules = [processor.tiling_rules([size], settings)[0] for size in sizes]
        return max((rule.plan(*size).num_tiles, size) for rule, size in zip(rules, sizes, strict=True))

    def image_settings(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """The image settings of a request, those of [`ImageSettings`] among them.

        They are the engine's `mm_processor_kwargs`, overridden by the request's. Both can be flat or under `images_kwargs`.

        Raises:
            ValueError: if a setting is unknown or out of range.
        """
        merged = _flat(self.ctx.get_merged_mm_kwargs({})) | _flat(settings)
        known = {*InternVLXImageProcessor.valid_kwargs.__annotations__, *ImageSettings.names()}
        for name in merged.keys() - known:
            raise ValueError(
                f"Unknown setting {name!r} in mm_processor_kwargs, expected one of {', '.join(sorted(known))}."
            )
        processor: Any = self.get_hf_processor()
        processor.tiling_rules([(1, 1)], merged)  # raises if a setting is out of range
        return merged

    def tile_limits(self, inputs: ProcessorInputs) -> list[int] | None:
        """`max_patches` of each image of a request; None without images or a budget.

        Raises:
            ValueError: if the images do not fit the budget, or if an image is given by its UUID only.
        """
        settings, processor = self.image_settings(inputs.hf_processor_mm_kwargs), self.get_hf_processor()
        items = inputs.mm_data_items.get("image")
        budget = settings.get("max_image_tokens") or processor.max_image_tokens  # type: ignore[attr-defined]
        if budget is None or not isinstance(items, ImageProcessorItems):
            return None
        images, image_processor = [items.get(index) for index in range(len(items))], self.get_image_processor()
        if any(image is None for image in images):
            raise ValueError("max_image_tokens needs the pixels of each image, but one is given by its UUID only.")
        sizes = [image_processor.upright_size(image, settings) for image in images]
        return [rule.max_tiles for rule in processor.tiling_rules(sizes, settings)]  # type: ignore[attr-defined]

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


class LimitedItems(MultiModalDataItems):
    """The images of a request, or some of them, with `max_patches` of each."""

    tile_limits: list[int]

    @classmethod
    def of(cls, items: MultiModalDataItems, tile_limits: list[int]) -> "LimitedItems":
        limited = cls(items.data)
        limited.tile_limits = tile_limits
        return limited


class LimitedInputs(ProcessorInputs):
    """A request whose images are cached together with the maximum of their tiles."""

    mm_data_items: LimitedItems

    def get_mm_hashes(self, *args, **kwargs):
        hashes = super().get_mm_hashes(*args, **kwargs)
        named = zip(hashes["image"], self.mm_data_items.tile_limits, strict=True)
        return {**hashes, "image": [f"{name}-{limit}" for name, limit in named]}


class InternVLXMultiModalProcessor(BaseMultiModalProcessor[InternVLXProcessingInfo]):
    def apply(self, inputs: ProcessorInputs, *args, **kwargs):
        tile_limits = self.info.tile_limits(inputs)
        if tile_limits is not None:
            values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
            items = LimitedItems.of(inputs.mm_data_items, tile_limits)
            inputs = LimitedInputs(**values | {"mm_data_items": items})
        return super().apply(inputs, *args, **kwargs)

    def _get_cache_missing_items(self, cache, mm_data_items, mm_hashes):
        is_cached, missing = super()._get_cache_missing_items(cache, mm_data_items, mm_hashes)
        if isinstance(mm_data_items, LimitedItems):
            pairs = zip(mm_data_items.tile_limits, is_cached["image"], strict=True)
            missing = LimitedItems.of(missing, [limit for limit, found in pairs if not found])
        return is_cached, missing

    def _get_hf_mm_inputs(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]):
        found = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if isinstance(mm_items, LimitedItems):
            return found._replace(hf_kwargs={**found.hf_kwargs, TILE_LIMITS: mm_items.tile_limits})
        return found

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]):
        hf_kwargs = dict(hf_kwargs)
        tile_limits = hf_kwargs.pop(TILE_LIMITS, None)
        settings, _ = split_by_owner(self.info.image_settings(hf_kwargs))
        if tile_limits is not None:
            settings["max_patches"] = tile_limits
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
