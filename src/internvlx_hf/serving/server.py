# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own server, with this package's classes instead of those that it looks up by name.

It serves one checkpoint. A request cannot load another, and images are read only from sources that the server allows.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from inspect import isawaitable, signature
from typing import Any

from transformers.utils.import_utils import is_serve_available

if not is_serve_available():  # transformers' modules would fail with a NameError
    raise ImportError(
        "Serving needs fastapi, uvicorn and openai, which are not all installed: pip install fastapi uvicorn openai"
    )

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, Modality, set_torch_seed

from ..cost.request_budget import RequestBudget
from ..evaluation.answering import StopAtText
from ..modeling import InternVLXForConditionalGeneration
from ..processing import ImageAccess, InternVLXProcessor
from ..processing.image_settings import ImageSettings
from ..processing.messages import refuse_tokens
from .gate import Gate, Refused, refusal
from .generation import Generation
from .messages import read_messages, require_known_items, require_template_variables, with_parsed_calls
from .requests import ChatCompletionRequest, CompletionRequest, ResponseRequest

MAX_DECODED = 2  # requests whose images are decoded at the same time, which bounds the memory


def build_app(
    checkpoint: str,
    *,
    name: str | None = None,
    access: ImageAccess | None = None,
    budget: RequestBudget | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    **image_settings: Any,
) -> FastAPI:
    """Load a checkpoint and build the server for it.

    Args:
        checkpoint: a folder, or a name on the Hub.
        name: the model's name in requests (default: `checkpoint`).
        access: image sources that messages may use (default: public URLs and base64).
        budget: limits on a request (default: those of [`RequestBudget`]).
        device, dtype, attn_implementation: as in `from_pretrained`, where `device` is `device_map`.
        image_settings: fields of [`ImageSettings`]: how images are read unless a request says otherwise (default: as
            the checkpoint says).

    Raises:
        ValueError, OSError: if the checkpoint cannot be loaded, or a setting of images is invalid.
    """
    settings = ImageSettings(**image_settings)
    access = ImageAccess.for_server(public_hosts=True) if access is None else access
    budget = budget or RequestBudget()
    name = name or checkpoint
    manager = _OneModel(checkpoint, name, access, budget, device, dtype, attn_implementation, settings)
    state = Generation()
    handlers: dict[str, Any] = {
        "chat_handler": _ChatCompletions(manager, state),
        "completion_handler": _Completions(manager, state),
        "response_handler": _Responses(manager, state),
    }
    for parameter in signature(build_server).parameters:
        if parameter.endswith("_handler"):
            handlers.setdefault(parameter, _NotServed())
    app = build_server(model_manager=manager, generation_state=state, **handlers)
    app.add_middleware(Gate, budget=budget)

    @app.exception_handler(ValueError)
    async def refuse_value(request: Request, error: ValueError) -> JSONResponse:
        return refusal(str(error))

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> JSONResponse:
        return refusal(str(error), error.field, error.status)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        # fastapi would repeat the body
        return refusal(
            f"The body is not understood, expected a JSON object as application/json: {error.errors()[0]['msg']}.",
            None,
            422,
        )

    return app


class _OneModel(ModelManager):
    """The single checkpoint that is served, loaded at startup."""

    def __init__(
        self,
        checkpoint: str,
        name: str,
        access: ImageAccess,
        budget: RequestBudget,
        device: str,
        dtype: str,
        attention: str | None,
        settings: ImageSettings,
    ):
        self.checkpoint, self.name, self.budget = checkpoint, name, budget
        self.access = replace(access, max_pixels=min(budget.max_pixels, access.max_pixels or budget.max_pixels))
        self.decoding = ThreadPoolExecutor(MAX_DECODED, thread_name_prefix="decoding")
        self.settings = settings
        super().__init__(device=device, dtype=dtype, attn_implementation=attention, force_model=name)

    def load_model_and_processor(self, model_id_and_revision: str, *args, **kwargs):
        if model_id_and_revision != self.process_model_name(self.name):
            raise ValueError(f"The model {model_id_and_revision!r} is not served, expected {self.name!r}.")
        return super().load_model_and_processor(model_id_and_revision, *args, **kwargs)

    def _load_processor(self, *args, **kwargs) -> InternVLXProcessor:
        processor = InternVLXProcessor.from_pretrained(self.checkpoint)
        processor.image_processor.access = self.access
        processor.change_image_settings(**self.settings.given)
        self.longest_token = max(map(len, processor.tokenizer.get_vocab()))
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


