# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide that shows the sampled frames of a video, as the model gets them, and their cost."""

import os

import PIL.Image

from ..checkpoints.numbers import BYTE_UNITS, FLOP_UNITS, scaled
from ..cost import Cost, CostModel, ModelSetup
from ..cost.estimate import ANSWER_TOKENS, TEXT_TOKENS
from ..cost.videos import LABEL_TOKENS
from ..processing import InternVLXVideoProcessor
from ..processing.video_files import Video, open_video
from .canvas import COLOURS, GREY, HEIGHT, WIDTH, Box, Canvas, text_width

MARGIN, TOP, BOTTOM = 0.5, 1.15, 6.45  # inches: the slide's margin, and the area of the frames
LABEL = 0.22  # height of the label below a frame, in inches
MIN_LABELLED_SIDE = 0.55  # side of the smallest frame with a label, in inches
PIXELS = 320  # side of a frame on the slide


def draw_frames(
    video,
    setup: ModelSetup,
    *,
    text_tokens: int = TEXT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    video_processor: InternVLXVideoProcessor | None = None,
    **sampling,
) -> tuple[object, Cost]:
    """Draw the frames that a model gets from a video, each stretched to a tile, and their cost in one prompt.

    Args:
        video: a file, a URL, a folder of frames or a list of frames.
        setup: the model and its tiling.
        text_tokens: number of text tokens in the prompt, without those of the frames' labels.
        answer_tokens: number of tokens of the answer.
        video_processor: the model's (default: one with the default settings).
        sampling: `num_frames`, `fps` and so on, see `InternVLXVideoProcessor`.

    Returns:
        A matplotlib `Figure`, 16:9, and the cost.

    Raises:
        ImportError: if `video` is a file and no package that reads videos is installed.
        ValueError: if `video` is not a video or the sampling is out of range.
    """
    opened = open_video(video)
    processor = InternVLXVideoProcessor() if video_processor is None else video_processor
    (indices,) = processor.choose_frames([opened], sampling)
    cost = CostModel(setup, text_tokens + LABEL_TOKENS * len(indices), answer_tokens).together((), len(indices))
    canvas = Canvas()
    title = os.path.basename(os.fspath(video)) if isinstance(video, str | os.PathLike) else "video"
    _draw_head(canvas, title, opened, indices, setup)
    box = Box(MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP)
    columns, side = _columns(len(indices), box)
    for number, (index, frame) in enumerate(zip(indices, opened.frames(indices), strict=True)):
        row, column = divmod(number, columns)
        place = Box(box.left + column * side, box.top + row * (side + LABEL), 0.95 * side, 0.95 * side)
        canvas.image(_as_image(frame, processor).resize((PIXELS, PIXELS)), place)
        canvas.frame(place, COLOURS["edge"], 1.2)
        if side > MIN_LABELLED_SIDE:
            time = "" if not opened.fps else f"  {_clock(index / opened.fps)}"
            label = f"Frame{1 + number}{time}"
            label = label if text_width(label, 8) < side else str(1 + number)
            canvas.text(place.left, place.top + place.height + 0.12, label, 8, color=GREY)
    _draw_cost(canvas, cost, setup.has_lvtc)
    return canvas.figure, cost


def _as_image(frame, processor: InternVLXVideoProcessor) -> PIL.Image.Image:
    pixels = processor.process_image(frame, do_convert_rgb=True, do_exif_transpose=bool(processor.do_exif_transpose))
    return PIL.Image.fromarray(pixels.read(0, 0, pixels.width, pixels.height).movedim(0, -1).numpy())


def _columns(count: int, box: Box) -> tuple[int, float]:
    """The number of frames side by side that makes them largest, and the side of each in inches."""

    def side(columns: int) -> float:
        rows = -(-count // columns)
        return min(box.width / columns, box.height / rows - LABEL)

    # among similar sizes, the one that fills the slide's width
    columns = max(range(1, count + 1), key=lambda columns: (round(side(columns), 1), columns))
    return columns, side(columns)


def _draw_head(canvas: Canvas, title: str, video: Video, indices: list[int], setup: ModelSetup) -> None:
    length = "" if video.seconds is None else f" in {_clock(video.seconds)}"
    heading = f"{title}: {len(indices)} of {video.num_frames:,} frames{length}"
    canvas.text(MARGIN, 0.45, heading, 20, WIDTH - 2 * MARGIN, weight="bold")
    tokens = setup.tokens_of_tiles().replace("per tile", "per frame")
    canvas.text(MARGIN, 0.82, f"{setup.name}: {tokens}; a frame is one tile", 12, WIDTH - 2 * MARGIN, color=GREY)


def _draw_cost(canvas: Canvas, cost: Cost, has_lvtc: bool) -> None:
    tokens = f"{cost.stage_one_tokens:,}" + (f" → {cost.stage_two_tokens:,}" if has_lvtc else "") + " visual tokens"
    memory = f"cache {scaled(cost.cache_bytes, BYTE_UNITS)}, peak about {scaled(cost.peak_bytes, BYTE_UNITS)}"
    prefill = f"prefill {scaled(cost.prefill_flops, FLOP_UNITS)}, {memory}"
    canvas.text(MARGIN, HEIGHT - 0.62, tokens, 16, weight="bold", color=COLOURS["edge"])
    canvas.text(MARGIN, HEIGHT - 0.3, prefill, 11, WIDTH - 2 * MARGIN, color=GREY)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{int(rest):02}" if hours else f"{minutes}:{rest:04.1f}"
