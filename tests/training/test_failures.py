"""A training that diverges says so and replaces no model; one that fails keeps its steps; a folder has one run at a time."""

import json
import multiprocessing
import os
import re
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from internvlx_hf.cli import main
from internvlx_hf.training.resuming import locked_output
from training_helpers import changed, losses, run, saved_weights, write_config

HEALED = {"max_grad_norm": 0.0, "optim": "sgd"}


class Before(TrainerCallback):
    """Acts before a step, with the model."""

    def __init__(self, act, *steps):
        self.act, self.steps = act, steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 in self.steps:
            self.act(model)


@pytest.fixture
def before(monkeypatch):
    def add(act, *steps):
        monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, Before(act, *steps)])

    return add


@torch.no_grad()
def poison(model):
    next(each for each in model.parameters() if each.requires_grad).fill_(torch.nan)


def spoil_loss(model):
    """Makes the next loss NaN and leaves the model as it is."""

    def forward(*_):
        handle.remove()
        return {"loss": torch.tensor(torch.nan, requires_grad=True) * 1}

    handle = model.register_forward_hook(forward)


def checkpoints(out):
    return sorted(path.name for path in out.glob("checkpoint-*"))


# -- divergence


@pytest.mark.slow
def test_a_training_that_diverges_says_so_and_saves_nothing_after_it(tmp_path, capsys):
    settings = {"learning_rate": 1e30, "max_steps": 8, "save_strategy": "no"}
    assert main(["train", write_config(tmp_path, **settings)]) == 1
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    match = re.search(
        r"has diverged: the loss was NaN or infinite in steps (\d) to (\d), at a learning rate of (\S+)\. ", last
    )
    assert int(match[2]) == int(match[1]) + 2 < 8, last
    assert float(match[3]) > 1e29
    assert "loss nan" in printed.out
    assert "holds the trained" not in printed.out
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert checkpoints(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--lora_rank", "2")], ids=["full", "LoRA"])
@pytest.mark.parametrize("settings", [{"save_steps": 1}, {"save_strategy": "no"}], ids=["checkpoint", "final"])
def test_a_model_that_is_not_finite_is_not_saved(settings, flags, before, tmp_path, capsys):
    before(poison, 2)
    assert main(["train", write_config(tmp_path, max_steps=2, **settings), *flags]) == 1
    assert re.search(
        r"after step 2, \d+ of \d+ trained parameters \(\S+ first\) are NaN or infinite\. Nothing was saved\.",
        capsys.readouterr().err,
    )
    assert checkpoints(tmp_path / "out") == (["checkpoint-1"] if "save_steps" in settings else [])
    assert not list((tmp_path / "out").glob("*model*.safetensors"))


@pytest.mark.slow
def test_losses_that_are_not_finite_are_left_out_of_means_only_on_request(before, tmp_path):
    before(spoil_loss, 2)
    trainer = run(tmp_path, logging_nan_inf_filter=True, save_strategy="no", max_steps=3, **HEALED)
    assert all(loss == loss for loss in losses(trainer))


# -- failures


@pytest.mark.slow
def test_a_failed_run_keeps_its_steps_and_resumes_from_them(before, tmp_path, capsys):
    whole = run(tmp_path, save_strategy="no")
    images = sorted((tmp_path / "data").glob("*.png"))
    contents = {image: image.read_bytes() for image in images}
    before(lambda model: [image.unlink(missing_ok=True) for image in images], 3)
    config = write_config(tmp_path, output_dir=str(tmp_path / "failed"), save_strategy="no")
    assert main(["train", config]) == 1
    assert ".png' does not exist" in capsys.readouterr().err
    (name,) = checkpoints(tmp_path / "failed")
    assert name in ("checkpoint-2", "checkpoint-3")
    assert "png" in (tmp_path / "failed" / name / "failure.txt").read_text()

    for image, content in contents.items():
        image.write_bytes(content)
    before(lambda model: None)
    assert main(["train", config, "--resume_from_checkpoint", "last"]) == 0
    assert changed(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "failed")) == set()
    assert whole.state.global_step == 6


@pytest.mark.slow
def test_a_killed_worker_ends_a_run_that_keeps_its_steps(before, tmp_path, capsys):
    def kill(model):
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(60)  # until torch raises

    before(kill, 3)
    assert main(["train", write_config(tmp_path, save_strategy="no", dataloader_num_workers=1)]) == 1
    assert re.search(r"internvlx: RuntimeError: DataLoader worker \(pid.* killed", capsys.readouterr().err)
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]


@pytest.mark.slow
def test_a_failure_before_the_first_step_leaves_nothing(before, tmp_path):
    def fail(model):
        raise OSError("the disk is full")

    before(fail, 1)
    assert main(["train", write_config(tmp_path)]) == 1
    assert checkpoints(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_terminal_that_closes_stops_a_run_as_ctrl_c_does(number, before, tmp_path, capsys, request):
    ignored_by_nohup = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, ignored_by_nohup))
    before(lambda model: os.kill(os.getpid(), number), 2)
    assert main(["train", write_config(tmp_path, save_strategy="no")]) == 130
    assert "stopped after step 2 of 6; resume with" in capsys.readouterr().err
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]


# -- one run at a time


def test_a_second_run_into_a_folder_is_refused_and_learns_of_the_first(tmp_path, capsys):
    arguments = SimpleNamespace(process_index=0, output_dir=str(tmp_path / "out"))
    with locked_output(arguments):
        assert main(["train", write_config(tmp_path)]) == 1
        held = rf"writing .*out \(process {os.getpid()} on {re.escape(socket.gethostname())}, since .*\)\. Wait for it"
        assert re.search(held, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_holds_the_lock_while_it_trains_and_leaves_no_file(before, tmp_path):
    def enter(model):
        with pytest.raises(BlockingIOError), locked_output(arguments):
            pass

    arguments = SimpleNamespace(process_index=0, output_dir=str(tmp_path / "out"))
    before(enter, 2, 6)
    assert main(["train", write_config(tmp_path)]) == 0
    assert not list((tmp_path / "out").glob(".*"))


# -- checkpoints that were cut short


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder, max_steps=4, save_steps=2)
    return folder


FILES = ("model.safetensors", "scheduler.pt", "optimizer.pt", "rng_state.pth", "trainer_state.json", "config.json")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "share"), [(file, 0.5) for file in FILES] + [(file, 0) for file in FILES[:5:2]])
def test_the_checkpoint_before_a_damaged_one_is_used_and_said(file, share, finished, monkeypatch, capsys):
    seen, path = [], finished / "out" / "checkpoint-4" / file
    monkeypatch.setattr("internvlx_hf.training.resuming.logger.warning", seen.append)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    settings = {"max_steps": 4, "save_steps": 9}
    try:
        config = write_config(finished, **settings, resume_from_checkpoint=str(path.parent))
        assert main(["train", config]) == 1
        assert f"{file} of {path.parent} is damaged or was cut short" in capsys.readouterr().err
        config = write_config(finished, **settings, save_strategy="no", resume_from_checkpoint="last")
        assert main(["train", config]) == 0
        (message,) = seen
        assert f"{file} of {path.parent} is damaged" in message
        assert f"RESUMING FROM THE CHECKPOINT BEFORE, {finished / 'out' / 'checkpoint-2'}" in message
        state = json.loads((finished / "out" / "trainer_state.json").read_text())
        assert [each["step"] for each in state["log_history"] if "loss" in each] == [1, 2, 3, 4]
    finally:
        path.write_bytes(content)
