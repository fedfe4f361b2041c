"""`max_image_tokens` among vLLM's `mm_processor_kwargs`: the images of a request share it, also where vLLM has cached some."""

import json
import subprocess

import pytest
from PIL import Image

from paths import HELPERS, ROOT
from tiny import LVTC, tiny_config
from vllm_engines import (
    ENVIRONMENT,
    HEADS,
    assert_same,
    environment,
    installed_package,
    loaded,
    prompt,
    reference,
    run_jobs,
    save,
)

CONFIG = tiny_config(**LVTC)
TOKENS, EXPANDED = CONFIG.image_seq_length, CONFIG.expanded_image_seq_length
GEOMETRY = LVTC | {"text_config": HEADS | {"num_hidden_layers": 4}}
SMALL, ENGINE = {"max_image_tokens": 4 * TOKENS}, {"max_image_tokens": 6 * TOKENS}
# images in the order in which the cache gets to know them: the same image takes fewer tiles beside others
REQUESTS = [
    (["many"], {}),
    (["many", "wide"], {}),
    (["wide", "many", "one"], {}),
    (["many", "many"], {}),
    (["many", "wide"], SMALL),
    (["many", "wide"], {"images_kwargs": SMALL}),
    (["wide", "many"], {**SMALL, "max_patches": 2}),
    (["many", "wide"], {}),
]
WRONG = [(["one"] * 7, {}), (["one"], {"max_image_tokens": TOKENS - 1}), (["one"], {"max_image_token": 4})]


@pytest.mark.parametrize("overlay", [None, ROOT / "build/vllm_oldest"], ids=["newest", "oldest"])
def test_images_of_a_request_share_a_budget(tmp_path, tmp_path_factory, overlay):
    checkpoint = save(tmp_path / "model", **GEOMETRY)
    requests = []
    for names, settings in [*REQUESTS, *WRONG]:
        paths = prompt(tmp_path, "", *names)["images"]
        requests += [{"images": paths, "settings": settings, "cached": cached} for cached in (True, True, False)]
    job = {"model": str(checkpoint), "mm_processor_kwargs": ENGINE, "requests": requests}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [ENVIRONMENT / "bin/python", HELPERS / "vllm_budget.py", "job.json", "out.json"],
        cwd=tmp_path,
        env=environment(tmp_path, installed_package(tmp_path_factory.mktemp("package"), overlay)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = json.loads((tmp_path / "out.json").read_text())
    _, processor = loaded(checkpoint)
    for request, answer in zip(requests, found["requests"], strict=True):
        settings = request["settings"].get("images_kwargs", request["settings"])
        settings = ENGINE | {name: value for name, value in settings.items() if name != "max_image_token"}
        if isinstance(answer, str):
            assert any(reason in answer for reason in ("is too small", "Unknown setting 'max_image_token'")), answer
            continue
        images = [Image.open(path) for path in request["images"]]
        sizes = [(image.height, image.width) for image in images]
        tiles, placeholders = answer
        assert tiles == processor._get_num_multimodal_tokens(sizes, **settings).num_image_patches
        assert sum(tiles) * TOKENS <= settings["max_image_tokens"]
        assert placeholders == sum(tiles) * EXPANDED
    assert [isinstance(answer, str) for answer in found["requests"]] == [False] * 3 * len(REQUESTS) + [True] * 9
    assert found["most"] == 6 * EXPANDED


def test_an_engine_answers_as_generate_does_also_about_cached_images(tmp_path, tmp_path_factory):
    checkpoint = save(tmp_path / "model", **GEOMETRY)
    cases = [
        prompt(tmp_path, "Read.", *names, lead=12, **ENGINE)
        for names in (["many"], ["many", "wide"], ["many", "many"])
    ]
    options = {"max_num_batched_tokens": 224}
    # one after the other, so that a later request finds the images of earlier ones in vLLM's caches; then all again
    job = {"model": str(checkpoint), "options": options, "rounds": [*([case] for case in cases), cases]}
    package = installed_package(tmp_path_factory.mktemp("package"))
    rounds = run_jobs(tmp_path, {"budget": job}, package, VLLM_ENABLE_V1_MULTIPROCESSING="0")["budget"]
    model, processor = loaded(checkpoint)
    expected = [reference(model, processor, case) for case in cases]
    for answer in expected:  # as vLLM has it: with stage two's tokens for every tile
        factor = [EXPANDED // TOKENS if token == CONFIG.image_token_id else 1 for token in answer["prompt"]]
        answer["prompt"] = [token for token, times in zip(answer["prompt"], factor, strict=True) for _ in range(times)]
    found = [answer for each in rounds for answer in each["answers"]]
    for answer, wanted in zip(found, [*expected, *expected], strict=True):
        assert_same(answer, wanted)
