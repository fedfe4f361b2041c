# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Errors on the command line: one line and an exit status, and a traceback only with `--debug`."""

import json

import pytest

import forked
from commands import internvlx
from internvlx_hf.cli import COMMANDS, main
from internvlx_hf.commands import card, train


def failing(error: BaseException):
    def fail(arguments):
        raise error

    return fail


class Panic(BaseException):
    """Like `pyo3_runtime.PanicException`, which is not an `Exception`."""


def test_an_unknown_command_exits_with_two_and_lists_the_commands():
    done = forked.python("-m", "internvlx_hf", "konvert", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"internvlx: there is no command 'konvert', expected one of {', '.join(COMMANDS)}\n"


@pytest.mark.slow
def test_a_failing_command_exits_with_one_and_prints_one_line(tmp_path):
    done = forked.python("-m", "internvlx_hf", "card", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("internvlx: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--debug", "card"], ["card", "--debug"]])
def test_debug_adds_a_traceback_to_the_same_line(tmp_path, capsys, arguments):
    error = internvlx(capsys, *arguments, tmp_path / "nowhere", status=1).err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("internvlx: ")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no\n number"), KeyError("name"), MemoryError(), ImportError("no module"), RecursionError("deep"),
        RuntimeError("torch"), AssertionError(), Panic("rust"),
    ],
)  # fmt: skip
def test_an_unexpected_error_is_one_line_that_names_debug(monkeypatch, capsys, error):
    monkeypatch.setattr(card, "main", failing(error))
    assert main(["card"]) == 1
    text = " ".join(str(error).split())
    assert capsys.readouterr().err == f"internvlx: {type(error).__name__}: {text} (--debug shows where)\n"
    assert "in fail" in internvlx(capsys, "card", "--debug", status=1).err


@pytest.mark.parametrize("error", [ValueError("a value"), FileNotFoundError(2, "No such file", "a.json")])
def test_an_expected_error_is_its_message(monkeypatch, capsys, error):
    monkeypatch.setattr(card, "main", failing(error))
    assert internvlx(capsys, "card", status=1).err == f"internvlx: {error}\n"


def test_debug_after_train_is_an_option_of_the_trainer(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "main", seen.append)
    assert main(["--debug", "train", "--debug", "underflow_overflow"]) == 0
    assert seen == [["--debug", "underflow_overflow"]]


@pytest.mark.parametrize("option", ["--max-image-tokens=300", "--max_image_tokens=300"])
def test_options_are_spelt_with_dashes_or_underscores(option, capsys):
    assert (
        json.loads(internvlx(capsys, "cost", "--size", "640x480", "--json", option).out)["settings"][0][
            "max_image_tokens"
        ]
        == 300
    )


def test_only_options_are_respelt(monkeypatch):
    seen = []
    monkeypatch.setattr(card, "main", seen.append)
    assert main(["card", "a_b", "--an_option=--its_value", "--", "--a_file"]) == 0
    assert seen == [["a_b", "--an-option=--its_value", "--", "--a_file"]]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_a_misspelt_option_is_named_with_the_nearest(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--hepl"])
    assert stopped.value.code == 2
    assert "there is no option --hepl. Did you mean --help?" in capsys.readouterr().err
