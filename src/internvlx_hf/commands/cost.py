# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx cost`."""

import argparse
import shutil
import sys

from ..checkpoints.options import CommandParser, add_options, settings_from
from ..cost import CostModel, ModelSetup, find_images, load_setup, parse_size, side_by_side
from ..cost.estimate import ELEMENT_SIZES
from ..cost.presets import PRESETS
from ..cost.report import Report
from ..cost.setups import by_slicing
from ..processing.image_settings import IMAGE_PROCESSOR, ImageSettings
from .model_options import FRAMES, CommonOptions, add_upgrade_options, upgrade_options

DEFAULT_MODEL = "internvl-x-2b"


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if an image, a size, a model or a number is invalid. The message names it."""
    options = _parser().parse_intermixed_args(arguments)
    print(_report(options))


def _report(options: argparse.Namespace) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if options.video is None and (options.fps is not None or options.num_frames is not None):
        raise ValueError("--fps and --num-frames need --video.")
    if options.video is not None:
        return _video_report(options, width)
    sizes = [parse_size(size) for size in options.size]
    setup, is_full = choose_setup(options), options.full or options.json or options.csv
    setups, notes = side_by_side(setup) if is_full else (by_slicing(setup), [])
    models = [CostModel(setup, options.text_tokens, options.answer_tokens, options.dtype) for setup in setups]
    if not options.images and not sizes:
        raise ValueError("There is nothing to measure, expected images, folders, patterns, or --size 640x480.")
    images = find_images(options.images, skip_broken=options.skip_broken)
    for size in sizes:
        images.add(f"{size[0]}x{size[1]}", size)
    if not images.sizes:
        raise ValueError("None of the images can be read: " + " ".join(images.broken.values()))
    report = Report(images, models, options.together, tuple(notes), width)
    if options.csv:
        for line in report.remarks():
            print(line, file=sys.stderr)
        return report.to_csv()
    return report.to_json() if options.json else report.to_text() if options.full else report.to_summary()


def _video_report(options: argparse.Namespace, width: int | None) -> str:
    from ..cost.videos import VideoReport, measure_clip

    if options.images or options.size or options.together or options.skip_broken:
        raise ValueError("--video cannot be combined with images, --size, --together or --skip-broken.")
    if given := settings_from(options, ImageSettings).of(IMAGE_PROCESSOR):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{names}: for images only, a frame of a --video is one tile.")
    try:
        clip = measure_clip(options.video, options.fps, options.num_frames)
    except ImportError as error:
        raise ValueError(str(error)) from error
    setup = choose_setup(options)
    report = VideoReport(clip, setup, options.text_tokens, options.answer_tokens, options.dtype, width)
    return report.to_json() if options.json else report.to_csv() if options.csv else report.to_text()


def choose_setup(options: argparse.Namespace) -> ModelSetup:
    """The setup of `--model`, as `internvlx convert` would change it, and with the settings of images."""
    setup = load_setup(options.model)
    if changes := upgrade_options(options):
        from ..conversion import ConversionOptions
        from ..conversion.upgrades import build_upgrade

        config, _ = build_upgrade(setup.config, ConversionOptions(**changes))
        setup = ModelSetup(f"{setup.name}, converted", config, setup.tiling, settings=setup.settings)
    return setup.changed(settings_from(options, ImageSettings))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and the options that change its slicing and its prompt."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="PATH_OR_PRESET",
        help=f"a checkpoint's folder, or one of the presets {', '.join(PRESETS)} (default: {DEFAULT_MODEL})",
    )
    add_options(parser, ImageSettings)
    add_upgrade_options(parser.add_argument_group("the model after internvlx convert"))
    add_options(parser, CommonOptions, ("text_tokens", "answer_tokens"))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx cost",
        description="Report the cost of images: tiles, visual tokens, work, memory, under a model and each slicing. "
        "Only the headers of the images and the model's configuration are read.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="images, PDFs (each page is an image), folders, or patterns ('photos/**/*.jpg')",
    )
    parser.add_argument(
        "--size", action="append", default=[], metavar="WxH", help="size of an image in pixels; can be repeated"
    )
    parser.add_argument(
        "--video", metavar="LENGTH", help="report the cost of a video: a length, such as 1h or 90s, or a file"
    )
    add_options(parser.add_mutually_exclusive_group(), CommonOptions, FRAMES, "1 frame per second")
    add_model_options(parser)
    parser.add_argument(
        "--dtype",
        choices=tuple(ELEMENT_SIZES),
        help="dtype of weights and cache (default: the model's, or bfloat16)",
    )
    parser.add_argument(
        "--together", action="store_true", help="all images in one prompt (default: one prompt per image)"
    )
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="list images that cannot be read instead of stopping (with --csv, on stderr)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--full", action="store_true", help="all tables: with LVTC, keys and values, FLOPs by module, each image"
    )
    output.add_argument("--json", action="store_true", help="print all numbers as JSON")
    output.add_argument("--csv", action="store_true", help="print a CSV row for each image under each setup")
    return parser
