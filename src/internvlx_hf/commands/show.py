# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx show`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .cost import add_model_options, choose_setup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..cost import ModelSetup


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: the image, the model or the file to write is not what it should be; names it."""
    options = _parser().parse_args(arguments)
    try:
        from ..pictures.canvas import check_out, save
    except ImportError as error:
        raise ValueError(str(error)) from error
    from ..cost import CostModel
    from ..cost.images import read_image_size

    check_out(options.out)
    if _is_video(options.image):
        print(_show_video(options))
        return
    if options.num_frames or options.fps:
        raise ValueError(f"--num-frames and --fps are about videos, but {options.image} is an image by its name.")
    width, height = read_image_size(options.image)
    setting = choose_setup(options.model, options.slicing, options.max_patches)
    if options.attention:
        figure, found = _attention(options, setting)
    else:
        from ..pictures.tiles_figure import draw_tiles

        tokens = {"text_tokens": options.text_tokens, "answer_tokens": options.answer_tokens}
        figure = draw_tiles(options.image, setting, **tokens)
        cost = CostModel(setting, **tokens).of_size(width, height)
        found = f"{cost.tiles} tile{'s' * (cost.tiles > 1)}, {cost.stage_one_tokens:,} tokens under {setting.name}"
    save(figure, options.out)
    print(f"{options.out}: {options.image}, {width}x{height} pixels; {found}")


def _is_video(source: str) -> bool:
    from ..processing.video_files import names_video

    return names_video(source) or Path(source).is_dir()


def _show_video(options: argparse.Namespace) -> str:
    """Draws the frames of a video; returns what to say of them."""
    from ..pictures.canvas import save
    from ..pictures.frames_figure import draw_frames

    if options.attention:
        raise ValueError(f"--attention looks at an image, but {options.image} is a video by its name.")
    setting = choose_setup(options.model, options.slicing, options.max_patches)
    sampling = {"num_frames": options.num_frames, "fps": options.fps}
    tokens = {"text_tokens": options.text_tokens, "answer_tokens": options.answer_tokens}
    try:
        figure, cost = draw_frames(options.image, setting, **tokens, **sampling)
    except ImportError as error:
        raise ValueError(str(error)) from error
    save(figure, options.out)
    return (
        f"{options.out}: {options.image}; {cost.tiles} frames, {cost.stage_one_tokens:,} tokens under {setting.name}"
    )


def _attention(options: argparse.Namespace, setting: "ModelSetup") -> tuple["Figure", str]:
    """The figure, and the answer in words."""
    import torch

    from .. import InternVLXForConditionalGeneration, InternVLXProcessor
    from ..checkpoints.json_files import read_json
    from ..checkpoints.names import SAFE_WEIGHTS
    from ..pictures import attend
    from ..pictures.attention_figure import draw_attention

    folder = Path(options.model)
    if not folder.is_dir():
        raise ValueError(f"--attention needs weights, but {options.model!r} is a preset. Give a checkpoint's folder.")
    if not options.question:
        raise ValueError("--attention needs a --question about the image, as 'What is in the image?'.")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens={options.max_new_tokens}, expected at least 1.")
    if not any((folder / name).is_file() for name in SAFE_WEIGHTS):
        raise ValueError(f"{folder} has no weights ({SAFE_WEIGHTS[0]}), which --attention needs.")
    layout = read_json(folder / "config.json").get("model_type")
    if layout != setting.config.model_type:
        raise ValueError(f"{folder} is of the type {layout!r}. Convert it first: internvlx convert {folder} OUT")
    processor = InternVLXProcessor.from_pretrained(folder)
    # a question that may not be asked is refused before the weights are read
    content = [{"type": "image"}, {"type": "text", "text": options.question}]
    processor.apply_chat_template([{"role": "user", "content": content}])
    processor.image_processor.slicing = setting.tiling.slicing
    processor.image_processor.max_patches = setting.tiling.max_tiles
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = InternVLXForConditionalGeneration.from_pretrained(folder, dtype="auto").to(device).eval()
    attention = attend(model, processor, options.image, options.question, options.max_new_tokens)
    return draw_attention(attention, setting.name), f"answer: {attention.answer!r}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx show",
        description="Draw an image with the grid of each strategy over it, the tiles that a model gets, and what they "
        "cost; or, with --attention, where a loaded model looks while it answers a question. A 16:9 slide.",
    )
    parser.add_argument("image", metavar="IMAGE", help="an image, or a video: the frames that are sampled of it")
    parser.add_argument("--out", required=True, metavar="FILE", help="what to write: a .png, .pdf, .svg or .jpg")
    add_model_options(parser)
    frames = parser.add_argument_group("videos").add_mutually_exclusive_group()
    frames.add_argument("--num-frames", type=int, help="frames that are sampled of a video (8)")
    frames.add_argument("--fps", type=float, help="frames that are sampled of each second, in place of it")
    attention = parser.add_argument_group("attention")
    attention.add_argument("--attention", action="store_true", help="where the model of --model (a folder) looks")
    attention.add_argument("--question", help="what to ask about the image")
    attention.add_argument("--max-new-tokens", type=int, default=64, help="most tokens of the answer (64)")
    return parser
