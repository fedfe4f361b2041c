# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a training sample is: messages, and the images that their image parts stand for."""

from collections.abc import Mapping
from io import BytesIO

from PIL import Image

ROLES = ("system", "user", "assistant")
IMAGE_MARK = "<image>"
# where an image part of a message says what its image is
_IMAGE_KEYS = ("image", "path", "url", "base64", "image_url")


def conversation_of(sample: Mapping) -> list[dict]:
    """The messages of a sample `{"messages": [...], "images": [...]}`, each image in the part that stands for it.

    A message's content is a string or a list of parts, as for `apply_chat_template`. Bare parts `{"type": "image"}` take
    the sample's `images` in order. Without any, the marks `<image>` in the text do, as in InternVL's and LLaVA's data;
    and without marks the images go in front of the first user turn.

    Args:
        sample: `images` (or `image`, a single one) may be absent. An image is whatever the image processor takes, or
            `{"bytes": ..., "path": ...}` as `datasets` stores it.

    Raises:
        ValueError: the sample has another shape, an unknown role or an empty answer, or its images and the places for
            them differ in number.
    """
    messages = sample.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"A sample has messages={messages!r:.100}, expected a list of messages.")
    messages = [_message(message, turn) for turn, message in enumerate(messages)]
    images = _images(sample)
    if images and not any(_is_image(part) for message in messages for part in message["content"]):
        _place(messages, len(images))
    bare = [part for message in messages for part in message["content"] if _is_image(part) and len(part) == 1]
    if len(bare) != len(images):
        raise ValueError(f"A sample has {len(images)} images for {len(bare)} places, expected one for each.")
    for part, image in zip(bare, images, strict=True):
        part["image"] = image
    return messages


def _message(message: Mapping, turn: int) -> dict:
    """A copy with a list of parts as its content, without the empty fields that Arrow adds."""
    if not isinstance(message, Mapping) or "content" not in message:
        raise ValueError(f"Turn {turn} is {message!r:.100}, expected {{'role': ..., 'content': ...}}.")
    role, content = message.get("role"), message["content"]
    if role not in ROLES:
        raise ValueError(f"Turn {turn} has the role {role!r}, expected one of {', '.join(ROLES)}.")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(
            f"Turn {turn} ({role}) has the content {content!r:.100}, expected a string or a list of parts."
        )
    content = [{key: value for key, value in part.items() if value is not None} for part in content]
    for part in content:
        if not (_is_image(part) or (part.get("type") == "text" and isinstance(part.get("text"), str))):
            raise ValueError(f"Turn {turn} ({role}) has the part {part!r:.100}, expected one of type text or image.")
        if part["type"] == "image":  # an Arrow struct has the keys of all parts
            part.pop("text", None)
    if role == "assistant" and not any(part.get("text", "").strip() for part in content):
        raise ValueError(f"Turn {turn} (assistant) is empty, expected an answer.")
    return {"role": role, "content": content}


def _is_image(part: Mapping) -> bool:
    return part.get("type") in ("image", "image_url")


def _images(sample: Mapping) -> list:
    images = sample.get("images")
    if images is None:
        images = sample.get("image")
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        images = [images]
    return [_open(image) for image in images]


def _open(image):
    """`datasets` gives an undecoded image as its bytes, its path, or both."""
    if not isinstance(image, Mapping):
        return image
    if image.get("bytes") is not None:
        return Image.open(BytesIO(image["bytes"]))
    for key in _IMAGE_KEYS:
        if image.get(key) is not None:
            return image[key]
    raise ValueError(f"An image is {image!r:.100}, expected an image, its path or {{'bytes': ...}}.")


def _place(messages: list[dict], num_images: int) -> None:
    """Makes image parts of the marks in the user's text, or puts the images in front where there are none."""
    users = [message for message in messages if message["role"] == "user"]
    if not users:
        raise ValueError(f"A sample has {num_images} images but no user turn to put them into.")
    marked = any(IMAGE_MARK in part.get("text", "") for message in users for part in message["content"])
    if not marked:
        users[0]["content"][:0] = [{"type": "image"} for _ in range(num_images)]
        return
    for message in users:
        message["content"] = [piece for part in message["content"] for piece in _split_at_marks(part["text"])]


def _split_at_marks(text: str) -> list[dict]:
    """The template writes a newline after an image: the one that data has there is dropped."""
    before, *after = text.split(IMAGE_MARK)
    parts = [{"type": "text", "text": before}] if before else []
    for piece in after:
        parts.append({"type": "image"})
        piece = piece.removeprefix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
