"""Model Runner V2's state for LVTC prepares what the forward would compute, in buffers that a CUDA graph can read."""

import json
import subprocess

import pytest
import torch

from paths import HELPERS, ROOT
from tiny import LVTC
from vllm_engines import ENVIRONMENT, HEADS, environment, installed_package, save

CHECKS = (
    "decode_steps_have_the_metadata_of_the_forward_in_one_storage",
    "captured_metadata_have_the_values_of_each_replay",
    "text_prefill_is_prepared_and_image_steps_are_not",
    "decode_steps_read_nothing_on_the_host",
    "drafts_behind_a_prompt_count_on_from_it",
)


@pytest.fixture(scope="module", params=["newest", "oldest"])
def report(request, tmp_path_factory) -> dict:
    oldest = ROOT / "build/vllm_oldest"
    if request.param == "oldest" and not oldest.is_dir():
        pytest.skip("needs vLLM 0.31 in build/vllm_oldest")
    folder = tmp_path_factory.mktemp("model_state")
    packages = [ROOT / "src"] if request.param == "newest" else [oldest, ROOT / "src"]
    command = [ENVIRONMENT / "bin/python", HELPERS / "vllm_model_state.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, packages), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_model_runner_v2(report, check):
    assert f"check_{check}" in report["checks"]
    assert f"check_{check}" not in report["failed"], report["failed"][f"check_{check}"]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and vLLM for it; the tests above are its counterpart"
)
def test_smoke_script_replays_graphs(tmp_path):
    checkpoint = save(tmp_path / "checkpoint", "qwen2", text_config=HEADS | {"num_hidden_layers": 4}, **LVTC)
    command = [ENVIRONMENT / "bin/python", ROOT / "integrations/vllm/smoke.py", checkpoint]
    done = subprocess.run(
        command, env=environment(tmp_path, installed_package(tmp_path)), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "graphs were replayed" in done.stdout
