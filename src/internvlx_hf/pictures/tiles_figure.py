# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide that shows an image under each slicing strategy, the tiles that a model gets, and their cost."""

import math
import os
from dataclasses import dataclass, replace

import PIL.Image

from ..checkpoints.numbers import BYTE_UNITS, FLOP_UNITS, counted, scaled
from ..cost import Cost, CostModel, ModelSetup
from ..cost.estimate import ANSWER_TOKENS, TEXT_TOKENS
from ..processing.rvtc import SLICING_WORDS, TilePlan
from .attention import open_upright
from .canvas import COLOURS, GREY, HEIGHT, PALE, WIDTH, Box, Canvas, text_width

MARGIN, GAP = 0.5, 0.45  # inches: the slide's margin, and the gap between its columns
TOP, BOTTOM = 1.08, 6.95  # of the area for the strategies
TEXT = 3.45  # width of a strategy's text if it is beside the image
HEAD, COST = 0.54, 1.2  # heights of a strategy's name and of its cost
TILES_GAP = 0.28  # gap between the image and its tiles
THUMBNAIL_GAP = 0.15  # gap before the thumbnail, relative to a tile's side


def draw_tiles(
    image: str | os.PathLike | PIL.Image.Image,
    setting: ModelSetup,
    *,
    text_tokens: int = TEXT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    title: str | None = None,
):
    """Draw an image under the slicing strategies ratio, area and edge, its tiles, and the cost of each strategy.

    The strategies are side by side, or one below the other if that makes a wide image larger.

    Args:
        image: a file, a URL, or a Pillow image.
        setting: the model and its tiling.
        text_tokens: number of text tokens in the prompt.
        answer_tokens: number of tokens of the answer.
        title: title of the slide (default: the file's name).

    Returns:
        A matplotlib `Figure`, 16:9.

    Raises:
        ValueError: if the image is corrupt, empty or too large, or if a number of tokens is out of range.
    """
    if title is None:
        title = "image" if isinstance(image, PIL.Image.Image) else os.path.basename(os.fspath(image))
    image = open_upright(image)
    costs, plans = {}, {}
    for slicing in COLOURS:
        sliced = replace(setting, tiling=replace(setting.tiling, slicing=slicing))
        model = CostModel(sliced, text_tokens, answer_tokens)
        (plans[slicing],) = model.plans([image.size])
        costs[slicing] = model.of_size(*image.size)
    canvas = Canvas()
    _draw_head(canvas, title, image, setting)
    for slicing, layout in zip(COLOURS, _strategy_layouts(image.size, list(plans.values())), strict=True):
        is_used = slicing == setting.tiling.slicing
        _draw_strategy(canvas, slicing, is_used, layout)
        _draw_slicing(canvas, image, plans[slicing], COLOURS[slicing], layout.image)
        _draw_cost(canvas, costs, slicing, setting.has_lvtc, layout.cost)
    legend = (
        "First the image under its grid, then the square tiles that the model gets, in order. Dashed: the thumbnail."
    )
    prompt = (
        f"The prompt has the image and {text_tokens} tokens of text, the answer {answer_tokens} tokens. FLOPs are "
        "counted as torch does; peak memory is an estimate."
    )
    for y, line in ((HEIGHT - 0.33, legend), (HEIGHT - 0.15, prompt)):
        canvas.text(MARGIN, y, line, 8, WIDTH - 2 * MARGIN, color=GREY)
    return canvas.figure


def draw_slicing(image: PIL.Image.Image, plan: TilePlan, slicing: str, width: float = 4.2, height: float = 4.2):
    """Draw a single strategy: an upright image under its grid, and the tiles that a model gets.

    Returns:
        A matplotlib `Figure` of `width` x `height` inches.
    """
    canvas = Canvas(width, height)
    _draw_slicing(canvas, image, plan, COLOURS[slicing], Box(0.05, 0.05, width - 0.1, height - 0.2))
    return canvas.figure


