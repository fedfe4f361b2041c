# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Processor of InternVL-X: puts one placeholder into the text for each token of the tiles of images and frames of videos."""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, concatenate_list
from transformers.processing_utils import MultiModalData, ProcessingKwargs, TextKwargs, Unpack
from transformers.tokenization_utils_base import PreTokenizedInput, TextInput

from .chat_processor import CHAT_MEDIA, ChatProcessor, flat_images, is_frame_list, refuse_other_media
from .chat_processor import IGNORE_INDEX as IGNORE_INDEX
from .chat_templates import DEFAULT_CHAT_TEMPLATE
from .image_processing_internvlx import InternVLXImageProcessorKwargs, refuse_near
from .image_settings import IMAGE_PROCESSOR, PROCESSOR, ImageSettings, settings_of, split_by_owner
from .literals import (
    IMAGE_MARK,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    MARK_AS_TEXT,
    VIDEO_MARK,
    VIDEO_MARK_AS_TEXT,
    literals_as_text,
)
from .rvtc import TilingRule
from .token_budget import Size, fit_rules
from .video_files import Video, flat_videos, open_video
from .video_processing_internvlx import InternVLXVideoProcessor, InternVLXVideoProcessorKwargs

# attribute of the tokenizer that names a token (as in native InternVL) -> InternVL's own token
IMAGE_TOKENS = {
    "start_image_token": IMG_START_TOKEN,
    "end_image_token": IMG_END_TOKEN,
    "context_image_token": IMG_CONTEXT_TOKEN,
}

_VIDEO_SETTINGS = frozenset(InternVLXVideoProcessorKwargs.__annotations__) - set(TextKwargs.__annotations__)
# settings of the image and video processors that are none of the tokenizer's
_MEDIA_SETTINGS = _VIDEO_SETTINGS | (
    set(InternVLXImageProcessorKwargs.__annotations__) - set(TextKwargs.__annotations__)
)
_OWN_SETTINGS = ("image_seq_length", *ImageSettings.names(PROCESSOR), "wrap_images", *sorted(_VIDEO_SETTINGS))

_TEXT_DEFAULTS: TextKwargs = {"padding_side": "left"}


class InternVLXProcessorKwargs(ProcessingKwargs, total=False):
    # read by transformers 5.16; later versions read the processor's `text_kwargs`
    _defaults = {"text_kwargs": _TEXT_DEFAULTS}  # type: ignore[misc]


