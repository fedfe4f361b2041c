# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checking messages and placing their images and videos.

One rule holds everywhere: image *parts* state where images go. Without parts, each mark `<image>` in a user's text
stands for the next image. The same holds for videos. Whatever the assistant or a tool wrote is text, even if it looks
like a mark.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby

from .literals import IMAGE_MARK, MARK_AS_TEXT, MARKS, VIDEO_MARK, VIDEO_MARK_AS_TEXT, escaped

ROLES = ("system", "user", "assistant")
LITERAL_ROLES = ("assistant", "tool")
# keys under which an image part names its image
IMAGE_KEYS = ("image", "path", "url", "base64", "image_url")
# keys under which a video part names its video
VIDEO_KEYS = ("video", "path", "url")
# keys of a part that other tools add and that do not change the prompt
_METADATA = ("index", "detail", "cache_control")
# transformers passes each of these to a template under the names of the others, too
_REASONING = frozenset({"reasoning_content", "thinking", "reasoning"})


@dataclass(frozen=True)
class Medium:
    """A kind of message part other than text: image or video.

    Attributes:
        kind: the type of its parts.
        mark: the mark that stands for it in a user's text.
        mark_as_text: the escaped mark, which is only text.
        keys: keys under which a part names its image or video.
    """

    kind: str
    mark: str
    mark_as_text: str
    keys: tuple[str, ...]


IMAGE = Medium("image", IMAGE_MARK, MARK_AS_TEXT, IMAGE_KEYS)
VIDEO = Medium("video", VIDEO_MARK, VIDEO_MARK_AS_TEXT, VIDEO_KEYS)
_PART_KEYS = {"image": IMAGE_KEYS, "image_url": IMAGE_KEYS, "video": VIDEO_KEYS}
_LEADING_MARKS = re.compile(rf"(\s*({IMAGE_MARK}|{VIDEO_MARK}))+[^\S\n]*\n?")
_PART_TYPES = "expected one of type text, image or video"


# ---- reading


def read_messages(messages, tokens: Sequence[str], words: frozenset[str] = frozenset()) -> list[dict]:
    """Checked copies of messages, without their None values.

    Each of `tokens` and each mark is escaped where the assistant or a tool wrote it. Text parts that together form a
    token or a mark become one part.

    Args:
        messages: of `role` and `content`, a string or a list of parts `{"type": "text", "text": ...}`, `{"type":
            "image"}` and `{"type": "video"}`. The latter two may name their image or video under one of `IMAGE_KEYS`
            or `VIDEO_KEYS`. Messages and parts may be dataclasses or pydantic models, too.
        tokens: the image tokens, which no text may hold.
        words: `template_words` of the chat template.

    Raises:
        ValueError: if a role, a key, a part or a value is unknown, or another text holds one of `tokens`. The error
            message begins with the turn, in lower case.
    """
    if not isinstance(messages, list | tuple):
        raise ValueError(f"it is {messages!r:.100}, expected a list of messages")
    return [_read_message(message, turn, tokens, words) for turn, message in enumerate(messages)]


def _read_message(given, turn: int, tokens: Sequence[str], words: frozenset[str]) -> dict:
    literals = (*tokens, *MARKS)
    given = _as_mappings(given)
    if not isinstance(given, Mapping):
        raise ValueError(_not_a_message(given, turn))
    message = _with_literals_escaped({key: value for key, value in given.items() if value is not None}, literals)
    role, place = message.get("role"), f"turn {turn} ({message.get('role')})"
    refuse_tokens(message, place, tokens)
    _refuse_unwritten(message, turn, words)
    if "content" not in message:
        if role == "assistant" and any(not _is_empty(message[key]) for key in message.keys() - {"role"}):
            return message  # calls of tools, or reasoning
        raise ValueError(_not_a_message(given, turn))
    content = _read_content(message["content"], place, literals)
    if role in LITERAL_ROLES:
        content = _escaped_strings(content, literals)
    refuse_tokens(content, place, tokens)  # again: parts may have formed one together
    return {**message, "content": content}


