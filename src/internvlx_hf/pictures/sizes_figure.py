# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide that shows an image at each size of a tile that a checkpoint offers: its tokens, their cost, and the
answer.
"""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace

import PIL.Image

from ..checkpoints.numbers import FLOP_UNITS, scaled
from ..cost import Cost, CostModel, ModelSetup
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import TilePlan
from .canvas import GREY, HEIGHT, INK, PALE, WIDTH, Box, Canvas, text_width

MARGIN, GAP, TOP = 0.5, 0.3, 1.15  # inches
PER_LINE = 6  # sizes side by side
HEAD, COST, LINE = 0.62, 0.8, 0.22  # heights of a size's name, of its cost, and of a line of its answer
ANSWER_LINES = 3  # at least
COLOUR = "#2f6fb7"


@dataclass(frozen=True)
class SizeCost:
    """What a size costs: the setup with it, the grid of the image's tiles, and the cost of a prompt with the image."""

    setup: ModelSetup
    plan: TilePlan
    cost: Cost


def cost_of_sizes(setup: ModelSetup, size: tuple[int, int]) -> dict[str, SizeCost]:
    """The cost of an upright image of (width, height) pixels at each size that the model offers, by the size's
    name.
    """
    found = {}
    for name in setup.sizes.tiles:
        # a model that offers one size takes no choice
        sized = setup if len(setup.sizes.tiles) == 1 else setup.changed(ImageSettings(tokens_per_tile=name))
        model = CostModel(sized)
        found[name] = SizeCost(sized, model.plans([size])[0], model.of_size(*size))
    return found


def draw_sizes(
    image: PIL.Image.Image,
    setup: ModelSetup,
    answers: Mapping[str, str] | None = None,
    question: str = "",
    title: str = "image",
):
    """Draw an image at each size that a model offers, the default first.

    The lines are those between its visual tokens: on the left half before the boundary layer, on the right half after
    it.

    Args:
        image: the upright image.
        answers: the model's answers to `question` by size (default: none are shown).

    Returns:
        A matplotlib `Figure`, 16:9.
    """
    costs, canvas = cost_of_sizes(setup, image.size), Canvas()
    canvas.text(MARGIN, 0.45, title, 20, WIDTH - 2 * MARGIN, weight="bold")
    asked = f": {question}" if answers and question else ""
    canvas.text(
        MARGIN, 0.82, f"{setup.name}, {image.width} x {image.height} pixels{asked}", 12, WIDTH - 2 * MARGIN, color=GREY
    )
    columns, lines = min(len(costs), PER_LINE), math.ceil(len(costs) / PER_LINE)
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    height = (HEIGHT - TOP - 0.3 - (lines - 1) * GAP) / lines
    most = max(own.cost.prefill_flops for own in costs.values())
    for number, (name, own) in enumerate(costs.items()):
        line, column = divmod(number, PER_LINE)
        cell = Box(MARGIN + column * (width + GAP), TOP + line * (height + GAP), width, height)
        words = None if answers is None else answers.get(name, "")
        _draw_size(canvas, image, name, own, cell, own.cost.prefill_flops / most, words)
    return canvas.figure


def _draw_size(
    canvas: Canvas, image: PIL.Image.Image, name: str, own: SizeCost, cell: Box, share: float, answer: str | None
) -> None:
    canvas.fill(replace(cell, height=0.04), COLOUR)
    canvas.text(cell.left, cell.top + 0.25, name, 16, cell.width, weight="bold", color=COLOUR)
    words = own.setup.tokens_of_tiles()
    canvas.text(cell.left, cell.top + 0.5, words, 9.5 * min(1, cell.width / text_width(words, 9.5)), color=GREY)
    below = COST + (0 if answer is None else 0.1 + ANSWER_LINES * LINE)
    place = Box(cell.left, cell.top + HEAD, cell.width, cell.height - HEAD - below).fit(*image.size)
    place = replace(place, top=cell.top + HEAD)
    canvas.image(image, place, sharp=max(image.size) < 64)
    _draw_tokens(canvas, own, place)
    top, cost = place.top + place.height, own.cost
    later = f" → {cost.stage_two_tokens:,}" if cost.stage_two_tokens != cost.stage_one_tokens else ""
    canvas.text(
        cell.left, top + 0.22, f"{cost.stage_one_tokens:,}{later} tokens", 13, cell.width, weight="bold", color=INK
    )
    bar = Box(cell.left, top + 0.4, cell.width, 0.1)
    canvas.fill(bar, PALE)
    canvas.fill(replace(bar, width=bar.width * share), COLOUR)
    canvas.text(cell.left, top + 0.66, f"prefill {scaled(cost.prefill_flops, FLOP_UNITS)}", 11, cell.width, color=GREY)
    lines = int((cell.top + cell.height - top - COST) / LINE)
    for line, text in enumerate(_wrapped(answer or "", cell.width, lines)):
        canvas.text(cell.left, top + COST + 0.15 + line * LINE, text, 11, cell.width)


def _draw_tokens(canvas: Canvas, own: SizeCost, place: Box) -> None:
    """Draw the lines between tokens: before the boundary on the left half, after it on the right half."""
    in_stages = own.setup.sizes.tiles[own.setup.frame_size].in_stages
    before, after = in_stages[0], in_stages[-1]
    half = replace(place, width=place.width / 2)
    halves = (
        [(place, before)]
        if before == after
        else [(half, before), (replace(half, left=place.left + half.width), after)]
    )
    for box, tokens in halves:
        if not tokens:
            canvas.fill(box, PALE)
            words = "dropped"
            size = min(10, 10 * 0.9 * box.width / text_width(words, 10))
            canvas.text(box.left + box.width / 2, box.top + box.height / 2, words, size, ha="center", color=GREY)
            continue
        side = math.isqrt(tokens)
        for count, start, length, whole, is_column in (
            (side * own.plan.columns, place.left, place.width, box, True),
            (side * own.plan.rows, place.top, place.height, box, False),
        ):
            for i in range(count + 1):
                at = start + i * length / count
                if is_column and box.left - 1e-6 <= at <= box.left + box.width + 1e-6:
                    canvas.line((at, whole.top), (at, whole.top + whole.height), COLOUR, 0.5)
                elif not is_column:
                    canvas.line((whole.left, at), (whole.left + whole.width, at), COLOUR, 0.5)
    canvas.grid(place, own.plan.columns, own.plan.rows, COLOUR, linewidth=1.4, seam=1.4)


def _wrapped(text: str, width: float, lines: int) -> list[str]:
    """The first lines of a text of a column's width."""
    letters = max(8, int(width / (text_width("abcdefghij ABC 0123", 11) / 19)))
    return textwrap.wrap(" ".join(text.split()), letters, max_lines=lines, placeholder=" …")
