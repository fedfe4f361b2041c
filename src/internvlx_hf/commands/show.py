# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx show`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.numbers import counted
from ..checkpoints.options import CommandParser, add_options, settings_from
from ..processing.image_settings import IMAGE_PROCESSOR, ImageSettings
from ..processing.rules import setting, whole
from .cost import add_model_options, choose_setup
from .model_options import FRAMES, UPGRADES, CommonOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ..cost import ModelSetup

MAX_NEW_TOKENS = 64
ASKED = "?"  # --boxes without an answer: the model's own
# options that apply to some figures only
TILES = ImageSettings.names(IMAGE_PROCESSOR)
ANSWER = ("question", "max_new_tokens")
LENGTHS = ("text_tokens", "answer_tokens")
SIZED = ("tokens_per_tile", "max_image_tokens", *LENGTHS)


@dataclass
class FigureOptions:
    """Other figures than that of the tiles, and what they ask the model."""

    attention: bool = setting(False, None, "draw where the model looks; --model must be a checkpoint's folder")
    boxes: str | None = setting(
        None,
        None,
        "draw the boxes of an answer, <ref>a cat</ref><box>[[103, 250, 640, 998]]</box>; without ANSWER, of the "
        "model's own",
        nargs="?",
        const=ASKED,
        metavar="ANSWER",
    )
    sizes: bool = setting(
        False,
        None,
        "draw the image at each size of a tile that the checkpoint offers: tokens, FLOPs and, with --question, the "
        "answer",
    )
    question: str | None = setting(None, None, "question about the image, required by --attention and --boxes")
    max_new_tokens: int | None = setting(
        None, whole(1), "maximum number of tokens of the answer", shown=MAX_NEW_TOKENS
    )


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the image, the model or the output file is invalid. The message names it."""
    options = _parser().parse_args(arguments)
    _refuse_other_options(options)
    try:
        from ..pictures.canvas import check_out, save
    except ImportError as error:
        raise ValueError(str(error)) from error
    from ..cost import CostModel
    from ..processing.image_sources import image_size
    from ..processing.pdf_files import open_images

    check_out(options.out)
    if _is_video(options.image):
        print(_show_video(options))
        return
    image, *others = open_images(options.image)
    if others:
        raise ValueError(f"{options.image} has {len(others) + 1} pages, expected one to draw: {options.image}#page=1.")
    width, height = image_size(image)
    setup = choose_setup(options)
    if options.attention:
        figure, summary = _attention(options, setup, image)
    elif options.boxes:
        figure, summary = _boxes(options, setup, image)
    elif options.sizes:
        figure, summary = _sizes(options, setup, image)
    else:
        from ..pictures.tiles_figure import draw_tiles

        tokens = {"text_tokens": options.text_tokens, "answer_tokens": options.answer_tokens}
        figure = draw_tiles(image, setup, title=Path(options.image).name, **tokens)
        cost = CostModel(setup, **tokens).of_size(width, height)
        summary = f"{counted(cost.tiles, 'tile')}, {cost.stage_one_tokens:,} tokens under {setup.name}"
    save(figure, options.out)
    print(f"{options.out}: {options.image}, {width}x{height} pixels; {summary}")


def _refuse_other_options(options: argparse.Namespace) -> None:
    """Raises: ValueError: if an option does not apply to the figure that the others ask for."""
    name = repr(options.image)
    figures = [each for each in ("attention", "boxes", "sizes") if getattr(options, each)]
    asks = f"--{figures[0]}" if figures else None
    if len(figures) > 1:
        raise ValueError(f"--{figures[0]} and --{figures[1]} are two figures, expected one of them.")
    if _is_video(options.image):
        if asks:
            raise ValueError(f"{asks} needs an image, but {name} has the name of a video.")
        _refuse(options, TILES, f"are for images, but {name} has the name of a video, whose frames are one tile each")
    else:
        _refuse(options, FRAMES, f"are for videos, but {name} has the name of an image")
    if options.sizes:
        _refuse(options, SIZED, "do not apply to --sizes, which draws every size that the checkpoint offers")
    elif asks:
        _refuse(
            options,
            UPGRADES,
            f"do not apply to {asks}, which needs trained weights: convert and train the model first",
        )
        _refuse(options, LENGTHS, f"do not apply to {asks}, which draws no cost")
    if not asks or (options.boxes and options.boxes != ASKED):
        _refuse(options, ANSWER, "need --attention, --sizes, or --boxes without an answer")


def _refuse(options: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    if any(getattr(options, name) != _parser().get_default(name) for name in names):
        *others, last = (f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{', '.join(others)} and {last} {reason}.")


def _is_video(source: str) -> bool:
    from ..processing.video_files import names_video

    return names_video(source) or Path(source).is_dir()


def _show_video(options: argparse.Namespace) -> str:
    """Draw the frames of a video and return a summary."""
    from ..cost.loading import load_video_processor
    from ..pictures.canvas import save
    from ..pictures.frames_figure import draw_frames

    setup = choose_setup(options)
    video_processor = load_video_processor(options.model)
    sampling = {"num_frames": options.num_frames, "fps": options.fps}
    tokens = {"text_tokens": options.text_tokens, "answer_tokens": options.answer_tokens}
    try:
        figure, cost = draw_frames(options.image, setup, video_processor=video_processor, **tokens, **sampling)
    except ImportError as error:
        raise ValueError(str(error)) from error
    save(figure, options.out)
    return f"{options.out}: {options.image}; {cost.tiles} frames, {cost.stage_one_tokens:,} tokens under {setup.name}"


def _attention(options: argparse.Namespace, setup: "ModelSetup", image: "Image") -> tuple["Figure", str]:
    """The figure of the attention, and a summary with the answer."""
    from ..pictures import attend
    from ..pictures.attention_figure import draw_attention

    max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
    model, processor = _load(options, setup, "--attention")
    attention = attend(model, processor, image, options.question, max_new_tokens)
    cut = f", cut off at --max-new-tokens {max_new_tokens}" if attention.finish_reason == "length" else ""
    return draw_attention(attention, setup.name), f"answer: {attention.answer!r}, {len(attention.tokens)} tokens{cut}"


def _boxes(options: argparse.Namespace, setup: "ModelSetup", image: "Image") -> tuple["Figure", str]:
    """The figure of an answer's boxes, and a summary with the answer."""
    from ..pictures.attention import open_upright
    from ..pictures.boxes_figure import draw_boxes
    from ..processing.boxes import parse_boxes

    answer, upright = options.boxes, True
    if answer == ASKED:
        from ..chat import Session
        from ..evaluation.answering import Answerer

        max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        answerer = Answerer(*_load(options, setup, "--boxes"))
        upright = bool(answerer.processor.image_processor.do_exif_transpose)
        answer = (
            Session(answerer, generation={"max_new_tokens": max_new_tokens}).ask(options.question, (image,)).answer
        )
    drawn = open_upright(image, upright=upright)
    boxes = parse_boxes(answer, drawn.size)
    if not boxes:
        raise ValueError(
            f"The answer {answer!r:.200} has no boxes, expected <ref>a cat</ref><box>[[103, 250, 640, 998]]</box>."
        )
    return draw_boxes(drawn, boxes, Path(options.image).name, answer), f"{len(boxes)} boxes; answer: {answer!r}"


