# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What messages may hold, and where their images go.

One rule everywhere: image *parts* say where images go. Without parts, each mark `<image>` in a user's text is the next image.
What the assistant or a tool wrote is text, whatever it looks like.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from .literals import IMAGE_MARK, MARK_AS_TEXT, escaped

ROLES = ("system", "user", "assistant")
LITERAL_ROLES = ("assistant", "tool")
# where an image part says what its image is
IMAGE_KEYS = ("image", "path", "url", "base64", "image_url")
# keys of a part that others' tools add, and that change nothing in what is written
_METADATA = ("index", "detail", "cache_control")
# transformers hands each of them to a template under the names of the others
_REASONING = frozenset({"reasoning_content", "thinking", "reasoning"})


# ---- reading


def read_messages(messages, tokens: Sequence[str], words: frozenset[str] = frozenset()) -> list[dict]:
    """Copies of messages that are understood, without their None values.

    Each of `tokens` and each mark is escaped in what the assistant or a tool wrote. Text parts that form one only together
    become one part.

    Args:
        messages: of `role` and `content`, a string or a list of parts `{"type": "text", "text": ...}` and `{"type": "image"}`,
            the latter with its image under one of `IMAGE_KEYS` or without.
        tokens: what images are written with, which no text may hold.
        words: `template_words` of the chat template.

    Raises:
        ValueError: there is a role, a key, a part or a value that is unknown, or one of `tokens` in other texts; the message
            begins with the turn, in lower case.
    """
    if not isinstance(messages, list | tuple):
        raise ValueError(f"it is {messages!r:.100}, expected a list of messages")
    return [_read_message(message, turn, tokens, words) for turn, message in enumerate(messages)]


def _read_message(given, turn: int, tokens: Sequence[str], words: frozenset[str]) -> dict:
    literals = (*tokens, IMAGE_MARK)
    if not isinstance(given, Mapping):
        raise ValueError(_no_message(given, turn))
    message = _with_literals_escaped({key: value for key, value in given.items() if value is not None}, literals)
    role, place = message.get("role"), f"turn {turn} ({message.get('role')})"
    refuse_tokens(message, place, tokens)
    _refuse_unwritten(message, turn, words)
    if "content" not in message:
        if role == "assistant" and any(not _is_empty(message[key]) for key in message.keys() - {"role"}):
            return message  # calls of tools, or reasoning
        raise ValueError(_no_message(given, turn))
    content = _read_content(message["content"], place, literals)
    if role in LITERAL_ROLES:
        content = _escaped_strings(content, literals)
    refuse_tokens(content, place, tokens)  # once more: parts may have formed one together
    return {**message, "content": content}


def _no_message(given, turn: int) -> str:
    return f"turn {turn} is {given!r:.100}, expected {{'role': ..., 'content': ...}}"


def _refuse_unwritten(message: dict, turn: int, words: frozenset[str]) -> None:
    """Raises `ValueError` for a role or a key that the chat template does not mention."""
    role = message.get("role")
    if role not in ROLES and not (isinstance(role, str) and role in words):
        known = [*ROLES, *sorted({"tool"} & words)]
        raise ValueError(f"turn {turn} has the role {role!r}, expected one of {', '.join(known)}")
    for key, value in message.items():
        names = _REASONING if key in _REASONING else {key}
        if key not in ("role", "content") and not _is_empty(value) and not words & names:
            raise ValueError(
                f"turn {turn} ({role}) has {key}={value!r:.100}, which the chat template does not write; expected role "
                "and content"
            )


def _with_literals_escaped(message: dict, literals: Sequence[str]) -> dict:
    role = message.get("role")
    keys = message.keys() - {"role"} if role == "assistant" else {"content"} if role in LITERAL_ROLES else ()
    return {key: _escaped_strings(value, literals) if key in keys else value for key, value in message.items()}


def _escaped_strings(value, literals: Sequence[str]):
    """The value with all its strings escaped, but for those that say where an image is."""
    if isinstance(value, str):
        return escaped(value, literals)
    if isinstance(value, Mapping):
        fixed = IMAGE_KEYS if value.get("type") in ("image", "image_url") else ()
        return {key: item if key in fixed else _escaped_strings(item, literals) for key, item in value.items()}
    return [_escaped_strings(item, literals) for item in value] if isinstance(value, list | tuple) else value


def _is_empty(value) -> bool:
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _read_content(content, place: str, literals: Sequence[str]) -> str | list[dict]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"{place} has the content {content!r:.100}, expected a string or a list of parts")
    return _joined_where_needed([_read_part(part, place) for part in content], literals)


def _read_part(part, place: str) -> dict:
    if not isinstance(part, Mapping):
        raise ValueError(f"{place} has the part {part!r:.100}, expected one of type text or image")
    kept = {key: value for key, value in part.items() if value is not None}
    kind = kept.get("type")
    if kind == "text" and isinstance(kept.get("text"), str):
        known: tuple[str, ...] = ("text",)
    elif kind in ("image", "image_url"):
        known = IMAGE_KEYS
        kept = _read_image(kept, place)
    else:
        raise ValueError(f"{place} has the part {part!r:.100}, expected one of type text or image")
    for key, value in kept.items():
        if not (key == "type" or key in known or key in _METADATA or _is_empty(value)):
            raise ValueError(f"{place} has {key}={value!r:.100} in a part of type {kind}, expected {', '.join(known)}")
    return kept


