"""vLLM serves every size that a checkpoint offers: its greedy tokens are those of `generate`, in float32.

Each request chooses its sizes, and those of one batch differ. `make test-vllm` runs these tests.
"""

from pathlib import Path

import pytest

from internvlx_hf.processing.size_choices import tokens_before
from tiny import IMAGE_TOKEN
from vllm_engines import (
    HEADS,
    assert_same,
    installed_package,
    loaded,
    prompt,
    reference,
    run_jobs,
    save,
)

FOUR_LAYERS = HEADS | {"num_hidden_layers": 4}
LVTC = {"downsample_ratio": 0.5, "num_lr_projectors": 2, "insert_start": 0, "insert_interval": 1}
SIZES = ["16", "4:16", "16:4", "16:0", "4"]
MODELS = {
    "all sizes": {"tokens_per_tile": SIZES, "merge_layer": 2, "lvtc_config": {"expand_layer": 2, **LVTC}},
    "merged before the expansion, kept": {
        "tokens_per_tile": SIZES,
        "merge_layer": 1,
        "lvtc_config": {"expand_layer": 3, "expanded_positions": "kept", **LVTC},
    },
    "no growth": {"tokens_per_tile": ["16", "4", "16:4", "16:0"], "merge_layer": 2},
    "plain": {"tokens_per_tile": ["16", "4"]},
}
# 13 tiles of 16 tokens fit a step
ROOMY = {"max_num_batched_tokens": 224, "max_model_len": 384, "max_num_seqs": 8}
# the cache holds little, so that requests are preempted
CROWDED = ROOMY | {"num_gpu_blocks_override": 40}


def sizes_of(name: str) -> list[str]:
    return MODELS[name]["tokens_per_tile"]


def asked(folder: Path, name: str) -> list[dict]:
    """The same image at each size, without a choice, and images and thumbnails of several sizes."""
    sizes, settings = sizes_of(name), {"tokens": 12, "lead": 4}
    chosen = [prompt(folder, "Read.", "many", tokens_per_tile=size, **settings) for size in sizes]
    return [
        prompt(folder, "Read.", **settings),
        prompt(folder, "Read.", "many", **settings),
        *chosen,
        prompt(folder, "Read.", "many", tokens_per_tile=f"{sizes[0]}+{sizes[-1]}", **settings),
        prompt(folder, "What?", "many", tokens_per_tile=f"{sizes[1]}+{sizes[2 % len(sizes)]}", **settings),
        prompt(folder, "What?", "one", "wide", "one", tokens_per_tile=[sizes[0], *sizes[-2:]], **settings),
        prompt(folder, "What?", "many", "one", max_image_tokens=48, **settings),
    ]


def lengthened(answer: dict, processor, case: dict, offered: list[str]) -> dict:
    """The answer's prompt as vLLM has it: each tile with as many tokens as it has in the stage where it has most."""
    longest = {size: max(map(int, size.split(":"))) for size in offered}
    inputs = (
        processor(images_of(case), text=case["text"], return_tensors="pt", **case["settings"])
        if case["images"]
        else {}
    )
    tiles = inputs.get("pixel_values", ())
    numbers = inputs["tile_sizes"].tolist() if "tile_sizes" in inputs else [0] * len(tiles)
    left, found = iter(numbers), []
    ids, at = answer["prompt"], 0
    while at < len(ids):
        if ids[at] == processor.image_token_id:
            size = offered[next(left)]
            found += [ids[at]] * longest[size]
            at += tokens_before(size)
        else:
            found.append(ids[at])
            at += 1
    return answer | {"prompt": found}


def images_of(case: dict) -> list:
    from PIL import Image

    return [Image.open(path) for path in case["images"]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = {"all sizes": "qwen2", "no growth": "qwen3"}
    found = {}
    for name, arguments in MODELS.items():
        text = {"text_config": FOUR_LAYERS, **arguments}
        found[name] = save(folder / name.replace(" ", "_"), texts.get(name, "llama"), **text)
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("images")
    return {name: asked(folder, name) for name in MODELS}


@pytest.fixture(scope="module")
def found(checkpoints, cases, tmp_path_factory) -> dict[str, list]:
    """What every engine answers. They are slow to start: all prompts go to each, and all run in one process."""
    jobs = {
        name: {"model": str(checkpoints[name]), "options": ROOMY, "rounds": [cases[name], cases[name]]}
        for name in MODELS
    }
    jobs["all sizes"]["options"] = CROWDED
    package = installed_package(tmp_path_factory.mktemp("package"))
    return run_jobs(tmp_path_factory.mktemp("engines"), jobs, package, VLLM_ENABLE_V1_MULTIPROCESSING="0")


@pytest.fixture(scope="module")
def expected(checkpoints, cases) -> dict[str, list[dict]]:
    answers = {}
    for name, folder in checkpoints.items():
        model, processor = loaded(folder)
        answers[name] = [
            lengthened(reference(model, processor, case), processor, case, sizes_of(name)) for case in cases[name]
        ]
    return answers


@pytest.mark.parametrize("name", MODELS)
def test_each_size_gives_the_tokens_of_generate(found, expected, name):
    chosen = expected[name][2 : 2 + len(sizes_of(name))]
    assert len({tuple(answer["logprobs"]) for answer in chosen}) == len(chosen), "sizes give the same answer"
    for steps in found[name]:
        for answer, wanted in zip(steps["answers"], expected[name], strict=True):
            assert_same(answer, wanted)
    assert found[name][0]["mixed"] > 0


def test_requests_of_all_sizes_are_preempted_and_resumed(found):
    assert sum(steps["resumed"] for steps in found["all sizes"]) > 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "all sizes"])
def test_cached_prefixes_do_not_confuse_sizes(found, expected, name):
    """In the second round each prompt finds its own blocks, up to an image that changes."""
    again = found[name][1]["answers"]
    assert all(answer["cached"] > 0 for answer in again)
    if name != "plain":
        first_image = expected[name][2]["prompt"].index(IMAGE_TOKEN)
        unchanged, merged = again[2], again[2 + sizes_of(name).index("16:4")]
        assert unchanged["cached"] > first_image + 16
        assert merged["cached"] <= first_image


def test_merged_and_dropped_tokens_have_no_blocks(found):
    """The stage after the merge has fewer blocks than the long sequence."""
    blocks = [tuple(own) for own in found["no growth"][0]["blocks"]]
    assert any(len(set(counts)) > 1 for _, _, *counts in blocks)
    for long, _, *counts in blocks:
        assert max(counts) == -(-long // 32)