def _as_mappings(value):
    """The value with every dataclass and pydantic model in it, such as OpenAI's messages, as a mapping."""
    if isinstance(value, Mapping):
        return {key: _as_mappings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_mappings(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_mappings(getattr(value, field.name)) for field in fields(value)}
    return value.model_dump() if callable(getattr(value, "model_dump", None)) else value


def _not_a_message(given, turn: int) -> str:
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
                f"turn {turn} ({role}) has {key}={value!r:.100}, which the chat template does not write; expected "
                "role and content"
            )


def _with_literals_escaped(message: dict, literals: Sequence[str]) -> dict:
    role = message.get("role")
    keys = message.keys() - {"role"} if role == "assistant" else {"content"} if role in LITERAL_ROLES else ()
    return {key: _escaped_strings(value, literals) if key in keys else value for key, value in message.items()}


def _escaped_strings(value, literals: Sequence[str]):
    """The value with all its strings escaped, except those that name an image or a video."""
    if isinstance(value, str):
        return escaped(value, literals)
    if isinstance(value, Mapping):
        fixed = _source_keys(value)
        return {key: item if key in fixed else _escaped_strings(item, literals) for key, item in value.items()}
    return [_escaped_strings(item, literals) for item in value] if isinstance(value, list | tuple) else value


def _source_keys(part: Mapping) -> tuple[str, ...]:
    """The keys under which an image or video part names its source."""
    kind = part.get("type")
    return _PART_KEYS.get(kind, ()) if isinstance(kind, str) else ()


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
        raise ValueError(f"{place} has the part {part!r:.100}, {_PART_TYPES}")
    kept = {key: value for key, value in part.items() if value is not None}
    kind = kept.get("type")
    if kind == "text" and isinstance(kept.get("text"), str):
        known: tuple[str, ...] = ("text",)
    elif kind in ("image", "image_url"):
        known = IMAGE_KEYS
        kept = _read_image(kept, place)
    elif kind == "video":
        known = VIDEO_KEYS
        _require_one_source(kept, VIDEO, place)
    else:
        raise ValueError(f"{place} has the part {part!r:.100}, {_PART_TYPES}")
    for key, value in kept.items():
        if not (key == "type" or key in known or key in _METADATA or _is_empty(value)):
            raise ValueError(f"{place} has {key}={value!r:.100} in a part of type {kind}, expected {', '.join(known)}")
    return kept


def _read_image(part: dict, place: str) -> dict:
    named = _require_one_source(part, IMAGE, place)
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


def _require_one_source(part: dict, medium: Medium, place: str) -> list[str]:
    """The key under which a part names its source, as a list of at most one."""
    named = [key for key in medium.keys if key in part]
    if len(named) > 1:
        article = "an" if medium is IMAGE else "a"
        raise ValueError(f"{place} has {article} {medium.kind} part with {' and '.join(named)}, expected one of them")
    return named


def _joined_where_needed(parts: list[dict], literals: Sequence[str]) -> list[dict]:
    """The parts, with each run of text parts that form a literal only together joined to one part."""
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
    """Raises `ValueError` if any string in `value` holds one of the tokens, except strings that name an image or a
    video.
    """
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
        sources = _source_keys(value)
        for key, item in value.items():
            if key not in sources:
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


# ---- images and videos


def media_parts(messages: list[dict], medium: Medium) -> list[dict]:
    contents = (message.get("content") for message in messages)
    return [
        part for content in contents if isinstance(content, list) for part in content if part["type"] == medium.kind
    ]


def is_bare(part: dict) -> bool:
    """Whether a part does not name its image or video."""
    return not any(key in part for key in _source_keys(part))


