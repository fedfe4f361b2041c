"""vLLM with this package beside it serves LVTC: its greedy tokens are those of `generate`, in float32.

`make test-vllm` runs these tests. Each says by the scheduler's own steps that what it is about has happened: steps that mix
decoding with an image's prefill, preemption, cached prefixes, accepted drafts.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image

from paths import ROOT
from tiny import LVTC
from vllm_engines import (
    HEADS,
    QUESTION,
    TIE,
    TWO_RANKS,
    assert_same,
    chat,
    expected_chat,
    installed_package,
    loaded,
    prompt,
    prompts,
    read_metrics,
    reference,
    run_jobs,
    running_server,
    save,
    stream,
    trained_adapter,
)

OLDEST = ROOT / "build/vllm_oldest"
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
FOUR_LAYERS = HEADS | {"num_hidden_layers": 4}
MODELS = {
    # 4 -> 16 tokens per tile, nearest
    "qwen2": {"text_config": FOUR_LAYERS, "tie_word_embeddings": True},
    # 4 -> 64 at the positions of stage one, insertions before layers 0 and 1, stages of 3 and 2 layers
    "llama": {
        "text_config": HEADS | {"num_hidden_layers": 5},
        "projector_config": {"projector_type": "pixel_shuffle", "num_heads": None},
        "expand_layer": 3,
        "downsample_ratio": 1.0,
        "num_lr_projectors": 3,
        "insert_start": 0,
        "lr_projector_type": "pixel_shuffle",
        "expanded_positions": "kept",
    },
    # no HR projector, bilinear, at the positions of stage one
    "qwen3": {
        "text_config": FOUR_LAYERS,
        "projector_config": {"projector_type": "token_packer"},
        "hr_projector_type": None,
        "upsample_mode": "bilinear",
        "expanded_positions": "kept",
    },
    # bilinear, and a HR projector of another type
    "phi3": {
        "text_config": FOUR_LAYERS,
        "projector_config": {"projector_type": "ldpv2", "num_heads": None},
        "hr_projector_type": "ldpv2",
        "upsample_mode": "bilinear",
    },
    # stage one of a single layer, no insertions, 4 -> 64 with the linear projector, behind CLIP's tower
    "mistral": {
        "text_config": FOUR_LAYERS,
        "vision_config": {"model_type": "clip_vision_model"},
        "expand_layer": 1,
        "downsample_ratio": 1.0,
        "hr_projector_type": "linear",
        "num_lr_projectors": 1,
    },
}
TOP_LEVEL = ("text_config", "vision_config", "projector_config", "tie_word_embeddings")
# the largest image takes 13 tiles of 16 or of 64 tokens
LITTLE, ENOUGH = {"max_num_batched_tokens": 224}, {"max_num_batched_tokens": 896}
# the cache holds little more than a prompt of the greatest length, and eight want to be answered
CROWDED = LITTLE | {"max_model_len": 384, "num_gpu_blocks_override": 30, "max_num_seqs": 8}
SAMPLED = {"n": 3, "temperature": 1.0, "seed": 7}
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
ABORTED = ("one tile", "four images", "max_patches and slicing")
CHATS = [("Read.",), ("What?", "one"), ("Read the digits.", "many"), ("What is on the picture?", "wide", "4:3")]
STREAMED = 48
REFUSED_MODEL = "forward compression"
FAULTS = ("no growth", "old slots")
REFUSED = {
    "pipeline_parallel_size=2": {"pipeline_parallel_size": 2},
    "decode_context_parallel_size=2": {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
    "kv_transfer_config (KV connectors)": {
        "kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    },
    "enable_lora": {"enable_lora": True},
    "quantization='fp8'": {"quantization": "fp8"},
    "kv_cache_dtype='fp8'": {"kv_cache_dtype": "fp8"},
    "long_prefill_token_threshold=64": {"long_prefill_token_threshold": 64},
}


def lvtc_arguments(settings: dict) -> dict:
    """Arguments of `tiny_model` for an entry of MODELS."""
    lvtc = {name: value for name, value in settings.items() if name not in TOP_LEVEL}
    others = {name: value for name, value in settings.items() if name in TOP_LEVEL}
    return {"downsample_ratio": LVTC["downsample_ratio"], "lvtc_config": LVTC["lvtc_config"] | lvtc, **others}


def lengthened(answer: dict, config) -> dict:
    """The answer's prompt as vLLM has it: with stage two's tokens for every tile."""
    factor = config.expanded_image_seq_length // config.image_seq_length
    runs = ([token] * (factor if token == config.image_token_id else 1) for token in answer["prompt"])
    return answer | {"prompt": list(chain.from_iterable(runs))}


def assert_equal(found: list, expected: list[dict]):
    """Tokens of `generate` up to a tie, and their log-probabilities."""
    assert len(found) == len(expected)
    for answer, wanted in zip(found, expected, strict=True):
        assert_same(answer, wanted)
        pairs = zip(answer["tokens"], wanted["tokens"], strict=True)
        same = next((i for i, (token, other) in enumerate(pairs) if token != other), len(wanted["tokens"]))
        for logprob, other in zip(answer["logprobs"][:same], wanted["logprobs"][:same], strict=True):
            assert abs(logprob - other) < TIE


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {name: save(folder / name, name, **lvtc_arguments(settings)) for name, settings in MODELS.items()}
    two_ranks = lvtc_arguments({"text_config": TWO_RANKS | {"num_hidden_layers": 4}})
    found["two ranks"] = save(folder / "two_ranks", "qwen2", **two_ranks)
    compressed = {"downsample_ratio": 0.5, "lvtc_config": LVTC["lvtc_config"] | {"downsample_ratio": 0.25}}
    found[REFUSED_MODEL] = save(folder / "forward", "qwen2", text_config=FOUR_LAYERS, **compressed)
    found["no LVTC"] = save(folder / "no_lvtc", "qwen2")
    found["adapter"] = trained_adapter(found["no LVTC"], folder / "adapter")
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("images")
    return {name: case | {"tokens": 24} for name, case in prompts(folder).items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, dict]:
    """Prompts that begin with the same text, and some with the same image; what follows differs."""
    folder, settings = tmp_path_factory.mktemp("shared"), {"lead": 12, "tokens": 16}
    return {
        "text": prompt(folder, "Read the digits.", **settings),
        "other text": prompt(folder, "What?", **settings),
        "image": prompt(folder, "What?", "many", **settings),
        "same image": prompt(folder, "Read the digits. What is on the picture?", "many", **settings),
        "other image": prompt(folder, "What?", "wide", **settings),
        "two images": prompt(folder, "What?", "many", "one", **settings),
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> list[Path]:
    return installed_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def found(checkpoints, cases, shared, package, tmp_path_factory) -> dict[str, list]:
    """What every engine answers. They are slow to start: all run in one process."""
    everything, alike = list(cases.values()), list(shared.values())
    sampled = cases["many tiles"] | {"sampling": SAMPLED}
    aborted = [case | ({"abort": 4} if name in ABORTED else {}) for name, case in cases.items()]
    whole = ENOUGH | {"max_model_len": 896, "enable_chunked_prefill": False}
    jobs = {
        "qwen2": {"options": CROWDED, "rounds": [everything, alike, alike, aborted]},
        "llama": {"options": ENOUGH | {"enable_prefix_caching": False}, "rounds": [everything]},
        "phi3": {"options": LITTLE | {"block_size": 64}, "rounds": [everything]},
        "mistral": {"options": whole, "rounds": [everything, [*everything, sampled], [sampled]]},
        "no LVTC": {"options": LITTLE, "rounds": [everything]},
        "two ranks": {"options": LITTLE | {"tensor_parallel_size": 2}, "rounds": [everything]},
    }
    adapter = {"options": LITTLE | {"enable_lora": True, "max_lora_rank": 8}, "rounds": [everything]}
    jobs["adapter"] = adapter | {"adapter": str(checkpoints["adapter"])}
    jobs[REFUSED_MODEL] = {"options": LITTLE, "rounds": []}
    jobs |= {fault: {"options": CROWDED, "rounds": [alike, alike], "fault": fault} for fault in FAULTS}
    # the last engine: after one with n-gram drafts, vLLM starts no other in the process
    jobs["qwen3"] = {"options": LITTLE | {"speculative_config": DRAFTS}, "rounds": [everything]}
    for name, job in jobs.items():
        model = {"adapter": "no LVTC"}.get(name, name)
        job["model"] = str(checkpoints[model if model in checkpoints else "qwen2"])
    jobs["scheduling"] = {"model": str(checkpoints["qwen2"]), "simulated": [10, 20]}
    for fault in ("split images", "shared images"):
        jobs[f"scheduling, {fault}"] = jobs["scheduling"] | {"fault": fault}
    jobs["refused"] = {"model": str(checkpoints["qwen2"]), "refused": REFUSED}
    return run_jobs(tmp_path_factory.mktemp("engines"), jobs, package, **IN_PROCESS)


@pytest.fixture(scope="module")
def models(checkpoints):
    found = {name: loaded(folder) for name, folder in checkpoints.items() if name not in ("adapter", REFUSED_MODEL)}
    model, processor = loaded(checkpoints["no LVTC"])
    return found | {"adapter": (PeftModel.from_pretrained(model, checkpoints["adapter"]).eval(), processor)}


@pytest.fixture(scope="module")
def expected(models, cases) -> dict[str, list[dict]]:
    """What `generate` answers each model's prompts."""
    return {name: answers_of_generate(*parts, cases) for name, parts in models.items()}


