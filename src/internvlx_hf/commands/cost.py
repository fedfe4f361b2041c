# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx cost`."""

import argparse
import shutil
import sys
from dataclasses import replace

from ..cost import CostModel, ModelSetup, find_images, load_setup, parse_size, side_by_side
from ..cost.estimate import ANSWER_TOKENS, ELEMENT_SIZES, TEXT_TOKENS
from ..cost.presets import PRESETS
from ..cost.report import Report
from ..processing.rvtc import SLICING_STRATEGIES

DEFAULT_MODEL = "internvl-x-2b"


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: a picture, a size, a model or a number is not what it should be; names it."""
    options = _parser().parse_args(arguments)
    print(_report(options))


def _report(options: argparse.Namespace) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if options.video is None and (options.fps or options.num_frames):
        raise ValueError("--fps and --num-frames are about a --video, expected one.")
    if options.video is not None:
        return _video_report(options, width)
    sizes = [parse_size(size) for size in options.size]
    setting = choose_setup(options.model, options.slicing, options.max_patches)
    settings, notes = side_by_side(setting)
    models = [CostModel(each, options.text_tokens, options.answer_tokens, options.dtype) for each in settings]
    if not options.images and not sizes:
        raise ValueError("There is nothing to measure, expected pictures, folders, patterns, or --size 640x480.")
    pictures = find_images(options.images, skip_broken=options.skip_broken)
    for size in sizes:
        pictures.add(f"{size[0]}x{size[1]}", size)
    if not pictures.sizes:
        raise ValueError("None of the pictures can be read: " + " ".join(pictures.broken.values()))
    report = Report(pictures, models, options.together, tuple(notes), width)
    return report.to_json() if options.json else report.to_csv() if options.csv else report.to_text()


def _video_report(options: argparse.Namespace, width: int | None) -> str:
    from ..cost.videos import VideoReport, measure_clip

    if options.images or options.size:
        raise ValueError("--video goes without images and sizes.")
    try:
        clip = measure_clip(options.video, options.fps, options.num_frames)
    except ImportError as error:
        raise ValueError(str(error)) from error
    setting = choose_setup(options.model, options.slicing, options.max_patches)
    report = VideoReport(clip, setting, options.text_tokens, options.answer_tokens, options.dtype, width)
    return report.to_json() if options.json else report.to_csv() if options.csv else report.to_text()


def choose_setup(model: str, slicing: str | None, max_patches: int | None) -> ModelSetup:
    """The setting of `--model`, with `--slicing` and `--max-patches` in place of its own."""
    setting = load_setup(model)
    tiling = setting.tiling
    tiling = tiling if slicing is None else replace(tiling, slicing=slicing)
    tiling = tiling if max_patches is None else replace(tiling, max_tiles=max_patches)
    return replace(setting, tiling=tiling)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model` and how it cuts pictures."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="PATH_OR_PRESET",
        help=f"a checkpoint's folder, or a preset ({DEFAULT_MODEL}): {', '.join(PRESETS)}",
    )
    parser.add_argument("--slicing", choices=SLICING_STRATEGIES, help="how a picture's size bounds its tiles")
    parser.add_argument("--max-patches", type=int, help="most tiles of a picture, the thumbnail not counted")
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=TEXT_TOKENS,
        help=f"tokens of a prompt beside its pictures, chat template and image marks included ({TEXT_TOKENS})",
    )
    parser.add_argument(
        "--answer-tokens", type=int, default=ANSWER_TOKENS, help=f"tokens of an answer ({ANSWER_TOKENS})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx cost",
        description="What pictures cost before they are run: tiles, tokens, FLOPs, keys and values, memory, under a model "
        "and beside other ways to cut and compress. Reads the headers of the pictures, no weights, and needs no GPU.",
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="pictures, folders, or patterns ('photos/**/*.jpg')"
    )
    parser.add_argument("--size", action="append", default=[], metavar="WxH", help="a size instead; may be repeated")
    parser.add_argument(
        "--video", metavar="LENGTH", help="a video by its length, as 1h or 90s, or a file: what its frames cost"
    )
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--fps", type=float, help="frames of each second of the video (1)")
    frames.add_argument("--num-frames", type=int, help="frames of the whole video in its place")
    add_model_options(parser)
    parser.add_argument(
        "--dtype", choices=tuple(ELEMENT_SIZES), help="of weights and cache (the model's, or bfloat16)"
    )
    parser.add_argument("--together", action="store_true", help="all pictures in one prompt")
    parser.add_argument("--skip-broken", action="store_true", help="name what cannot be read, and go on")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="all numbers as JSON")
    output.add_argument("--csv", action="store_true", help="a row for each picture under each setting")
    return parser