def count_marks(messages: list[dict], medium: Medium = IMAGE) -> int:
    """Number of marks in the users' turns. They stand for images or videos if there are no parts of that kind.

    Raises:
        ValueError: if there are such parts as well, or if the system message holds a mark.
    """
    marks, kind = 0, medium.kind
    has_parts = bool(media_parts(messages, medium))
    for turn, message in enumerate(messages):
        found = sum(text.count(medium.mark) for text in _strings(message.get("content")))
        if found and (has_parts or message["role"] != "user"):
            reason = f"beside {kind} parts, which say where {kind}s go" if has_parts else "outside of users' turns"
            raise ValueError(
                f"the text of turn {turn} ({message['role']}) holds {medium.mark!r} {reason}; expected either {kind} "
                f"parts {{'type': '{kind}', ...}} or marks in users' turns. To write the mark as text, use "
                f"{medium.mark_as_text!r}"
            )
        marks += found
    return marks


def question_about(text: str, images: int = 0, videos: int = 0) -> str:
    """A question whose images and videos go in front of it, without marks that say the same.

    Raises:
        ValueError: if the text has other marks, or nothing else.
    """
    leading = _LEADING_MARKS.match(text)
    marks, question = (leading[0], text[leading.end() :]) if leading else ("", text)
    for medium, given in ((IMAGE, images), (VIDEO, videos)):
        if medium.mark in question or marks.count(medium.mark) not in (0, given):
            raise ValueError(
                f"The question {text!r} holds {medium.mark!r} {text.count(medium.mark)} times, for {given} "
                f"{medium.kind}s in front of it; expected a question without marks. To write the mark as text, use "
                f"{medium.mark_as_text!r}."
            )
    if marks and not question.strip():
        raise ValueError(f"The question {text!r} is empty but for its marks.")
    return question


def place_media(messages: list[dict], given: list | None, medium: Medium, token: str) -> tuple[list[dict], list]:
    """Puts images, or videos, into the messages.

    Args:
        messages: as `read_messages` returns them.
        given: images for the bare image parts; without any image part, for the marks; without marks, they go in front
            of the first user's turn. None: the parts contain all images. The same holds for videos.
        token: replaces the marks. The chat template writes image parts; video parts, which few templates support,
            become texts of the token and a newline.

    Returns:
        The messages, and the images or videos of all parts and marks, in order.

    Raises:
        ValueError: if the number of images or videos differs from the number of places for them.
    """
    kind = medium.kind
    marks, parts = count_marks(messages, medium), media_parts(messages, medium)
    bare = [part for part in parts if is_bare(part)]
    if given is None and marks:
        raise ValueError(
            f"its users' turns hold {medium.mark!r} {marks} times, but no {kind}s were given; expected `{kind}s=`, or "
            f"{kind} parts {{'type': '{kind}', ...}} in place of the marks. To write the mark as text, use "
            f"{medium.mark_as_text!r}"
        )
    if given is not None and (parts or marks):
        own = f"{kind} parts without {'an' if medium is IMAGE else 'a'} {kind} of their own"
        places, name = (len(bare), own) if parts else (marks, f"marks {medium.mark}")
        if places != len(given):
            raise ValueError(f"it has {len(given)} {kind}s for {places} {name}, expected one for each")
    if marks and given is not None:
        return [_marks_replaced(message, medium.mark, token) for message in messages], given
    if given and not parts:
        messages = _with_parts_prepended(messages, given, kind)
    elif given:
        for part, item in zip(bare, given, strict=True):
            part[kind] = item
    placed = [part[key] for part in media_parts(messages, medium) for key in medium.keys if key in part]
    return (messages if medium is IMAGE else [_parts_as_text(message, kind, token) for message in messages]), placed


def _marks_replaced(message: dict, mark: str, token: str) -> dict:
    if message["role"] != "user":
        return message
    return {**message, "content": _with_texts(message["content"], lambda text: text.replace(mark, token))}


def _parts_as_text(message: dict, kind: str, token: str) -> dict:
    """The message with its parts of one kind replaced by text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    text = {"type": "text", "text": f"{token}\n"}
    return {**message, "content": [dict(text) if part["type"] == kind else part for part in content]}


def _with_parts_prepended(messages: list[dict], given: list, kind: str) -> list[dict]:
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            content = message["content"]
            rest = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [*({"type": kind, kind: item} for item in given), *rest]
            return [*messages[:turn], {**message, "content": content}, *messages[turn + 1 :]]
    raise ValueError(f"it has {kind}s but no user's turn to put them into")
