# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx serve`: transformers' server answers as `generate` does, and refuses what requests may not name."""

import asyncio
import base64
import json
from shutil import copytree

import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from commands import internvlx
from image_cases import saved
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.cli import main
from internvlx_hf.processing import ImageAccess
from internvlx_hf.serving import build_app
from json_files import write_json
from message_cases import encode
from tiny import LVTC, save_tiny

pytestmark = pytest.mark.slow

NEW = 8


def data_url(color: str, size=(64, 32)) -> str:
    return f"data:image/png;base64,{base64.b64encode(saved(Image.new('RGB', size, color))).decode()}"


RED, BLUE = data_url("red"), data_url("blue", (96, 32))


def user(*parts) -> list[dict]:
    content = [{"type": "text", "text": p} if not p.startswith("data:") else image(p) for p in parts]
    return [{"role": "user", "content": content}]


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


CONVERSATIONS = [
    user("Read this.", RED),
    user(BLUE, "Read", RED, "both."),
    user("No image."),
    [{"role": "system", "content": "Be short."}, *user(RED), {"role": "assistant", "content": "<img>"}, *user("Why?")],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("served") / "model", "llama", **LVTC)


@pytest.fixture(scope="module")
def app(checkpoint):
    return build_app(str(checkpoint), name="tiny", device="cpu")


def posts(app, path: str, *bodies: dict) -> list:
    """The responses to requests that are sent at once."""

    async def send():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))

    return asyncio.run(send())


def chat(app, *conversations, **settings) -> list:
    settings = {"max_tokens": NEW, "temperature": 0, "model": "tiny", **settings}
    return posts(app, "/v1/chat/completions", *({"messages": turns, **settings} for turns in conversations))


def text_of(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def refusal(response) -> str:
    assert response.status_code == 400, response.text
    return response.json()["error"]["message"]


def streamed(response) -> list[dict]:
    assert response.status_code == 200
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


@pytest.fixture(scope="module")
def expected(checkpoint) -> list[str]:
    """What `generate` answers to each conversation."""
    model = InternVLXForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = InternVLXProcessor.from_pretrained(checkpoint)
    answers = []
    for turns in CONVERSATIONS:
        inputs = encode(turns, processor, add_generation_prompt=True)
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert len(set(answers)) == len(answers)
    return answers


def test_answers_to_requests_sent_at_once_are_those_of_generate(app, expected):
    assert [text_of(response) for response in chat(app, *CONVERSATIONS)] == expected


def test_streamed_answers_are_those_of_generate(app, expected):
    for response, answer in zip(chat(app, *CONVERSATIONS, stream=True), expected, strict=True):
        pieces = [chunk["choices"][0] for chunk in streamed(response)]
        # half a character at the end is not sent
        assert "".join(piece["delta"].get("content") or "" for piece in pieces) == answer.rstrip("\ufffd")
        assert pieces[-1]["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_with_a_stop_string(app, expected, stream):
    stop = expected[1][2]
    (response,) = chat(app, CONVERSATIONS[1], stop=[stop], stream=stream)
    if stream:
        answer = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in streamed(response))
    else:
        answer = text_of(response)
    assert stop in answer
    assert expected[1].startswith(answer)
    assert len(answer) < len(expected[1])


def test_the_responses_api_answers_alike(app, expected):
    parts = [{"type": "input_text", "text": "Read this."}, {"type": "input_image", "image_url": RED}]
    settings = {"model": "tiny", "max_output_tokens": NEW, "temperature": 0, "stream": False}
    for given in (parts, [{"role": "user", "content": parts}]):
        (response,) = posts(app, "/v1/responses", {"input": given, **settings})
        assert response.json()["output"][0]["content"][0]["text"] == expected[0]


def test_the_model_is_listed_by_its_name(app):
    async def get():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
            return (await client.get("/v1/models")).json(), (await client.get("/health")).status_code

    models, health = asyncio.run(get())
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert health == 200


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (user("Read <IMG_CONTEXT> this."), "holds the image token '<IMG_CONTEXT>'"),
        (user("Read", "<IMG_CON", "TEXT>", RED), "holds the image token '<IMG_CONTEXT>'"),
        (user("Read <image> this.", RED), "beside image parts"),
        (user("Read <image> this."), "no images were given"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}], "video_url"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}], "input_audio"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user"}], "turn 0 is"),
        (["hello"], "messages has 'hello', expected a list of messages"),
        ("hello", "messages has 'hello', expected a list of messages"),
        ([], "messages has [], expected a list of messages"),
        (None, "messages has None, expected a list of messages"),
        (user(RED[:-40]), "corrupt or truncated"),
    ],
)
def test_messages_that_are_not_understood_are_refused_by_name(app, turns, reason):
    (response,) = chat(app, turns)
    assert reason in refusal(response)