class InternVLXProcessor(ChatProcessor):
    """Joins `InternVLXImageProcessor`, `InternVLXVideoProcessor` and a tokenizer.

    Each `<IMG_CONTEXT>` or `<image>` in a text stands for one image. It becomes `<img>`, then `image_seq_length`
    `<IMG_CONTEXT>` per tile of the image, then `</img>`; `<img>` and `</img>` only with `wrap_images`. Each `<video>` becomes
    one line per frame: `Frame1: ` and the tokens of an image of one tile. Texts are padded on the left unless the tokenizer or the call sets a `padding_side`.

    Args:
        image_processor: an `InternVLXImageProcessor`.
        tokenizer: its attributes `context_image_token`, `start_image_token` and `end_image_token` name the three tokens;
            without them, its vocabulary must hold InternVL's tokens.
        image_seq_length: placeholders per tile, `config.image_seq_length` of the model (default: 256).
        chat_template: a Jinja template (default: the tokenizer's, or else ChatML as InternVL2.5 writes it).
        video_processor: an `InternVLXVideoProcessor` or its settings (default: tiles with the image processor's size and
            levels). The image processor's `access` also limits what the strings of videos may name.
        max_image_tokens: a budget of visual tokens for each text: its images and frames take at most this many placeholders
            together, see [`fit_rules`] (default: none). A call may give another.
        wrap_images: whether `<img>` and `</img>` surround an image's placeholders (default: True). Models converted from LLaVA
            do without, and so may their tokenizers.

    Raises:
        ValueError: if the tokenizer has no image tokens, or a number of tokens is not positive.
    """

    # makes every save_pretrained copy this file into the checkpoint
    _auto_class = "AutoProcessor"  # type: ignore[assignment]
    valid_processor_kwargs = InternVLXProcessorKwargs
    text_kwargs = _TEXT_DEFAULTS
    max_image_tokens: int | None

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        image_seq_length: int = 256,
        chat_template=None,
        video_processor: InternVLXVideoProcessor | Mapping | None = None,
        max_image_tokens: int | None = None,
        wrap_images: bool = True,
        **kwargs,
    ):
        own = {name: kwargs.pop(name, None) for name in ImageSettings.names(PROCESSOR)}
        own["max_image_tokens"] = max_image_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        if image_seq_length < 1:
            raise ValueError(f"image_seq_length={image_seq_length}, expected a positive number of tokens per tile.")
        self.image_seq_length = image_seq_length
        vars(self).update(own)
        ImageSettings(**own)  # raises if one is out of range
        self.wrap_images = wrap_images
        for name in _MEDIA_SETTINGS:  # of `from_pretrained`, which would override the image processor's in every call
            tokenizer.init_kwargs.pop(name, None)
        if image_processor.crop_to_patches is None:  # made without any setting of tiles
            image_processor.crop_to_patches = True
        self.video_processor = _video_processor(video_processor, image_processor)
        self.start_image_token, self.end_image_token, self.image_token = (
            _image_token(tokenizer, attribute) if wrap_images or attribute == "context_image_token" else ""
            for attribute in IMAGE_TOKENS
        )
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.start_image_token_id, self.end_image_token_id = (
            tokenizer.convert_tokens_to_ids(token) if wrap_images else None
            for token in (self.start_image_token, self.end_image_token)
        )
        if self.chat_template is None:
            default_template = DEFAULT_CHAT_TEMPLATE.replace(IMG_CONTEXT_TOKEN, self.image_token)
            self.chat_template = tokenizer.chat_template or default_template
        # saving sets it and loading drops it; set here, a loaded processor equals the saved one
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.rpartition('.')[-1]}.{type(self).__name__}"}

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        """Arguments of `from_pretrained` change the video processor as they do the image processor."""
        refuse_near(_OWN_SETTINGS, [name for name in kwargs if name not in _MEDIA_SETTINGS], "the processor")
        given = {name: value for name, value in kwargs.items() if name in _VIDEO_SETTINGS}
        if given and "video_processor" not in kwargs:
            saved = processor_dict.get("video_processor") or InternVLXVideoProcessor.like(args[0]).to_dict()
            processor_dict = {**processor_dict, "video_processor": {**saved, **given}}
        saved = {name: processor_dict[name] for name in ImageSettings.names(PROCESSOR) if name in processor_dict}
        processor = super().from_args_and_dict(args, processor_dict, **kwargs)
        own = split_by_owner(saved | kwargs)[1]
        (processor[0] if isinstance(processor, tuple) else processor).change_image_settings(**own)
        return processor

    def to_dict(self) -> dict:
        own = {name: getattr(self, name) for name in ImageSettings.names(PROCESSOR)}
        return super().to_dict() | {name: value for name, value in own.items() if value is not None}

    @property
    def image_settings(self) -> ImageSettings:
        """How the processor reads images."""
        image_processor = self.image_processor
        own = {name: getattr(image_processor, name) for name in ImageSettings.names(IMAGE_PROCESSOR)}
        own |= settings_of(image_processor.tiling_rule())
        return ImageSettings(**own, **{name: getattr(self, name) for name in ImageSettings.names(PROCESSOR)})

    def change_image_settings(self, **settings) -> None:
        """Change the fields of [`ImageSettings`] for all calls. None leaves one as it is.

        Raises:
            ValueError: if one is unknown or out of range, or if the budget has no room for an image. Nothing is changed then.
        """
        images, own = split_by_owner(ImageSettings(**settings).given)
        self.tiling_rules([(1, 1)], images | own)
        self.image_processor.change_tiling(**images)
        vars(self).update(own)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that transformers loads by its Auto classes: without the video processor, for which it would require torchvision."""
        return [name for name in super().get_attributes() if name != "video_processor"]

    @property
    def model_input_names(self) -> list[str]:
        return [name for name in super().model_input_names if name != "num_patches"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Unpack[InternVLXProcessorKwargs],
    ) -> BatchFeature:
        """Tokenizes texts, splits their images into tiles, and makes a tile of each sampled frame of their videos.

        Args:
            images: all images in the order of their placeholders, flat or one list per text.
            text: one text or several, with one image token or mark `<image>` for each image and one mark `<video>` for each
                video. U+2060 after the `<` turns a mark into text.
            videos: all videos in the order of their marks, flat or one list per text: each a path, a URL, a list of images or an
                array of frames, see `video_files.open_video`. A list of strings is a list of videos.
            max_image_tokens: a budget of visual tokens for each text, see [`fit_rules`] (default: the processor's). Without
                texts, it is that of all images and videos together.

        Returns:
            `input_ids` and `attention_mask` (texts, length), and `pixel_values` (tiles, 3, H, W) if there are images or
            videos, in the order of the text; with `return_text_replacement_offsets`, also `image_grid_thw` (images, 3), whose
            rows multiply to the images' numbers of tiles.

        Raises:
            ImportError: if a video is a file and neither PyAV nor torchcodec is installed.
            ValueError: if `text` has another type, if the number of images differs from that of image tokens or the number of
                videos from that of marks, if a text's images and frames do not fit the budget, or if `audio` is given.
        """
        # not in the signature, where transformers' tools expect neither attributes nor videos without a video processor among
        # `get_attributes`
        videos = kwargs.pop("videos", None)  # type: ignore[typeddict-item]
        own = ImageSettings(**{name: kwargs.pop(name, None) for name in ImageSettings.names(PROCESSOR)})  # type: ignore[misc]
        budget = self.max_image_tokens if own.max_image_tokens is None else own.max_image_tokens
        refuse_other_media(kwargs)
        if images_kwargs := kwargs.get("images_kwargs"):
            self.image_processor.refuse_misspelt(images_kwargs)
        texts = _as_texts(text)
        chat = CHAT_MEDIA.get()
        if chat is not None:
            chat.check(texts or [])
            images = chat.images  # type: ignore[assignment]
            videos = [video for own in chat.videos for video in own]
        elif texts is not None:
            texts = [sample.replace(IMAGE_MARK, self.image_token) for sample in texts]
        # in a chat, each item is a video, a list of frames too
        flat = flat_videos(videos) if chat is None else videos
        if chat is None and texts is not None:
            _require_a_video_for_each_mark(flat, sum(text.count(VIDEO_MARK) for text in texts))
            _require_videos_per_text(videos, texts)
        opened = [self.open_video(video) for video in flat]
        if budget is not None:
            if chat is None and kwargs.get("return_text_replacement_offsets"):
                raise ValueError(
                    f"max_image_tokens={budget} with return_text_replacement_offsets, which vLLM's transformers backend requests: "
                    "it caches each image by itself, so an image's tiles must not depend on other images. Expected no budget, "
                    "or the package internvlx-hf beside vLLM."
                )
            images, kwargs = self._limit_tiles(budget, images, texts, opened, kwargs)
        # transformers from 5.18 on, whose masks account for images, requests both
        keeps_tokens = (
            chat and kwargs.get("return_offsets_mapping") and "return_text_replacement_offsets" not in kwargs
        )
        if keeps_tokens:
            kwargs["return_text_replacement_offsets"] = True
        with literals_as_text(self.tokenizer, texts or [], self.literals):
            inputs = super().__call__(images=images, text=texts, videos=opened or None, **kwargs)
        self._join_tiles(inputs, texts or [])
        if chat and keeps_tokens:
            replacements = inputs.pop("text_replacement_offsets") or [[] for _ in texts or ()]
            chat.tokens = list(zip(inputs["offset_mapping"], replacements, strict=True))
        elif not chat and inputs.get("text_replacement_offsets"):
            inputs["image_grid_thw"] = self._image_grids(inputs["text_replacement_offsets"])
        return inputs

    def tiling_rules(
        self,
        sizes: Sequence[Size],
        images_kwargs: Mapping | None = None,
        num_frames: int = 0,
        max_image_tokens: int | None = None,
    ) -> list[TilingRule]:
        """The tiling rule of each image of one text, see [`fit_rules`]. Reads no pixel.

        Args:
            sizes: (width, height) of each upright image.
            images_kwargs: arguments of the image processor in the call, and fields of [`ImageSettings`].
            num_frames: frames of the text's videos.
            max_image_tokens: the call's budget (default: that of `images_kwargs`, or the processor's).
        """
        images, own = split_by_owner(images_kwargs or {})
        given = ImageSettings(**own | ({} if max_image_tokens is None else {"max_image_tokens": max_image_tokens}))
        budget = self.max_image_tokens if given.max_image_tokens is None else given.max_image_tokens
        rule = self.image_processor.tiling_rule(images)
        return fit_rules(rule, sizes, self.image_seq_length, budget, num_frames)

    def _limit_tiles(
        self, budget: int, images, texts: list[str] | None, videos: list[Video], kwargs: Mapping
    ) -> tuple[Any, Any]:
        """Opens the images, and adds the maximum of each image's tiles to the arguments of a call."""
        merged: Any = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)  # type: ignore[arg-type]
        images_kwargs, videos_kwargs = merged["images_kwargs"], merged["videos_kwargs"]
        if images is not None:
            images = self.image_processor.fetch_images(images)
        flat = [] if images is None else flat_images(images)
        requests = [(len(flat), len(videos))]
        if texts is not None:
            requests = [(sample.count(self.image_token), sample.count(VIDEO_MARK)) for sample in texts]
            self._require_an_image_for_each_token(images, [num_images for num_images, _ in requests])
        sizes = iter([self.image_processor.upright_size(image, images_kwargs) for image in flat])
        frames = iter(map(len, self.video_processor.choose_frames(videos, videos_kwargs)))
        limits = []
        for index, (num_images, num_videos) in enumerate(requests):
            own, num_frames = list(islice(sizes, num_images)), sum(islice(frames, num_videos))
            try:
                limits += [rule.max_tiles for rule in self.tiling_rules(own, images_kwargs, num_frames, budget)]
            except ValueError as error:
                raise ValueError(f"Text {index}: {error}" if len(requests) > 1 else str(error)) from error
        limited = {name: value for name, value in kwargs.items() if name != "max_patches"}
        return images, limited | {"images_kwargs": {**(kwargs.get("images_kwargs") or {}), "max_patches": limits}}

    def open_video(self, video) -> Video:
        """Opens a video by reading only its header. The image processor's `access` limits what strings may name."""
        return open_video(video, self.image_processor.access)

    def _join_tiles(self, inputs: BatchFeature, texts: list[str]) -> None:
        """Joins the tiles of images and videos in the order of the texts."""
        counts = {"image": inputs.pop("num_patches", None), "video": inputs.pop("num_patches_videos", None)}
        frames = inputs.pop("pixel_values_videos", None)
        if frames is None:
            return
        tiles = inputs.get("pixel_values")
        if tiles is None:
            inputs["pixel_values"] = frames
            return
        pattern = f"(?P<image>{re.escape(self.image_token)})|(?P<video>{VIDEO_MARK})"
        order = [str(match.lastgroup) for text in texts for match in re.finditer(pattern, text)]
        ends = {kind: np.cumsum(np.asarray(numbers)).tolist() for kind, numbers in counts.items()}
        rest = {"image": tiles, "video": frames}
        begins, parts = dict.fromkeys(ends, 0), []
        for kind in order or [*["image"] * len(ends["image"]), *["video"] * len(ends["video"])]:
            end = ends[kind].pop(0)
            parts.append(rest[kind][begins[kind] : end])
            begins[kind] = end
        inputs["pixel_values"] = concatenate_list(parts)

    def _image_grids(self, replacements: list[list[dict]]) -> torch.Tensor:
        """(images, 3): 1, 1 and the image's number of tiles, for vLLM, whose own count ignores `mm_processor_kwargs`."""
        placeholders = [
            image["replacement"].count(self.image_token)
            for text in replacements
            for image in text
            if image["type"] == "image"
        ]
        return torch.tensor([(1, 1, count // self.image_seq_length) for count in placeholders])

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        if isinstance(images, list | tuple) and not _has_images(images):
            images = None
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, **kwargs):
        if isinstance(text, list) and all(isinstance(sample, str) for sample in text):
            self._require_an_image_for_each_token(images, [sample.count(self.image_token) for sample in text])
            text = [sample.replace(VIDEO_MARK, "") for sample in text]
        if videos is None or images is not None or text is not None:  # transformers would reject these videos
            super().validate_inputs(images=images, text=text, **kwargs)

    def get_text_with_replacements(self, text, images_replacements=(), videos_replacements=(), *args, **kwargs):
        expander = self
        if videos_replacements:
            # A permanent `video_token` would tell transformers of a video processor among `get_attributes`.
            expander = copy(self)
            expander.video_token = VIDEO_MARK  # type: ignore[attr-defined]
        return super(InternVLXProcessor, expander).get_text_with_replacements(
            text, images_replacements, videos_replacements, *args, **kwargs
        )

    def _process_videos(self, videos, **kwargs):
        inputs = self.video_processor(videos, **kwargs)
        return inputs, [self.replace_video_token(inputs, index, **kwargs) for index in range(len(videos))]

    def _require_an_image_for_each_token(self, images, num_tokens: list[int]):
        if images is None:
            if any(num_tokens):
                raise ValueError(
                    f"Found {sum(num_tokens)} {self.image_token} tokens in the text but no images were passed. Expected an "
                    f"image in `images`, or in a chat's image part, for each {self.image_token} and each mark {IMAGE_MARK}; "
                    f"to write the mark as text, use {MARK_AS_TEXT!r}."
                )
            return
        self._require_as_many_images(sum(num_tokens), len(flat_images(images)), "total ")
        is_nested = isinstance(images, list | tuple) and all(isinstance(sample, list | tuple) for sample in images)
        if is_nested and len(images) == len(num_tokens):
            for index, sample_images in enumerate(images):
                self._require_as_many_images(num_tokens[index], len(sample_images), place=f" in sample {index}")

    def _require_as_many_images(self, num_tokens: int, num_images: int, total: str = "", place: str = ""):
        if num_tokens != num_images:
            raise ValueError(
                f"The {total}number of {self.image_token} tokens in the prompts should be the same as the number of images "
                f"passed. Found {total}{num_tokens} {self.image_token} tokens and {num_images} images{place}. A mark "
                f"{IMAGE_MARK} in the text counts as such a token."
            )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The text that replaces one image token: `image_seq_length` placeholders for each of the image's tiles."""
        num_placeholders = self.image_seq_length * int(image_inputs["num_patches"][image_idx])
        return f"{self.start_image_token}{self.image_token * num_placeholders}{self.end_image_token}"

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """The text that replaces one mark `<video>`: one line per frame."""
        return self.video_text(int(video_inputs["num_patches_videos"][video_idx]), kwargs.get("frame_label"))

    def video_text(self, num_frames: int, frame_label: str | None = None) -> str:
        """The text of a video of `num_frames` sampled frames in the prompt."""
        label = frame_label or self.video_processor.frame_label
        tile = f"{self.start_image_token}{self.image_token * self.image_seq_length}{self.end_image_token}"
        return "\n".join(label.replace("{}", str(1 + frame)) + tile for frame in range(num_frames))

    def _get_num_multimodal_tokens(
        self, image_sizes: list[tuple[int, int]] | None = None, max_image_tokens: int | None = None, **kwargs
    ) -> MultiModalData:
        """Tiles and tokens of one text's images of these sizes (height, width), without reading a pixel.

        Returns:
            `num_image_patches`: tiles of each image; `num_image_tokens`: its tokens in `input_ids`, including the start and
            end tokens.
        """
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]  # type: ignore[arg-type]
        sizes = [(width, height) for height, width in image_sizes]
        rules = self.tiling_rules(sizes, images_kwargs, max_image_tokens=max_image_tokens)
        num_tiles = [rule.plan(*size).num_tiles for rule, size in zip(rules, sizes, strict=True)]
        num_tokens = [len(self.wrapper_ids) + self.image_seq_length * tiles for tiles in num_tiles]
        return MultiModalData(num_image_tokens=num_tokens, num_image_patches=num_tiles)


def _image_token(tokenizer, attribute: str) -> str:
    token = getattr(tokenizer, attribute, None) or IMAGE_TOKENS[attribute]
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise ValueError(
            f"The tokenizer has no token {token!r} (its attribute {attribute}), expected one for images. Add it with "
            f"tokenizer.add_special_tokens({{'{attribute}': '{token}'}}) and resize the model's embeddings."
        )
    return token


def _as_texts(text) -> list[str] | None:
    if text is None or isinstance(text, str):
        return None if text is None else [text]
    if not isinstance(text, list | tuple) or not all(isinstance(sample, str) for sample in text):
        raise ValueError(f"text={text!r:.100}, expected a string or a list of strings.")
    return list(text)


def _has_images(images: list | tuple) -> bool:
    return any(_has_images(image) if isinstance(image, list | tuple) else True for image in images)


def _video_processor(given, image_processor) -> InternVLXVideoProcessor:
    if given is None:
        return InternVLXVideoProcessor.like(image_processor)
    if isinstance(given, Mapping):
        return InternVLXVideoProcessor.from_dict(dict(given))
    if not hasattr(given, "choose_frames"):
        raise ValueError(f"video_processor is a {type(given).__name__}, expected an InternVLXVideoProcessor.")
    return given


def _require_videos_per_text(videos, texts: list[str]) -> None:
    """Raises `ValueError` if there is one list of videos per text and a list does not fit its text."""
    is_nested = isinstance(videos, list | tuple) and all(isinstance(own, list | tuple) for own in videos)
    if is_nested and len(videos) == len(texts) > 1 and not any(map(is_frame_list, videos)):
        for index, (own, text) in enumerate(zip(videos, texts, strict=True)):
            _require_a_video_for_each_mark(flat_videos(own), text.count(VIDEO_MARK), f" in sample {index}")


def _require_a_video_for_each_mark(videos: list, marks: int, place: str = "") -> None:
    if len(videos) != marks:
        raise ValueError(
            f"Found {marks} marks {VIDEO_MARK} and {len(videos)} videos{place}, expected a video in `videos`, or in a chat's video "
            f"part, for each mark. To write the mark as text, use {VIDEO_MARK_AS_TEXT!r}."
        )
