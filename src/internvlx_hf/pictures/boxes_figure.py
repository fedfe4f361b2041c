# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide that shows the boxes of an answer on the image that it is about."""

from collections.abc import Sequence

import PIL.Image

from ..processing.boxes import LabelledBox
from .canvas import GREY, HEIGHT, WIDTH, Box, Canvas

MARGIN, TOP, LEGEND, LINE = (
    0.5,
    1.15,
    3.2,
    0.3,
)  # inches: margin, top of the image, width of the legend and height of a line
# distinguishable with all common kinds of colour vision; each label has one, in turn
PALETTE = ("#d1495b", "#2f6fb7", "#1b8a6b", "#c77d0a", "#7b4fa3", "#0f8b9d")


def draw_boxes(image: PIL.Image.Image, boxes: Sequence[LabelledBox], title: str, caption: str = ""):
    """Draw numbered boxes on an image, and the list of their labels beside it.

    Args:
        image: the upright image.
        boxes: as `processor.parse_boxes` returns them.

    Returns:
        A matplotlib `Figure`, 16:9.
    """
    canvas = Canvas()
    canvas.text(MARGIN, 0.45, title, 20, WIDTH - 2 * MARGIN, weight="bold")
    canvas.text(MARGIN, 0.82, caption, 12, WIDTH - 2 * MARGIN, color=GREY)
    place = Box(MARGIN, TOP, WIDTH - 3 * MARGIN - LEGEND, HEIGHT - TOP - MARGIN).fit(*image.size)
    canvas.image(image, place, sharp=max(image.size) < 64)
    labels = list(dict.fromkeys(box.label for box in boxes))
    x, y = place.width / image.width, place.height / image.height
    lines = int((HEIGHT - TOP - MARGIN) / LINE)
    shown = len(boxes) if len(boxes) <= lines else lines - 1
    left = WIDTH - MARGIN - LEGEND
    for number, box in enumerate(boxes):
        colour = PALETTE[labels.index(box.label) % len(PALETTE)]
        corner, size = (
            (place.left + x * box.left, place.top + y * box.top),
            (x * (box.right - box.left), y * (box.bottom - box.top)),
        )
        canvas.frame(Box(*corner, *size), "white", 3.5)
        canvas.frame(Box(*corner, *size), colour, 1.8)
        if number < shown:
            canvas.text(corner[0] + 0.05, corner[1] + 0.1, str(number + 1), 9, color=colour, weight="bold")
            corners = ", ".join(f"{value:.0f}" for value in box[1:])
            line = f"{number + 1}  {box.label or 'a box'}  ({corners})"
            canvas.text(left, TOP + (number + 0.5) * LINE, line, 11, LEGEND, color=colour)
    if shown < len(boxes):
        canvas.text(left, TOP + (shown + 0.5) * LINE, f"and {len(boxes) - shown} more", 11, LEGEND, color=GREY)
    return canvas.figure