class _Handler(BaseHandler):
    """What the endpoints share: a request is checked and its prompt prepared outside of the event loop."""

    model_manager: "_OneModel"
    generation_state: Generation
    schema: type[BaseModel]
    prompt_field: str
    _streaming: Callable
    _non_streaming: Callable
    _inputs: Callable

    async def handle_request(self, body: dict, request_id: str) -> Any:
        request: Any = self.schema.model_validate(body)
        settings = self._settings(request)
        # a slow download does not hold up the prompts of other requests, of which few are decoded at a time
        source = await asyncio.to_thread(self._blamed, self.prompt_field, self._read, request)
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self.model_manager.decoding, self._prepare, request, settings, source)
        manager = self.generation_state.get_manager(prepared["model_id"])
        given = {
            **prepared,
            "request_id": request_id,
            "body": request.model_dump(exclude_none=True),
            "gen_manager": manager,
        }
        answer = self._streaming if request.stream else self._non_streaming
        if request.seed is not None:  # in the thread that generates, and right before this answer
            manager.submit(set_torch_seed, request.seed)
        response = answer(**{name: given[name] for name in signature(answer).parameters if name in given})
        return await response if isawaitable(response) else response

    def _settings(self, request) -> dict[str, Any]:
        """The request's settings of `GenerationConfig`, within the budget."""
        settings, budget = request.settings(), self.model_manager.budget
        budget.check_stop_strings(settings.get("stop_strings", ()))
        budget.check(max_beams=settings.get("num_beams", 1), max_new_tokens=settings.get("max_new_tokens", 0))
        return settings

    def _prepare(self, request, settings: dict[str, Any], source) -> dict[str, Any]:
        """The arguments of transformers' methods that answer."""
        budget, stop = self.model_manager.budget, settings.pop("stop_strings", ())
        model: Any
        model_id, model, processor = self._resolve_model({"model": request.model})
        vocabulary = model.config.text_config.vocab_size
        if wrong := [token for (token,) in settings.get("sequence_bias", ()) if token >= vocabulary]:
            raise Refused(400, "logit_bias", f"logit_bias has the token {wrong[0]}, expected less than {vocabulary}.")

        def new_tokens(prompt_tokens: int, tiles: int, tile_sizes: Sequence[int] | None = None) -> int:
            return budget.new_tokens(model.config, prompt_tokens, tiles, settings.get("max_new_tokens"), tile_sizes)

        inputs = self._blamed(self.prompt_field, self._inputs, request, source, processor, new_tokens).to(model.device)
        length, tiles = inputs["input_ids"].shape[-1], inputs.get("pixel_values")
        settings["max_new_tokens"] = new_tokens(length, 0 if tiles is None else len(tiles), inputs.get("tile_sizes"))
        config = deepcopy(model.generation_config)
        config.update(**settings)
        inputs = dict(inputs)
        if stop:
            start = 0 if model.routes_tiles(inputs) else length
            inputs["stopping_criteria"] = [StopAtText(processor.tokenizer, stop, start)]
        return {
            "model_id": model_id,
            "model": model,
            "processor": processor,
            "inputs": inputs,
            "gen_config": config,
            "tools": self._tools(request),
        }

    @staticmethod
    def _blamed(field: str, function: Callable, *args):
        """Call a function that reads a field, whose errors are the request's."""
        try:
            return function(*args)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise Refused(400, field, f"{field}: {reason}") from error

    def _read(self, request) -> Any:
        return getattr(request, self.prompt_field)

    def _tools(self, request) -> list[dict] | None:
        return getattr(request, "tools", None)


class _Messages(_Handler):
    """Common base of the two endpoints for messages."""

    def _settings(self, request) -> dict[str, Any]:
        check = self.model_manager.budget.check_image_settings
        self._blamed("mm_processor_kwargs", check, request.mm_processor_kwargs or {})
        return super()._settings(request)

    def _read(self, request) -> Any:
        return read_messages(super()._read(request), self.model_manager.access, self.model_manager.budget)

    def _messages(self, request, given) -> list[dict]:
        return given

    def _inputs(self, request, source, processor: InternVLXProcessor, new_tokens: Callable[..., int]):
        given, images = source
        messages = [with_parsed_calls(message) for message in self._messages(request, given)]
        variables = getattr(request, "chat_template_kwargs", None) or {}
        self._blamed("chat_template_kwargs", require_template_variables, variables, processor)
        sizes = [processor.image_processor.upright_size(image, {}) for image in images]
        settings = request.mm_processor_kwargs or {}
        blamed = "mm_processor_kwargs" if settings else self.prompt_field
        of_tiles = self._blamed(blamed, processor.tile_sizes, sizes, settings)
        visual = processor.num_placeholders(of_tiles) + len(sizes) * len(processor.wrapper_ids)
        new_tokens(visual, len(of_tiles), of_tiles)
        arguments = {"add_generation_prompt": True, "tools": self._tools(request), **variables}
        text = processor.apply_chat_template(messages, **arguments)
        # no token is longer, and a text of megabytes takes long to tokenize
        new_tokens(visual + len(text) // self.model_manager.longest_token, len(of_tiles), of_tiles)
        new_tokens(visual + len(processor.tokenizer.tokenize(text)) - len(images), len(of_tiles), of_tiles)
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=settings, **arguments
        )


class _ChatCompletions(_Messages, ChatCompletionHandler):
    schema, prompt_field = ChatCompletionRequest, "messages"


class _Responses(_Messages, ResponseHandler):
    schema, prompt_field = ResponseRequest, "input"

    def _tools(self, request) -> list[dict] | None:
        return self._normalize_tools(request.tools)

    def _messages(self, request, given) -> list[dict]:
        require_known_items(given)
        return self._normalize_input({"input": given, "instructions": request.instructions})


class _Completions(_Handler, CompletionHandler):
    schema, prompt_field = CompletionRequest, "prompt"

    def _inputs(self, request, source: str, processor: InternVLXProcessor, new_tokens: Callable[..., int]):
        refuse_tokens(source, "the prompt", processor.image_tokens)
        new_tokens(len(source) // self.model_manager.longest_token, 0)
        inputs = processor.tokenizer(source, return_tensors="pt")
        if not inputs["input_ids"].numel():
            raise ValueError(f"{source!r:.100} has no tokens.")
        return inputs


class _NotServed:
    """Endpoints that do not apply to a model of images and text, or that would read images without `ImageAccess`."""

    async def handle_request(self, *args):
        raise HTTPException(status_code=404, detail="This endpoint is not served.")
