# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What the command line says when something fails: one line and a status, and a traceback only for `--debug`."""

import subprocess
import sys
from pathlib import Path

import pytest

from internvlx_hf.cli import COMMANDS, main
from internvlx_hf.commands import card, train


def run(*arguments) -> subprocess.CompletedProcess:
    """The installed command, in a process of its own."""
    command = Path(sys.executable).with_name("internvlx")
    start = [command] if command.exists() else [sys.executable, "-m", "internvlx_hf.cli"]
    return subprocess.run([*start, *map(str, arguments)], capture_output=True, text=True)


def failing(error: BaseException):
    def fail(arguments):
        raise error

    return fail


class Panic(BaseException):
    """As `pyo3_runtime.PanicException`, which is no `Exception`."""


def test_unknown_command_ends_the_process_with_two_and_names_the_known():
    done = run("konvert", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"internvlx: there is no command 'konvert', expected one of {', '.join(COMMANDS)}\n"


@pytest.mark.slow
def test_command_that_fails_ends_the_process_with_one_and_one_line(tmp_path):
    done = run("card", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("internvlx: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--debug", "card"], ["card", "--debug"]])
def test_debug_shows_where_the_same_line_comes_from(tmp_path, capsys, arguments):
    assert main([*arguments, str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("internvlx: ")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no\n number"), KeyError("name"), MemoryError(), ImportError("no module"), RecursionError("deep"),
        RuntimeError("torch"), AssertionError(), Panic("rust"),
    ],
)  # fmt: skip
def test_what_nobody_expected_is_one_line_that_says_how_to_see_more(monkeypatch, capsys, error):
    monkeypatch.setattr(card, "main", failing(error))
    assert main(["card"]) == 1
    text = " ".join(str(error).split())
    assert capsys.readouterr().err == f"internvlx: {type(error).__name__}: {text} (--debug shows where)\n"
    assert main(["card", "--debug"]) == 1
    assert "in fail" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a value"), FileNotFoundError(2, "No such file", "a.json")])
def test_what_is_expected_speaks_for_itself(monkeypatch, capsys, error):
    monkeypatch.setattr(card, "main", failing(error))
    assert main(["card"]) == 1
    assert capsys.readouterr().err == f"internvlx: {error}\n"


def test_debug_after_train_is_the_trainer_s_own(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "main", seen.append)
    assert main(["--debug", "train", "--debug", "underflow_overflow"]) == 0
    assert seen == [["--debug", "underflow_overflow"]]


def test_help_names_debug(capsys):
    assert main(["--debug"]) == 0
    assert "`--debug` shows the traceback of an error" in capsys.readouterr().out
