# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The fields of requests. A field that is not listed here is refused, and so is a value that asks for what is not
done.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..processing.image_settings import ImageSettings

Probability = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]
NonEmpty = Annotated[str, Field(min_length=1)]
Stop = NonEmpty | list[NonEmpty]
GREEDY = 1e-3  # temperatures below it would overflow
# greater than -1, because transformers multiplies logits by 1 + the penalty
FrequencyPenalty = Annotated[float, Field(gt=-1, le=2)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


def _image_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of images that are not null. Raises: ValueError: if one is unknown or breaks its rule."""
    names = ImageSettings.names()
    for name in given:
        if name not in names:
            raise ValueError(f"mm_processor_kwargs has {name!a}, expected {', '.join(names)}")
    try:
        return ImageSettings(**given).given
    except ValueError as error:
        raise ValueError(f"mm_processor_kwargs: {error}".removesuffix(".")) from None


# as vLLM calls what a request changes of how its images are read
ImageKwargs = Annotated[dict[str, Any], AfterValidator(_image_settings)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class GenerationSettings(_Strict):
    """The settings that `generation_config` may have, under their names in `GenerationConfig`."""

    max_new_tokens: Tokens | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    num_beams: Annotated[int, Field(ge=1)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | None = None
    stop_strings: Stop | None = None
    transformers_version: str | None = None  # which `transformers chat` sends


class _StreamOptions(_Strict):
    include_usage: Literal[True] | None = None  # the last event always has the usage


class _TextFormat(_Strict):
    type: Literal["text"]


class _Text(_Strict):
    format: _TextFormat | None = None


class _Request(_Strict):
    """The fields that all endpoints have. A `Literal` is the value that changes nothing."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    generation_config: Annotated[str, Field(max_length=10_000)] | None = None

    def settings(self) -> dict[str, Any]:
        """Settings of `GenerationConfig`. Fields of the request go before those of its `generation_config`."""
        given: dict[str, Any] = {}
        if self.generation_config is not None:
            try:
                given = GenerationSettings.model_validate_json(self.generation_config).model_dump(exclude_none=True)
            except ValidationError as error:
                raise ValueError(f"generation_config: {described(error)[1]}") from None
            given.pop("transformers_version", None)
        own = {"temperature": self.temperature, "top_p": self.top_p, **self._own_settings()}
        given |= {name: value for name, value in own.items() if value is not None}
        is_sampling = given.get("temperature", 0) > 0 or given.get("top_p", 1) < 1 or given.get("min_p", 0) > 0
        if given.get("temperature", 1) < GREEDY:
            given = {name: value for name, value in given.items() if name not in ("temperature", "top_p", "min_p")}
            given["do_sample"] = False
        elif is_sampling:
            given.setdefault("do_sample", True)
        if isinstance(given.get("stop_strings"), str):
            given["stop_strings"] = [given["stop_strings"]]
        if self.stream and given.get("num_beams", 1) > 1:
            raise ValueError("num_beams: beam search cannot be streamed, expected 1, or stream=false.")
        return given

    def _own_settings(self) -> dict[str, Any]:
        return {}


class _Completion(_Request):
    """Fields that the two endpoints for completions share."""

    max_tokens: Tokens | None = None
    frequency_penalty: FrequencyPenalty | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = (
        None
    )
    n: Literal[1] | None = None
    stop: Stop | None = None

    def _own_settings(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_tokens,
            "stop_strings": self.stop,
            "repetition_penalty": None if self.frequency_penalty is None else 1 + self.frequency_penalty,
            "sequence_bias": {(int(token),): bias for token, bias in self.logit_bias.items()}
            if self.logit_bias
            else None,
        }


class ChatCompletionRequest(_Completion):
    """`/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: ImageKwargs | None = None
    logprobs: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    response_format: _TextFormat | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _require_one_length(self):
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ, expected one of them")
        return self

    def _own_settings(self) -> dict[str, Any]:
        settings = super()._own_settings()
        return settings | {"max_new_tokens": self.max_completion_tokens or self.max_tokens}


class CompletionRequest(_Completion):
    """`/v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None


class ResponseRequest(_Request):
    """`/v1/responses`."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    mm_processor_kwargs: ImageKwargs | None = None
    background: Literal[False] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    store: Literal[False] | None = None
    text: _Text | None = None
    top_logprobs: Literal[0] | None = None
    truncation: Literal["disabled"] | None = None

    def _own_settings(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_output_tokens}


class LoadRequest(_Strict):
    """`/load_model`."""

    model: str


# what a request to each endpoint may have; the others take no JSON
REQUESTS: dict[str, type[_Strict]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/load_model": LoadRequest,
}


_BRANCHES = ("str", "constrained-str")  # of unions, in the path of an error


def described(error: ValidationError) -> tuple[str, str]:
    """The name of a wrong field, and what is wrong with it."""
    first = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))  # the most exact of a union's
    path = [part for part in first["loc"] if part not in _BRANCHES and not str(part).startswith("list[")]
    field, name = str(path[0] if path else ""), ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return field, f"{name!a} is not supported by this server."
    if first["type"] == "missing":
        return field, f"{name} is missing."
    if first["type"] == "value_error":
        return field, f"{first['ctx']['error']}."
    if field in ("messages", "input"):
        return (
            field,
            f"{field} has {first['input']!r:.100}, expected a list of messages {{'role': ..., 'content': ...}}.",
        )
    reason = (
        first["msg"]
        .replace("Input should be", "expected")
        .replace("a valid dictionary", "an object")
        .replace("String should", "should")
    )
    return field, f"{name}{'=' * bool(name)}{first['input']!r:.100}: {reason}."
