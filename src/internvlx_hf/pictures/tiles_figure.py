# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide: an image cut up by each strategy, the tiles that a model gets, and what they cost."""

import math
import os
from dataclasses import dataclass, replace

import PIL.Image

from ..cost import Cost, CostModel, ModelSetup
from ..cost.estimate import ANSWER_TOKENS, TEXT_TOKENS
from ..cost.report import BYTE_UNITS, FLOP_UNITS, scaled
from ..processing.rvtc import TilePlan
from .attention import open_upright
from .canvas import COLOURS, GREY, HEIGHT, PALE, WIDTH, Box, Canvas, text_width

MARGIN, GAP = 0.5, 0.45  # of the slide, and between its columns
TOP, BOTTOM = 1.08, 6.95  # of the strategies
TEXT = 3.45  # width of a strategy's text where it stands beside the image
HEAD, COST = 0.54, 1.2  # heights of a strategy's name and of its cost
BETWEEN = 0.28  # the image and its tiles
THUMBNAIL_GAP = 0.15  # of a tile's side
MEANINGS = {
    "ratio": "nearest shape, as InternVL",
    "area": "no more than the area fills",
    "edge": "no more than the edges fill",
}


def draw_tiles(
    image: str | os.PathLike | PIL.Image.Image,
    setting: ModelSetup,
    *,
    text_tokens: int = TEXT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    title: str | None = None,
):
    """Draw how an image is cut by aspect ratio, area and edges, and what each way costs a model.

    The strategies stand side by side, or, where that shows a wide image larger, below each other.

    Args:
        image: a file, a URL, or a Pillow image.
        setting: the model, and the bounds of its tiles.
        text_tokens, answer_tokens: of the prompt beside the image, and of the answer.
        title: instead of the file's name.

    Returns:
        A matplotlib `Figure`, 16:9.

    Raises:
        ValueError: the image is corrupt, empty or too large, or a number of tokens is out of range.
    """
    if title is None:
        title = "image" if isinstance(image, PIL.Image.Image) else os.path.basename(os.fspath(image))
    image = open_upright(image)
    costs, plans = {}, {}
    for slicing in COLOURS:
        way = replace(setting, tiling=replace(setting.tiling, slicing=slicing))
        plans[slicing] = way.tiling.plan(*image.size)
        costs[slicing] = CostModel(way, text_tokens, answer_tokens).of_size(*image.size)
    canvas = Canvas()
    _draw_head(canvas, title, image, setting)
    for slicing, part in zip(COLOURS, _parts(image.size, list(plans.values())), strict=True):
        is_own = slicing == setting.tiling.slicing
        _draw_strategy(canvas, slicing, is_own, part)
        _draw_cut(canvas, image, plans[slicing], COLOURS[slicing], part.image)
        _draw_cost(canvas, costs, slicing, setting.has_lvtc, part.cost)
    seen = "First where the image is cut, then the squares that the model gets, in their order; dashed: the thumbnail."
    prompt = (
        f"A prompt of the image and {text_tokens} tokens of text, an answer of {answer_tokens}. FLOPs as torch counts "
        "them; the peak of memory is an estimate."
    )
    for y, line in ((HEIGHT - 0.33, seen), (HEIGHT - 0.15, prompt)):
        canvas.text(MARGIN, y, line, 8, WIDTH - 2 * MARGIN, color=GREY)
    return canvas.figure


def draw_slicing(image: PIL.Image.Image, plan: TilePlan, slicing: str, width: float = 4.2, height: float = 4.2):
    """Draw one strategy alone: an upright image under its grid, and the tiles that a model gets.

    Returns:
        A matplotlib `Figure` of so many inches.
    """
    canvas = Canvas(width, height)
    _draw_cut(canvas, image, plan, COLOURS[slicing], Box(0.05, 0.05, width - 0.1, height - 0.2))
    return canvas.figure


