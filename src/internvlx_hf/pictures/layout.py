# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Layouts of images on a slide that make them as large as possible."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .canvas import Box

THUMBNAIL = 0.45  # side of the thumbnail, relative to the side of a square with the image's area
GAP = 0.12  # between an image and its thumbnail


@dataclass(frozen=True)
class ImageShape:
    """An image of `aspect` = width / height, with a square thumbnail beside or below it."""

    aspect: float
    has_thumbnail: bool = False

    def place(self, box: Box) -> tuple[Box, Box | None]:
        """The boxes of the image and of its thumbnail, as large as fits into `box`, at its top left corner."""
        if not self.has_thumbnail:
            image = box.fit(self.aspect, 1)
            return Box(box.left, box.top, image.width, image.height), None
        side = THUMBNAIL * math.sqrt(self.aspect)  # in heights of the image
        beside = min(side, 1)
        height_beside = min(box.height, max(box.width - GAP, 0) / (self.aspect + beside))
        below = min(side, self.aspect)
        height_below = min(box.width / self.aspect, max(box.height - GAP, 0) / (1 + below))
        height, is_beside = max((height_beside, True), (height_below, False))
        image = Box(box.left, box.top, self.aspect * height, height)
        if is_beside:
            return image, Box(image.left + image.width + GAP, image.top, beside * height, beside * height)
        return image, Box(image.left, image.top + height + GAP, below * height, below * height)

    def area(self, box: Box) -> float:
        """The area of the image in a box."""
        image, _ = self.place(box)
        return image.width * image.height


@dataclass(frozen=True)
class ImageGrid:
    """Images of one shape in a grid of cells, with text above and below each.

    Args:
        count: number of images.
        shape: the shape of all images.
        head: height of the text above an image.
        foot: height of the text below an image, as a function of the cell's width.
        min_width: minimum width of a cell, for its text.
        gap: gap between columns.
    """

    count: int
    shape: ImageShape
    head: float = 0.0
    foot: Callable[[float], float] = lambda width: 0.0
    min_width: float = 0.5
    gap: float = 0.3

    def cells(self, box: Box) -> tuple[float, list[Box]]:
        """The grid in `box` with the largest images: the area of an image, and the cells."""
        best: tuple[float, list[Box]] = (0.0, [])
        for columns in range(1, self.count + 1):
            rows = math.ceil(self.count / columns)
            width = (box.width - (columns - 1) * self.gap) / columns
            height = (box.height - (rows - 1) * self.gap / 2) / rows
            if width < self.min_width or self.image_box(Box(0, 0, width, height)).height <= 0:
                continue
            area = self.shape.area(self.image_box(Box(0, 0, width, height)))
            if area > best[0]:
                corners = [divmod(i, columns) for i in range(self.count)]
                places = [
                    (box.left + c * (width + self.gap), box.top + r * (height + self.gap / 2)) for r, c in corners
                ]
                best = area, [Box(left, top, width, height) for left, top in places]
        return best

    def image_box(self, cell: Box) -> Box:
        """The box of the image in a cell, between the texts."""
        height = cell.height - self.head - self.foot(cell.width)
        return Box(cell.left, cell.top + self.head, cell.width, height)


def split(box: Box, first: ImageGrid, second: ImageGrid, heading: float, gap: float) -> tuple[Box, Box]:
    """Divide a box between two grids of images, one above or beside the other, so that both have large images.

    Args:
        heading: height of the text above the second grid.
        gap: gap between the two grids.
    """

    def options():
        for percent in range(36, 82, 3):
            share = percent / 100
            height, width = share * (box.height - gap), share * (box.width - gap)
            yield (
                Box(box.left, box.top, box.width, height),
                Box(box.left, box.top + height + gap, box.width, box.height - gap - height),
            )
            yield (
                Box(box.left, box.top, width, box.height),
                Box(box.left + width + gap, box.top, box.width - gap - width, box.height),
            )

    def score(boxes: tuple[Box, Box]) -> float:
        below = Box(boxes[1].left, boxes[1].top + heading, boxes[1].width, boxes[1].height - heading)
        return first.cells(boxes[0])[0] * math.sqrt(second.cells(below)[0])

    return max(options(), key=score)
