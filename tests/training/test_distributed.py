"""Two processes train as one does: DDP, FSDP2 and DeepSpeed, started by accelerate with the configurations we ship.

Tolerances are 1e-4 on losses of 3 to 6, the same sums in another order; found is 1e-6.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import merge_fsdp_weights

from distributed_process import CASES, STEPS, adamw, evaluate, model_of, run_steps, torch_update
from internvlx_hf import InternVLXForConditionalGeneration
from paths import HELPERS, ROOT
from training_helpers import losses, run, save_checkpoint, saved_weights, write_config, write_data
from versions import needs_transformers

CONFIGS = ROOT / "configs" / "accelerate"
STEADY = {"projector_config": {"drop_path_rate": 0.0}, "text_config": {"initializer_range": 0.05}}


def launch(config: str, task: str, folder: Path) -> None:
    """Two processes of `distributed_process.py`, by `accelerate launch`, in float32."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")),
        *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
        *(str(HELPERS / "distributed_process.py"), task, str(folder)),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


def results(folder: Path, name: str) -> list[dict]:
    """What the two processes found."""
    found = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    assert [(result["world size"], result["backend"]) for result in found] == [(2, "gloo")] * 2
    return found


def logged_losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@needs_transformers("5.18", "DDP on CPUs does not resume")
def test_ddp_trains_resumes_and_saves_as_one_process_does(tmp_path, monkeypatch):
    """With `internvlx train`, LVTC and batches of like cost, so that a process often has text alone."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base, data = save_checkpoint(tmp_path / "base", **STEADY), write_data(tmp_path / "data")
    common = {"model_name_or_path": str(base), "train_data": str(data), "max_steps": STEPS, "save_steps": STEPS // 2}
    runs = {
        "1_whole": {"output_dir": str(tmp_path / "whole")},
        "2_resumed": {
            "output_dir": str(tmp_path / "resumed"),
            "resume_from_checkpoint": str(tmp_path / "whole" / f"checkpoint-{STEPS // 2}"),
        },
    }
    (tmp_path / "runs").mkdir()
    for name, settings in runs.items():
        shutil.move(write_config(tmp_path, **common, **settings), tmp_path / "runs" / f"{name}.yaml")
    launch("ddp", "ddp", tmp_path / "runs")

    first, second = (result["text only"] for result in results(tmp_path / "runs", "1_whole"))
    assert first + second >= STEPS // 4
    assert first != second
    alone = run(tmp_path, **common, output_dir=str(tmp_path / "alone"), per_device_train_batch_size=4)
    assert len(losses(alone)) == STEPS
    assert logged_losses(tmp_path / "whole") == pytest.approx(losses(alone), abs=1e-4)
    assert losses(alone)[-1] < 0.7 * losses(alone)[0]

    assert logged_losses(tmp_path / "resumed") == logged_losses(tmp_path / "whole")
    whole, resumed = (saved_weights(tmp_path / name) for name in ("whole", "resumed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    for folder in ("whole", f"whole/checkpoint-{STEPS}"):
        model, info = InternVLXForConditionalGeneration.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(weight, whole[name]) for name, weight in model.state_dict().items() if name in whole)


def test_fsdp2_trains_resumes_and_saves_as_one_process_does(tmp_path):
    """Accelerate's own sharding, by fsdp2.yaml; evaluation included, in which a process has text alone."""
    launch("fsdp2", "fsdp2", tmp_path)
    for case in CASES:
        model = model_of(case)
        expected = run_steps(model, torch_update(model, adamw(model)), range(STEPS))
        for found in results(tmp_path, f"fsdp2.{case}"):
            assert found["losses"] == pytest.approx(expected, abs=1e-4)
            assert found["resumed"] == found["losses"][STEPS // 2 :]
            assert found["differing"] == []
            assert found["evaluation"] == pytest.approx(evaluate(model), abs=1e-4)
            assert found["units"]["Qwen2DecoderLayer"] == 4
            assert found["units"]["InternVLVisionLayer"] == 2
            assert found["units"]["PVTCProjector"] == 1
            assert found["share"] < 0.52

        full = tmp_path / case / "full"
        loaded, info = InternVLXForConditionalGeneration.from_pretrained(full, output_loading_info=True)
        assert not any(info.values())
        assert loaded.config.architectures == ["InternVLXForConditionalGeneration"]
        assert (full / "modeling_internvlx.py").is_file()
        assert_close_but_trained(loaded, model, model_of(case))

        # the sharded checkpoint of step 10, by way of `accelerate merge-weights`
        merged = tmp_path / case / "merged"
        merge_fsdp_weights(str(tmp_path / case / "pytorch_model_fsdp_0"), str(merged))
        halfway = model_of(case)
        run_steps(halfway, torch_update(halfway, adamw(halfway)), range(STEPS // 2))
        shutil.copy(full / "config.json", merged)
        assert_close_but_trained(InternVLXForConditionalGeneration.from_pretrained(merged), halfway, model_of(case))

    (bf16, again), model = results(tmp_path, "fsdp2.bf16"), model_of("lvtc_on")
    assert bf16 == again
    # losses in bfloat16's 8 bits
    expected = run_steps(model, torch_update(model, adamw(model)), range(2))
    assert bf16["losses"] == pytest.approx(expected, abs=0.05)


def assert_close_but_trained(found, expected, untrained) -> None:
    untrained = untrained.state_dict()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=1e-4, rtol=1e-3)
        assert not torch.equal(weight, untrained[name]), f"{name} was not trained"


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_as_one_process_does(stage, tmp_path):
    """DeepSpeed's own engine; evaluation included, in which a process has text alone."""
    launch(f"deepspeed_zero{stage}", "deepspeed", tmp_path)
    for case in CASES:
        model = model_of(case)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

        def update(loss: torch.Tensor, optimizer=optimizer) -> None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        expected = run_steps(model, update, range(STEPS))
        for found in results(tmp_path, f"deepspeed.{case}"):
            assert found["losses"] == pytest.approx(expected, abs=1e-4)
            assert found["evaluation"] == pytest.approx(evaluate(model), abs=1e-4)
            assert found["stage"] == stage
            assert (found["sharded"] == len(list(model.parameters()))) == (stage == 3)