def _draw_head(canvas: Canvas, title: str, image: PIL.Image.Image, setting: ModelSetup) -> None:
    sizes = setting.sizes
    canvas.text(MARGIN, 0.45, f"{title}, {image.width} × {image.height} pixels", 20, 12.3, weight="bold")
    tokens = f"{sizes.image_seq_length} tokens a tile"
    if sizes.lvtc_config is not None:
        tokens += f", {sizes.expanded_image_seq_length} from layer {sizes.lvtc_config.expand_layer} on"
    tiles = f"tiles of {setting.tiling.tile_width} × {setting.tiling.tile_height} pixels"
    text = f"{setting.name}: {tokens}; at most {setting.tiling.max_tiles} {tiles}"
    canvas.text(MARGIN, 0.82, text, 12, 12.3, color=GREY)


@dataclass(frozen=True)
class StrategyLayout:
    """Where a strategy is drawn: all of it, its image and tiles, its cost; `head` has its name."""

    whole: Box
    head: Box
    image: Box
    cost: Box


@dataclass(frozen=True)
class Cut:
    """Where an image is drawn, and its tiles.

    Args:
        columns: of the tiles: the grid's own, or fewer, which wrap a single line of tiles.
        side: of a tile with the gap to the next.
        worth: the geometric mean of the areas of the image and of its tiles, which need not be larger than the image.
    """

    image: Box
    tiles: Box
    columns: int
    side: float
    worth: float


def _parts(size: tuple[int, int], plans: list[TilePlan]) -> list[StrategyLayout]:
    """The parts of the strategies, beside or below each other."""
    beside, below, count = [], [], len(plans)
    width, height = (WIDTH - 2 * MARGIN - (count - 1) * GAP) / count, BOTTOM - TOP
    for i in range(count):
        whole = Box(MARGIN + i * (width + GAP), TOP, width, height)
        image = Box(whole.left, TOP + HEAD, width, height - HEAD - COST)
        beside.append(
            StrategyLayout(whole, replace(whole, height=HEAD), image, Box(whole.left, BOTTOM - COST, width, COST))
        )
    width, height = WIDTH - 2 * MARGIN, (BOTTOM - TOP) / count
    for i in range(count):
        whole = Box(MARGIN, TOP + i * height, width, height)
        head, cost = Box(MARGIN, whole.top, TEXT, HEAD), Box(MARGIN, whole.top + HEAD, TEXT, COST)
        image = Box(MARGIN + TEXT + GAP, whole.top + 0.14, width - TEXT - GAP, height - 0.36)
        below.append(StrategyLayout(whole, head, image, cost))

    def worth(parts: list[StrategyLayout]) -> float:
        return sum(_cut(part.image, size, plan).worth for part, plan in zip(parts, plans, strict=True))

    return max((beside, below), key=worth)


def _draw_strategy(canvas: Canvas, slicing: str, is_own: bool, part: StrategyLayout) -> None:
    colour, head, y = COLOURS[slicing], part.head, part.head.top + 0.26
    canvas.fill(replace(part.whole, height=0.04), colour)
    canvas.text(head.left, y, slicing, 16, weight="bold", color=colour)
    if is_own:
        canvas.text(head.left + text_width(slicing, 16, "bold") + 0.1, y + 0.02, "this model", 10.5, color=colour)
    canvas.text(head.left + head.width, y + 0.02, MEANINGS[slicing], 9.5, ha="right", color=GREY)


def _draw_cut(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, box: Box) -> None:
    """The image under its grid, and the tiles."""
    cut = _cut(box, image.size, plan)
    canvas.picture(image, cut.image, sharp=max(image.size) < 64)
    canvas.grid(cut.image, plan.columns, plan.rows, colour)
    _draw_tiles(canvas, image, plan, colour, cut)


def _cut(box: Box, size: tuple[int, int], plan: TilePlan) -> Cut:
    """The tiles below the image or beside it, a single line of them wrapped or not: whatever shows both largest."""
    tiles = plan.columns * plan.rows
    options = [plan.columns]
    if 1 in (plan.columns, plan.rows):
        options += range(1, tiles + 1)
    cuts = []
    for columns in options:
        shape = columns + (1 + THUMBNAIL_GAP) * plan.has_thumbnail, math.ceil(tiles / columns)
        for image, place in (_stacked(box, size, shape), _side_by_side(box, size, shape)):
            side = place.height / shape[1]
            area = image.width * image.height
            cuts.append(Cut(image, place, columns, side, math.sqrt(area * min(tiles * side**2, area))))
    return max(cuts, key=lambda cut: (cut.worth, cut.side))


