# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading training samples: messages with the images and videos that their parts or marks stand for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import PIL.Image
from transformers.image_utils import is_valid_image

from ..processing.messages import IMAGE, IMAGE_KEYS, VIDEO, Medium, count_marks, media_parts, read_messages
from ..processing.pdf_files import open_images, open_pages
from ..processing.rules import MISSPELT, nearest
from ..processing.video_files import Video, open_video

# keys that other trainers read, and what is expected instead: a sample must not lose their values silently
_UNREAD = dict.fromkeys(("audio", "audios"), "images and videos only") | {
    "tools": "messages only: training writes no tools",
    "system": "it as the first message, of role system",
}


_READ = ("images", "image", "videos", "video")
# type of a part that was a mark in a text: no newline follows it
MARK_OF = {"image": "mark", "video": "video mark"}


class BrokenSampleError(ValueError):
    """A sample cannot be trained on. The message names its place and the error."""


class TooLongError(BrokenSampleError):
    """A sample has more tokens than `max_length` and may not, or cannot, be truncated."""


@dataclass
class Conversation:
    """Messages whose contents are lists of text, image and video parts, and the images and videos in their order."""

    messages: list[dict]
    images: list
    videos: list[Video]


def read_conversation(sample: Mapping, image_tokens: Sequence[str] = ()) -> Conversation:
    """The conversation of a sample `{"messages": [...], "images": [...], "videos": [...]}`.

    A message's content is a string or a list of parts, as for `apply_chat_template`. Image parts contain their image,
    or take the sample's `images` in order. If no message has an image part, the marks `<image>` in the users' texts
    stand for the images, as in InternVL's and LLaVA's data; they become parts `{"type": "mark"}`. Without marks, the
    images go in front of the first user turn. Whatever the assistant writes is text, even if it looks like a mark or
    an image token, and is escaped (see `literals_as_text`). The same holds for videos, whose mark is `<video>`.

    Args:
        sample: `images` (or `image`, for a single one) may be absent. An image is anything that the image processor
            accepts, or `{"bytes": ..., "path": ...}` as `datasets` stores it. `videos` (or `video`) likewise: a video
            is a file, of which only the header is read here, a folder of frames, or a list of frames.
        image_tokens: the tokens of images.

    Raises:
        ValueError: if the sample has another form, other media, an unknown role or part, an image token in a text or
            an empty answer, or if the number of its images or videos differs from the number of places for them.
    """
    refuse_unread(sample)
    messages = sample.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"it has messages={messages!r:.100}, expected a list of messages")
    messages = [_with_part_list(message) for message in read_messages(messages, image_tokens)]
    _check_turns(messages)
    # videos first, so that images without marks go in front of videos without marks
    videos = _collect_media(messages, media_of(sample, VIDEO), VIDEO)
    images = _collect_media(messages, media_of(sample, IMAGE), IMAGE)
    opened = [open_media(image) for image in images]
    _repeat_parts(messages, [len(pages) for pages in opened])
    return Conversation(messages, list(chain(*opened)), [_open_video(video) for video in videos])


def _repeat_parts(messages: list[dict], counts: list[int]) -> None:
    """Give each page of a PDF a part of its own, and marks a line each."""
    kinds, numbers = (IMAGE.kind, MARK_OF[IMAGE.kind]), iter(counts)
    for message in messages:
        content = []
        for part in message["content"]:
            more = next(numbers) - 1 if part["type"] in kinds else 0
            line = [{"type": "text", "text": "\n"}] if part["type"] == kinds[1] else []
            content += [part, *[*line, part] * more]
        message["content"] = content


def _collect_media(messages: list[dict], given: list, medium: Medium) -> list:
    """The images, or videos, of all parts and marks, in order. Adds parts if there are none."""
    marks, parts = count_marks(messages, medium), media_parts(messages, medium)
    if not parts:
        _insert_parts(messages, marks, len(given), medium)
        return given
    bare = [part for part in parts if "source" not in part]
    if len(bare) != len(given):
        kind = medium.kind
        raise ValueError(f"it has {len(given)} {kind}s for {len(bare)} {kind} parts, expected one for each")
    for part, source in zip(bare, given, strict=True):
        part["source"] = source
    return [part.pop("source") for part in parts]


