# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The command line, `internvlx`: a sub-command a task, each a module of `commands`, loaded when it is asked for."""

import os
import sys
import traceback
from importlib import import_module

from . import __version__

COMMANDS = {
    "card": "write or renew a checkpoint's model card",
    "chat": "ask a model about images",
    "convert": "convert an InternVL checkpoint",
    "cost": "say what pictures cost: tiles, tokens, FLOPs, memory",
    "init": "make a model of a vision tower and a language model",
    "merge": "make a full checkpoint of an adapter that LoRA training left",
    "push": "push a checkpoint to the Hub",
    "serve": "serve a checkpoint through OpenAI's API",
    "show": "draw a picture's tiles and what they cost, or where a model looks",
    "train": "train a checkpoint: the stages of the paper, or LoRA",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; the exit status is 0, 1 if it failed, 2 if there is none such, 130 if it was interrupted.

    What fails is told in one line, and with `--debug` by a traceback too. Where nobody reads its output to the end
    (`| head`), it ends without a word, with 141.
    """
    debug, (name, *arguments) = _take_debug(sys.argv[1:] if arguments is None else arguments)
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"internvlx-hf {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"internvlx: there is no command {name!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        import_module(f".commands.{name}", __package__).main(arguments)
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # what Rust code panics with is no Exception
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return 128 + 13  # as a shell says of SIGPIPE
        if debug:
            traceback.print_exception(error)
        print(f"internvlx: {_message(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` is there, and the command with its other arguments. The trainer has a `--debug` of its own."""
    others = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if others[0] == "train":
        before = arguments.index("train")
        return before > 0, arguments[before:]
    return "--debug" in arguments, others


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return ", ".join(("interrupted", *map(str, error.args)))
    if isinstance(error, ValueError | OSError):
        return str(error)
    from huggingface_hub.errors import StrictDataclassError  # takes a while

    text = " ".join(str(error).split())
    return text if isinstance(error, StrictDataclassError) else f"{type(error).__name__}: {text} (--debug shows where)"


def _stdout_is_closed() -> bool:
    """Whether the reader of what is printed has gone (`| head`). What it has not read is thrown away then."""
    try:
        print(flush=True)  # an empty line finds out; a write that failed before has left nothing to flush
    except BrokenPipeError:
        # else Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return "\n".join(
        ("usage: internvlx COMMAND ...", "", "InternVL-X for Hugging Face Transformers.", "", *lines, "")
    ) + (
        "\n`internvlx COMMAND --help` explains a command; `internvlx --version` says which version this is; `--debug` "
        "shows where an error comes from."
    )


if __name__ == "__main__":
    sys.exit(main())
