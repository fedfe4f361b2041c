"""vLLM serves checkpoints without LVTC as they were saved: its greedy tokens are those of `generate`, in float32.

`make test-vllm` runs these tests. vLLM runs in processes of its own, whose environment lacks the package.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from internvlx_hf.vllm.language_models import LANGUAGE_MODELS
from tiny import LVTC
from vllm_engines import (
    HEADS,
    RATIO,
    TWO_RANKS,
    ask,
    assert_same,
    body,
    chat,
    expected_chat,
    loaded,
    prompts,
    reference,
    run_jobs,
    running_server,
    save,
    trained_adapter,
)

# less than four prompts together, so that most of them are cut, images too; no less than an image takes
CHUNKS = {"max_num_batched_tokens": 224, "trust_remote_code": True}
# besides PVTC behind InternVL's tower, which all others have
PARTS = {
    "pixel_shuffle": {"projector_config": {"projector_type": "pixel_shuffle", "num_heads": None}},
    "token_packer": {"projector_config": {"projector_type": "token_packer"}},
    "ldpv2": {"projector_config": {"projector_type": "ldpv2", "num_heads": None}},
    "linear": {"projector_config": {"projector_type": "linear", "num_heads": None}, "downsample_ratio": 1.0},
    "norms of InternViT-6B": {"vision_config": {"use_qk_norm": True, "norm_type": "rms_norm"}},
    "CLIP": {"vision_config": {"model_type": "clip_vision_model"}},
    "tied embeddings": {"tie_word_embeddings": True},
}
FEW = ("no image", "many tiles", "two images")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {text: save(folder / text, text) for text in LANGUAGE_MODELS}
    found |= {name: save(folder / name, **kwargs) for name, kwargs in PARTS.items()}
    found["adapter"] = trained_adapter(found["llama"], folder / "adapter")
    found["two ranks"] = save(folder / "two_ranks", text_config=TWO_RANKS)
    found["lvtc"] = save(folder / "lvtc", **LVTC, text_config=HEADS | {"num_hidden_layers": 4})
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, dict]:
    """Prompts whose answers may have no image placeholder, which `generate` suppresses by itself."""
    sampling = {"bad_words": ["<IMG_CONTEXT>"]}
    return {name: case | {"sampling": sampling} for name, case in prompts(tmp_path_factory.mktemp("images")).items()}


@pytest.fixture(scope="module")
def found(checkpoints, cases, tmp_path_factory) -> dict[str, list]:
    """What every engine answers. They are slow to start: all prompts go to each, and all run in one process."""
    everything = list(cases.values())
    alone = [[case] for case in everything]
    jobs = {
        name: {"model": str(checkpoints[name]), "options": CHUNKS, "rounds": [everything]} for name in LANGUAGE_MODELS
    }
    jobs["llama"]["rounds"] += [everything, *alone]
    few, room = [cases[name] for name in FEW], {"max_num_batched_tokens": 1024, "trust_remote_code": True}
    jobs |= {name: {"model": str(checkpoints[name]), "options": room, "rounds": [few]} for name in PARTS}
    jobs["settings"] = {
        "model": str(checkpoints["llama"]),
        "options": CHUNKS | {"mm_processor_kwargs": RATIO},
        "rounds": [[cases["4:3"], cases["no image"]]],
    }
    jobs["adapter"] = {
        "model": str(checkpoints["llama"]),
        "options": CHUNKS | {"enable_lora": True, "max_lora_rank": 8},
        "adapter": str(checkpoints["adapter"]),
        "rounds": [everything],
    }
    jobs["lvtc"] = {"model": str(checkpoints["lvtc"]), "options": CHUNKS, "rounds": []}
    return run_jobs(tmp_path_factory.mktemp("engines"), jobs, VLLM_ENABLE_V1_MULTIPROCESSING="0")


@pytest.fixture(scope="module")
def expected(checkpoints, cases) -> dict[str, list[dict]]:
    """What `generate` answers each model's prompts."""
    answers = {}
    for name in LANGUAGE_MODELS:
        model, processor = loaded(checkpoints[name])
        answers[name] = [reference(model, processor, case) for case in cases.values()]
    return answers


@pytest.mark.parametrize("text", LANGUAGE_MODELS)
def test_tokens_are_those_of_generate(found, expected, text):
    assert len({tuple(answer["tokens"][:8]) for answer in expected[text]}) == len(expected[text])
    for answer, wanted in zip(found[text][0], expected[text], strict=True):
        assert_same(answer, wanted)


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_give_the_tokens_of_generate(found, checkpoints, cases, part):
    model, processor = loaded(checkpoints[part])
    for answer, name in zip(found[part][0], FEW, strict=True):
        assert_same(answer, reference(model, processor, cases[name]))


