# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Processor of InternVL-X: puts one placeholder into the text for each token of the tiles of images and frames of
videos.
"""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, concatenate_list
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack
from transformers.tokenization_utils_base import PreTokenizedInput, TextInput

from .chat_processor import CHAT_MEDIA, flat_images, is_frame_list, refuse_other_media
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
from .size_choices import size_names, tokens_before
from .sized_processor import SizedProcessor
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
_OWN_SETTINGS = (
    *("image_seq_length", "offered_sizes", "wrap_images"),
    *(*ImageSettings.names(PROCESSOR), *sorted(_VIDEO_SETTINGS)),
)

_TEXT_DEFAULTS: TextKwargs = {"padding_side": "left"}


class InternVLXProcessorKwargs(ProcessingKwargs, total=False):
    # read by transformers 5.16; later versions read the processor's `text_kwargs`
    _defaults = {"text_kwargs": _TEXT_DEFAULTS}  # type: ignore[misc]


class InternVLXProcessor(SizedProcessor):
    """Joins `InternVLXImageProcessor`, `InternVLXVideoProcessor` and a tokenizer.

    Each `<IMG_CONTEXT>` or `<image>` in a text stands for one image. It becomes `<img>`, then `image_seq_length`
    `<IMG_CONTEXT>` per tile of the image, then `</img>`; `<img>` and `</img>` only with `wrap_images`. Each `<video>`
    becomes one line per frame: `Frame1: ` and the tokens of an image of one tile. Texts are padded on the left unless
    the tokenizer or the call sets a `padding_side`.

    Args:
        image_processor: an `InternVLXImageProcessor`.
        tokenizer: its attributes `context_image_token`, `start_image_token` and `end_image_token` name the three
            tokens; without them, its vocabulary must hold InternVL's tokens.
        image_seq_length: placeholders per tile, `config.image_seq_length` of the model (default: 256).
        chat_template: a Jinja template (default: the tokenizer's, or else ChatML as InternVL2.5 writes it).
        video_processor: an `InternVLXVideoProcessor` or its settings (default: tiles with the image processor's size
            and levels). The image processor's `access` also limits what the strings of videos may name.
        max_image_tokens: a budget of visual tokens for each text: its images and frames take at most this many
            placeholders together, see [`fit_request`] (default: none). A call may give another.
        offered_sizes: the sizes that the model offers, the default first, `config.tokens_per_tile` (default: one,
            `image_seq_length`).
        tokens_per_tile: which of them a request takes that does not ask for one, see `size_choices.py` (default: the
            first). It is one for all images.
        wrap_images: whether `<img>` and `</img>` surround an image's placeholders (default: True). Models converted
            from LLaVA do without, and so may their tokenizers.

    Raises:
        ValueError: if the tokenizer has no image tokens, a number of tokens is not positive, or a size is not offered.
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
        offered_sizes: Sequence | None = None,
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
        self.offered_sizes = None if offered_sizes is None else size_names(offered_sizes)
        if tokens_before(self.sizes[0]) != image_seq_length:
            raise ValueError(
                f"offered_sizes={self.sizes} starts with another size than image_seq_length={image_seq_length}."
            )
        self.read_choices(None, 1)  # raises if the default is not offered
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
        values = super().to_dict() | {name: value for name, value in own.items() if value is not None}
        if self.offered_sizes is None:
            values.pop("offered_sizes", None)
        return values

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
            ValueError: if one is unknown or out of range, or if the budget has no room for an image. Nothing is
                changed then.
        """
        images, own = split_by_owner(ImageSettings(**settings).given)
        self.tiling_rules([(1, 1)], images | own)
        self.image_processor.change_tiling(**images)
        vars(self).update(own)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that transformers loads by its Auto classes: without the video processor, for which it would
        require torchvision.
        """
        return [name for name in super().get_attributes() if name != "video_processor"]

    @property
    def model_input_names(self) -> list[str]:
        names = [name for name in super().model_input_names if name != "num_patches"]
        return names if self.offered_sizes is None else [*names, "tile_sizes"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Unpack[InternVLXProcessorKwargs],
    ) -> BatchFeature:
        """Tokenizes texts, splits their images into tiles, and makes a tile of each sampled frame of their videos.

        Args:
            images: all images in the order of their placeholders, flat or one list per text.
            text: one text or several, with one image token or mark `<image>` for each image and one mark `<video>` for
                each video. U+2060 after the `<` turns a mark into text.
            videos: all videos in the order of their marks, flat or one list per text: each a path, a URL, a list of
                images or an array of frames, see `video_files.open_video`. A list of strings is a list of videos.
            max_image_tokens: a budget of visual tokens for each text, see [`fit_request`] (default: the processor's).
                Without texts, it is that of all images and videos together.
            tokens_per_tile: a size that the model offers ("64"), or one for tiles and one for thumbnails ("256+64"),
                or a list with one of these for each image (default: the processor's). Frames of videos take the first
                size that is offered if it is a list.

        Returns:
            `input_ids` and `attention_mask` (texts, length), and `pixel_values` (tiles, 3, H, W) if there are images
            or videos, in the order of the text, with `tile_sizes` (tiles,), the indices of their sizes, if one has
            another than the first; with `return_text_replacement_offsets`, also `image_grid_thw` (images, 3), whose
            rows multiply to the images' numbers of tiles.

        Raises:
            ImportError: if a video is a file and neither PyAV nor torchcodec is installed.
            ValueError: if `text` has another type, if the number of images differs from that of image tokens or the
                number of videos from that of marks, if a text's images and frames do not fit the budget, or if `audio`
                is given.
        """
        # not in the signature, where transformers' tools expect neither attributes nor videos without a video
        # processor among `get_attributes`
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
        is_engine = chat is None and kwargs.get("return_text_replacement_offsets")
        if (
            is_engine
            and images is not None
            and any(map(any, self.read_choices(own.tokens_per_tile, len(flat_images(images)))))
        ):
            raise ValueError(
                f"tokens_per_tile={own.tokens_per_tile or self.tokens_per_tile!r} with "
                "return_text_replacement_offsets, which vLLM's transformers backend requests: it serves the default "
                f"size {self.sizes[0]!r} only. Expected no other, or the package internvlx-hf beside vLLM."
            )
        if budget is not None and is_engine:
            raise ValueError(
                f"max_image_tokens={budget} with return_text_replacement_offsets, which vLLM's transformers backend "
                "requests: it caches each image by itself, so an image's tiles must not depend on other images. "
                "Expected no budget, or the package internvlx-hf beside vLLM."
            )
        sized: Any = self
        if budget is not None or own.tokens_per_tile is not None or self.tokens_per_tile is not None:
            images, kwargs, sized = self._plan_request(budget, own.tokens_per_tile, images, texts, opened, kwargs)
        # transformers from 5.18 on, whose masks account for images, requests both
        keeps_tokens = (
            chat and kwargs.get("return_offsets_mapping") and "return_text_replacement_offsets" not in kwargs
        )
        if keeps_tokens:
            kwargs["return_text_replacement_offsets"] = True
        with literals_as_text(self.tokenizer, texts or [], self.literals):
            inputs = super(InternVLXProcessor, sized).__call__(
                images=images, text=texts, videos=opened or None, **kwargs
            )
        num_tiles = inputs.get("num_patches")
        sized._join_tiles(inputs, texts or [], kwargs)
        if chat and keeps_tokens:
            replacements = inputs.pop("text_replacement_offsets") or [[] for _ in texts or ()]
            chat.tokens = list(zip(inputs["offset_mapping"], replacements, strict=True))
        elif not chat and inputs.get("text_replacement_offsets"):
            # for vLLM, whose own count of tiles ignores `mm_processor_kwargs`
            inputs["image_grid_thw"] = torch.tensor([(1, 1, int(number)) for number in num_tiles])
        return inputs

    def open_video(self, video) -> Video:
        """Opens a video by reading only its header. The image processor's `access` limits what strings may name."""
        return open_video(video, self.image_processor.access)

    def _join_tiles(self, inputs: BatchFeature, texts: list[str], kwargs: Mapping) -> None:
        """Joins the tiles of images and videos, and their sizes, in the order of the texts."""
        counts = {"image": inputs.pop("num_patches", None), "video": inputs.pop("num_patches_videos", None)}
        frames, tiles = inputs.pop("pixel_values_videos", None), inputs.get("pixel_values")
        if frames is None and not self._image_sizes:
            return
        images_kwargs = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]  # type: ignore[arg-type]
        numbers = {kind: [] if own is None else np.asarray(own).tolist() for kind, own in counts.items()}
        sizes = {
            "image": [self._sizes_of(index, number, images_kwargs) for index, number in enumerate(numbers["image"])],
            "video": [[self._video_size] * number for number in numbers["video"]],
        }
        pattern = f"(?P<image>{re.escape(self.image_token)})|(?P<video>{VIDEO_MARK})"
        order = [str(match.lastgroup) for text in texts for match in re.finditer(pattern, text)]
        order = order or [kind for kind in numbers for _ in numbers[kind]]
        parts, tile_sizes, rest, begins = [], [], {"image": tiles, "video": frames}, dict.fromkeys(numbers, 0)
        for kind in order:
            own = sizes[kind].pop(0)
            tile_sizes += own
            parts.append(rest[kind][begins[kind] : begins[kind] + len(own)])  # type: ignore[index]
            begins[kind] += len(own)
        if frames is not None:
            inputs["pixel_values"] = frames if tiles is None else concatenate_list(parts)
        if any(tile_sizes):
            as_array: Any = {torch.Tensor: torch.tensor, np.ndarray: np.array}.get(type(inputs["pixel_values"]), list)
            inputs["tile_sizes"] = as_array(tile_sizes)

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
                    f"Found {sum(num_tokens)} {self.image_token} tokens in the text but no images were passed. "
                    f"Expected an image in `images`, or in a chat's image part, for each {self.image_token} and each "
                    f"mark {IMAGE_MARK}; to write the mark as text, use {MARK_AS_TEXT!r}."
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
                f"The {total}number of {self.image_token} tokens in the prompts should be the same as the number of "
                f"images passed. Found {total}{num_tokens} {self.image_token} tokens and {num_images} images{place}. "
                f"A mark {IMAGE_MARK} in the text counts as such a token."
            )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The text that replaces one image token: the placeholders of each of the image's tiles."""
        sizes = self._sizes_of(image_idx, int(image_inputs["num_patches"][image_idx]), kwargs)
        num_placeholders = self.num_placeholders(sizes)
        return f"{self.start_image_token}{self.image_token * num_placeholders}{self.end_image_token}"

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """The text that replaces one mark `<video>`: one line per frame."""
        return self.video_text(int(video_inputs["num_patches_videos"][video_idx]), kwargs.get("frame_label"))

    def video_text(self, num_frames: int, frame_label: str | None = None) -> str:
        """The text of a video of `num_frames` sampled frames in the prompt."""
        label = frame_label or self.video_processor.frame_label
        tokens = tokens_before(self.sizes[self._video_size])
        tile = f"{self.start_image_token}{self.image_token * tokens}{self.end_image_token}"
        return "\n".join(label.replace("{}", str(1 + frame)) + tile for frame in range(num_frames))


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
            f"Found {marks} marks {VIDEO_MARK} and {len(videos)} videos{place}, expected a video in `videos`, or in a "
            f"chat's video part, for each mark. To write the mark as text, use {VIDEO_MARK_AS_TEXT!r}."
        )
