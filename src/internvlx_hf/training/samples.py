# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a training sample is: messages, and the images that their image parts or marks stand for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import PIL.Image
from transformers.image_utils import is_valid_image

from ..processing.image_sources import open_image

ROLES = ("system", "user", "assistant")
IMAGE_MARK = "<image>"
# where an image part of a message, or an entry of `images`, says what its image is
_IMAGE_KEYS = ("image", "path", "url", "base64", "image_url")


class BrokenSampleError(ValueError):
    """A sample cannot be trained on; the message says where it is and what is wrong with it."""


class TooLongError(BrokenSampleError):
    """A sample has more tokens than `max_length` and may not, or cannot, be cut."""


@dataclass
class Conversation:
    """Messages whose contents are lists of text and image parts, and the images in their order."""

    messages: list[dict]
    images: list

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(where, text) of every text."""
        return [
            (f"turn {turn} ({message['role']})", part["text"])
            for turn, message in enumerate(self.messages)
            for part in message["content"]
            if part["type"] == "text"
        ]


def read_conversation(sample: Mapping) -> Conversation:
    """The conversation of a sample `{"messages": [...], "images": [...]}`.

    A message's content is a string or a list of parts, as for `apply_chat_template`. Image parts carry their image, or take
    the sample's `images` in order. Where no message has an image part, the marks `<image>` in the users' texts stand for
    the images, as in InternVL's and LLaVA's data; they become parts `{"type": "mark"}`. Without a mark the images go in
    front of the first user turn.

    Args:
        sample: `images` (or `image`, for a single one) may be absent. An image is whatever the image processor takes, or
            `{"bytes": ..., "path": ...}` as `datasets` stores it.

    Raises:
        ValueError: the sample has another shape, an unknown role or an empty answer, or its images and the places for
            them differ in number.
    """
    messages = sample.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"it has messages={messages!r:.100}, expected a list of messages")
    messages = [_message(message, turn) for turn, message in enumerate(messages)]
    _check_turns(messages)
    images = _images_of(sample)
    parts = [part for message in messages for part in message["content"]]
    if not any(part["type"] == "image" for part in parts):
        _place(messages, len(images))
        return Conversation(messages, [_opened(image) for image in images])
    places = [part for part in parts if part["type"] == "image"]
    bare = [part for part in places if "source" not in part]
    if len(bare) != len(images):
        raise ValueError(f"it has {len(images)} images for {len(bare)} image parts, expected one for each")
    for part, image in zip(bare, images, strict=True):
        part["source"] = image
    return Conversation(messages, [_opened(part.pop("source")) for part in places])


def _message(message: Mapping, turn: int) -> dict:
    if not isinstance(message, Mapping) or "content" not in message:
        raise ValueError(f"turn {turn} is {message!r:.100}, expected {{'role': ..., 'content': ...}}")
    role, content = message.get("role"), message["content"]
    if role not in ROLES:
        raise ValueError(f"turn {turn} has the role {role!r}, expected one of {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ValueError(
            f"turn {turn} ({role}) has the content {content!r:.100}, expected a string or a list of parts"
        )
    return {"role": role, "content": [_part(part, f"turn {turn} ({role})") for part in content]}


def _part(part: Mapping, place: str) -> dict:
    """`{"type": "text", "text": ...}` or `{"type": "image"}`, the latter with its `source` if it carries one."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url"):
        # a part that comes from Arrow has the keys of all parts, most of them None
        sources = [part[key] for key in _IMAGE_KEYS if part.get(key) is not None]
        return {"type": "image"} | ({"source": sources[0]} if sources else {})
    raise ValueError(f"{place} has the part {part!r:.100}, expected one of type text or image")


def _check_turns(messages: list[dict]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("it has no turn of the assistant, expected an answer to learn")
    for turn, message in enumerate(messages):
        is_empty = not any(part.get("text", "").strip() for part in message["content"])
        if message["role"] == "assistant" and is_empty:
            raise ValueError(f"turn {turn} (assistant) is empty, expected an answer")


def _images_of(sample: Mapping) -> list:
    images = sample.get("images")
    if images is None:
        images = sample.get("image")
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _opened(image):
    """The image without its pixels read yet, where it is a file or its bytes; anything else as it is."""
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return _from_bytes(image["bytes"], image.get("path"))
        sources = [image[key] for key in _IMAGE_KEYS if image.get(key) is not None]
        if not sources:
            raise ValueError(f"an image is {image!r:.100}, expected an image, its path or {{'bytes': ...}}")
        return _opened(sources[0])
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if not is_valid_image(image):
        raise ValueError(f"an image is a {type(image).__name__}, expected a path, bytes, a Pillow image or an array")
    return image


def _from_bytes(data: bytes, path: str | None) -> PIL.Image.Image:
    try:
        return PIL.Image.open(BytesIO(data))
    except Exception as error:  # each plugin of Pillow raises what it likes
        name = path or f"an image of {len(data)} bytes"
        raise ValueError(f"{name} is not an image that Pillow can read ({error})") from error


def _place(messages: list[dict], num_images: int) -> None:
    """Makes parts of the marks in the users' texts, or puts the images in front where there are none."""
    marks = {"user": 0, "system": 0, "assistant": 0}
    for message in messages:
        marks[message["role"]] += sum(part["text"].count(IMAGE_MARK) for part in message["content"])
    if not any(marks.values()):
        if num_images:
            _first_user(messages)["content"][:0] = [{"type": "image"} for _ in range(num_images)]
        return
    if marks["user"] != num_images or marks["system"] or marks["assistant"]:
        raise ValueError(
            f"it has {num_images} images and the marks {IMAGE_MARK} {marks['user']} times in the users' turns, "
            f"{marks['system'] + marks['assistant']} times elsewhere; expected one in a user's turn for each image"
        )
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
