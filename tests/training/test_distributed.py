"""Two processes train as one does: DDP, FSDP2 and DeepSpeed, started by accelerate with the configurations we ship.

Tolerances are 1e-4 on losses of 3 to 6, the same sums in another order; found is 1e-6.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from accelerate.utils import merge_fsdp_weights

import forked
from distributed_process import (
    CASES,
    STEPS,
    adamw,
    evaluate,
    model_of,
    run_steps,
    taught_steps,
    teacher_model,
    torch_update,
)
from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.training.size_sampling import size_of_step
from paths import HELPERS, ROOT
from training_helpers import losses, run, save_checkpoint, save_dial, saved_weights, write_config, write_data
from versions import is_older, needs_transformers

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIGS = ROOT / "configs" / "accelerate"
STEADY = {"projector_config": {"drop_path_rate": 0.0}, "text_config": {"initializer_range": 0.05}}


def launch(config: str, task: str, folder: Path) -> None:
    """Two processes of `distributed_process.py`."""
    done = start(config, [str(HELPERS / "distributed_process.py"), task, str(folder)], folder)
    assert done.returncode == 0, done.stderr[:6000]


def start(config: str, arguments: list[str], folder: Path) -> CompletedProcess:
    """Two processes, by `accelerate launch`, in float32."""
    command = [
        *(
            HELPERS / "launch_process.py",
            "distributed_process,internvlx_hf.training.train",
            "accelerate.commands.launch",
        ),
        *("--config_file", CONFIGS / f"{config}.yaml"),
        *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
        *arguments,
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    return forked.python(*command, env=environment)


def results(folder: Path, name: str) -> list[dict]:
    """What the two processes found."""
    found = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    assert [(result["world size"], result["backend"]) for result in found] == [(2, "gloo")] * 2
    return found


def logged_losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    """`runs/` of two processes; `base` and `data` for one of its own. Batches are of like cost: some are text alone."""
    folder = tmp_path_factory.mktemp("ddp")
    base, data = save_checkpoint(folder / "base", **STEADY), write_data(folder / "data")
    common = {"model_name_or_path": str(base), "train_data": str(data), "max_steps": 20, "save_steps": 10}
    runs = {
        "1_whole": {"output_dir": str(folder / "whole")},
        "2_resumed": {
            "output_dir": str(folder / "resumed"),
            "resume_from_checkpoint": str(folder / "whole" / "checkpoint-10"),
        },
        "3_taught": taught_settings(folder, save_checkpoint(folder / "teacher", seed=1, downsample_ratio=0.5)),
    }
    if is_older("5.18"):
        del runs["2_resumed"]
    (folder / "runs").mkdir()
    for name, settings in runs.items():
        shutil.move(write_config(folder, **(common | settings)), folder / "runs" / f"{name}.yaml")
    launch("ddp", "ddp", folder / "runs")
    return folder, common


def taught_settings(folder: Path, teacher: Path) -> dict:
    settings = {"teacher": str(teacher), "teacher_dtype": "float32", "teacher_slicing": "ratio"}
    order = {"train_sampling_strategy": "sequential", "max_steps": 3, "save_strategy": "no"}
    return {"output_dir": str(folder / "taught")} | settings | order


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    launch("fsdp2", "fsdp2", folder)
    return folder


@needs_transformers("5.18", "DDP on CPUs does not resume")
def test_ddp_trains_resumes_and_saves_as_one_process_does(ddp, monkeypatch):
    """With `internvlx train` and LVTC."""
    folder, common = ddp
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    first, second = (result["text only"] for result in results(folder / "runs", "1_whole"))
    assert first + second >= 5
    assert first != second
    alone = run(folder, **common, output_dir=str(folder / "alone"), per_device_train_batch_size=4)
    assert len(losses(alone)) == 20
    assert logged_losses(folder / "whole") == pytest.approx(losses(alone), abs=1e-4)
    assert losses(alone)[-1] < 0.7 * losses(alone)[0]

    assert logged_losses(folder / "resumed") == logged_losses(folder / "whole")
    whole, resumed = (saved_weights(folder / name) for name in ("whole", "resumed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    for saved in ("whole", "whole/checkpoint-20"):
        model, info = InternVLXForConditionalGeneration.from_pretrained(folder / saved, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(weight, whole[name]) for name, weight in model.state_dict().items() if name in whole)


def test_ddp_with_a_teacher_trains_as_one_process_in_two_batches_per_step(ddp):
    """1e-4: the same sums in another order."""
    folder, common = ddp
    settings = common | taught_settings(folder, folder / "teacher") | {"gradient_accumulation_steps": 2}
    alone = run(folder, **settings | {"output_dir": str(folder / "taught alone")})
    history = json.loads((folder / "taught" / "trainer_state.json").read_text())["log_history"]
    for name in ("loss", "ce_loss", "teacher_kl"):
        found, expected = (
            [entry[name] for entry in each if name in entry] for each in (history, alone.state.log_history)
        )
        assert len(found) == 3
        assert found == pytest.approx(expected, abs=1e-4)
    weights = saved_weights(folder / "taught alone")
    for name, weight in saved_weights(folder / "taught").items():
        torch.testing.assert_close(weight, weights[name], atol=1e-4, rtol=1e-3)


def test_fsdp2_trains_resumes_and_saves_as_one_process_does(fsdp2):
    """Accelerate's own sharding, by fsdp2.yaml; evaluation included, in which a process has text alone."""
    for case in CASES:
        model = model_of(case)
        expected = run_steps(model, torch_update(model, adamw(model)), range(STEPS))
        for found in results(fsdp2, f"fsdp2.{case}"):
            assert found["losses"] == pytest.approx(expected, abs=1e-4)
            assert found["resumed"] == found["losses"][STEPS // 2 :]
            assert found["differing"] == []
            assert found["evaluation"] == pytest.approx(evaluate(model), abs=1e-4)
            assert found["units"]["Qwen2DecoderLayer"] == 4
            assert found["units"]["InternVLVisionLayer"] == 2
            assert found["units"]["PVTCProjector"] == 1
            assert found["share"] < 0.52

        full = fsdp2 / case / "full"
        loaded, info = InternVLXForConditionalGeneration.from_pretrained(full, output_loading_info=True)
        assert not any(info.values())
        assert loaded.config.architectures == ["InternVLXForConditionalGeneration"]
        assert (full / "modeling_internvlx.py").is_file()
        assert_close_but_trained(loaded, model, model_of(case))

        # the sharded checkpoint of step 10, by way of `accelerate merge-weights`
        merged = fsdp2 / case / "merged"
        merge_fsdp_weights(str(fsdp2 / case / "pytorch_model_fsdp_0"), str(merged))
        halfway = model_of(case)
        run_steps(halfway, torch_update(halfway, adamw(halfway)), range(STEPS // 2))
        shutil.copy(full / "config.json", merged)
        assert_close_but_trained(InternVLXForConditionalGeneration.from_pretrained(merged), halfway, model_of(case))

    model = model_of("lvtc_on")
    expected = taught_steps(model, teacher_model(), torch_update(model, adamw(model)))
    for found in results(fsdp2, "fsdp2.teacher"):
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(expected), atol=1e-4, rtol=0)
        assert [each.get("PVTCProjector", 0) for each in found["units"]] == [1, 0]
        assert [each["Qwen2DecoderLayer"] for each in found["units"]] == [4, 4]

    (bf16, again), model = results(fsdp2, "fsdp2.bf16"), model_of("lvtc_on")
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


def test_processes_of_which_one_cannot_read_its_samples_save_together(tmp_path):
    write_data(tmp_path / "data")
    lines = (tmp_path / "data" / "data.jsonl").read_text().splitlines()
    record = json.loads(lines[8])
    lines[8] = json.dumps(record | {"images": [str(tmp_path / "deleted.png")]})
    (tmp_path / "data" / "data.jsonl").write_text("\n".join(lines))
    config = write_config(
        tmp_path, streaming=True, shuffle_buffer=1, per_device_train_batch_size=1, save_strategy="no"
    )
    done = start("ddp", ["-m", "internvlx_hf.training", config], tmp_path)
    assert done.returncode
    assert "deleted.png" in done.stderr
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "trainer_state.json", "failure.txt"}
    assert not list((tmp_path / "out").glob(".*"))


def test_two_processes_train_the_sizes_of_one(tmp_path):
    """DDP, with batches of which some are text alone; 1e-4: the same sums in another order.

    Sizes are drawn for each step, from data in memory or a stream; or thumbnails have another size than other tiles, so
    that a process may lack a size that the other has.
    """
    base, data = save_dial(tmp_path / "base"), write_data(tmp_path / "data")
    common = {"model_name_or_path": base, "train_data": str(data), "max_steps": 6, "save_strategy": "no"}
    drawn = {"tokens_per_tile_sampling": {"16": 1, "4": 2, "4:16": 2}}
    runs = {
        "drawn": {**drawn, "train_sampling_strategy": "group_by_cost"},
        "streamed": {**drawn, "streaming": True, "train_sampling_strategy": "sequential"},
        "mixed": {"tokens_per_tile": "16:4+4:16", "train_sampling_strategy": "group_by_cost"},
    }
    (tmp_path / "runs").mkdir()
    for name, settings in runs.items():
        config = write_config(tmp_path, **common, **settings, output_dir=str(tmp_path / f"{name} by two"))
        shutil.move(config, tmp_path / "runs" / f"{name}.yaml")
    launch("ddp", "ddp", tmp_path / "runs")
    for name, settings in runs.items():
        alone = run(tmp_path, **common, **settings, output_dir=str(tmp_path / name), per_device_train_batch_size=4)
        assert logged_losses(tmp_path / f"{name} by two") == pytest.approx(losses(alone), abs=1e-4)
        weights = saved_weights(tmp_path / name)
        for parameter, weight in saved_weights(tmp_path / f"{name} by two").items():
            torch.testing.assert_close(weight, weights[parameter], atol=1e-4, rtol=1e-3)
    assert len({size_of_step({0: 1.0, 1: 2.0, 2: 2.0}, 42, step) for step in range(6)}) > 1
