# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How a processor plans a request: tiles, and the size of each, within a budget. It reads no pixel."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any

from transformers.processing_utils import MultiModalData

from .chat_processor import ChatProcessor, flat_images
from .image_settings import ImageSettings, split_by_owner
from .literals import VIDEO_MARK
from .rvtc import TilingRule
from .size_choices import Choice, frame_size, read_choices, tokens_before
from .token_budget import Size, plan_request
from .video_files import Video


class SizedProcessor(ChatProcessor):
    """A processor for a model that may offer several sizes of a tile."""

    image_processor: Any
    video_processor: Any
    _require_an_image_for_each_token: Any
    image_seq_length: int
    max_image_tokens: int | None
    offered_sizes: list[str] | None
    tokens_per_tile: str | int | None
    # of a copy that works on a request which asks for sizes: each image's, and that of videos' frames
    _image_sizes: Sequence[Choice] = ()
    _video_size = 0

    @property
    def sizes(self) -> list[str]:
        """The sizes that the model offers, the default first."""
        return self.offered_sizes or [str(self.image_seq_length)]

    def tiling_rules(self, sizes: Sequence[Size], *args: Any, **kwargs: Any) -> list[TilingRule]:
        """The tiling rule of each image of one text; arguments as for [`SizedProcessor.plan_images`]."""
        return self.plan_images(sizes, *args, **kwargs)[0]

    def plan_images(
        self,
        sizes: Sequence[Size],
        images_kwargs: Mapping | None = None,
        num_frames: int = 0,
        max_image_tokens: int | None = None,
        tokens_per_tile: Any = None,
    ) -> tuple[list[TilingRule], list[Choice]]:
        """The tiling rule and the sizes of each image of one text, see [`plan_request`]. Reads no pixel.

        Args:
            sizes: (width, height) of each upright image.
            images_kwargs: arguments of the image processor in the call, and fields of [`ImageSettings`].
            num_frames: frames of the text's videos.
            max_image_tokens, tokens_per_tile: the call's (default: those of `images_kwargs`, or the processor's).
        """
        images, own = split_by_owner(images_kwargs or {})
        given = {"max_image_tokens": max_image_tokens, "tokens_per_tile": tokens_per_tile}
        asked = ImageSettings(**own | {name: value for name, value in given.items() if value is not None})
        budget = self.max_image_tokens if asked.max_image_tokens is None else asked.max_image_tokens
        choice = self.tokens_per_tile if asked.tokens_per_tile is None else asked.tokens_per_tile
        rule = self.image_processor.tiling_rule(images)
        return plan_request(rule, sizes, self.sizes, choice, budget, num_frames)

    def read_choices(self, tokens_per_tile: Any, num_images: int) -> list[Choice]:
        """The sizes of each image of a request that asks for `tokens_per_tile`; None takes the processor's.

        Raises:
            ValueError: if the model does not offer one, or there is a list of another length.
        """
        asked = self.tokens_per_tile if tokens_per_tile is None else tokens_per_tile
        return read_choices(self.sizes[0] if asked is None else asked, self.sizes, num_images)

    def tile_sizes(self, sizes: Sequence[Size], images_kwargs: Mapping | None = None) -> list[int]:
        """The size of each tile of one text's images, given as (width, height), in a call with these arguments."""
        planned = zip(*self.plan_images(sizes, images_kwargs), sizes, strict=True)
        return [index for rule, choice, size in planned for index in choice.of_plan(rule.plan(*size))]

    def num_placeholders(self, sizes: Sequence[int]) -> int:
        """Placeholders of tiles of these sizes, indices among those that the model offers."""
        return sum(tokens_before(self.sizes[size]) for size in sizes)

    def frame_size(self, tokens_per_tile: Any) -> int:
        """The index of the size of videos' frames."""
        return frame_size(self.tokens_per_tile if tokens_per_tile is None else tokens_per_tile, self.sizes)

    def _sizes_of(self, index: int, num_tiles: int, images_kwargs: Mapping) -> list[int]:
        """The size of each tile of an image."""
        if not self._image_sizes:
            return [0] * num_tiles
        given = images_kwargs.get("use_thumbnail")
        has_thumbnail = self.image_processor.use_thumbnail if given is None else given
        return self._image_sizes[index].of_tiles(num_tiles, has_thumbnail)

    def _plan_request(
        self, budget: int | None, asked: Any, images, texts: list[str] | None, videos: list[Video], kwargs: Mapping
    ) -> tuple[Any, Any, "SizedProcessor"]:
        """Opens the images; returns them, the arguments of a call with each image's maximum of tiles, and a processor
        with their sizes.
        """
        merged: Any = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)  # type: ignore[arg-type]
        images_kwargs, videos_kwargs = merged["images_kwargs"], merged["videos_kwargs"]
        if images is not None:
            images = self.image_processor.fetch_images(images)
        flat = [] if images is None else flat_images(images)
        requests = [(len(flat), len(videos))]
        if texts is not None:
            requests = [(sample.count(self.image_token), sample.count(VIDEO_MARK)) for sample in texts]
            self._require_an_image_for_each_token(images, [num_images for num_images, _ in requests])
        sized, kwargs = copy(self), dict(kwargs)
        sized._image_sizes, sized._video_size = self.read_choices(asked, len(flat)), self.frame_size(asked)
        if budget is None:
            return images, kwargs, sized
        sizes = iter([self.image_processor.upright_size(image, images_kwargs) for image in flat])
        frames = iter(map(len, self.video_processor.choose_frames(videos, videos_kwargs)))
        asked = iter(asked) if isinstance(asked, list | tuple) else asked
        limits, chosen = [], []
        for index, (num_images, num_videos) in enumerate(requests):
            own, num_frames = list(islice(sizes, num_images)), sum(islice(frames, num_videos))
            of_text = list(islice(asked, num_images)) if isinstance(asked, Iterator) else asked
            try:
                rules, choices = self.plan_images(own, images_kwargs, num_frames, budget, of_text)
            except ValueError as error:
                raise ValueError(f"Text {index}: {error}" if len(requests) > 1 else str(error)) from error
            limits += [rule.max_tiles for rule in rules]
            chosen += choices
        sized._image_sizes = chosen
        kwargs.pop("max_patches", None)
        return (
            images,
            kwargs | {"images_kwargs": {**(kwargs.get("images_kwargs") or {}), "max_patches": limits}},
            sized,
        )

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[tuple[int, int]] | None = None,
        max_image_tokens: int | None = None,
        tokens_per_tile: Any = None,
        **kwargs,
    ) -> MultiModalData:
        """Tiles and tokens of one text's images of these sizes (height, width), without reading a pixel.

        Returns:
            `num_image_patches`: tiles of each image; `num_image_tokens`: its tokens in `input_ids`, including the
            start and end tokens.
        """
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]  # type: ignore[arg-type]
        sizes, num_tokens, num_tiles = [(width, height) for height, width in image_sizes], [], []
        rules, choices = self.plan_images(sizes, images_kwargs, 0, max_image_tokens, tokens_per_tile)
        for size, rule, choice in zip(sizes, rules, choices, strict=True):
            plan = rule.plan(*size)
            num_tiles.append(plan.num_tiles)
            num_tokens.append(len(self.wrapper_ids) + self.num_placeholders(choice.of_plan(plan)))
        return MultiModalData(num_image_tokens=num_tokens, num_image_patches=num_tiles)
