# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting records of InternVL's and LLaVA's data to samples of messages and images."""

import os
from collections.abc import Mapping

from ..processing.messages import IMAGE, VIDEO
from ..processing.rvtc import TILES_RULE
from .samples import is_given, media_of, refuse_unread

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_TILE_LIMITS = ("min_patches", "max_patches")
# keys of a turn that say nothing about training, and keys of other trainers that say whether it has loss
_NOTES = ("id", "index", "turn", "timestamp", "model", "language")
_LOSS_KEYS = ("weight", "loss", "train")
_ABSOLUTE = ("http://", "https://", "file://", "data:")


def sample_from_record(record: Mapping, image_root: str | None = None, images_kwargs: Mapping | None = None) -> dict:
    """A sample `{"messages": [...], "images": [...], "videos": [...]}` from any record that training accepts.

    Args:
        record: with `messages`, or with `conversations` of `{"from": "human" | "gpt" | "system", "value": ...}`, as
            InternVL and LLaVA write them; blanks around a value are removed, as in InternVL. A turn's `weight`, `loss`
            or `train` may only state what holds: answers carry loss, other turns do not. `image` or `images` holds one
            image or a list, which may be empty; only one of the two may be set. The same holds for `video` and
            `videos`. `images_kwargs` may set the record's own `min_patches` and `max_patches`.
        image_root: folder that relative paths of images and videos refer to, including paths in parts of messages.
        images_kwargs: arguments of the image processor for this record. They override its own.

    Raises:
        ValueError: if the record has another form, or both `messages` and `conversations`; an unknown speaker; a turn
            with other keys; media other than images and videos; or tile limits that are no positive integers.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {record!r:.100}, expected a JSON object")
    refuse_unread(record)
    if is_given(record.get("messages")) and is_given(record.get("conversations")):
        raise ValueError("it has both `messages` and `conversations`, expected one of them")
    if record.get("messages") is not None:
        messages = _resolve_messages(record["messages"], image_root)
    elif record.get("conversations") is not None:
        messages = _messages(record["conversations"])
    else:
        raise ValueError(f"it has the keys {', '.join(map(str, record))}, expected `messages` or `conversations`")
    sample = {"messages": messages, "images": [_resolve_image(image, image_root) for image in media_of(record, IMAGE)]}
    videos = [_resolve_video(video, image_root) for video in media_of(record, VIDEO)]
    sample |= {"videos": videos} if videos else {}
    kwargs = _tile_limits(record.get("images_kwargs")) | dict(images_kwargs or {})
    return sample | ({"images_kwargs": kwargs} if kwargs else {})


def _tile_limits(given) -> dict[str, int]:
    """A record's own limits on the tiles of its images, without None values, which `datasets` adds."""
    if not isinstance(given, Mapping | None):
        raise ValueError(f"it has images_kwargs={given!r:.100}, expected an object with {' or '.join(_TILE_LIMITS)}")
    limits = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in limits.items():
        if name not in _TILE_LIMITS:
            raise ValueError(
                f"it sets {name}={value!r:.100} for its images, expected only {' and '.join(_TILE_LIMITS)}"
            )
        TILES_RULE.check(f"it sets {name}", value)
    return limits


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
        _refuse_unread_keys(entry, turn)
        messages.append({"role": _ROLES[speaker], "content": value.strip()})
    return messages


def _refuse_unread_keys(entry: Mapping, turn: int) -> None:
    """Raises `ValueError` if a turn has a value that training would ignore, such as the wish for other loss than it
    gets.
    """
    speaker = entry["from"]
    has_loss = _ROLES[speaker] == "assistant"
    for key, value in entry.items():
        if key in ("from", "value", *_NOTES) or not is_given(value):
            continue
        if key not in _LOSS_KEYS:
            raise ValueError(f"turn {turn} ({speaker}) has {key}={value!r:.100}, expected only from and value")
        if value != has_loss:
            expected = "1: every answer carries loss" if has_loss else "0: only answers carry loss"
            raise ValueError(f"turn {turn} ({speaker}) has {key}={value!r:.100}, expected {expected}")


def _resolve_messages(messages, root: str | None):
    """The messages with the paths of their parts relative to `root`. Other values are returned unchanged and checked
    later.
    """
    if root is None or not isinstance(messages, list | tuple):
        return messages
    return [_resolve_message(message, root) for message in messages]


def _resolve_message(message, root: str):
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [_resolve_part(part, root) for part in content]}


def _resolve_part(part, root: str):
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "video"):
        return part
    keys = (part["type"], "path")
    return {key: _resolve_video(value, root) if key in keys else value for key, value in part.items()}


def _resolve_video(video, root: str | None):
    """The video with its path, or the paths of its list of frames, relative to `root`."""
    return (
        [_resolve_image(frame, root) for frame in video]
        if isinstance(video, list | tuple)
        else _resolve_image(video, root)
    )


def _resolve_image(image, root: str | None):
    if isinstance(image, Mapping) and image.get("bytes") is None and isinstance(image.get("path"), str):
        return _resolve_image(image["path"], root)
    if not isinstance(image, str) or root is None or image.lower().startswith(_ABSOLUTE):
        return image
    return os.path.join(root, image)