def _read_image(part: dict, place: str) -> dict:
    named = [key for key in IMAGE_KEYS if key in part]
    if len(named) > 1:
        raise ValueError(f"{place} has an image part with {' and '.join(named)}, expected one of them")
    if "image_url" not in named:
        if part["type"] == "image_url":
            raise ValueError(f"{place} has the part {part!r:.100}, expected {{'type': 'image_url', 'image_url': ...}}")
        return part
    url = part["image_url"].get("url") if isinstance(part["image_url"], Mapping) else part["image_url"]
    if not isinstance(url, str) or not url:
        raise ValueError(f"{place} has image_url={part['image_url']!r:.100}, expected {{'url': ...}}")
    return {
        "type": "image",
        "url": url,
        **{key: value for key, value in part.items() if key not in ("type", "image_url")},
    }


def _joined_where_needed(parts: list[dict], literals: Sequence[str]) -> list[dict]:
    """The parts, but one for each run of text parts that form a literal only together."""
    joined: list[dict] = []
    for is_text, neighbours in groupby(parts, key=lambda part: part["type"] == "text"):
        run = list(neighbours)
        if is_text:
            text = "".join(part["text"] for part in run)
            apart = sum(_count(part["text"], literals) for part in run)
            run = run if _count(text, literals) == apart else [{"type": "text", "text": text}]
        joined += run
    return joined


def _count(text: str, literals: Sequence[str]) -> int:
    return sum(text.count(literal) for literal in literals)


def _with_texts(content: str | list[dict], change) -> str | list[dict]:
    if isinstance(content, str):
        return change(content)
    return [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content]


def refuse_tokens(value, place: str, tokens: Iterable[str]) -> None:
    """Raises `ValueError` if any string in `value`, but for those that say where an image is, holds one of the tokens."""
    for text in _strings(value):
        for token in tokens:
            if token in text:
                raise ValueError(
                    f"the text of {place} holds the image token {token!r}, which stands for image data; expected text "
                    "without it, and images as parts of their own: {'type': 'image', ...}"
                )


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        is_image = value.get("type") in ("image", "image_url")
        for key, item in value.items():
            if not (is_image and key in IMAGE_KEYS):
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


# ---- images


def image_parts(messages: list[dict]) -> list[dict]:
    contents = (message.get("content") for message in messages)
    return [part for content in contents if isinstance(content, list) for part in content if part["type"] == "image"]


def is_bare(part: dict) -> bool:
    """Whether an image part leaves it to others to say what its image is."""
    return not any(key in part for key in IMAGE_KEYS)


def count_marks(messages: list[dict]) -> int:
    """Marks `<image>` in the users' turns, which are the images where there are no image parts.

    Raises:
        ValueError: there are image parts as well, or a mark in the system message.
    """
    marks = 0
    has_parts = bool(image_parts(messages))
    for turn, message in enumerate(messages):
        found = sum(text.count(IMAGE_MARK) for text in _strings(message.get("content")))
        if found and (has_parts or message["role"] != "user"):
            reason = "beside image parts, which say where images go" if has_parts else "outside of users' turns"
            raise ValueError(
                f"the text of turn {turn} ({message['role']}) holds {IMAGE_MARK!r} {reason}; expected either image parts "
                f"{{'type': 'image', ...}} or marks in users' turns. A mark that is only text is written {MARK_AS_TEXT!r}"
            )
        marks += found
    return marks


def place_images(messages: list[dict], images: list | None, image_token: str) -> tuple[list[dict], list]:
    """Puts images where the messages have room for them.

    Args:
        messages: as `read_messages` gives them.
        images: for the bare image parts; without any image part, for the marks; without those they go in front of the first
            user's turn. None: there are only those that parts carry.

    Returns:
        The messages, marks replaced by `image_token`; and the images of all parts and marks, in order.

    Raises:
        ValueError: the images and the places for them differ in number.
    """
    marks, parts = count_marks(messages), image_parts(messages)
    bare = [part for part in parts if is_bare(part)]
    if images is None and marks:
        raise ValueError(
            f"its users' turns hold {IMAGE_MARK!r} {marks} times, but no images were given; expected `images=`, or image "
            f"parts {{'type': 'image', ...}} in place of the marks. A mark that is only text is written {MARK_AS_TEXT!r}"
        )
    if images is not None and (parts or marks):
        places, name = (len(bare), "image parts without an image of their own") if parts else (marks, "marks <image>")
        if places != len(images):
            raise ValueError(f"it has {len(images)} images for {places} {name}, expected one for each")
    if marks and images is not None:
        return [_marks_replaced(message, image_token) for message in messages], images
    if images and not parts:
        messages = _with_images_in_front(messages, images)
    elif images:
        for part, image in zip(bare, images, strict=True):
            part["image"] = image
    return messages, [part[key] for part in image_parts(messages) for key in IMAGE_KEYS if key in part]


def _marks_replaced(message: dict, image_token: str) -> dict:
    if message["role"] != "user":
        return message
    return {**message, "content": _with_texts(message["content"], lambda text: text.replace(IMAGE_MARK, image_token))}


def _with_images_in_front(messages: list[dict], images: list) -> list[dict]:
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            content = message["content"]
            rest = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [*({"type": "image", "image": image} for image in images), *rest]
            return [*messages[:turn], {**message, "content": content}, *messages[turn + 1 :]]
    raise ValueError("it has images but no user's turn to put them into")
