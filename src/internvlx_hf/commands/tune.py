# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx tune`."""

import shutil
import sys

from .model_options import add_device_options
from .parser import CommandParser


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`internvlx_hf.tuning.tune`]."""
    options = vars(_parser().parse_intermixed_args(arguments))
    if options["data"] is None and not options["images"]:
        raise ValueError("There are no images to ask about, expected images, folders, patterns, or --data FILE.jsonl.")
    from ..tuning import tune

    if options["question"] is None:
        del options["question"]
    elif not options["question"].strip():
        raise ValueError("--question is empty, expected a question about each image.")
    report = tune(**options, say=_say)
    print(report.to_text(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if report.saved:
        changes = ", ".join(f"{name}={value}" for name, value in report.saved["settings"].items())
        print(f"saved {options['save']} with {changes or 'the settings of the source'} ({report.saved['rests_on']})")
    _say(f"page: {options['out'].rstrip('/')}/index.html")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx tune",
        description="Measure how much cheaper image settings change a model's answers about your images. Without --keep, a first "
        "look: a handful of settings on at most 20 images. With --keep, a search on half of the images, and a certificate from the "
        "other half. A run that was stopped goes on.",
        epilog="internvlx tune MODEL photos/; internvlx tune MODEL photos/ --question 'Is it broken?' --keep 0.98 --save OUT",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder or Hub id, as for `internvlx chat`")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="images, PDFs (each page is an image), folders, or patterns"
    )
    parser.add_argument("--question", help="asked about each image (default: What is in this image?)")
    parser.add_argument(
        "--data", metavar="FILE.jsonl", help="records as for `internvlx train`, instead of images and a question"
    )
    parser.add_argument(
        "--keep", type=float, metavar="SHARE", help="share of images that are to keep their answers, such as 0.98"
    )
    parser.add_argument(
        "--out",
        default="tune",
        metavar="DIR",
        help="folder of the answers, tune.json, a page and a picture (default: tune)",
    )
    parser.add_argument(
        "--save", metavar="OUT", help="write a checkpoint with the certified settings, else with the source's"
    )
    parser.add_argument(
        "--accept-estimate", action="store_true", help="save the recommended settings even if they are not certified"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --save if internvlx wrote it")
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--most", type=int, metavar="N", help="use at most N images (default: 20 without --keep, all with it)"
    )
    parser.add_argument(
        "--metric",
        choices=("exact_match", "anls"),
        default="exact_match",
        help="score of answers, where the data have them (default: exact_match)",
    )
    parser.add_argument("--batch-size", type=int, help="questions per batch (default: 1 on a CPU, 8 otherwise)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="answers are compared up to so many tokens (default: 64)"
    )
    add_device_options(parser)
    return parser