def _draw_head(canvas: Canvas, title: str, image: PIL.Image.Image, setup: ModelSetup) -> None:
    canvas.text(MARGIN, 0.45, f"{title}, {image.width} × {image.height} pixels", 20, 12.3, weight="bold")
    tokens = setup.tokens_of_tiles()
    tiles = f"tiles of {setup.tiling.tile_width} × {setup.tiling.tile_height} pixels"
    text = f"{setup.name}: {tokens}; at most {setup.tiling.max_tiles} {tiles}"
    canvas.text(MARGIN, 0.82, text, 12, 12.3, color=GREY)


@dataclass(frozen=True)
class StrategyLayout:
    """The boxes of a strategy: all of it, its name (`head`), its image with its tiles, and its cost."""

    whole: Box
    head: Box
    image: Box
    cost: Box


@dataclass(frozen=True)
class SlicingLayout:
    """The boxes of an image and of its tiles.

    Args:
        columns: columns of tiles: those of the grid, or fewer if a single line of tiles is wrapped.
        side: side of a tile with the gap to the next one.
        score: the geometric mean of the areas of the image and of its tiles; tiles count for at most the image's area.
    """

    image: Box
    tiles: Box
    columns: int
    side: float
    score: float


def _strategy_layouts(size: tuple[int, int], plans: list[TilePlan]) -> list[StrategyLayout]:
    """The layouts of the strategies, beside or below each other."""
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

    def score(layouts: list[StrategyLayout]) -> float:
        return sum(_layout(layout.image, size, plan).score for layout, plan in zip(layouts, plans, strict=True))

    return max((beside, below), key=score)


def _draw_strategy(canvas: Canvas, slicing: str, is_used: bool, layout: StrategyLayout) -> None:
    colour, head, y = COLOURS[slicing], layout.head, layout.head.top + 0.26
    canvas.fill(replace(layout.whole, height=0.04), colour)
    canvas.text(head.left, y, slicing, 16, weight="bold", color=colour)
    room = head.width - text_width(slicing, 16, "bold") - 0.2
    if is_used:
        canvas.text(head.left + text_width(slicing, 16, "bold") + 0.1, y + 0.02, "this model", 10.5, color=colour)
        room -= text_width("this model", 10.5) + 0.1
    words = SLICING_WORDS[slicing]
    size = min(9.5, 9.5 * room / text_width(words, 9.5))
    canvas.text(head.left + head.width, y + 0.02, words, size, ha="right", color=GREY)


def _draw_slicing(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, box: Box) -> None:
    """Draw the image under its grid, and the tiles."""
    layout = _layout(box, image.size, plan)
    canvas.image(image, layout.image, sharp=max(image.size) < 64)
    canvas.grid(layout.image, plan.columns, plan.rows, colour)
    _draw_tiles(canvas, image, plan, colour, layout)


def _layout(box: Box, size: tuple[int, int], plan: TilePlan) -> SlicingLayout:
    """The layout that shows image and tiles largest: tiles below or beside the image, a single line wrapped or not."""
    tiles = plan.columns * plan.rows
    options = [plan.columns]
    if 1 in (plan.columns, plan.rows):
        options += range(1, tiles + 1)
    layouts = []
    for columns in options:
        shape = columns + (1 + THUMBNAIL_GAP) * plan.has_thumbnail, math.ceil(tiles / columns)
        for image, place in (_stacked(box, size, shape), _side_by_side(box, size, shape)):
            side = place.height / shape[1]
            area = image.width * image.height
            score = math.sqrt(area * min(tiles * side**2, area))
            layouts.append(SlicingLayout(image, place, columns, side, score))
    return max(layouts, key=lambda layout: (layout.score, layout.side))


