# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx convert`."""

import shlex
from dataclasses import fields

from ..checkpoints.options import CommandParser, add_option, add_options
from ..conversion.options import ConversionOptions, SharedOptions
from ..processing.image_settings import ImageSettings


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`convert_checkpoint`]."""
    options = vars(_parser().parse_args(arguments))

    from .. import registration  # noqa: F401
    from ..checkpoints.names import OURS
    from ..conversion import convert_checkpoint

    report = convert_checkpoint(**options)
    print(report.summary())
    if options["to"] == OURS:
        print(next_command(options["out"], report.untrained_modules))


def next_command(out: str, untrained: list[str]) -> str:
    """What to do with a new checkpoint: ask it, or first train its new modules."""
    if not untrained:
        return f"Ask it: {shlex.join(['internvlx', 'chat', out, 'photo.jpg', 'What is in this image?'])}"
    words = ["--model_name_or_path", out, "--train_data", "data.jsonl", "--output_dir", f"{out.rstrip('/')}-trained"]
    return f"Train it: {shlex.join(['internvlx', 'train', *words, '--lora_rank', '16'])}"


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx convert",
        description="Convert an InternVL 2, 2.5, 3, 3.5, InternVL-X or native -hf checkpoint, or transformers' LLaVA "
        "(1.5 and its kin), to one that today's transformers loads. By default the converted model gives the same "
        "answers as the original.",
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint's folder, or the id of a model on the Hub")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    add_options(parser, ConversionOptions)
    add_options(parser.add_argument_group("sizes"), ConversionOptions, ("tokens_per_tile",))
    add_saving_options(parser, "the source's", without=("tokens_per_tile",))
    return parser


def add_saving_options(parser: CommandParser, default: str | None = None, without: tuple[str, ...] = ()) -> None:
    """Add the options that a conversion shares with a model from parts. `default` is what leaving out a setting of
    images means (default: a processor's own value).
    """
    own = [each.name for each in fields(SharedOptions) if each.name not in ImageSettings.names()]
    add_options(parser, ConversionOptions, own)
    images = parser.add_argument_group("images, as the processor saves it")
    for each in fields(ImageSettings):
        if each.name not in without:
            add_option(images, each, default or str(each.metadata["own"]).lower())