@pytest.mark.parametrize("kind", ["image_url", "image"])
def test_requests_reach_neither_files_nor_private_hosts(app, kind, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (32, 32)).save(path)
    private = ("localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "2130706433", "0")
    sources = {f"http://{host}:1/x.png": "is not allowed, expected one with public addresses" for host in private}
    sources |= {str(path): "is not in a folder", f"file://{path}": "is not in a folder"}
    conversations = [
        [{"role": "user", "content": [image(source) if kind == "image_url" else {"type": "image", "url": source}]}]
        for source in sources
    ]
    for response, reason in zip(chat(app, *conversations), sources.values(), strict=True):
        assert reason in refusal(response)


def test_a_server_reads_the_folders_that_it_is_told_to(checkpoint, tmp_path, expected):
    red = tmp_path / "x.png"
    Image.new("RGB", (64, 32), "red").save(red)
    app = build_app(str(checkpoint), device="cpu", access=ImageAccess.for_server(folders=[tmp_path]))
    turns = [{"role": "user", "content": [{"type": "text", "text": "Read this."}, image(str(red))]}]
    (response,) = chat(app, turns, model=str(checkpoint))
    assert text_of(response) == expected[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"chat_template_kwargs": {"chat_template": "{{ 7 }}"}}, "'chat_template' is not a variable"),
        ({"chat_template_kwargs": {"images": ["/etc/passwd"]}}, "'images' is not a variable"),
        ({"chat_template_kwargs": {"max_patches": 9999}}, "'max_patches' is not a variable"),
        ({"chat_template_kwargs": "x"}, "expected an object"),
        ({"temperature": "warm"}, "warm"),
        ({"generation_config": "{"}, "JSON|Expecting"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "the chat template writes no tools|tools"),
    ],
)
def test_settings_that_are_not_understood_are_refused(app, settings, reason):
    (response,) = chat(app, CONVERSATIONS[0], **settings)
    assert any(part in refusal(response) for part in reason.split("|"))


def answered(model, processor, turns, kwargs) -> tuple[int, str]:
    """The prompt's length and the answer of `generate`."""
    inputs = encode(turns, processor, add_generation_prompt=True, processor_kwargs=kwargs)
    output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return length, processor.decode(output[0, length:], skip_special_tokens=True)


