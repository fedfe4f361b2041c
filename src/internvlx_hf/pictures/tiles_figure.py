# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide: a picture cut up by each strategy, the tiles that a model gets, and what they cost."""

import os
from dataclasses import replace

import PIL.Image

from ..cost import Cost, CostModel, Setting
from ..cost.estimate import ANSWER_TOKENS, TEXT_TOKENS
from ..cost.report import BYTE_UNITS, FLOP_UNITS, scaled
from ..processing.rvtc import TilePlan
from .attention import open_upright
from .canvas import COLOURS, GREY, HEIGHT, PALE, WIDTH, Box, Canvas, text_width

MARGIN, GAP = 0.5, 0.45  # of the slide, and between its columns
TOP, BOTTOM = 1.62, 5.72  # of the pictures
BETWEEN = 0.28  # the picture and its tiles
MEANINGS = {
    "ratio": "nearest shape, as InternVL",
    "area": "no more than the area fills",
    "edge": "no more than the edges fill",
}


def draw_tiles(
    image: str | os.PathLike | PIL.Image.Image,
    setting: Setting,
    *,
    text_tokens: int = TEXT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    title: str | None = None,
):
    """Draw how a picture is cut by aspect ratio, area and edges, and what each way costs a model.

    Args:
        image: a file, a URL, or a Pillow image.
        setting: the model, and the bounds of its tiles.
        text_tokens, answer_tokens: of the prompt beside the picture, and of the answer.
        title: instead of the file's name.

    Returns:
        A matplotlib `Figure`, 16:9.

    Raises:
        ValueError: the image is corrupt, empty or too large, or a number of tokens is out of range.
    """
    if title is None:
        title = "picture" if isinstance(image, PIL.Image.Image) else os.path.basename(os.fspath(image))
    image = open_upright(image)
    costs, plans = {}, {}
    for slicing in COLOURS:
        way = replace(setting, tiling=replace(setting.tiling, slicing=slicing))
        plans[slicing] = way.tiling.plan(*image.size)
        costs[slicing] = CostModel(way, text_tokens, answer_tokens).of_size(*image.size)
    canvas = Canvas()
    _draw_head(canvas, title, image, setting)
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    for i, slicing in enumerate(COLOURS):
        left = MARGIN + i * (width + GAP)
        is_own = slicing == setting.tiling.slicing
        _draw_strategy(canvas, slicing, is_own, left, width)
        _draw_cut(canvas, image, plans[slicing], COLOURS[slicing], Box(left, TOP, width, BOTTOM - TOP))
        _draw_cost(canvas, costs, slicing, setting.has_lvtc, left, width)
    seen = "First where the picture is cut, then the squares that the model gets; dashed: the thumbnail."
    prompt = (
        f"A prompt of the picture and {text_tokens} tokens of text, an answer of {answer_tokens}. FLOPs as torch counts "
        "them; the peak of memory is an estimate."
    )
    for y, line in ((HEIGHT - 0.33, seen), (HEIGHT - 0.15, prompt)):
        canvas.text(MARGIN, y, line, 8, WIDTH - 2 * MARGIN, color=GREY)
    return canvas.figure


def _draw_head(canvas: Canvas, title: str, image: PIL.Image.Image, setting: Setting) -> None:
    sizes = setting.sizes
    canvas.text(MARGIN, 0.45, f"{title}, {image.width} × {image.height} pixels", 20, 12.3, weight="bold")
    tokens = f"{sizes.image_seq_length} tokens a tile"
    if sizes.lvtc_config is not None:
        tokens += f", {sizes.expanded_image_seq_length} from layer {sizes.lvtc_config.expand_layer} on"
    tiles = f"tiles of {setting.tiling.tile_width} × {setting.tiling.tile_height} pixels"
    text = f"{setting.name}: {tokens}; at most {setting.tiling.max_tiles} {tiles}"
    canvas.text(MARGIN, 0.82, text, 12, 12.3, color=GREY)


def _draw_strategy(canvas: Canvas, slicing: str, is_own: bool, left: float, width: float) -> None:
    colour = COLOURS[slicing]
    canvas.fill(Box(left, 1.08, width, 0.04), colour)
    canvas.text(left, 1.34, slicing, 16, weight="bold", color=colour)
    if is_own:
        canvas.text(left + text_width(slicing, 16, "bold") + 0.1, 1.36, "this model", 10.5, color=colour)
    canvas.text(left + width, 1.36, MEANINGS[slicing], 9.5, ha="right", color=GREY)


