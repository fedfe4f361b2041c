# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own server, with this package's classes instead of those that it looks up by name.

It serves one checkpoint. A request cannot load another, and images are read only from sources that the server allows.
"""

import asyncio
import json
from collections.abc import Mapping
from inspect import signature
from typing import Any

from transformers import ProcessorMixin
from transformers.utils.import_utils import is_serve_available

if not is_serve_available():  # transformers' modules would fail with a NameError
    raise ImportError(
        "Serving needs fastapi, uvicorn and openai, which are not all installed: pip install fastapi uvicorn openai"
    )

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState, Modality

from ..modeling import InternVLXForConditionalGeneration
from ..processing import ImageAccess, InternVLXProcessor
from ..processing.chat_templates import template_words
from ..processing.image_files import open_image
from ..processing.messages import IMAGE_KEYS, refuse_tokens
from ..processing.token_budget import check_max_image_tokens

# names that a request cannot set through `chat_template_kwargs`, even if the template contains them
_NOT_FOR_TEMPLATES = {"messages", "text", "videos", "audio"}.union(
    *(signature(owner.apply_chat_template).parameters for owner in (InternVLXProcessor, ProcessorMixin))
)


def build_app(
    checkpoint: str,
    *,
    name: str | None = None,
    access: ImageAccess | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    slicing: str | None = None,
    max_patches: int | None = None,
    max_image_tokens: int | None = None,
) -> FastAPI:
    """Load a checkpoint and build the server for it.

    Args:
        checkpoint: a folder, or a name on the Hub.
        name: the model's name in requests (default: `checkpoint`).
        access: image sources that messages may use (default: public URLs and base64).
        device, dtype, attn_implementation: as in `from_pretrained`, where `device` is `device_map`.
        slicing, max_patches: how images are cut into tiles, as in `InternVLXImageProcessor` (default: the checkpoint's).
        max_image_tokens: the budget of visual tokens of a request (default: the checkpoint's).

    Raises:
        ValueError, OSError: if the checkpoint cannot be loaded, or a setting of images is invalid.
    """
    check_max_image_tokens(max_image_tokens)
    access = ImageAccess.for_server(public_hosts=True) if access is None else access
    tiling = {"slicing": slicing, "max_patches": max_patches}
    tiling = {name: value for name, value in tiling.items() if value is not None}
    name = name or checkpoint
    manager = _OneModel(checkpoint, name, access, device, dtype, attn_implementation, tiling, max_image_tokens)
    state = _Generation()
    handlers: dict[str, Any] = {
        "chat_handler": _ChatCompletions(manager, state),
        "completion_handler": _Completions(manager, state),
        "response_handler": _Responses(manager, state),
    }
    for parameter in signature(build_server).parameters:
        if parameter.endswith("_handler"):
            handlers.setdefault(parameter, _NotServed())
    app = build_server(model_manager=manager, generation_state=state, **handlers)

    @app.exception_handler(ValueError)
    async def refuse(request: Request, error: ValueError) -> JSONResponse:
        content = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": content}, status_code=400)

    return app


class _OneModel(ModelManager):
    """The single checkpoint that is served, loaded at startup."""

    def __init__(
        self,
        checkpoint: str,
        name: str,
        access: ImageAccess,
        device: str,
        dtype: str,
        attention: str | None,
        tiling: dict[str, Any],
        max_image_tokens: int | None,
    ):
        self.checkpoint, self.name, self.access = checkpoint, name, access
        self.tiling, self.max_image_tokens = tiling, max_image_tokens
        super().__init__(device=device, dtype=dtype, attn_implementation=attention, force_model=name)

    def load_model_and_processor(self, model_id_and_revision: str, *args, **kwargs):
        if model_id_and_revision != self.process_model_name(self.name):
            raise ValueError(f"The model {model_id_and_revision!r} is not served, expected {self.name!r}.")
        return super().load_model_and_processor(model_id_and_revision, *args, **kwargs)

    def _load_processor(self, *args, **kwargs) -> InternVLXProcessor:
        processor = InternVLXProcessor.from_pretrained(self.checkpoint)
        processor.image_processor.access = self.access
        processor.image_processor.change_tiling(**self.tiling)
        if self.max_image_tokens is not None:
            processor.max_image_tokens = self.max_image_tokens
        processor.tiling_rules([(1, 1)])  # a budget must have room for an image
        return processor

    def _load_model(self, *args, **kwargs) -> InternVLXForConditionalGeneration:
        return InternVLXForConditionalGeneration.from_pretrained(
            self.checkpoint, dtype=self.dtype, device_map=self.device, attn_implementation=self.attn_implementation
        )

    @staticmethod
    def get_model_modality(model, processor=None) -> Modality:
        return Modality.VLM

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:  # type: ignore[override]
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": ""}]


class _Generation(GenerationState):
    """Generation with the tokenizer instead of the processor, which does not support stop strings."""

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        if model_id not in self._generate_managers:
            self._generate_managers[model_id] = _WithTokenizer()
        return self._generate_managers[model_id]


class _WithTokenizer(GenerateManager):
    def generate_streaming(self, model, processor, *args, **kwargs):
        return super().generate_streaming(model, processor.tokenizer, *args, **kwargs)

    async def generate_non_streaming(self, model, processor, *args, **kwargs):
        return await super().generate_non_streaming(model, processor.tokenizer, *args, **kwargs)


class _Messages(BaseHandler):
    """Common base of the two endpoints for messages."""

    model_manager: _OneModel
    messages_field: str

    async def handle_request(self, body: dict, request_id: str):
        _require_template_variables(body.get("chat_template_kwargs"), _processor(self, body))
        field = self.messages_field
        _require_messages(body.get(field), field)
        # in a thread, so that a slow download does not block other requests
        body = {**body, field: await asyncio.to_thread(_with_images, body[field], self.model_manager.access)}
        return await super().handle_request(body, request_id)  # type: ignore[misc]

    @staticmethod
    def get_processor_inputs_from_messages(messages, modality) -> list[dict]:
        """The complete messages: our processor raises for parts that transformers would silently drop."""
        return [_with_parsed_calls(message) for message in messages]


class _ChatCompletions(_Messages, ChatCompletionHandler):
    messages_field = "messages"


class _Responses(_Messages, ResponseHandler):
    messages_field = "input"


class _Completions(CompletionHandler):
    async def handle_request(self, body: dict, request_id: str):
        refuse_tokens(body.get("prompt"), "the prompt", _processor(self, body).image_tokens)
        return await super().handle_request(body, request_id)


class _NotServed:
    """Endpoints that do not apply to a model of images and text, or that would read images without `ImageAccess`."""

    async def handle_request(self, *args):
        raise HTTPException(status_code=404, detail="This endpoint is not served.")


def _processor(handler: BaseHandler, body: dict) -> InternVLXProcessor:
    return handler._resolve_model(dict(body))[2]  # type: ignore[return-value]


def _require_messages(given: Any, field: str) -> None:
    if isinstance(given, str) and field == "input":
        return
    wrong = [item for item in given if not isinstance(item, Mapping)] if isinstance(given, list) and given else [given]
    if wrong:
        raise ValueError(
            f"{field} has {wrong[0]!r:.100}, expected a list of messages {{'role': ..., 'content': ...}}."
        )


def _with_parsed_calls(message: dict) -> dict:
    """A message with its tool calls' arguments as objects, as templates expect them, and without the ids of calls."""
    others = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    given = message.get("tool_calls")
    if not given:
        return others
    try:
        calls = [{**call, "function": {**call["function"], "arguments": _object_of(call)}} for call in given]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"tool_calls={given!r:.100}, expected a list of {{'function': {{'name': ..., 'arguments': JSON}}}}."
        ) from error
    return {**others, "tool_calls": calls}


def _object_of(call: Mapping) -> Any:
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _require_template_variables(given: Any, processor: InternVLXProcessor) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ValueError(f"chat_template_kwargs={given!r:.100}, expected an object.")
    known = template_words(processor.resolve_chat_template()) - _NOT_FOR_TEMPLATES
    for name in given:
        if name not in known:
            raise ValueError(f"chat_template_kwargs has {name!r}, which is not a variable of the chat template.")


def _with_images(value: Any, access: ImageAccess) -> Any:
    """Messages of either API with parts in the form of Chat Completions and opened images."""
    if isinstance(value, list):
        return [_with_images(item, access) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if kind in ("image", "image_url", "input_image"):
        return _image_part(value, access)
    if kind in ("input_text", "output_text"):
        return {**value, "type": "text"}
    return {**value, "content": _with_images(value["content"], access)} if "content" in value else value


def _image_part(part: Mapping, access: ImageAccess) -> Mapping:
    named = [key for key in IMAGE_KEYS if part.get(key) is not None]
    source = part[named[0]] if len(named) == 1 else None
    if isinstance(source, Mapping):
        source = source.get("url")
    if not isinstance(source, str):
        return part  # our processor raises for it
    others = {key: value for key, value in part.items() if key not in ("type", *named)}
    return {"type": "image", "image": open_image(source, access), **others}