def _stacked(box: Box, image_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    """The image in the upper half at most, the tiles in what is left."""
    image = Box(box.left, box.top, box.width, (box.height - BETWEEN) / 2).fit(*image_shape)
    tiles = Box(box.left, box.top, box.width, box.height - BETWEEN - image.height).fit(*tiles_shape)
    top = box.top + (box.height - image.height - BETWEEN - tiles.height) / 2
    return replace(image, top=top), replace(tiles, top=top + image.height + BETWEEN)


def _side_by_side(box: Box, image_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    image = Box(box.left, box.top, (box.width - BETWEEN) / 2, box.height).fit(*image_shape)
    tiles = Box(box.left, box.top, box.width - BETWEEN - image.width, box.height).fit(*tiles_shape)
    left = box.left + (box.width - image.width - BETWEEN - tiles.width) / 2
    return replace(image, left=left), replace(tiles, left=left + image.width + BETWEEN)


def _draw_tiles(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, cut: Cut) -> None:
    """What the model gets: the tiles, which stretch the image to squares, and the thumbnail beside them."""
    box, side, inner, pixels = cut.tiles, cut.side, 0.94 * cut.side, 160
    sharp = max(image.size) < 64
    resample = PIL.Image.Resampling.NEAREST if sharp else PIL.Image.Resampling.BICUBIC
    stretched = image.resize((plan.columns * pixels, plan.rows * pixels), resample)
    for number in range(plan.columns * plan.rows):
        row, column = divmod(number, plan.columns)
        corner = (column * pixels, row * pixels)
        tile = stretched.crop((*corner, corner[0] + pixels, corner[1] + pixels))
        row, column = divmod(number, cut.columns)
        place = Box(box.left + column * side, box.top + row * side, inner, inner)
        canvas.picture(tile, place, sharp)
        canvas.frame(place, colour, 1.2)
    if plan.has_thumbnail:
        left, top = box.left + (cut.columns + THUMBNAIL_GAP) * side, box.top + (box.height - inner) / 2
        place = Box(left, top, inner, inner)
        canvas.picture(image.resize((pixels, pixels), resample), place, sharp)
        canvas.frame(place, colour, 1.2, linestyle=(0, (3, 2)))
        if inner > text_width("thumbnail", 7.5):
            canvas.text(left + inner / 2, top + inner + 0.11, "thumbnail", 7.5, color=GREY, ha="center")


def _draw_cost(canvas: Canvas, costs: dict[str, Cost], slicing: str, has_lvtc: bool, box: Box) -> None:
    cost, colour, left, width = costs[slicing], COLOURS[slicing], box.left, box.width
    most = max(each.prefill_flops for each in costs.values())
    tokens = f"{cost.stage_one_tokens:,}" + (f" → {cost.stage_two_tokens:,}" if has_lvtc else "")
    tiles, tokens = f"{cost.tiles} tile{'s' * (cost.tiles > 1)}", f"{tokens} tokens"
    canvas.text(left, box.top + 0.3, tiles, 17, weight="bold", color=colour)
    room = width - text_width(tiles, 17, "bold") - 0.15
    size = 15 * min(1, room / text_width(tokens, 15, "bold"))
    canvas.text(left + width, box.top + 0.3, tokens, size, weight="bold", ha="right", color=colour)
    bar = Box(left, box.top + 0.55, width, 0.13)
    canvas.fill(bar, PALE)
    canvas.fill(replace(bar, width=width * cost.prefill_flops / most), colour)
    share = cost.prefill_flops / costs["ratio"].prefill_flops
    against = "" if slicing == "ratio" else ", as ratio" if share == 1 else f", {share:.0%} of ratio's"
    canvas.text(left, box.top + 0.85, f"prefill {scaled(cost.prefill_flops, FLOP_UNITS)}{against}", 11)
    memory = f"cache {scaled(cost.cache_bytes, BYTE_UNITS)}, peak about {scaled(cost.peak_bytes, BYTE_UNITS)}"
    canvas.text(left, box.top + 1.1, memory, 11, color=GREY)
