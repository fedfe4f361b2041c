# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A server on a real port under requests that ask for too much, are wrong, or are given up."""

import asyncio
import base64
import gc
import json
import random
import select
import threading
from contextlib import suppress
from functools import wraps

import pytest
import torch
from PIL import Image
from transformers.cli.serving.utils import GenerateManager

from image_cases import saved
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.cost.request_budget import RequestBudget
from internvlx_hf.processing import ImageAccess
from internvlx_hf.serving import build_app
from internvlx_hf.serving.gate import Gate
from live_server import TIMEOUT, connect, is_healthy, post, raw_post, send, serving, wait_until
from tiny import LVTC, save_tiny

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
END = {"2": -100.0}  # no answer ends by itself


def png(size) -> str:
    return f"data:image/png;base64,{base64.b64encode(saved(Image.new('1', size))).decode()}"


def image(size=(8, 8)) -> dict:
    return {"type": "image_url", "image_url": {"url": png(size)}}


def asked(*content, **fields) -> dict:
    return {"messages": [{"role": "user", "content": list(content) or "x"}], "max_tokens": 4, **fields}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("served") / "model", "llama", **LVTC))


@pytest.fixture(scope="module")
def port(checkpoint):
    with serving(build_app(checkpoint, name="tiny", device="cpu", access=ImageAccess.for_server())) as port:
        yield port


@pytest.fixture
def steps(monkeypatch) -> list:
    """Grows with each step of the model."""
    counted, forward = [], InternVLXForConditionalGeneration.forward

    @wraps(forward)  # generate reads its signature
    def count(self, *args, **kwargs):
        counted.append(threading.get_ident())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(InternVLXForConditionalGeneration, "forward", count)
    return counted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (asked(*[image()] * 33), "33 images, expected at most 32 (max_images)"),
        (asked(image((9400, 9400))), "max_pixels=50000000"),
        (asked(*[image((6000, 6000))] * 3), "108000000 pixels in all images, expected at most 100000000"),
        (asked({"type": "text", "text": "word " * 18_010}), "expected together at most 1024, the model's positions"),
        (asked({"type": "text", "text": "!" * 1100}), "expected together at most 1024, the model's positions"),
        (
            asked(*[image((256, 256))] * 32),
            "tokens after the expansion, and the answer up to 4, expected together at most 1024, the model's positions",
        ),
        (
            asked(image(), mm_processor_kwargs={"max_patches": 41}),
            "41 tiles in an image by its own settings, expected at most 40 (max_tiles)",
        ),
        (asked(image(), mm_processor_kwargs={"min_patches": 41}), "41 tiles in an image by its own settings"),
        (asked(max_tokens=1023), "expected together at most 1024, the model's positions"),
        (asked(max_tokens=5000), "5000 new tokens, expected at most 4096"),
        (asked(stop=["a"] * 5), "5 stop strings, expected at most 4"),
        (asked(stop="a" * 257), "257 characters in a stop string, expected at most 256"),
        (asked(generation_config='{"num_beams": 2000}'), "2000 beams, expected at most 16"),
        (asked(generation_config=json.dumps({"stop_strings": ["a"] * 200})), "200 stop strings, expected at most 4"),
    ],
)
def test_a_request_past_the_budget_is_refused_before_the_model_works(port, steps, body, reason):
    status, answer = post(port, CHAT, body)
    assert (status, steps) == (400, [])
    assert reason in answer


def test_visual_tokens_and_each_other_limit_can_be_set(checkpoint):
    budget = RequestBudget(max_visual_tokens=4, max_prompt_tokens=30, max_beams=1, max_body_bytes=9000)
    with serving(build_app(checkpoint, name="tiny", device="cpu", budget=budget)) as port:
        assert post(port, CHAT, asked(image()))[0] == 200
        for body, reason in (
            (asked(image(), image()), "8 visual tokens, expected at most 4"),
            (asked(image(), mm_processor_kwargs={"min_patches": 2}), "12 visual tokens, expected at most 4"),
            (asked({"type": "text", "text": "!" * 40}), "tokens in its prompt, expected at most 30"),
            (asked(generation_config='{"num_beams": 2}'), "2 beams, expected at most 1"),
        ):
            assert reason in post(port, CHAT, body)[1]
        status, answer = post(port, CHAT, asked({"type": "text", "text": "!" * 9000}))
        assert status == 413
        assert "expected at most 9000 (max_body_bytes)" in answer


def test_a_body_is_refused_by_its_stated_length_before_any_of_it_is_read(port):
    status, answer = send(port, raw_post(CHAT, b"", "Content-Length: 100000000"))
    assert status == 413
    assert "100000000 bytes in its body, expected at most 32000000" in answer