def _draw_cut(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, box: Box) -> None:
    """The picture under its grid, and the tiles: one above the other, or side by side where that shows them larger."""
    tiles_shape = (plan.columns + 1.15 * plan.has_thumbnail, plan.rows)
    layouts = (_stacked(box, image.size, tiles_shape), _side_by_side(box, image.size, tiles_shape))
    picture, tiles = max(layouts, key=lambda boxes: sum(each.width * each.height for each in boxes))
    canvas.picture(image, picture, sharp=max(image.size) < 64)
    canvas.grid(picture, plan.columns, plan.rows, colour)
    _draw_tiles(canvas, image, plan, colour, tiles)


def _stacked(box: Box, picture_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    """The picture in the upper half at most, the tiles in what is left."""
    picture = Box(box.left, box.top, box.width, (box.height - BETWEEN) / 2).fit(*picture_shape)
    tiles = Box(box.left, box.top, box.width, box.height - BETWEEN - picture.height).fit(*tiles_shape)
    top = box.top + (box.height - picture.height - BETWEEN - tiles.height) / 2
    return replace(picture, top=top), replace(tiles, top=top + picture.height + BETWEEN)


def _side_by_side(box: Box, picture_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    picture = Box(box.left, box.top, (box.width - BETWEEN) / 2, box.height).fit(*picture_shape)
    tiles = Box(box.left, box.top, box.width - BETWEEN - picture.width, box.height).fit(*tiles_shape)
    left = box.left + (box.width - picture.width - BETWEEN - tiles.width) / 2
    return replace(picture, left=left), replace(tiles, left=left + picture.width + BETWEEN)


def _draw_tiles(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, box: Box) -> None:
    """What the model gets: the tiles, which stretch the picture to squares, and the thumbnail beside them."""
    side = box.height / plan.rows
    inner = 0.94 * side
    pixels = 160
    sharp = max(image.size) < 64
    resample = PIL.Image.Resampling.NEAREST if sharp else PIL.Image.Resampling.BICUBIC
    stretched = image.resize((plan.columns * pixels, plan.rows * pixels), resample)
    for row in range(plan.rows):
        for column in range(plan.columns):
            corner = (column * pixels, row * pixels)
            tile = stretched.crop((*corner, corner[0] + pixels, corner[1] + pixels))
            place = Box(box.left + column * side, box.top + row * side, inner, inner)
            canvas.picture(tile, place, sharp)
            canvas.frame(place, colour, 1.2)
    if plan.has_thumbnail:
        left, top = box.left + (plan.columns + 0.15) * side, box.top + (box.height - inner) / 2
        place = Box(left, top, inner, inner)
        canvas.picture(image.resize((pixels, pixels), resample), place, sharp)
        canvas.frame(place, colour, 1.2, linestyle=(0, (3, 2)))
        if inner > text_width("thumbnail", 7.5):
            canvas.text(left + inner / 2, top + inner + 0.11, "thumbnail", 7.5, color=GREY, ha="center")


def _draw_cost(
    canvas: Canvas, costs: dict[str, Cost], slicing: str, has_lvtc: bool, left: float, width: float
) -> None:
    cost, colour = costs[slicing], COLOURS[slicing]
    most = max(each.prefill_flops for each in costs.values())
    tokens = f"{cost.stage_one_tokens:,}" + (f" → {cost.stage_two_tokens:,}" if has_lvtc else "")
    tiles, tokens = f"{cost.tiles} tile{'s' * (cost.tiles > 1)}", f"{tokens} tokens"
    canvas.text(left, 6.05, tiles, 17, weight="bold", color=colour)
    room = width - text_width(tiles, 17, "bold") - 0.15
    size = 15 * min(1, room / text_width(tokens, 15, "bold"))
    canvas.text(left + width, 6.05, tokens, size, weight="bold", ha="right", color=colour)
    canvas.fill(Box(left, 6.30, width, 0.13), PALE)
    canvas.fill(Box(left, 6.30, width * cost.prefill_flops / most, 0.13), colour)
    share = cost.prefill_flops / costs["ratio"].prefill_flops
    against = "" if slicing == "ratio" else ", as ratio" if share == 1 else f", {share:.0%} of ratio's"
    canvas.text(left, 6.60, f"prefill {scaled(cost.prefill_flops, FLOP_UNITS)}{against}", 11)
    memory = f"cache {scaled(cost.cache_bytes, BYTE_UNITS)}, peak about {scaled(cost.peak_bytes, BYTE_UNITS)}"
    canvas.text(left, 6.85, memory, 11, color=GREY)
