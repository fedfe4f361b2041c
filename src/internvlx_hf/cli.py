# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The command line, `internvlx`: each sub-command is a module of `commands`, imported only when it runs."""

import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module

from . import __version__

COMMANDS = {
    "answer": "write training data with a model's own answers",
    "card": "write or renew a checkpoint's model card",
    "chat": "ask a model about images",
    "convert": "convert an InternVL checkpoint",
    "cost": "report what images cost: tiles, tokens, FLOPs, memory",
    "init": "make a model from a vision tower and a language model",
    "merge": "merge a LoRA adapter into a full checkpoint",
    "push": "push a checkpoint to the Hub",
    "renew": "renew the code that a checkpoint carries",
    "serve": "serve a checkpoint through OpenAI's API",
    "show": "draw an image's tiles and their cost, or where a model looks",
    "train": "train a checkpoint: the stages of the paper, or LoRA",
    "tune": "measure how much can be saved before answers change",
    "web": "ask a model about images in a browser",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command. The exit status is 0, 1 if it failed, 2 if there is no such command, 130 if it was
    interrupted.

    An error is printed as one line, and with `--debug` as a traceback too. If the reader of the output ends first
    (`| head`), the status is 141, without a message.
    """
    debug, (name, *arguments) = _split_debug(sys.argv[1:] if arguments is None else arguments)
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
        import_module(f".commands.{name}", __package__).main(list(_with_dashes(arguments)))
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # a panic in Rust code is not an Exception
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return 128 + 13  # a shell's status for SIGPIPE
        if debug:
            traceback.print_exception(error)
        print(f"internvlx: {_message(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _split_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` is given, and the command with its other arguments. The trainer has its own `--debug`."""
    others = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if others[0] == "train":
        before = arguments.index("train")
        return before > 0, arguments[before:]
    return "--debug" in arguments, others


def _with_dashes(arguments: list[str]) -> Iterator[str]:
    """The arguments with their options spelt with dashes: `--max-patches` for `--max_patches`."""
    options = True
    for argument in arguments:
        options &= argument != "--"
        name, *value = argument.split("=", 1)
        yield "=".join([name.replace("_", "-"), *value]) if options and name.startswith("--") else argument


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return ", ".join(("interrupted", *map(str, error.args)))
    if isinstance(error, ValueError | OSError):
        return str(error)
    from huggingface_hub.errors import StrictDataclassError  # slow to import

    text = " ".join(str(error).split())
    return text if isinstance(error, StrictDataclassError) else f"{type(error).__name__}: {text} (--debug shows where)"


def _stdout_is_closed() -> bool:
    """Whether the reader of the output has ended (`| head`). If so, unread output is discarded."""
    try:
        print(flush=True)  # an empty line shows it; an earlier failed write has left nothing to flush
    except BrokenPipeError:
        # Python would try to flush again at exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return "\n".join(
        ("usage: internvlx COMMAND ...", "", "InternVL-X for Hugging Face Transformers.", "", *lines, "")
    ) + (
        "\n`internvlx COMMAND --help` explains a command; `internvlx --version` prints the version; `--debug` shows "
        "the traceback of an error."
    )


if __name__ == "__main__":
    sys.exit(main())