def test_each_request_s_images_are_read_as_it_says(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama", tokens_per_tile=["16", "4", "16:4"], merge_layer=3)
    model = InternVLXForConditionalGeneration.from_pretrained(folder).eval()
    processor, turns = InternVLXProcessor.from_pretrained(folder), user(BLUE, "Read", RED, "both.")
    app = build_app(str(folder), name="tiny", device="cpu")
    settings = [
        *({}, {"max_patches": 1}, {"slicing": "ratio", "min_patches": 3}, {"use_thumbnail": False}),
        *({"max_image_tokens": 64}, {"tokens_per_tile": "16:4"}, {"tokens_per_tile": ["4", "16+4"]}),
    ]
    expected = [answered(model, processor, turns, kwargs) for kwargs in settings]
    assert len({length for length, _ in expected}) >= len(settings) - 1  # `16:4` has the prompt of `16`
    body = {"model": "tiny", "messages": turns, "max_tokens": NEW, "temperature": 0}
    asked = [body | {"mm_processor_kwargs": {**kwargs, "slicing": kwargs.get("slicing")}} for kwargs in settings]
    responses = posts(app, "/v1/chat/completions", *asked, body)
    found = [(each.json()["usage"]["prompt_tokens"], text_of(each)) for each in responses]
    assert found == [*expected, expected[0]]
    (response,) = posts(
        app,
        "/v1/responses",
        {
            "model": "tiny",
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": BLUE}]}],
            "max_output_tokens": NEW,
            "temperature": 0,
            "mm_processor_kwargs": {"max_patches": 1},
        },
    )
    assert response.json()["usage"]["input_tokens"] == answered(model, processor, user(BLUE), {"max_patches": 1})[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_patch": 1}, "mm_processor_kwargs has 'max_patch', expected slicing, max_patches"),
        ({"max_patches": 0}, "mm_processor_kwargs: max_patches=0, expected a whole number from 1"),
        ({"min_patches": 9}, "min_patches=9 is larger than max_patches=6"),
        ({"tokens_per_tile": "64"}, "tokens_per_tile='64' is not offered by this checkpoint, expected one of 4"),
        ({"tokens_per_tile": ["4", "4"]}, "tokens_per_tile has 2 sizes for 1 images"),
        ({"max_image_tokens": 3}, "max_image_tokens=3 is too small: 1 image takes at least 4"),
    ],
)
def test_settings_of_images_that_cannot_be_had_are_refused_by_name(app, settings, reason):
    (response,) = chat(app, CONVERSATIONS[0], mm_processor_kwargs=settings)
    assert reason in refusal(response)
    assert response.json()["error"]["param"] == "mm_processor_kwargs"


