# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Records of InternVL's and LLaVA's data as samples of messages and images."""

import os
from collections.abc import Mapping

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_REMOTE = ("http://", "https://", "data:image/")
# other kinds of media, which a sample must not lose silently
_MEDIA = ("video", "videos", "audio", "audios")


def sample_from_record(record: Mapping, image_root: str | None = None, images_kwargs: Mapping | None = None) -> dict:
    """A sample `{"messages": [...], "images": [...]}` from any record that training takes.

    Args:
        record: with `messages`, which stay as they are, or with `conversations` of `{"from": "human" | "gpt" | "system",
            "value": ...}`, as InternVL and LLaVA write them; blanks around a value are dropped, as InternVL drops them.
            `image` or `images` is one image or a list; an empty one is none.
        image_root: folder that relative paths of images count from.
        images_kwargs: arguments of the image processor for this record.

    Raises:
        ValueError: the record is something else, has an unknown speaker, or media other than images.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {record!r:.100}, expected a JSON object")
    media = [name for name in _MEDIA if record.get(name)]
    if media:
        raise ValueError(f"it has {media[0]}={record[media[0]]!r:.100}, expected images only")
    if record.get("messages") is not None:
        messages = record["messages"]
    elif record.get("conversations") is not None:
        messages = _messages(record["conversations"])
    else:
        raise ValueError(f"it has the keys {', '.join(map(str, record))}, expected `messages` or `conversations`")
    sample = {"messages": messages, "images": _images(record, image_root)}
    return sample | ({"images_kwargs": dict(images_kwargs)} if images_kwargs else {})


def _messages(conversations) -> list[dict]:
    if not isinstance(conversations, list | tuple):
        raise ValueError(f"it has conversations={conversations!r:.100}, expected a list")
    messages = []
    for turn, entry in enumerate(conversations):
        speaker, value = (entry.get("from"), entry.get("value")) if isinstance(entry, Mapping) else (None, None)
        if speaker not in _ROLES:
            raise ValueError(f"turn {turn} is from {speaker!r}, expected human, gpt or system")
        if not isinstance(value, str):
            raise ValueError(f"turn {turn} ({speaker}) has the value {value!r:.100}, expected text")
        messages.append({"role": _ROLES[speaker], "content": value.strip()})
    return messages


def _images(record: Mapping, root: str | None) -> list:
    images = record.get("images") if record.get("images") is not None else record.get("image")
    if images is None or (isinstance(images, str) and not images):
        return []
    images = images if isinstance(images, list | tuple) else [images]
    return [_located(image, root) for image in images]


def _located(image, root: str | None):
    if isinstance(image, Mapping) and image.get("bytes") is None and isinstance(image.get("path"), str):
        return _located(image["path"], root)
    if not isinstance(image, str) or root is None or image.startswith(_REMOTE):
        return image
    return os.path.join(root, image)
