"""The console of a training: a summary of the data, then a line for each log, also where its output is piped."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import PrinterCallback, ProgressCallback

from internvlx_hf.checkpoints.numbers import duration, thousands
from internvlx_hf.data.sizes import SampleSizes
from internvlx_hf.training import console
from internvlx_hf.training.console import ConsoleCallback, fitted
from internvlx_hf.training.data_summary import data_summary
from internvlx_hf.training.run_data import RunData
from tiny import LVTC, tiny_config
from training_helpers import run, write_data

LOGS = {
    "loss": 1.23456,
    "learning_rate": 4e-5,
    "grad_norm": 0.5,
    "epoch": 0.2,
    "text_tokens_per_second": 1234.0,
    "stage_one_tokens_per_second": 340.0,
    "stage_two_tokens_per_second": 1360.0,
    "tiles_seen": 7,
}


@pytest.fixture
def lines(capsys):
    """What a callback prints of logs: (step, logs) at a second per step from step 0 of 1,000 on."""

    def printed(*logs, is_first=True, **kwargs):
        state = SimpleNamespace(global_step=0, max_steps=1000, is_world_process_zero=is_first)
        callback = ConsoleCallback(clock=lambda: 60.0 + state.global_step, **kwargs)
        callback.on_train_begin(None, state, None)
        for state.global_step, each in logs:
            callback.on_step_end(None, state, None)
            callback.on_log(None, state, None, each)
        callback.on_train_end(None, state, None)
        return capsys.readouterr().out.splitlines()

    return printed


def test_a_log_is_one_line(lines):
    first, second = lines((10, LOGS), (20, {"loss": 0.5}))
    assert first == (
        "step    10/1,000  loss 1.235  lr 4.00e-05  grad 0.5  text 1.23k/s  image 340 → 1.36k/s  1 s/step  0:16:30 left"
    )
    assert second == "step    20/1,000  loss 0.5  1 s/step  0:16:20 left"


def test_without_an_expansion_image_tokens_have_one_rate(lines):
    (line,) = lines((10, LOGS | {"stage_two_tokens_per_second": 340.0}))
    assert "image 340/s" in line


def test_evaluations_and_the_end_are_a_line_each(lines):
    evaluation = {"eval_loss": 2.34567, "eval_runtime": 75.0, "eval_samples_per_second": 3.0, "epoch": 1.0}
    end = {"train_runtime": 125.0, "train_loss": 1.5, "train_samples_per_second": 1.0, "total_flos": 1e9}
    other = {"reward": 0.25, "note": "text"}
    assert lines((20, evaluation), (20, end), (20, other)) == [
        "step    20/1,000  eval_loss 2.346  in 0:01:15",
        "trained 20 steps in 0:02:05, mean loss 1.5",
        "step    20/1,000  reward 0.25  note text",
    ]


def test_other_processes_print_nothing(lines):
    assert lines((10, LOGS), is_first=False) == []


def test_a_narrow_terminal_gets_fewer_numbers(lines, monkeypatch):
    monkeypatch.setattr(console, "line_width", lambda: 80)
    (line,) = lines((10, LOGS))
    assert len(line) <= 80
    for kept in ("loss", "lr", "image", "left"):
        assert f"{kept}" in line
    assert "grad" not in line
    assert fitted({"step": "a", "grad": "b"}, None) == "a  b"


def test_a_terminal_keeps_its_progress_bar(lines, capsys):
    (line,) = [line for line in lines((10, {"loss": 0.5}), show_bar=True) if "loss" in line]
    assert line.strip().startswith("step    10/1,000  loss 0.5")


def test_numbers_are_short():
    assert [thousands(value) for value in (0.5, 999, 1234, 56_700, 2.5e6, 3e9)] == [
        "0.5",
        "999",
        "1.23k",
        "56.7k",
        "2.5M",
        "3G",
    ]
    assert [duration(value) for value in (0.123, 59, 61, 3723)] == ["0.12 s", "59 s", "0:01:01", "1:02:03"]


def test_the_summary_states_what_was_skipped_and_truncated():
    sizes = SampleSizes(*np.array([[10, 20, 0, 30], [1, 2, 0, 0], [1, 1, 0, 0], [5, 5, 0, 5], [0, 1, 0, 0]]))
    sources = [{"name": "a.jsonl", "samples": 2, "repeat_time": 2.0}, {"name": "stream"}]
    data = RunData([0] * 4, None, sizes=sizes, sources=sources, settings={"max_length": 30}, skipped={"too_long": 1})
    arguments = SimpleNamespace(
        train_batch_size=1,
        world_size=2,
        gradient_accumulation_steps=1,
        dataloader_drop_last=False,
        max_steps=-1,
        num_train_epochs=3,
    )
    text = data_summary(data, arguments, tiny_config(**LVTC))
    rows = [line.split() for line in text.splitlines()]
    assert ["a.jsonl", "train", "2", "2", "4"] in rows
    assert ["stream", "train", "?", "?"] in rows
    assert ["tiles", "1.0", "1", "2"] in rows
    assert ["tokens", "in", "stage", "one", "20.0", "20", "30"] in rows
    assert ["tokens", "in", "stage", "two", "32.0", "30", "44"] in rows
    assert "Skipped: 1 sample, longer than max_length=30 (see the warnings above)." in text
    assert "Truncated: 1 sample, to max_length=30." in text
    assert "Supervised: 25.0% of all tokens." in text
    assert text.endswith("\n6 steps, 2 samples per step; 2 steps per epoch")
    assert "tokens in stage" not in data_summary(data, arguments, tiny_config())


@pytest.mark.slow
def test_a_piped_training_prints_the_summary_and_plain_lines(tmp_path, capsys, monkeypatch):
    write_data(tmp_path / "data", 4)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    trainer = run(tmp_path, max_steps=2, save_strategy="no", packing_tokens=100, disable_tqdm=False)
    printed = capsys.readouterr().out
    assert "of 100 tokens" in printed
    assert printed.index("per sample") < printed.index("model.lvtc") < printed.index("step 1/2  loss ")
    (line,) = [line for line in printed.splitlines() if line.startswith("step 2/2")]
    assert "tokens" not in line
    assert "/s  " in line
    assert "{" not in printed
    kinds = [type(each) for each in trainer.callback_handler.callbacks]
    assert kinds.count(ConsoleCallback) == 1
    assert not {PrinterCallback, ProgressCallback} & set(kinds)