def _sizes(options: argparse.Namespace, setup: "ModelSetup", image: "Image") -> tuple["Figure", str]:
    """The figure of the sizes that a model offers, and a summary; with a question, its answer at each."""
    from ..pictures.attention import open_upright
    from ..pictures.sizes_figure import draw_sizes

    names, answers, upright = list(setup.sizes.tiles), None, True
    if options.question:
        from ..chat.size_answers import answer_at_sizes
        from ..evaluation.answering import Answerer

        answerer = Answerer(*_load(options, setup, "--sizes"))
        upright = bool(answerer.processor.image_processor.do_exif_transpose)
        answers = answer_at_sizes(answerer, image, options.question, options.max_new_tokens or MAX_NEW_TOKENS)
    figure = draw_sizes(
        open_upright(image, upright=upright), setup, answers, options.question or "", Path(options.image).name
    )
    said = "" if answers is None else "; " + ", ".join(f"{name}: {answer!r:.60}" for name, answer in answers.items())
    return figure, f"{counted(len(names), 'size')} ({', '.join(names)}) under {setup.name}{said}"


def _load(options: argparse.Namespace, setup: "ModelSetup", name: str) -> tuple:
    """The model and its processor, for the figure of the option `name`."""
    import torch

    from .. import InternVLXForConditionalGeneration, InternVLXProcessor
    from ..checkpoints.json_files import read_json
    from ..checkpoints.names import SAFE_WEIGHTS
    from ..processing.messages import question_about

    folder = Path(options.model)
    if not folder.is_dir():
        raise ValueError(f"{name} needs weights, but {options.model!r} is a preset. Give a checkpoint's folder.")
    if not options.question:
        raise ValueError(f"{name} needs a --question about the image, such as 'What is in the image?'.")
    if not any((folder / file).is_file() for file in SAFE_WEIGHTS):
        raise ValueError(f"{folder} has no weights ({SAFE_WEIGHTS[0]}), which {name} needs.")
    layout = read_json(folder / "config.json").get("model_type")
    if layout != setup.config.model_type:
        raise ValueError(f"{folder} is of the type {layout!r}. Convert it first: internvlx convert {folder} OUT")
    processor = InternVLXProcessor.from_pretrained(folder)
    # an invalid question is refused before the weights are read
    content = [{"type": "image"}, {"type": "text", "text": question_about(options.question, images=1)}]
    processor.apply_chat_template([{"role": "user", "content": content}])
    processor.change_image_settings(**settings_from(options, ImageSettings).given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return InternVLXForConditionalGeneration.from_pretrained(folder, dtype="auto").to(device).eval(), processor


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx show",
        description="Draw an image under the grid of each slicing strategy, the tiles that a model gets, and their "
        "cost; or, with --attention, where a model looks while it answers a question; or, with --boxes, the boxes of "
        "an answer; or, with --sizes, what each size of a tile shows and costs. The figure is a 16:9 slide.",
    )
    parser.add_argument(
        "image",
        metavar="IMAGE",
        help="an image, a page of a PDF (scan.pdf#page=2), or a video whose sampled frames are drawn",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write: .png, .pdf, .svg or .jpg")
    add_model_options(parser)
    frames = parser.add_argument_group("videos").add_mutually_exclusive_group()
    add_options(frames, CommonOptions, FRAMES)
    add_options(parser.add_argument_group("attention, boxes and sizes"), FigureOptions)
    return parser