def test_a_text_without_a_length_is_refused_while_it_streams_in(port):
    sent, piece, answer = 0, b"a" * 65536, b""
    with connect(port) as client, suppress(ConnectionError):  # the server may close while the client sends
        client.sendall(raw_post(CHAT, b"", "Transfer-Encoding: chunked"))
        while sent < 100_000_000 and not select.select([client], [], [], 0)[0]:
            client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
        answer = client.recv(12)
    assert answer in (b"HTTP/1.1 413", b"")
    assert sent < 64_000_000
    assert is_healthy(port)


def test_a_body_is_read_up_to_its_limit_only():
    read, answers = [], []

    async def receive():
        read.append(65536)
        return {"type": "http.request", "body": b"a" * 65536, "more_body": sum(read) < 64_000_000}

    async def send(message):
        answers.append(message)

    asyncio.run(Gate(None, RequestBudget())({"type": "http", "method": "POST", "headers": []}, receive, send))
    assert answers[0]["status"] == 413
    assert 32_000_000 < sum(read) < 32_100_000


def test_the_server_answers_while_an_image_is_decoded(port, monkeypatch):
    entered, release, plain = threading.Event(), threading.Event(), InternVLXProcessor.apply_chat_template

    def wait(self, *args, **kwargs):
        entered.set()
        assert release.wait(TIMEOUT)  # on the event loop, nobody could release it
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(InternVLXProcessor, "apply_chat_template", wait)
    answers: list = []
    visitor = threading.Thread(target=lambda: answers.append(post(port, CHAT, asked(image()))))
    visitor.start()
    assert entered.wait(TIMEOUT)
    assert is_healthy(port)
    release.set()
    visitor.join(TIMEOUT)
    assert answers[0][0] == 200


