# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx init`."""

import argparse
import json

from .convert import next_command
from .model_options import add_image_options, read_ratio
from .parser import CommandParser


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
        description="Make an InternVL-X model from a vision tower and a language model, the starting point of the paper's "
        "training. The projector is new: it needs training.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--vision", metavar="SRC", required=True, help="the vision tower's folder or Hub id")
    parser.add_argument(
        "--language", metavar="SRC", required=True, help="the language model's folder, Hub id or GGUF file"
    )
    parser.add_argument(
        "--projector",
        type=_settings,
        metavar="NAME|JSON",
        help="type of the projector, or fields of its configuration as JSON (default: pvtc)",
    )
    parser.add_argument(
        "--lvtc",
        nargs="?",
        type=_settings,
        const=True,
        metavar="JSON",
        help="add LVTC, optionally with fields of its configuration, such as '{\"expand_layer\": 17}' (default: no LVTC)",
    )
    parser.add_argument(
        "--downsample-ratio",
        type=read_ratio,
        metavar="1/M",
        help="downsampling of the first layers' tokens: M x M patches become one token (default: 1/2)",
    )
    parser.add_argument(
        "--vision-feature-layer", type=int, help="index of the tower's hidden state that is projected (default: -1)"
    )
    add_image_options(parser.add_argument_group("images, as the processor saves it"), default=None)
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="chat template: internlm2-chat, Hermes-2, phi3-chat, internvl2_5, or a Jinja file (default: the language "
        "model's)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="dtype to save in (default: each part's own)"
    )
    parser.add_argument("--vision-revision", help="branch, tag or commit of the tower on the Hub (default: main)")
    parser.add_argument(
        "--language-revision", help="branch, tag or commit of the language model on the Hub (default: main)"
    )
    parser.add_argument("--max-shard-gigabytes", type=float, help="maximum size of an output shard (default: 5)")
    parser.add_argument("--seed", type=int, help="seed of new random values (default: 0)")
    parser.add_argument("--verify", action="store_true", help="load the result and run it on an image")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if internvlx wrote it")
    return parser


def _settings(text: str) -> object:
    """The value of JSON text; any other text is a name."""
    try:
        return json.loads(text)
    except ValueError:
        return text
