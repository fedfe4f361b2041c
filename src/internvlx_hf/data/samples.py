# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a training sample is: messages, and the images that their image parts or marks stand for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

import PIL.Image
from transformers.image_utils import is_valid_image

from ..processing.image_files import open_file, open_image
from ..processing.literals import IMAGE_MARK, MARK_AS_TEXT
from ..processing.messages import IMAGE_KEYS, count_marks, read_messages

# what other trainers read beside the messages, and what to do instead: a sample must not lose it silently
_UNREAD = dict.fromkeys(("video", "videos", "audio", "audios"), "images only") | {
    "tools": "messages only: training writes no tools",
    "system": "it as the first message, of role system",
}


class BrokenSampleError(ValueError):
    """A sample cannot be trained on; the message says where it is and what is wrong with it."""


class TooLongError(BrokenSampleError):
    """A sample has more tokens than `max_length` and may not, or cannot, be cut."""


@dataclass
class Conversation:
    """Messages whose contents are lists of text and image parts, and the images in their order."""

    messages: list[dict]
    images: list


def read_conversation(sample: Mapping, image_tokens: Sequence[str] = ()) -> Conversation:
    """The conversation of a sample `{"messages": [...], "images": [...]}`.

    A message's content is a string or a list of parts, as for `apply_chat_template`. Image parts carry their image, or take
    the sample's `images` in order. Where no message has an image part, the marks `<image>` in the users' texts stand for
    the images, as in InternVL's and LLaVA's data; they become parts `{"type": "mark"}`. Without a mark the images go in
    front of the first user turn. What the assistant says is text, also where it looks like a mark or an image token, and is
    escaped (see `literals_as_text`).

    Args:
        sample: `images` (or `image`, for a single one) may be absent. An image is whatever the image processor takes, or
            `{"bytes": ..., "path": ...}` as `datasets` stores it.
        image_tokens: what images are written with.

    Raises:
        ValueError: the sample has another shape, other media than images, an unknown role or part, an image token in a text
            or an empty answer, or its images and the places for them differ in number.
    """
    refuse_unread(sample)
    messages = sample.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"it has messages={messages!r:.100}, expected a list of messages")
    messages = [_in_parts(message) for message in read_messages(messages, image_tokens)]
    _check_turns(messages)
    images = images_of(sample)
    parts = [part for message in messages for part in message["content"]]
    marks = count_marks(messages)
    if not any(part["type"] == "image" for part in parts):
        _place(messages, marks, len(images))
        return Conversation(messages, [_opened(image) for image in images])
    places = [part for part in parts if part["type"] == "image"]
    bare = [part for part in places if "source" not in part]
    if len(bare) != len(images):
        raise ValueError(f"it has {len(images)} images for {len(bare)} image parts, expected one for each")
    for part, image in zip(bare, images, strict=True):
        part["source"] = image
    return Conversation(messages, [_opened(part.pop("source")) for part in places])


def refuse_unread(sample: Mapping) -> None:
    """Raises `ValueError` if a sample or a record has what training would drop, as other media than images.

    That is also tools, a system message beside the messages, and a misspelt `images`. Other keys are left alone, since data
    have columns for other purposes.
    """
    for name, value in sample.items():
        expected = _expected_instead(name)
        if expected and value is not None and (not hasattr(value, "__len__") or len(value)):
            raise ValueError(f"it has {name}={value!r:.100}, expected {expected}")


@lru_cache
def _expected_instead(name: str) -> str | None:
    if name in ("image", "images") or name in _UNREAD:
        return _UNREAD.get(name)
    nearest = get_close_matches(str(name).lower(), ("images", "image"), 1, cutoff=0.88)
    return f"`{nearest[0]}`" if nearest else None


def _in_parts(message: dict) -> dict:
    """The message with its content as a list of `{"type": "text", "text": ...}` and `{"type": "image"}`.

    The latter have their `source` if they carry one.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_with_source(part) for part in parts]}


def _with_source(part: dict) -> dict:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    sources = [part[key] for key in IMAGE_KEYS if key in part]
    return {"type": "image"} | ({"source": sources[0]} if sources else {})


def _check_turns(messages: list[dict]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("it has no turn of the assistant, expected an answer to learn")
    for turn, message in enumerate(messages):
        is_empty = not any(part.get("text", "").strip() for part in message["content"])
        if message["role"] == "assistant" and is_empty:
            raise ValueError(f"turn {turn} (assistant) is empty, expected an answer")


def images_of(sample: Mapping) -> list:
    """What a sample or a record has in `images` or `image`, one image or a list; none where it is empty.

    Raises:
        ValueError: it has both.
    """
    found = {name: _as_list(sample.get(name)) for name in ("images", "image")}
    if all(found.values()):
        raise ValueError("it has both `images` and `image`, expected one of them")
    return found["images"] or found["image"]


def _as_list(images) -> list:
    if images is None or (isinstance(images, str) and not images):
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _opened(image):
    """The image without its pixels read yet, where it is a file or its bytes; anything else as it is."""
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return _from_bytes(image["bytes"], image.get("path"))
        sources = [image[key] for key in IMAGE_KEYS if image.get(key) is not None]
        if not sources:
            raise ValueError(f"an image is {image!r:.100}, expected an image, its path or {{'bytes': ...}}")
        return _opened(sources[0])
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if not is_valid_image(image):
        raise ValueError(f"an image is a {type(image).__name__}, expected a path, bytes, a Pillow image or an array")
    return image


def _from_bytes(data: bytes, path: str | None) -> PIL.Image.Image:
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"an image's bytes are {data!r:.100}, expected bytes")
    return open_file(bytes(data), str(path or f"an image of {len(data)} bytes"))


def _place(messages: list[dict], marks: int, num_images: int) -> None:
    """Makes parts of the marks in the users' texts, or puts the images in front where there are none."""
    if marks and marks != num_images:
        raise ValueError(
            f"it has {num_images} images and the marks {IMAGE_MARK} {marks} times in the users' turns, expected one for each "
            f"image; a mark that is only text is written {MARK_AS_TEXT!r}"
        )
    if not marks:
        front = [{"type": "image"} for _ in range(num_images)]
        if front:
            _first_user(messages)["content"][:0] = front
        return
    for message in messages:
        message["content"] = [piece for part in message["content"] for piece in _split_at_marks(part["text"])]


def _first_user(messages: list[dict]) -> dict:
    for message in messages:
        if message["role"] == "user":
            return message
    raise ValueError("it has images but no user's turn to put them into")


def _split_at_marks(text: str) -> list[dict]:
    pieces = [{"type": "text", "text": piece} for piece in text.split(IMAGE_MARK)]
    marked = [part for piece in pieces for part in (piece, {"type": "mark"})][:-1]
    return [part for part in marked if part["type"] == "mark" or part["text"]]