@pytest.mark.parametrize(
    ("path", "prompt"),
    [(CHAT, {"messages": [{"role": "user", "content": "x"}]}), ("/v1/completions", {"prompt": "x"})],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_to_a_client_that_leaves_stops(port, steps, path, prompt, stream):
    body = json.dumps({**prompt, "max_tokens": 900, "stream": stream, "logit_bias": END, "temperature": 0}).encode()
    with connect(port) as client:
        client.sendall(raw_post(path, body))
        wait_until(lambda: len(steps) >= 5)
    assert post(port, CHAT, asked(max_tokens=1))[0] == 200  # after the other in the queue
    assert len(steps) < 800


@pytest.fixture
def without_collector():
    """Python's cycle collector, which ends a stream that nobody reads, may come late."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_a_stream_that_is_given_up_before_its_first_bytes_stops(port, steps, monkeypatch):
    start = GenerateManager.generate_streaming

    def start_and_leave(self, *args, **kwargs):
        asyncio.current_task().cancel()  # as the gate does; at the next await, before anything reads the stream
        return start(self, *args, **kwargs)

    monkeypatch.setattr(GenerateManager, "generate_streaming", start_and_leave)
    body = json.dumps(asked(max_tokens=900, stream=True, logit_bias=END, temperature=0)).encode()
    with connect(port) as client:
        client.sendall(raw_post(CHAT, body))
        client.recv(1)
    assert post(port, CHAT, asked(max_tokens=1))[0] == 200  # after the other in the queue
    assert len(steps) < 800


def test_a_client_that_left_while_it_waited_is_not_answered(port, steps, monkeypatch):
    submitted, may_start, submit = [], threading.Event(), GenerateManager.async_submit

    def wait_and_start(self, generate):
        submitted.append(generate)
        return submit(self, lambda: generate() if may_start.wait(TIMEOUT) else None)

    monkeypatch.setattr(GenerateManager, "async_submit", wait_and_start)
    long = {"max_tokens": 300, "logit_bias": END, "temperature": 0}
    first = threading.Thread(target=lambda: post(port, CHAT, asked(**long)))
    first.start()
    wait_until(lambda: submitted)
    with connect(port) as client:
        client.sendall(raw_post(CHAT, json.dumps(asked(**long)).encode()))
        wait_until(lambda: len(submitted) == 2)
    assert all(is_healthy(port) for _ in range(3))  # after the server has seen the client leave
    may_start.set()
    first.join(TIMEOUT)
    assert post(port, CHAT, asked(max_tokens=1))[0] == 200
    assert len(steps) == 301


def test_a_seed_gives_the_same_answer_after_a_request_that_it_waited_for(port, steps):
    seeded = asked(seed=3, temperature=1.0, max_tokens=12)
    other = threading.Thread(target=lambda: post(port, CHAT, asked(temperature=1.0, max_tokens=300, logit_bias=END)))
    other.start()
    wait_until(lambda: steps)
    behind, alone = (json.loads(post(port, CHAT, seeded)[1])["choices"] for _ in range(2))
    other.join(TIMEOUT)
    assert behind == alone


def test_a_temperature_samples_and_a_bias_is_honoured_by_both_endpoints(port):
    def texts(path, prompt, **fields):
        answers = [post(port, path, {**prompt, "max_tokens": 12, "seed": seed, **fields}) for seed in range(3)]
        choices = [json.loads(text)["choices"][0] for _, text in answers]
        return {choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices}

    chat, prompt = (CHAT, {"messages": asked()["messages"]}), ("/v1/completions", {"prompt": "x"})
    for endpoint in (chat, prompt):
        assert len(texts(*endpoint, temperature=1.0)) > 1
        assert texts(*endpoint, temperature=0) != texts(*endpoint, temperature=0, logit_bias={"100": 100.0})


WRONG = [
    *([None], [[]], [5], {}, 5, [{"type": "text"}], [{"type": "text", "text": 5}], [{"type": []}]),
    *([{"type": "image"}], [{"type": "image", "image": [[[0]]]}], [{"type": "image_url", "image_url": 5}]),
    *([{"type": "image_url", "image_url": {"url": url}}] for url in (5, [], "", "data:", "data:image/png;base64,!")),
    [{"type": "image_url", "image_url": {"url": "http://[::1"}}],
    [{"type": "image_url", "image_url": {"url": png((8, 8)), "detail": "low"}}],
    [{"type": "video", "video": "/etc/passwd"}],
]
WRONG_TURNS = [
    *({"role": role, "content": "x"} for role in ("robot", ["user"], 5, {}, None)),
    *({"role": "assistant", "tool_calls": calls} for calls in (5, [5], [{}], [{"function": {"arguments": "["}}])),
    *({"role": "user"}, {"role": "user", "content": "x", "made_up": 1}),
]


@pytest.mark.parametrize("turn", [{"role": "user", "content": content} for content in WRONG] + WRONG_TURNS, ids=str)
def test_wrong_messages_are_refused_with_their_field(port, turn):
    for path, field in ((CHAT, "messages"), ("/v1/responses", "input")):
        status, answer = post(port, path, {field: [turn]})
        assert (status, json.loads(answer)["error"]["param"]) == (400, field), answer


@pytest.mark.parametrize(
    "item", [{}, {"type": "function_call"}, {"type": "function_call_output"}, {"type": "reasoning", "content": [{}]}]
)
def test_wrong_items_are_refused_with_their_field(port, item):
    for items in ([item], [{"role": "user", "content": "x"}, item]):
        status, answer = post(port, "/v1/responses", {"input": items})
        assert status in (400, 422)
        assert "input" in answer


VALUES = [
    *(None, True, 0, -1, 1, 7, 10**30, 1e308, 0.5, "", "x", "\ud800", "\x00", "9" * 50, [], [None], [[]], {}),
    *({"type": "text"}, {"a": 1}, ["x"] * 9, [{"role": "user", "content": "x"}], "data:image/png;base64,", b"NaN"),
]
FIELDS = [
    *("messages", "prompt", "input", "model", "stream", "temperature", "top_p", "n", "stop", "seed", "logit_bias"),
    *("tools", "generation_config", "chat_template_kwargs", "max_tokens", "max_completion_tokens", "instructions"),
    *("response_format", "frequency_penalty", "presence_penalty", "stream_options", "text", "made_up", "\ud800"),
]


def mutated(chance: random.Random) -> bytes:
    """A raw request that was valid once."""
    path = chance.choice([CHAT, "/v1/completions", "/v1/responses", CHAT, "/load_model", "/v1/systemone", "/reset"])
    body = {"messages": asked(image())["messages"]} if path == CHAT else {"prompt": "x"}
    body = {"input": "x"} if path == "/v1/responses" else body
    for _ in range(chance.randrange(3)):
        body[chance.choice(FIELDS)] = chance.choice(VALUES[:-1])
    if path == CHAT and chance.random() < 0.5:
        part = chance.choice(
            [chance.choice(VALUES[:-1]), {**image(), chance.choice(FIELDS): chance.choice(VALUES[:-1])}]
        )
        body["messages"] = [{"role": "user", "content": chance.choice([part, [part]])}]
    data = bytearray(json.dumps(body).encode())
    for _ in range(chance.choice([0, 0, 0, 1, 4])):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(4)] = chance.choice(
            [b"", b"[" * 400, b"\xff", b"NaN", b'"', b"}", b"1e999"]
        )
    length = len(data) + chance.choice([0, 0, 0, 0, 0, -1])
    headers = [
        f"Content-Length: {length}",
        *chance.choice([["Content-Type: application/json"], [], ["Content-Type: x"]]),
    ]
    return raw_post(path, bytes(data[:length]), *headers)


@pytest.mark.fuzz
def test_no_raw_request_breaks_the_server(checkpoint):
    chance = random.Random(0)
    app = build_app(checkpoint, name="tiny", device="cpu", budget=RequestBudget(max_new_tokens=2))
    with serving(app) as port, torch.inference_mode():
        for number in range(300):
            request = mutated(chance)
            status, answer = send(port, request)
            assert 200 <= status < 500, (number, request, answer)
        assert is_healthy(port)
        assert post(port, CHAT, asked(max_tokens=2))[0] == 200