def test_cached_prefixes_give_the_same_tokens(found, expected):
    first, second, *alone = found["llama"]
    assert sum(answer["cached"] for answer in first) < sum(answer["cached"] for answer in second)
    for again in (second, [answer for (answer,) in alone]):
        assert all(answer["cached"] > 0 for answer in again if len(answer["prompt"]) > 96)
        for answer, wanted in zip(again, expected["llama"], strict=True):
            assert_same(answer, wanted)


def test_settings_of_the_engine_decide_on_the_tiles(found, checkpoints, cases):
    model, processor = loaded(checkpoints["llama"])
    (answers,) = found["settings"]
    for answer, case in zip(answers, (cases["4:3"], cases["no image"]), strict=True):
        assert_same(answer, reference(model, processor, case | {"settings": RATIO}))


def test_trained_adapter_is_served(found, expected, checkpoints, cases):
    from peft import PeftModel

    model, processor = loaded(checkpoints["llama"])
    model = PeftModel.from_pretrained(model, checkpoints["adapter"]).eval()
    (answers,) = found["adapter"]
    wanted = [reference(model, processor, case) for case in cases.values()]
    assert [answer["tokens"] for answer in wanted] != [answer["tokens"] for answer in expected["llama"]]
    for answer, want in zip(answers, wanted, strict=True):
        assert_same(answer, want)


def test_model_with_lvtc_is_refused_by_name(found):
    assert "vLLM cannot serve a model with LVTC" in found["lvtc"]


def test_two_ranks_give_the_same_tokens(checkpoints, cases, tmp_path):
    asked = [cases[name] for name in FEW]
    options = CHUNKS | {"tensor_parallel_size": 2}
    job = {"model": str(checkpoints["two ranks"]), "options": options, "rounds": [asked]}
    answers = run_jobs(tmp_path, {"two ranks": job})["two ranks"]
    model, processor = loaded(checkpoints["two ranks"])
    for answer, case in zip(answers[0], asked, strict=True):
        assert_same(answer, reference(model, processor, case))


# -- vLLM's OpenAI-compatible server


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory):
    options = ["--trust-remote-code", "--dtype", "float32", "--max-model-len", "1024", "--block-size", "32"]
    options += ["--max-num-seqs", "4", "--max-num-batched-tokens", "224"]
    options += ["--served-model-name", "tiny", "--trust-request-mm-kwargs"]
    options += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"adapter={checkpoints['adapter']}"]
    with running_server(tmp_path_factory.mktemp("server"), str(checkpoints["llama"]), *options) as address:
        yield address


CHATS = [("Read.",), ("What?", "one"), ("Read the digits.", "many"), ("What is on the picture?", "wide", "4:3")]


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_server_answers_messages_as_generate_does(server, checkpoints, adapter):
    from peft import PeftModel

    model, processor = loaded(checkpoints["llama"])
    if adapter:
        model = PeftModel.from_pretrained(model, checkpoints["adapter"]).eval()
    for case in CHATS:
        found = ask(server, chat(*case), model="adapter" if adapter else "tiny")
        assert_same(found, expected_chat(model, processor, chat(*case)))


def test_server_takes_a_request_s_settings(server, checkpoints):
    model, processor = loaded(checkpoints["llama"])
    messages = chat("Read.", "4:3")
    for settings in (RATIO, {"max_patches": 2}):
        expected = expected_chat(model, processor, messages, **settings)
        assert_same(ask(server, messages, mm_processor_kwargs=settings), expected)
    refused = body(messages, mm_processor_kwargs={"slicing": "rate"})
    answer = requests.post(f"{server}/v1/chat/completions", json=refused, timeout=120)
    assert "slicing='rate', expected one of 'edge', 'area', 'ratio'" in answer.text


def test_streamed_answer_is_the_whole_one(server):
    messages = chat("What?", "many")
    pieces = []
    with requests.post(
        f"{server}/v1/chat/completions", json=body(messages, stream=True), stream=True, timeout=120
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == ask(server, messages)["text"]


def test_concurrent_requests_are_answered_as_single_ones(server):
    """Eight requests on four places; their prompts differ from those that are cached."""
    chats = [chat(f"{case[0]} {i}", *case[1:]) for i in range(2) for case in CHATS]
    with ThreadPoolExecutor(len(chats)) as pool:
        together = list(pool.map(lambda messages: ask(server, messages), chats))
    assert together == [ask(server, messages) for messages in chats]
