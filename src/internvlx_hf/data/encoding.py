# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Encoding a sample as token ids, labels and images. Frames of videos are images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress, groupby

import jinja2
import numpy as np
import PIL.Image
import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from ..processing import InternVLXProcessor
from ..processing.chat_templates import require_generation_marks
from ..processing.image_settings import split_by_owner
from ..processing.literals import literals_as_text
from ..processing.processing_internvlx import IGNORE_INDEX
from ..processing.video_files import ChosenFrames, Video
from .samples import MARK_OF, BrokenSampleError, Conversation, TooLongError, read_conversation

logger = logging.get_logger(__name__)

TOO_LONG_POLICIES = ("truncate", "skip", "error")
BROKEN_POLICIES = ("skip", "error")
KINDS = ("broken", "too_long", "cut")
_WORKERS = 256  # workers of a data loader with separate counts
# a sample's images with more pixels in total are split into tiles immediately
MAX_WHOLE_PIXELS = 2**24
# settings in which the image processor and the video processor must agree, since both make a batch's tiles
_LEVELS = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize", "size")


@dataclass(frozen=True)
class VideoFrame:
    """A frame of a video that is not decoded yet. It takes one tile."""

    video: Video
    index: int


@dataclass
class TrainingSample:
    """One sample, ready to be collated. (Not a dict: the `Trainer` does not modify the contents of other objects.)

    Attributes:
        input_ids, labels: (L,) int64; labels are -100 for tokens without loss.
        images: the images of `input_ids`: (C, H, W) 8-bit levels, upright. (From these, an image of 12 megapixels is
            split into the same tiles a fifth faster than from Pillow's memory.) For larger images, their tiles,
            (tiles, C, H, W), since the whole images of a batch would take gigabytes. Also tiles with `jpeg_draft`,
            which needs the file, and for samples with videos.
        tile_sizes: of each image, the index of the size of each tile among those that the model offers.
        images_kwargs: arguments of the image processor for this sample.
        was_cut: whether the sample was truncated to `max_length`.
        tile_limits: `max_patches` of each image; None if no budget takes tiles from them.
        teacher: the same sample as a teacher sees it, if there is one: its own tiles of the same images, and the same
            labels.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    images: list
    tile_sizes: list[list[int]]
    images_kwargs: dict = field(default_factory=dict)
    was_cut: bool = False
    tile_limits: list[int] | None = None
    teacher: "TrainingSample | None" = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_tiles(self) -> list[int]:
        """The number of tiles of each image."""
        return [len(sizes) for sizes in self.tile_sizes]

    def cut(self, length: int, num_images: int) -> "TrainingSample":
        """The first `length` tokens, with the first `num_images` images."""
        return replace(
            self,
            input_ids=self.input_ids[:length],
            labels=self.labels[:length],
            images=self.images[:num_images],
            tile_sizes=self.tile_sizes[:num_images],
            tile_limits=self.tile_limits and self.tile_limits[:num_images],
            was_cut=True,
        )

    def resized(self, size: int, processor: InternVLXProcessor) -> "TrainingSample":
        """The same sample with all its tiles in one size, an index among those that the processor offers."""
        tiles = [own for of_image in self.tile_sizes for own in of_image]
        counts = np.array([processor.num_placeholders([own]) for own in tiles], dtype=np.int64)
        (places,), repeats = np.nonzero(self.input_ids == processor.image_token_id), np.ones(len(self), dtype=np.int64)
        repeats[places] = 0
        repeats[places[counts.cumsum() - counts]] = processor.num_placeholders([size])
        ids, labels = np.repeat(self.input_ids, repeats), np.repeat(self.labels, repeats)
        return replace(self, input_ids=ids, labels=labels, tile_sizes=[[size] * n for n in self.num_tiles])


class SampleCounts:
    """Numbers of samples that were skipped as `broken` or `too_long`, and of those that were truncated (`cut`).

    The counts are in shared memory, one row per worker, so that the main process sees its workers' counts. A sample is
    counted again in each epoch.
    """

    def __init__(self):
        self._rows = torch.zeros(1 + _WORKERS, len(KINDS), dtype=torch.int64).share_memory_()

    def add(self, kind: str, number: int) -> None:
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % _WORKERS
        self._rows[row, KINDS.index(kind)] += int(number)

    def as_dict(self) -> dict[str, int]:
        return dict(zip(KINDS, self._rows.sum(0).tolist(), strict=True))


class SampleEncoder:
    """Encodes samples `{"messages": [...], "images": [...]}` (see `read_conversation`) for training.

    The ids are those of `processor.apply_chat_template(..., return_labels=True)` in a fraction of the time: a
    placeholder is tokenized once and then repeated. The chat template writes image parts; images replace marks
    `<image>` exactly where they are, as in InternVL. A token carries loss if it begins within the text that the
    template marks as written by the assistant: the answer and its end marker. (In `apply_chat_template`, overlapping
    is enough, as for a token of the header's newline and the blank that an answer begins with.)

    Args:
        processor: its current image processor and chat template are used in each call.
        max_length: largest number of tokens of a sample in `input_ids` (default: no limit).
        on_too_long: what to do with a longer sample. `"truncate"` (default) keeps at most its first `max_length`
            tokens, ends in front of an image rather than within it, and then at the last token that carries loss;
            images after the end are not read. If no answer is left, for example because the images alone are too long,
            the sample is skipped. `"skip"` skips every longer sample; `"error"` raises.
        on_broken: whether a sample that cannot be read raises (`"error"`, default) or is skipped (`"skip"`). Each
            skipped sample gives a warning and is counted in `counts`.
        share_tiles: each of a sample's n images takes at most `max_patches` // n tiles, at least one, plus its
            thumbnail (default: False).
        teacher_processor: processor of a teacher's model, which encodes each sample as well (default: no teacher). How
            images are decoded and which frames are taken from videos is up to `processor`; `max_length` limits the
            student's tokens.

    The images and frames of a sample share the processor's budget of visual tokens, `processor.max_image_tokens`.

    Raises:
        ValueError: if an argument is out of range, or the chat template does not mark the assistant's text.
    """

    def __init__(
        self,
        processor: InternVLXProcessor,
        max_length: int | None = None,
        on_too_long: str = "truncate",
        on_broken: str = "error",
        share_tiles: bool = False,
        teacher_processor: InternVLXProcessor | None = None,
    ):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length}, expected a positive number of tokens.")
        if on_too_long not in TOO_LONG_POLICIES:
            raise ValueError(f"on_too_long={on_too_long!r}, expected one of {', '.join(TOO_LONG_POLICIES)}.")
        if on_broken not in BROKEN_POLICIES:
            raise ValueError(f"on_broken={on_broken!r}, expected one of {', '.join(BROKEN_POLICIES)}.")
        require_generation_marks(processor.resolve_chat_template(), "Training")
        self.processor = processor
        self.max_length = max_length
        self.on_too_long = on_too_long
        self.on_broken = on_broken
        self.share_tiles = share_tiles
        self.counts = SampleCounts()
        self.teacher = None if teacher_processor is None else SampleEncoder(teacher_processor, share_tiles=share_tiles)

    def __call__(self, sample: Mapping) -> TrainingSample:
        """Encode a sample and decode its images.

        Raises:
            TooLongError: see `on_too_long`.
            ValueError: if the sample is broken: an image cannot be read, a text holds an image token, ...
        """
        conversation, images_kwargs = self._read(sample)
        encoded = self._encode(conversation, images_kwargs)
        if self.teacher is not None:
            encoded.teacher = self.teacher._follow(encoded, conversation, images_kwargs)
        self._decode(encoded)
        return encoded

    def _decode(self, encoded: TrainingSample) -> None:
        """Replace a sample's images by their levels or their tiles."""
        if any(isinstance(image, VideoFrame) for image in encoded.images):
            return self._to_tiles(encoded)
        if not encoded.images or not self.processor.image_processor.do_rescale:
            return None  # without rescaling, the range of an array's values matters
        sources = [self._source(image, encoded.images_kwargs) for image in encoded.images]
        rule = self.processor.image_processor.tiling_rule(encoded.images_kwargs)
        limits = encoded.tile_limits or [rule.max_tiles] * len(sources)
        rules = [replace(rule, max_tiles=limit) for limit in limits]
        tiles = [own.plan(source.width, source.height).num_tiles for own, source in zip(rules, sources, strict=True)]
        if tiles != encoded.num_tiles:
            raise ValueError(
                f"its images take {tiles} tiles when they are decoded, their headers say {encoded.num_tiles}"
            )
        pixels = sum(source.width * source.height for source in sources)
        if pixels > MAX_WHOLE_PIXELS or self._drafts(encoded.images_kwargs):
            return self._to_tiles(encoded)
        levels = [source.read(0, 0, source.width, source.height) for source in sources]
        for seen in filter(None, (encoded, encoded.teacher)):
            seen.images = levels
            seen.images_kwargs |= {"input_data_format": "channels_first"}
        return None

    def _drafts(self, images_kwargs: dict) -> bool:
        drafts = images_kwargs.get("jpeg_draft")
        return getattr(self.processor.image_processor, "jpeg_draft", False) if drafts is None else drafts

    def _to_tiles(self, encoded: TrainingSample) -> None:
        """Replace the images by their tiles, decoding one image at a time."""
        levels = {"do_normalize": False, "rescale_factor": 1.0, "return_tensors": "pt"}
        views: list[tuple[SampleEncoder, TrainingSample, list[torch.Tensor]]] = [(self, encoded, [])]
        if self.teacher is not None and encoded.teacher is not None:
            views.append((self.teacher, encoded.teacher, []))
        begin = 0
        for video, neighbours in groupby(encoded.images, key=lambda image: getattr(image, "video", None)):
            group = list(neighbours)
            begin, places = begin + len(group), range(begin, begin + len(group))
            if video is not None:
                sizes = [encoder.processor.image_processor.size for encoder, _, _ in views]
                if sizes[0] != sizes[-1]:
                    raise ValueError(f"its video's frames are tiles of {sizes[0]}, expected the teacher's {sizes[-1]}")
                chosen = ChosenFrames(video, [frame.index for frame in group])
                features = self.processor.video_processor(chosen, max_frames=len(group), min_frames=1, **levels)
                for _, _, tiles in views:
                    tiles.append(features.pixel_values_videos)
                continue
            for place, image in zip(places, group, strict=True):
                source = image
                if len(views) > 1 and isinstance(image, PIL.Image.Image) and not self._drafts(encoded.images_kwargs):
                    source = self._source(image, encoded.images_kwargs).decoded().image  # once for both
                for encoder, seen, tiles in views:
                    own = {} if seen.tile_limits is None else {"max_patches": seen.tile_limits[place]}
                    features = encoder.processor.image_processor([source], **seen.images_kwargs | levels | own)
                    tiles.append(features.pixel_values)
        for _, seen, tiles in views:
            found = sum(map(len, tiles))
            if found != sum(seen.num_tiles):
                raise ValueError(
                    f"its images take {found} tiles when they are decoded, their headers say {sum(seen.num_tiles)}"
                )
            seen.images = list(torch.cat(tiles).to(torch.uint8).split(seen.num_tiles))
            seen.images_kwargs |= {"input_data_format": "channels_first", "crop_to_patches": False, "do_resize": False}
            seen.tile_limits = None

    def encode_or_skip(
        self, read_sample: Callable[[], Mapping], place: Callable[[], str], decode: bool = True
    ) -> TrainingSample | None:
        """Encode a sample as `on_broken` and `on_too_long` say.

        Args:
            read_sample: returns the sample; its errors count as errors of the sample.
            place: returns the sample's place, for messages.
            decode: False only measures the sample (default: True).

        Returns:
            The encoded sample, or None if it is skipped.

        Raises:
            BrokenSampleError: if the sample is broken and may not be skipped. The message begins with its place.
        """
        try:
            sample = read_sample()
            encoded = self(sample) if decode else self.measure(sample)
        except TooLongError as error:
            self._skip("too_long", self.on_too_long != "error", f"{place()}: {error}", error)
        except Exception as error:  # any error means that the sample is broken
            self._skip("broken", self.on_broken == "skip", f"{place()}: {_described(error)}", error)
        else:
            self.counts.add("cut", encoded.was_cut)
            return encoded
        return None

    def _skip(self, kind: str, may_skip: bool, message: str, error: Exception) -> None:
        if not may_skip:
            raise BrokenSampleError(message) from error
        logger.warning(f"{message}. Skipped.")
        self.counts.add(kind, 1)

    def measure(self, sample: Mapping) -> TrainingSample:
        """Encode a sample without decoding its images: their sizes are read from the files' headers."""
        return self._encode(*self._read(sample))

    def placeholders(self, sample: Mapping) -> tuple[np.ndarray, np.ndarray, list, dict]:
        """A sample as engines take it that expand images themselves.

        Returns:
            (L,) ids with one placeholder per image, whether each carries loss, the images, and the arguments of the
            image processor.
        """
        conversation, images_kwargs = self._read(sample)
        own_images = len(conversation.images)
        if self.share_tiles and own_images > 1:
            images_kwargs |= self._tile_bounds(own_images, images_kwargs)
        return *self._tokenize(conversation), conversation.images, images_kwargs

    def _read(self, sample: Mapping) -> tuple[Conversation, dict]:
        """A sample's conversation, with frames for videos, and its arguments of the image processor."""
        conversation = read_conversation(sample, self.processor.image_tokens)
        if conversation.videos:
            conversation = self._with_frames(conversation)
        return conversation, dict(sample.get("images_kwargs") or {})

    def _encode(self, conversation: Conversation, images_kwargs: dict) -> TrainingSample:
        images_kwargs = dict(images_kwargs)
        own_images = sum(not isinstance(image, VideoFrame) for image in conversation.images)
        if self.share_tiles and own_images > 1:
            images_kwargs |= self._tile_bounds(own_images, images_kwargs)
        tile_sizes, tile_limits = self._plan_tiles(conversation.images, images_kwargs)
        ids, has_loss = self._tokenize(conversation)
        ids, labels, spans = self._expand(ids, has_loss, tile_sizes)
        images_kwargs, _ = split_by_owner(images_kwargs)
        whole = TrainingSample(ids, labels, conversation.images, tile_sizes, images_kwargs, tile_limits=tile_limits)
        return self._fit(whole, spans)

    def _plan_tiles(self, images: list, images_kwargs: dict) -> tuple[list[list[int]], list[int] | None]:
        """The sizes of the tiles of each image and frame, and limits of tiles if a budget takes some from an image."""
        image_processor, own = self.processor.image_processor, [not isinstance(image, VideoFrame) for image in images]
        sizes = [image_processor.upright_size(image, images_kwargs) for image in compress(images, own)]
        rules, choices = self.processor.plan_images(sizes, images_kwargs, len(images) - len(sizes))
        frame = self.processor.frame_size(images_kwargs.get("tokens_per_tile"))
        tiles, limits = [[frame] for _ in images], [1] * len(images)
        for place, rule, choice, size in zip(compress(range(len(images)), own), rules, choices, sizes, strict=True):
            tiles[place], limits[place] = choice.of_plan(rule.plan(*size)), rule.max_tiles
        unlimited = image_processor.tiling_rule(split_by_owner(images_kwargs)[0]).max_tiles if sizes else 1
        is_limited = any(limit < unlimited for limit in compress(limits, own))
        return tiles, limits if is_limited else None

    def _follow(self, student: TrainingSample, conversation: Conversation, images_kwargs: dict) -> TrainingSample:
        """The conversation of a student's sample as this encoder encodes it, up to the student's last label.

        Raises:
            ValueError: if the labels differ from the student's.
        """
        own = self._encode(conversation, images_kwargs)
        supervised, taught = (np.flatnonzero(sample.labels != IGNORE_INDEX) for sample in (own, student))
        if student.was_cut:
            supervised = supervised[: len(taught)]
            own = own.cut(int(supervised[-1]) + 1, len(student.num_tiles))
        labels, expected = own.labels[supervised], student.labels[taught]
        if not np.array_equal(labels, expected):
            raise ValueError(
                f"its {len(expected)} supervised tokens for the student are not the {len(labels)} for the teacher, "
                "expected the same: their chat templates or tokenizers differ"
            )
        return own

    def _with_frames(self, conversation: Conversation) -> Conversation:
        """The conversation with its videos replaced by their sampled frames, each an image after its label."""
        video_processor, videos = self.processor.video_processor, conversation.videos
        for name in _LEVELS:
            own, other = (getattr(each, name) for each in (video_processor, self.processor.image_processor))
            if (list(own) != list(other)) if isinstance(own, list | tuple) else own != other:
                raise ValueError(
                    f"the video processor has {name}={own} and the image processor {other}, expected the same"
                )
        chosen = zip(videos, video_processor.choose_frames(videos), strict=True)
        images, rest = [], iter(conversation.images)
        messages = []
        for message in conversation.messages:
            content: list[dict] = []
            for part in message["content"]:
                if part["type"] not in ("video", MARK_OF["video"]):
                    images += [next(rest)] if part["type"] != "text" else []
                    content.append(part)
                    continue
                video, indices = next(chosen)
                for number, index in enumerate(indices, start=1):
                    label = video_processor.frame_label.replace("{}", str(number))
                    content += [{"type": "text", "text": "\n" * (number > 1) + label}, {"type": MARK_OF["image"]}]
                    images.append(VideoFrame(video, index))
                content += [{"type": "text", "text": "\n"}] if part["type"] == "video" else []
            messages.append({**message, "content": content})
        return Conversation(messages, images, [])

    def _tile_bounds(self, images: int, images_kwargs: dict) -> dict[str, int]:
        """The bounds on the tiles of each of a sample's images."""
        rule = self.processor.image_processor.tiling_rule(images_kwargs)
        most = max(1, rule.max_tiles // images)
        return {"min_patches": min(rule.min_tiles, most), "max_patches": most}

    def _source(self, image, images_kwargs: dict):
        image_processor = self.processor.image_processor
        settings = {
            name: images_kwargs.get(name, getattr(image_processor, name, None))
            for name in ("do_convert_rgb", "do_exif_transpose", "input_data_format", "alpha")
        }
        return image_processor.process_image(image, **settings)

    def _tokenize(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Ids with one placeholder per image, and whether each carries loss."""
        tokenizer = self.processor.tokenizer
        prompt, spans = self._render(conversation)
        has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
        with literals_as_text(tokenizer, [prompt], self.processor.literals):
            tokens = tokenizer(
                prompt,
                add_special_tokens=not has_bos,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
        ids = np.array(tokens["input_ids"], dtype=np.int64)
        begins, ends = np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        has_loss = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            has_loss |= (begins >= start) & (begins < end) & (ends > begins)
        return ids, has_loss

    def _render(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The prompt, and the (start, end) of the assistant's texts in it."""
        token = self.processor.image_token
        messages = [
            message | {"content": _with_marks_as_text(message["content"], token)} for message in conversation.messages
        ]
        try:
            rendered: tuple[list[str], list[list]] = render_jinja_template(  # type: ignore[assignment]
                conversations=[messages],
                chat_template=self.processor.resolve_chat_template(),
                return_assistant_tokens_mask=True,
                **self.processor.tokenizer.special_tokens_map,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template cannot write it: {error}") from error
        (prompt,), (spans,) = rendered
        return prompt, spans

    def _expand(
        self, ids: np.ndarray, has_loss: np.ndarray, tile_sizes: list[list[int]]
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """Repeat the placeholders for each image's tokens: ids, labels, and the images' (start, end) in them."""
        processor = self.processor
        (places,) = np.nonzero(ids == processor.image_token_id)
        forged = np.isin(ids, processor.wrapper_ids)
        if forged.any():
            raise ValueError(
                f"its texts form the image token {processor.tokenizer.decode(ids[forged][:1])!r} together, expected "
                "text without it"
            )
        if len(places) != len(tile_sizes):
            raise ValueError(
                f"the chat template writes {len(places)} of its {len(tile_sizes)} images, expected each once"
            )
        wrappers = processor.wrapper_ids
        lengths = np.array([len(wrappers) + processor.num_placeholders(own) for own in tile_sizes], dtype=np.int64)
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[places] = lengths
        ends = repeats.cumsum()[places]
        starts = ends - lengths
        has_loss = has_loss & ~np.isin(ids, processor.image_token_ids)
        ids, has_loss = np.repeat(ids, repeats), np.repeat(has_loss, repeats)
        if wrappers:
            ids[starts], ids[ends - 1] = wrappers
        labels = np.where(has_loss, ids, IGNORE_INDEX)
        labels[:1] = IGNORE_INDEX  # no token before it could predict it
        return ids, labels, list(zip(starts.tolist(), ends.tolist(), strict=True))

    def _fit(self, whole: TrainingSample, spans: list[tuple[int, int]]) -> TrainingSample:
        ids, labels = whole.input_ids, whole.labels
        if not (labels != IGNORE_INDEX).any():
            raise ValueError("none of its tokens carries loss, expected an answer")
        limit = self.max_length
        if limit is None or len(ids) <= limit:
            return whole
        if self.on_too_long != "truncate":
            raise TooLongError(f"it has {len(ids)} tokens, expected at most max_length={limit}")
        (supervised,) = np.nonzero(labels[:limit] != IGNORE_INDEX)
        if not len(supervised):
            raise TooLongError(
                f"it has {len(ids)} tokens, {sum(end - start for start, end in spans)} of them of images, and no "
                f"answer within max_length={limit}"
            )
        length = int(supervised[-1]) + 1  # never within an image, whose tokens carry no loss
        return whole.cut(length, sum(end <= length for _, end in spans))


def _with_marks_as_text(content: list[dict], token: str) -> list[dict]:
    """The parts of a message, with each mark and the texts around it joined to one text: templates may separate
    parts.
    """
    parts: list[dict] = []
    for is_text, neighbours in groupby(content, key=lambda part: part["type"] in ("text", MARK_OF["image"])):
        run = list(neighbours)
        if is_text and any(part["type"] != "text" for part in run):
            run = [{"type": "text", "text": "".join(part.get("text", token) for part in run)}]
        parts += run
    return parts


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
