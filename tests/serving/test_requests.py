# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Every field of a request is honoured, or refused by its name before the model is asked."""

import json
import re
from dataclasses import fields

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as ResponseParams
from typing_extensions import get_type_hints

from internvlx_hf.cost.request_budget import RequestBudget
from internvlx_hf.processing.image_settings import ImageSettings
from internvlx_hf.serving.gate import MAX_JSON_VALUES, Refused, check
from internvlx_hf.serving.messages import require_known_items
from internvlx_hf.serving.requests import REQUESTS, ChatCompletionRequest, GenerationSettings
from paths import ROOT
from refusals import refused

MESSAGES = [{"role": "user", "content": "x"}]
VALID = {
    "/v1/chat/completions": ({"messages": MESSAGES}, ChatParams),
    "/v1/completions": ({"prompt": "x"}, CompletionParams),
    "/v1/responses": ({"input": "x"}, ResponseParams),
}
DOCS = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def refusal(body: dict | bytes, path: str = "/v1/chat/completions") -> Refused:
    given = body if isinstance(body, bytes) else json.dumps({**VALID[path][0], **body}).encode()
    with pytest.raises(Refused) as error:
        check(given, REQUESTS[path])
    return error.value


def settings(**fields) -> dict:
    return ChatCompletionRequest(messages=MESSAGES, **fields).settings()


@pytest.mark.parametrize("path", VALID)
def test_a_field_of_openai_s_schema_is_known_or_refused_by_name(path):
    valid, params = VALID[path]
    check(json.dumps(valid).encode(), REQUESTS[path])
    others = get_type_hints(params).keys() - REQUESTS[path].model_fields.keys()
    assert others
    for name in [*others, "made_up"]:
        error = refusal({name: "x"}, path)
        assert (error.status, error.field) == (400, name)
        assert f"{name!r} is not supported" in str(error)


@pytest.mark.parametrize("path", VALID)
def test_the_docs_list_the_fields(path):
    honoured, others = re.search(rf"\n\| `{path}` \| (.*) \| (.*) \|\n", DOCS).groups()
    for name in REQUESTS[path].model_fields:
        assert f"`{name}`" in honoured
    for name in get_type_hints(VALID[path][1]).keys() - REQUESTS[path].model_fields.keys():
        assert f"`{name}`" in others
    for name in GenerationSettings.model_fields.keys() - {"transformers_version"}:
        assert f"`{name}`" in DOCS


def test_the_docs_list_the_settings_of_images():
    rows = [
        f"| `{each.name}` | {each.metadata['help']} | {'`--max-tiles`' if 'limit' in each.metadata else ''} |"
        for each in fields(ImageSettings)
    ]
    assert re.sub(" +", " ", "\n".join(rows)) in DOCS