def refuse_unread(sample: Mapping) -> None:
    """Raises `ValueError` if a sample or a record has values that training would ignore.

    These are audio, tools, a system message outside the messages, and a misspelt `images`. Other keys are ignored,
    since data have columns for other purposes.
    """
    for name, value in sample.items():
        expected = _expected_instead(name)
        if expected and is_given(value):
            raise ValueError(f"it has {name}={value!r:.100}, expected {expected}")
    if sample.get("clip") is not None and any(name in sample for name in ("video", "videos")):
        raise ValueError(f"it has clip={sample['clip']!r:.100}, expected a file of that part of the video")


def is_given(value) -> bool:
    """Whether a value is neither None nor empty."""
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


@lru_cache
def _expected_instead(name: str) -> str | None:
    if name in _READ or name in _UNREAD:
        return _UNREAD.get(name)
    meant = nearest(str(name), _READ, MISSPELT)
    return f"`{meant}`" if meant else None


def _with_part_list(message: dict) -> dict:
    """The message with its content as a list of `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type":
    "video"}`.

    The latter two have a `source` if they name one.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_with_source(part) for part in parts]}


def _with_source(part: dict) -> dict:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    medium = VIDEO if part["type"] == "video" else IMAGE
    sources = [part[key] for key in medium.keys if key in part]
    return {"type": medium.kind} | ({"source": sources[0]} if sources else {})


def _check_turns(messages: list[dict]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("it has no turn of the assistant, expected an answer to learn")
    for turn, message in enumerate(messages):
        is_empty = not any(part.get("text", "").strip() for part in message["content"])
        if message["role"] == "assistant" and is_empty:
            raise ValueError(f"turn {turn} (assistant) is empty, expected an answer")


def media_of(sample: Mapping, medium: Medium) -> list:
    """The images (or videos) of a sample or a record as a list, from `images` or `image` (`videos` or `video`).

    Raises:
        ValueError: if both are set.
    """
    names = f"{medium.kind}s", medium.kind
    found = [_as_list(sample.get(name)) for name in names]
    if all(found):
        raise ValueError(f"it has both `{names[0]}` and `{names[1]}`, expected one of them")
    return found[0] or found[1]


def _as_list(given) -> list:
    if given is None or (isinstance(given, str) and not given):
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def open_media(image) -> list:
    """Opens a file or its bytes as an undecoded image, or as a PDF's pages; returns other images unchanged."""
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return _from_bytes(image["bytes"], image.get("path"))
        sources = [image[key] for key in IMAGE_KEYS if image.get(key) is not None]
        if not sources:
            raise ValueError(f"an image is {image!r:.100}, expected an image, its path or {{'bytes': ...}}")
        return open_media(sources[0])
    if isinstance(image, str | os.PathLike):
        return open_images(image)
    if not is_valid_image(image):
        raise ValueError(f"an image is a {type(image).__name__}, expected a path, bytes, a Pillow image or an array")
    return [image]


def _open_video(video) -> Video:
    if isinstance(video, Mapping):
        sources = [video[key] for key in ("bytes", *VIDEO.keys) if video.get(key) is not None]
        if not sources:
            raise ValueError(f"a video is {video!r:.100}, expected a video, its path or {{'bytes': ...}}")
        video = sources[0]
    return open_video(video)


def _from_bytes(data: bytes, path: str | None) -> list[PIL.Image.Image]:
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"an image's bytes are {data!r:.100}, expected bytes")
    return open_pages(bytes(data), str(path or f"an image of {len(data)} bytes"))


def _insert_parts(messages: list[dict], marks: int, number: int, medium: Medium) -> None:
    """Turns the marks in the users' texts into parts. Without marks, puts parts in front of the first user turn."""
    kind = medium.kind
    if marks and marks != number:
        raise ValueError(
            f"it has {number} {kind}s and the marks {medium.mark} {marks} times in the users' turns, expected one for "
            f"each {kind}; to write the mark as text, use {medium.mark_as_text!r}"
        )
    if not marks:
        front = [{"type": kind} for _ in range(number)]
        if front:
            _first_user(messages, kind)["content"][:0] = front
        return
    for message in messages:
        message["content"] = [piece for part in message["content"] for piece in _split_at_marks(part, medium)]


def _first_user(messages: list[dict], kind: str) -> dict:
    for message in messages:
        if message["role"] == "user":
            return message
    raise ValueError(f"it has {kind}s but no user's turn to put them into")


def _split_at_marks(part: dict, medium: Medium) -> list[dict]:
    if part["type"] != "text":
        return [part]
    pieces = [{"type": "text", "text": piece} for piece in part["text"].split(medium.mark)]
    marked = [each for piece in pieces for each in (piece, {"type": MARK_OF[medium.kind]})][:-1]
    return [each for each in marked if each["type"] != "text" or each["text"]]
