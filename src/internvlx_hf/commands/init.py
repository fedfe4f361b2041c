# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx init`."""

from ..checkpoints.options import CommandParser, add_options
from ..conversion.options import InitOptions
from .convert import add_saving_options, next_command


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`init_checkpoint`]."""
    options = vars(_parser().parse_args(arguments))

    from .. import registration  # noqa: F401
    from ..conversion import init_checkpoint

    report = init_checkpoint(**options)
    print(report.summary())
    print(next_command(options["out"], report.untrained_modules))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx init",
        description="Make an InternVL-X model from a vision tower and a language model, the starting point of the "
        "paper's training. The projector is new: it needs training.",
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--vision", metavar="SRC", required=True, help="the vision tower's folder or Hub id")
    parser.add_argument(
        "--language", metavar="SRC", required=True, help="the language model's folder, Hub id or GGUF file"
    )
    add_options(parser, InitOptions)
    add_saving_options(parser)
    return parser