def test_the_docs_list_the_limits():
    for each in fields(RequestBudget):
        assert f"`--{each.name.replace('_', '-')}`" in DOCS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", 3), ("temperature", -1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True)),
        *(("top_p", 7), ("top_p", 0), ("presence_penalty", 9), ("presence_penalty", 0.1), ("frequency_penalty", -1)),
        *(("logprobs", True), ("response_format", {"type": "json_schema", "json_schema": {}}), ("response_format", 5)),
        *(("max_tokens", 1e308), ("max_tokens", 0), ("max_tokens", 8.0), ("max_tokens", [8]), ("max_tokens", 10**40)),
        *(("stop", 5), ("stop", [5]), ("stop", ""), ("stop", [""]), ("seed", 10**30), ("seed", 0.5)),
        *(("logit_bias", {"x": 1}), ("logit_bias", {"5": 101}), ("logit_bias", []), ("stream", "yes"), ("model", [])),
        *(("tools", "x"), ("tools", [5]), ("tool_choice", "none"), ("stream_options", {"include_usage": False})),
        *(("messages", []), ("messages", "x"), ("messages", [None]), ("messages", None), ("generation_config", {})),
        *(("mm_processor_kwargs", {"max_patch": 2}), ("mm_processor_kwargs", {"max_patches": 0})),
        *(("mm_processor_kwargs", {"slicing": "x"}), ("mm_processor_kwargs", {"tokens_per_tile": "x"})),
        *(("mm_processor_kwargs", "x"), ("mm_processor_kwargs", {"do_resize": False})),
        *(("modalities", ["audio"]), ("store", True), ("parallel_tool_calls", False), ("chat_template_kwargs", "x")),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field(name, value):
    error = refusal({name: value})
    assert (error.status, error.field) == (400, name)
    assert str(error).startswith(name)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages"),
        (b'{"messages": ' + b"[" * 300 + b"]" * 300 + b"}", "messages"),
        (b'{"messages": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "messages"),
        (b'{"temperature": NaN}', "temperature"),
        (b'{"temperature": 1e999, "messages": [{}]}', "temperature"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "max_tokens"),
        (b'{"\\ud800": 1}', "\\ud800"),
        *((body, None) for body in (b"", b"x", b"{", b"[]", b"null", b"5", b'"x"', b"NaN", b"\xff")),
    ],
)
def test_what_is_no_strict_json_is_refused_with_its_field(body, field):
    error = refusal(body)
    assert (error.status, error.field) == (400, field)


def test_a_body_of_many_values_is_refused_before_it_is_parsed():
    error = refusal(b"[" * (MAX_JSON_VALUES + 1))
    assert error.status == 413
    assert f"expected at most {MAX_JSON_VALUES}" in str(error)


def test_values_that_change_nothing_are_accepted():
    check(
        json.dumps(
            {
                "messages": MESSAGES,
                **{"n": 1, "presence_penalty": 0.0, "logprobs": False, "response_format": {"type": "text"}},
                **{"store": False, "modalities": ["text"], "tool_choice": "auto", "parallel_tool_calls": True},
                **{"stream": True, "stream_options": {"include_usage": True}, "stop": None, "temperature": None},
            }
        ).encode(),
        ChatCompletionRequest,
    )


def test_fields_set_the_generation():
    assert settings() == {}
    assert settings(temperature=0.5) == {"temperature": 0.5, "do_sample": True}
    assert settings(temperature=0, top_p=0.5) == {"do_sample": False}
    assert settings(top_p=0.5) == {"top_p": 0.5, "do_sample": True}
    assert settings(max_completion_tokens=3, stop="a") == {"max_new_tokens": 3, "stop_strings": ["a"]}
    assert settings(logit_bias={"5": 2}, frequency_penalty=0.5) == {
        "sequence_bias": {(5,): 2.0},
        "repetition_penalty": 1.5,
    }
    assert settings(generation_config='{"num_beams": 2, "max_new_tokens": 9}', max_tokens=3) == {
        "num_beams": 2,
        "max_new_tokens": 3,
    }
    with refused("max_tokens and max_completion_tokens differ"):
        settings(max_tokens=3, max_completion_tokens=4)
    with refused("num_beams: beam search cannot be streamed"):
        settings(generation_config='{"num_beams": 2}', stream=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((f'{{"{name}": 1}}', f"'{name}' is not supported") for name in ("max_time", "max_length", "penalty_alpha")),
        ('{"num_return_sequences": 5}', "'num_return_sequences' is not supported"),
        ('{"custom_generate": "owner/code"}', "'custom_generate' is not supported"),
        ('{"temperature": NaN}', "temperature=nan: expected a finite number"),
        ('{"num_beams": 1e4}', "num_beams=10000.0: expected a valid integer"),
        ("null", "None: expected an object"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_generation_config_has_only_settings_of_a_list(text, reason):
    with refused("generation_config:", reason):
        settings(generation_config=text)


def test_a_message_without_content_or_with_another_key_is_refused():
    require_known_items([*MESSAGES, {"type": "function_call_output"}])
    for item in ({"role": "user"}, MESSAGES[0] | {"name": "a"}):
        with refused(repr(item), "role and content"):
            require_known_items([item])
