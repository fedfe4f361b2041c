# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx tune`."""

import shutil
import sys
from dataclasses import fields
from pathlib import Path

from ..checkpoints.options import CommandParser, add_option
from ..tuning.options import TuneOptions
from .model_options import add_device_options


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`internvlx_hf.tuning.tune`]."""
    options = {
        name: value for name, value in vars(_parser().parse_intermixed_args(arguments)).items() if value is not None
    }
    if "data" not in options and not options["images"]:
        raise ValueError("There are no images to ask about, expected images, folders, patterns, or --data FILE.jsonl.")
    from ..tuning import tune

    report = tune(**options, say=_say)
    print(report.to_text(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if report.saved:
        changes = ", ".join(f"{name}={value}" for name, value in report.saved["settings"].items())
        print(f"saved {options['save']} with {changes or 'the settings of the source'} ({report.saved['rests_on']})")
    _say(f"page: {Path(options.get('out', TuneOptions.out)) / 'index.html'}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx tune",
        description="Measure how much cheaper image settings change a model's answers about your images. Without "
        "--keep, a first look: a handful of settings on at most 20 images. With --keep, a search on half of the "
        "images, and a certificate from the other half. A run that was stopped goes on.",
        epilog="internvlx tune MODEL photos/; internvlx tune MODEL photos/ --question 'Is it broken?' --keep 0.98 "
        "--save OUT",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder or Hub id, as for `internvlx chat`")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="images, PDFs (each page is an image), folders, or patterns"
    )
    for each in fields(TuneOptions):
        add_option(parser, each)
    add_device_options(parser)
    return parser