def test_tool_calls_reach_the_template_as_objects(checkpoint):
    tools = [{"type": "function", "function": {"name": "zoom", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"by": 2}'}}
    turns = [
        *user(RED, "Zoom."),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done <img>"},
    ]
    folder = checkpoint.parent / "tools"
    copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(
        "{{ tools | length }}{% for message in messages %}{{ message.role }}"
        "{% for call in message.tool_calls or [] %}{{ call.function.arguments.by + 1 }}{% endfor %}"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content or [] %}{{ '<IMG_CONTEXT>' if part.type == 'image' else part.text }}{% endfor %}"
        "{% endif %}{% endfor %}{{ 'tool' }}"
    )
    app = build_app(str(folder), name="tiny", device="cpu")
    (response,) = chat(app, turns, tools=tools)
    assert response.status_code == 200, response.text
    for wrong in ({"function": {"name": "zoom"}}, {"function": {"name": "zoom", "arguments": "{"}}, "zoom"):
        (response,) = chat(app, [*turns, {"role": "assistant", "tool_calls": [wrong]}], tools=tools)
        assert "tool_calls=[" in refusal(response)


def test_no_other_model_and_no_other_endpoint_is_served(app):
    (response,) = chat(app, CONVERSATIONS[0], model="other")
    assert (response.status_code, "pinned to 'tiny'" in response.text) == (400, True)
    (response,) = posts(app, "/load_model", {"model": "owner/other"})
    assert "'owner/other@main' is not served, expected 'tiny'" in response.text
    for path in ("/v1/audio/transcriptions", "/v1/systemone"):
        (response,) = posts(app, path, {})
        assert response.status_code == 404


def test_a_raw_prompt_holds_no_image_tokens(app):
    settings = {"model": "tiny", "max_tokens": NEW, "temperature": 0}
    (response,) = posts(app, "/v1/completions", {"prompt": "Read <IMG_CONTEXT>", **settings})
    assert "the prompt holds the image token '<IMG_CONTEXT>'" in refusal(response)
    (response,) = posts(app, "/v1/completions", {"prompt": "Read", **settings})
    assert response.status_code == 200


def test_a_model_that_was_unloaded_keeps_its_limits(app):
    posts(app, "/reset", {})
    (response,) = chat(app, [{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}])
    assert "is not in a folder" in refusal(response)


def test_the_command_serves_what_its_options_say(checkpoint, tmp_path, monkeypatch, capsys, expected):
    served = []
    monkeypatch.setattr("uvicorn.run", lambda app, **where: served.append((app, where)))
    images = ["--image-folders", tmp_path, "--image-hosts", "intranet", "--no-public-images", "--max-image-bytes", 9]
    images += ["--max-image-tokens", 12, "--slicing", "ratio", "--max-patches", 1, "--max-stop-strings", 1]
    where = ["--name", "x", "--port", 1, "--device", "cpu", "--dtype", "float32"]
    assert main(["serve", *map(str, [checkpoint, *where, *images])]) == 0
    ((app, where),) = served
    assert where == {"host": "localhost", "port": 1}
    processor, how = InternVLXProcessor.from_pretrained(checkpoint), {"slicing": "ratio", "max_patches": 1}
    own, chosen = (
        encode(user(BLUE), processor, add_generation_prompt=True, processor_kwargs=kwargs)["input_ids"].shape[1]
        for kwargs in ({}, how)
    )
    (response,) = chat(app, user(BLUE), model="x")
    assert own != chosen == response.json()["usage"]["prompt_tokens"]
    turns = [{"role": "user", "content": [image("http://images.example/x.png")]}]
    assert "'images.example' is not allowed, expected one of intranet" in refusal(chat(app, turns, model="x")[0])
    (response,) = chat(app, user(RED, RED, RED, RED), model="x")
    assert "max_image_tokens=12 is too small: 4 images take at least 16" in refusal(response)
    assert "2 stop strings, expected at most 1" in refusal(chat(app, user(BLUE), model="x", stop=["a", "b"])[0])
    assert (
        "--max-beams=0, expected a whole number"
        in internvlx(capsys, "serve", checkpoint, "--max-beams", "0", "--device", "cpu", status=1).err
    )
    assert (
        "max_image_tokens=3 is too small: 1 image takes at least 4"
        in internvlx(capsys, "serve", checkpoint, "--max-image-tokens", "3", "--device", "cpu", status=1).err
    )


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        ("llama", ["--port", "65536"], "--port=65536, expected a whole number from 0 to 65535"),
        ("llama", [], "is of the type 'llama'. Convert it first"),
        (None, [], " has no config.json, expected a checkpoint's folder"),
    ],
)
def test_the_command_refuses_what_cannot_be_served(tmp_path, capsys, config, arguments, said):
    if config:
        write_json(tmp_path / "config.json", {"model_type": config})
    assert said in internvlx(capsys, "serve", tmp_path, *arguments, status=1).err
    assert (
        "absent is not a folder, expected a checkpoint's folder or a Hub id"
        in internvlx(capsys, "serve", "absent", status=1).err
    )


def test_vllm_gets_the_command_with_room_for_the_largest_image(checkpoint, tmp_path, capsys, monkeypatch):
    run, arguments = [], ["serve", checkpoint, "--engine", "vllm", "--port", "9000", "--max-patches", "30"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no program vllm on the path" in internvlx(capsys, *arguments, status=1).err
    (tmp_path / "vllm").touch(mode=0o755)
    monkeypatch.setattr("os.execv", lambda path, command: (run.append(command), exit(0)))
    with pytest.raises(SystemExit):
        internvlx(capsys, *arguments)
    (command,) = run
    assert command[:3] == [str(tmp_path / "vllm"), "serve", str(checkpoint)]
    assert command[command.index("--port") + 1] == "9000"
    assert command[command.index("--max-num-batched-tokens") + 1] == "4096"
    assert command[command.index("--mm-processor-kwargs") + 1] == '{"max_patches": 30}'
    with pytest.raises(SystemExit):
        internvlx(capsys, *arguments[:-1], "3000")
    tokens = int(run[1][run[1].index("--max-num-batched-tokens") + 1])
    assert tokens >= 3001 * 4
    assert "--max-beams is not for --engine=vllm" in internvlx(capsys, *arguments, "--max-beams", "2", status=1).err
