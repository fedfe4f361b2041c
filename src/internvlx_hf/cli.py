# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The command line, `internvlx`: a sub-command a task."""

import argparse
import json
import sys

from .conversion import convert_checkpoint
from .conversion.convert import DTYPES, SLICINGS
from .conversion.upgrades import INITS


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; the exit status is 0, 1 if it failed, 130 if it was interrupted."""
    options = vars(_parser().parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
    except KeyboardInterrupt:
        print("internvlx: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"internvlx: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="internvlx", description="InternVL-X for Hugging Face Transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(commands)
    return parser


def _add_convert(commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert an InternVL checkpoint",
        description="Convert an InternVL 2, 2.5, 3, 3.5 (dense), InternVL-X or native -hf checkpoint to one that today's "
        "transformers loads. By default the converted model answers as the original does.",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument("source", metavar="SRC", help="a checkpoint's folder, or the id of a model on the Hub")
    convert.add_argument("out", metavar="OUT", help="the folder to make")
    convert.add_argument("--to", choices=("internvl_x", "internvl"), default="internvl_x", help="layout to write")
    convert.add_argument("--projector", choices=("keep", "pvtc"), default="keep", help="pvtc: upgrade, needs training")
    convert.add_argument(
        "--lvtc",
        nargs="?",
        type=json.loads,
        const=True,
        default=False,
        metavar="JSON",
        help="add LVTC, needs training; optionally with fields of its configuration, '{\"expand_layer\": 17}'",
    )
    convert.add_argument("--downsample-ratio", type=float, help="another 1/M for the input's tokens, needs training")
    convert.add_argument(
        "--init", choices=INITS, default="warm", help="how new modules start: near what is known, or random"
    )
    convert.add_argument(
        "--slicing", choices=SLICINGS, help="how a picture's size bounds its tiles (the source's own)"
    )
    convert.add_argument("--max-patches", type=int, help="most tiles of a picture (the source's own)")
    convert.add_argument("--dtype", choices=tuple(DTYPES), help="of the weights (as they are stored)")
    convert.add_argument("--revision", help="branch, tag or commit on the Hub")
    convert.add_argument("--base-model", help="Hub id for the model card where SRC is a folder")
    convert.add_argument("--max-shard-gigabytes", type=float, default=5, help="size of an output shard (5)")
    convert.add_argument("--seed", type=int, default=0, help="of random values (0)")
    convert.add_argument("--verify", action="store_true", help="load the result and check it against the source")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it is a checkpoint")


def _convert(source: str, out: str, **options) -> None:
    report = convert_checkpoint(source, out, **options)
    print(report.summary())


if __name__ == "__main__":
    sys.exit(main())
