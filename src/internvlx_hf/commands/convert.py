# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx convert`."""

import argparse
import shlex

from ..processing.size_choices import OFFERS_HELP
from .model_options import add_image_options, add_upgrade_options
from .parser import CommandParser


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`convert_checkpoint`]."""
    options = vars(_parser().parse_args(arguments))

    from .. import registration  # noqa: F401
    from ..checkpoints.names import OURS
    from ..conversion import convert_checkpoint

    report = convert_checkpoint(**options)
    print(report.summary())
    if options.get("to", OURS) == OURS:
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
        "(1.5 and its kin), to one that today's transformers loads. By default the converted model gives the same answers as "
        "the original.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint's folder, or the id of a model on the Hub")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--to", choices=("internvl_x", "internvl", "llava"), help="layout to write (default: internvl_x)"
    )
    add_upgrade_options(parser)
    parser.add_argument(
        "--init",
        choices=("warm", "paper"),
        help="initial values of new modules: warm takes them from the source's where it can, paper draws them at random "
        "(default: warm)",
    )
    parser.add_argument(
        "--router",
        choices=("keep", "drop"),
        help="keep InternVL3.5-Flash's router, with which some tiles take fewer tokens, or take all tokens (default: keep)",
    )
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--tokens-per-tile", metavar="SIZES", help=f"{OFFERS_HELP} (default: the source's)")
    sizes.add_argument(
        "--merge-at",
        type=int,
        metavar="LAYER",
        help="the first layer, counted from 0, that sees fewer tokens of a tile whose size shrinks (256:64, 256:0)",
    )
    images = parser.add_argument_group("images, as the processor saves it")
    add_image_options(images, "the source's", without=("tokens_per_tile",))
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="dtype to save in (default: the source's)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: main)")
    parser.add_argument("--base-model", help="Hub id of the source for the model card, if SRC is a folder")
    parser.add_argument("--max-shard-gigabytes", type=float, help="maximum size of an output shard (default: 5)")
    parser.add_argument("--seed", type=int, help="seed of new random values (default: 0)")
    parser.add_argument("--verify", action="store_true", help="load the result and check it against the source")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if internvlx wrote it")
    return parser