def _stacked(box: Box, image_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    """The image in at most the upper half, the tiles in the rest."""
    image = Box(box.left, box.top, box.width, (box.height - TILES_GAP) / 2).fit(*image_shape)
    tiles = Box(box.left, box.top, box.width, box.height - TILES_GAP - image.height).fit(*tiles_shape)
    top = box.top + (box.height - image.height - TILES_GAP - tiles.height) / 2
    return replace(image, top=top), replace(tiles, top=top + image.height + TILES_GAP)


def _side_by_side(box: Box, image_shape: tuple, tiles_shape: tuple) -> tuple[Box, Box]:
    image = Box(box.left, box.top, (box.width - TILES_GAP) / 2, box.height).fit(*image_shape)
    tiles = Box(box.left, box.top, box.width - TILES_GAP - image.width, box.height).fit(*tiles_shape)
    left = box.left + (box.width - image.width - TILES_GAP - tiles.width) / 2
    return replace(image, left=left), replace(tiles, left=left + image.width + TILES_GAP)


def _draw_tiles(canvas: Canvas, image: PIL.Image.Image, plan: TilePlan, colour: str, layout: SlicingLayout) -> None:
    """Draw the tiles as the model gets them, stretched to squares, and the thumbnail beside them."""
    box, side, inner, pixels = layout.tiles, layout.side, 0.94 * layout.side, 160
    sharp = max(image.size) < 64
    resample = PIL.Image.Resampling.NEAREST if sharp else PIL.Image.Resampling.BICUBIC
    stretched = image.resize((plan.columns * pixels, plan.rows * pixels), resample)
    for number in range(plan.columns * plan.rows):
        row, column = divmod(number, plan.columns)
        corner = (column * pixels, row * pixels)
        tile = stretched.crop((*corner, corner[0] + pixels, corner[1] + pixels))
        row, column = divmod(number, layout.columns)
        place = Box(box.left + column * side, box.top + row * side, inner, inner)
        canvas.image(tile, place, sharp)
        canvas.frame(place, colour, 1.2)
    if plan.has_thumbnail:
        left, top = box.left + (layout.columns + THUMBNAIL_GAP) * side, box.top + (box.height - inner) / 2
        place = Box(left, top, inner, inner)
        canvas.image(image.resize((pixels, pixels), resample), place, sharp)
        canvas.frame(place, colour, 1.2, linestyle=(0, (3, 2)))
        if inner > text_width("thumbnail", 7.5):
            canvas.text(left + inner / 2, top + inner + 0.11, "thumbnail", 7.5, color=GREY, ha="center")


def _draw_cost(canvas: Canvas, costs: dict[str, Cost], slicing: str, has_lvtc: bool, box: Box) -> None:
    cost, colour, left, width = costs[slicing], COLOURS[slicing], box.left, box.width
    most = max(each.prefill_flops for each in costs.values())
    tokens = f"{cost.stage_one_tokens:,}" + (f" → {cost.stage_two_tokens:,}" if has_lvtc else "")
    tiles, tokens = counted(cost.tiles, "tile"), f"{tokens} tokens"
    canvas.text(left, box.top + 0.3, tiles, 17, weight="bold", color=colour)
    space = width - text_width(tiles, 17, "bold") - 0.15
    size = 15 * min(1, space / text_width(tokens, 15, "bold"))
    canvas.text(left + width, box.top + 0.3, tokens, size, weight="bold", ha="right", color=colour)
    bar = Box(left, box.top + 0.55, width, 0.13)
    canvas.fill(bar, PALE)
    canvas.fill(replace(bar, width=width * cost.prefill_flops / most), colour)
    share = cost.prefill_flops / costs["ratio"].prefill_flops
    relative = "" if slicing == "ratio" else ", same as ratio" if share == 1 else f", {share:.0%} of ratio"
    canvas.text(left, box.top + 0.85, f"prefill {scaled(cost.prefill_flops, FLOP_UNITS)}{relative}", 11)
    memory = f"cache {scaled(cost.cache_bytes, BYTE_UNITS)}, peak about {scaled(cost.peak_bytes, BYTE_UNITS)}"
    canvas.text(left, box.top + 1.1, memory, 11, color=GREY)