@pytest.fixture(scope="module")
def expected_shared(models, shared) -> list[dict]:
    return answers_of_generate(*models["qwen2"], shared)


def answers_of_generate(model, processor, cases: dict[str, dict]) -> list[dict]:
    return [lengthened(reference(model, processor, case), model.config) for case in cases.values()]


@pytest.mark.parametrize("name", [*MODELS, "two ranks", "no LVTC", "adapter"])
def test_tokens_are_those_of_generate(found, expected, name):
    assert len({tuple(answer["tokens"][:8]) for answer in expected[name]}) == len(expected[name])
    steps = found[name][0]
    assert_equal(steps["answers"], expected[name])
    assert steps["mixed"] > 0
    if name not in ("no LVTC", "adapter"):
        assert steps["split images"] == 0


def test_adapter_changes_the_answers(expected):
    assert [answer["tokens"] for answer in expected["adapter"]] != [answer["tokens"] for answer in expected["no LVTC"]]


def test_small_budget_cuts_text_and_preempts(found):
    steps = found["qwen2"][0]
    assert steps["cut texts"] > 0
    assert steps["preempted"] > 0
    assert steps["resumed"] > 0


def test_stage_one_has_blocks_for_the_short_sequence_only(found):
    for long, placeholders, *blocks in found["qwen2"][0]["blocks"]:
        short = long - placeholders * 12 // 16  # 4 tokens per tile of 16
        assert sorted(blocks) == [-(-short // 32), -(-long // 32)]


def test_cached_prefixes_give_the_same_tokens(found, expected_shared):
    """They end before the first image."""
    _, first, again, _ = found["qwen2"]
    assert first["mixed"] > 0
    for steps in (first, again):
        assert_equal(steps["answers"], expected_shared)
    assert sum(answer["cached"] > 0 for answer in first["answers"]) >= 4
    assert all(answer["cached"] >= 64 for answer in again["answers"])


def test_drafts_are_taken(found, cases):
    (steps,) = found["qwen3"]
    assert steps["drafted"] > 0
    assert steps["decoded"] < sum(case["tokens"] for case in cases.values())


def test_withdrawn_requests_leave_the_others_as_they_are(found, expected, cases):
    answers = found["qwen2"][3]["answers"]
    kept = [i for i, name in enumerate(cases) if name not in ABORTED]
    assert [i for i, answer in enumerate(answers) if answer is not None] == kept
    assert_equal([answers[i] for i in kept], [expected["qwen2"][i] for i in kept])


def test_seeded_samples_are_those_of_the_model(found, models, cases):
    """Three of one request: the same beside others and alone, with the log-probabilities that the model gives them."""
    _, crowd, alone = found["mistral"]
    samples = crowd["answers"][-1]["samples"]
    assert [sample["tokens"] for sample in samples] == [sample["tokens"] for sample in alone["answers"][0]["samples"]]
    assert len({tuple(sample["tokens"]) for sample in samples}) == 3
    for sample in samples:
        logprobs = forced(*models["mistral"], cases["many tiles"], sample["tokens"])
        torch.testing.assert_close(torch.tensor(sample["logprobs"]), logprobs, atol=TIE, rtol=0)


@torch.no_grad()
def forced(model, processor, case: dict, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of an answer's tokens."""
    images = [Image.open(path) for path in case["images"]]
    inputs = processor(images, text=case["text"], return_tensors="pt")
    answer = torch.tensor([tokens])
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -len(tokens) - 1 : -1]
    logits[..., model.config.image_token_id] = -torch.inf
    return logits.log_softmax(-1).gather(-1, answer[..., None]).flatten()


@pytest.mark.parametrize("fault", FAULTS)
def test_comparison_finds(found, expected_shared, fault):
    answers = [answer for steps in found[fault] for answer in steps["answers"]]
    with pytest.raises(AssertionError):
        assert_equal(answers, expected_shared * 2)


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(found, name):
    assert f"LVTC in vLLM does not support {name}" in found["refused"][name]


def test_fewer_tokens_after_the_expansion_are_refused(found):
    assert "LVTC in vLLM needs at least as many tokens per tile" in found[REFUSED_MODEL]


def test_scheduler_keeps_images_whole_and_to_themselves(found):
    """In random runs every step begins and ends outside of images, and blocks are shared before the first image only."""
    counts = found["scheduling"]
    assert all(counts[name] > 10 for name in ("cut texts", "preempted", "cached", "boundaries")), counts


@pytest.mark.parametrize(
    ("fault", "check"),
    [("split images", "a step ends within an image"), ("shared images", "a step begins within an image")],
)
def test_check_of_the_scheduler_finds(found, fault, check):
    assert check in found[f"scheduling, {fault}"]


def test_oldest_version_gives_the_same_tokens(
    checkpoints, cases, shared, expected, expected_shared, tmp_path_factory, tmp_path
):
    package = installed_package(tmp_path_factory.mktemp("package"), OLDEST)
    rounds = [list(cases.values()), list(shared.values()), list(shared.values())]
    model = str(checkpoints["qwen2"])
    jobs = {
        "qwen2": {"model": model, "options": CROWDED, "rounds": rounds},
        "scheduling": {"model": model, "simulated": [3, 20]},
        "refused": {"model": model, "refused": {"enable_lora": REFUSED["enable_lora"]}},
    }
    found = run_jobs(tmp_path, jobs, package, **IN_PROCESS)
    assert found["version"].startswith("0.31.0")
    first, *alike = found["qwen2"]
    assert_equal(first["answers"], expected["qwen2"])
    assert first["mixed"] > 0
    assert first["preempted"] > 0
    for steps in alike:
        assert_equal(steps["answers"], expected_shared)
    assert all(answer["cached"] >= 64 for answer in alike[1]["answers"])
    assert found["scheduling"]["cached"] > 0
    assert "LVTC in vLLM does not support enable_lora" in found["refused"]["enable_lora"]


def test_server_answers_streams_that_come_one_after_the_other(checkpoints, models, package, tmp_path):
    model, processor = models["qwen2"]
    options = ["--dtype", "float32", "--max-model-len", "384", "--block-size", "32", "--num-gpu-blocks-override", "26"]
    options += ["--max-num-seqs", "8", "--max-num-batched-tokens", "224", "--served-model-name", "tiny"]
    system = {"role": "system", "content": QUESTION * 8}
    chats = [[system, *chat(f"{case[0]} {i}", *case[1:])] for i in range(4) for case in CHATS]

    def ask_later(server: str, index: int) -> dict:
        time.sleep(0.02 * index)
        return stream(server, chats[index], max_tokens=STREAMED)

    with running_server(tmp_path, str(checkpoints["qwen2"]), *options, packages=package) as server:
        with ThreadPoolExecutor(len(chats)) as pool:
            answers = list(pool.map(partial(ask_later, server), range(len(chats))))
        metrics = read_metrics(server)
    for messages, answer in zip(chats, answers, strict=True):
        expected = expected_chat(model, processor, messages, STREAMED)
        assert_same(answer, lengthened(expected, model.config))
        assert answer["usage"]["prompt_tokens"] == len(answer["prompt"])
    assert metrics["vllm:num_preemptions_total"] > 0
    assert metrics["vllm:prefix_cache_hits_total"] > 0
    starts, others = [answer["times"][0] for answer in answers], [answer["times"] for answer in answers]
    assert sum(any(times[0] < start < times[-1] for times in others) for start in starts) > 4
