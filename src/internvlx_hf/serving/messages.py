# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Messages of OpenAI's two APIs in the form that our processor reads."""

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import PIL.Image
from transformers import ProcessorMixin

from ..cost.request_budget import RequestBudget
from ..processing import ImageAccess, InternVLXProcessor
from ..processing.chat_templates import template_words
from ..processing.image_files import open_image
from ..processing.messages import IMAGE_KEYS

# names that a request cannot set through `chat_template_kwargs`, even if the template contains them
_NOT_FOR_TEMPLATES = {"messages", "text", "videos", "audio"}.union(
    *(signature(owner.apply_chat_template).parameters for owner in (InternVLXProcessor, ProcessorMixin))
)
_ITEM_KEYS = {"type", "role", "content", "id", "status"}  # of a message of the Responses API
_DETAILS = (None, "auto", "high")  # images are read in as many tiles as the server allows


def read_messages(given: Any, access: ImageAccess, budget: RequestBudget) -> tuple[Any, list[PIL.Image.Image]]:
    """Messages of either API with parts in the form of Chat Completions, and their images, opened but not decoded.

    Raises:
        ValueError: if an image cannot be opened, `access` does not allow it, or the images exceed the budget.
    """
    parts: list[dict] = []
    messages = _with_image_parts(given, parts)
    budget.check(max_images=len(parts))
    images = []
    for part in parts:
        part["image"] = open_image(part["image"], access)
        images.append(part["image"])
        budget.check_sizes([image.size for image in images])
    return messages, images


def _with_image_parts(value: Any, parts: list[dict]) -> Any:
    if isinstance(value, list):
        return [_with_image_parts(item, parts) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if kind in ("image", "image_url", "input_image"):
        parts.append(_image_part(value))
        return parts[-1]
    if kind == "video":
        raise ValueError(f"The part {value!r:.100} is a video, expected texts and images.")
    if kind in ("input_text", "output_text"):
        return {**value, "type": "text"}
    return {**value, "content": _with_image_parts(value["content"], parts)} if "content" in value else value


def _image_part(part: Mapping) -> dict:
    named = [key for key in IMAGE_KEYS if part.get(key) is not None]
    source: Any = part[named[0]] if len(named) == 1 else None
    own = dict(source) if isinstance(source, Mapping) else {"url": source}
    source, detail = own.pop("url", None), own.pop("detail", part.get("detail"))
    if not isinstance(source, str) or own:
        raise ValueError(
            f"The part {part!r:.100} names no image, expected {{'type': 'image_url', 'image_url': {{'url': ...}}}}."
        )
    if detail not in _DETAILS:
        raise ValueError(f"detail={detail!r:.100} of an image is not supported, expected 'auto' or 'high'.")
    others = {key: value for key, value in part.items() if key not in ("type", "detail", *named)}
    return {**others, "type": "image", "image": source}


def with_parsed_calls(message: dict) -> dict:
    """A message with its tool calls' arguments as objects, as templates expect them, and without the ids of calls."""
    others = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    given = message.get("tool_calls")
    if not given:
        return others
    try:
        calls = [{**call, "function": {**call["function"], "arguments": _object_of(call)}} for call in given]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"tool_calls={given!r:.100}, expected a list of {{'function': {{'name': ..., 'arguments': JSON}}}}."
        ) from error
    return {**others, "tool_calls": calls}


def _object_of(call: Mapping) -> Any:
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def require_known_items(items: str | Sequence[Mapping]) -> None:
    """Raises `ValueError` if a message of the Responses API has no content, or keys that transformers would silently
    drop.
    """
    for item in () if isinstance(items, str) else items:
        if "role" in item and not {"content"} <= item.keys() <= _ITEM_KEYS:
            raise ValueError(f"The message {item!r:.100} is not understood, expected role and content.")


def require_template_variables(given: Mapping | None, processor: InternVLXProcessor) -> None:
    """Raises `ValueError` if the chat template does not read one of the variables, or a request cannot set it."""
    known = template_words(processor.resolve_chat_template()) - _NOT_FOR_TEMPLATES
    for name in given or ():
        if name not in known:
            raise ValueError(f"{name!r} is not a variable of the chat template.")
