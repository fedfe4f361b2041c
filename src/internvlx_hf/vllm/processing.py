# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Turns images into tiles and placeholders with the checkpoint's image processor.

A tile has as many placeholders as rows in the long sequence, see `tile_rows.py`. The start and end tokens around an
image are text, so that an image's features are exactly its placeholders.

With a budget of visual tokens, the tiles of an image depend on the request's other images. vLLM caches each image by
itself, so the maximum of its tiles and their sizes become part of its name in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple, cast

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
from ..processing.size_choices import Choice
from .tile_rows import long_rows, named_with_sizes

PLANS = "image_plans"  # names the plan of each image among the arguments of a call


class ImagePlan(NamedTuple):
    """What an image's tiles depend on besides its pixels.

    Args:
        max_patches: the maximum of its tiles; None for that of the settings.
        choice: the sizes of its tiles and of its thumbnail, the same without thumbnails.
    """

    max_patches: int | None
    choice: Choice


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

        They are the engine's `mm_processor_kwargs`, overridden by the request's. Both can be flat or under
        `images_kwargs`.

        Raises:
            ValueError: if a setting is unknown or out of range.
        """
        merged = _flat(self.ctx.get_merged_mm_kwargs({})) | _flat(settings)
        if (rule := merged.pop("merge_rule", "mean")) != "mean":
            raise ValueError(
                f"merge_rule={rule!r} in mm_processor_kwargs, but vLLM merges by 'mean' only. Expected 'mean', or "
                "transformers' `generate(merge_rule=...)` in place of vLLM."
            )
        known = {*InternVLXImageProcessor.valid_kwargs.__annotations__, *ImageSettings.names()}
        for name in merged.keys() - known:
            raise ValueError(
                f"Unknown setting {name!r} in mm_processor_kwargs, expected one of {', '.join(sorted(known))}."
            )
        processor: Any = self.get_hf_processor()
        one = {name: value for name, value in merged.items() if name != "tokens_per_tile"}
        processor.tiling_rules([(1, 1)], one)  # raises if a setting is out of range
        return merged

    def image_plans(self, inputs: ProcessorInputs) -> list[ImagePlan] | None:
        """The plan of each image of a request; None without images, or if nothing depends on plans.

        Raises:
            ValueError: if the checkpoint does not offer a size, if the images do not fit the budget, or if an image
                has a budget and is given by its UUID only.
        """
        settings, processor = self.image_settings(inputs.hf_processor_mm_kwargs), self.get_hf_processor()
        items = inputs.mm_data_items.get("image")
        if not isinstance(items, ImageProcessorItems):
            return None
        choices = processor.read_choices(settings.get("tokens_per_tile"), len(items))  # type: ignore[attr-defined]
        budget = settings.get("max_image_tokens") or processor.max_image_tokens  # type: ignore[attr-defined]
        limits: list[int | None] = [None] * len(items)
        if budget is not None:
            images, image_processor = [items.get(index) for index in range(len(items))], self.get_image_processor()
            if any(image is None for image in images):
                raise ValueError("max_image_tokens needs the pixels of each image, but one is given by its UUID only.")
            sizes = [image_processor.upright_size(image, settings) for image in images]
            rules, choices = processor.plan_images(sizes, settings)  # type: ignore[attr-defined]
            limits = [rule.max_tiles for rule in rules]
        elif not self.has_several_sizes:
            return None
        if not self.has_thumbnail(settings):
            choices = [Choice(choice.tiles, choice.tiles) for choice in choices]
        return [ImagePlan(*plan) for plan in zip(limits, choices, strict=True)]

    @property
    def has_several_sizes(self) -> bool:
        """Whether the checkpoint offers several sizes of a tile."""
        return len(self.get_hf_config().sizes) > 1

    def has_thumbnail(self, settings: Mapping[str, Any]) -> bool:
        """Whether images of several tiles have a thumbnail."""
        given, processor = settings.get("use_thumbnail"), cast(Any, self.get_image_processor())
        return bool(processor.use_thumbnail if given is None else given)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        tiles, _ = self.largest_image
        return {"image": tiles * max(map(long_rows, self.get_hf_config().sizes))}


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


class PlannedItems(MultiModalDataItems):
    """The images of a request, or some of them, with the plan of each."""

    plans: list[ImagePlan]

    @classmethod
    def of(cls, items: MultiModalDataItems, plans: list[ImagePlan]) -> "PlannedItems":
        planned = cls(items.data)
        planned.plans = plans
        return planned


class PlannedInputs(ProcessorInputs):
    """A request whose images are cached together with their plans."""

    mm_data_items: PlannedItems

    def get_mm_hashes(self, *args, **kwargs):
        hashes = super().get_mm_hashes(*args, **kwargs)
        names = []
        for name, plan in zip(hashes["image"], self.mm_data_items.plans, strict=True):
            name = name if plan.max_patches is None else f"{name}-{plan.max_patches}"
            names.append(named_with_sizes(name, plan.choice))
        return {**hashes, "image": names}


class InternVLXMultiModalProcessor(BaseMultiModalProcessor[InternVLXProcessingInfo]):
    def apply(self, inputs: ProcessorInputs, *args, **kwargs):
        plans = self.info.image_plans(inputs)
        if plans is not None:
            values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
            inputs = PlannedInputs(**values | {"mm_data_items": PlannedItems.of(inputs.mm_data_items, plans)})
        return super().apply(inputs, *args, **kwargs)

    def _get_cache_missing_items(self, cache, mm_data_items, mm_hashes):
        is_cached, missing = super()._get_cache_missing_items(cache, mm_data_items, mm_hashes)
        if isinstance(mm_data_items, PlannedItems):
            pairs = zip(mm_data_items.plans, is_cached["image"], strict=True)
            missing = PlannedItems.of(missing, [plan for plan, found in pairs if not found])
        return is_cached, missing

    def _get_hf_mm_inputs(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]):
        found = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if isinstance(mm_items, PlannedItems):
            return found._replace(hf_kwargs={**found.hf_kwargs, PLANS: mm_items.plans})
        return found

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]):
        hf_kwargs = dict(hf_kwargs)
        plans: Any = hf_kwargs.pop(PLANS, ())
        settings, _ = split_by_owner(self.info.image_settings(hf_kwargs))
        limits = [plan.max_patches for plan in plans if plan.max_patches is not None]
        if limits:
            settings["max_patches"] = limits
        processor, has_thumbnail = self.info.get_image_processor(), self.info.has_thumbnail(settings)

        def slice_images(images, return_tensors, **engine_settings):  # `settings` includes the engine's
            inputs = processor(images, return_tensors=return_tensors, **settings)
            if self.info.has_several_sizes:
                pairs = zip(plans, inputs["num_patches"].tolist(), strict=True)
                sizes = [size for plan, number in pairs for size in plan.choice.of_tiles(number, has_thumbnail)]
                inputs["tile_sizes"] = torch.tensor(sizes)
            return inputs

        return self.info.ctx.call_hf_processor(slice_images, hf_data)

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs) -> Mapping[str, MultiModalFieldConfig]:
        tiles = hf_inputs.get("num_patches", torch.empty(0))  # missing if all images are cached
        found = {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", tiles),
            "num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }
        if self.info.has_several_sizes:
            found["tile_sizes"] = MultiModalFieldConfig.flat_from_sizes("image", tiles, keep_on_cpu=True)
        return found

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """Add the start and end tokens around each image token."""
        processor: Any = self.info.get_hf_processor()
        image = processor.image_token_id
        wrappers = processor.wrapper_ids
        surrounded = [*wrappers[:1], image, *wrappers[1:]]
        return [token for found in prompt for token in (surrounded if found == image else [found])]

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs) -> Sequence[PromptReplacement]:
        processor: Any = self.info.get_hf_processor()
        image, rows = processor.image_token_id, [long_rows(size) for size in self.info.get_hf_config().sizes]

        def replacement(index: int) -> list[int]:
            item = out_mm_kwargs["image"][index]
            sizes = item["tile_sizes"].data.tolist() if len(rows) > 1 else [0] * int(item["num_patches"].data)
            return [image] * sum(rows[size] for size in sizes)

        return [PromptReplacement(modality="image", target=[image], replacement=replacement)]
