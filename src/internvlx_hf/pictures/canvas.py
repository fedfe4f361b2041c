# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide to draw on, measured in inches from its top left corner."""

import bisect
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import PIL.Image
from transformers.utils import logging

try:
    from matplotlib import font_manager
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.textpath import text_to_path
except ImportError as error:
    raise ImportError("Drawing needs matplotlib, which is not installed: pip install matplotlib") from error

WIDTH, HEIGHT, DPI = 13.33, 7.5, 150  # a 16:9 slide, 2000 pixels wide
INK, GREY, PALE = "#1d2430", "#6b7480", "#e3e7ea"
# distinguishable with all common kinds of colour vision
COLOURS = {"ratio": "#d1495b", "area": "#2f6fb7", "edge": "#1b8a6b"}
ENDINGS = (".png", ".pdf", ".svg", ".jpg")
# a letter is drawn in the first of them that is installed and has it; the first comes with matplotlib
FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans GB", "Arial Unicode MS"),
)
MISSING = "□"
logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    width: float
    height: float

    def fit(self, width: float, height: float) -> "Box":
        """The largest centred box inside with the aspect ratio `width` : `height`."""
        scale = min(self.width / width, self.height / height)
        width, height = width * scale, height * scale
        return Box(self.left + (self.width - width) / 2, self.top + (self.height - height) / 2, width, height)


class Canvas:
    """A figure with one pair of axes, whose unit is an inch of the slide."""

    def __init__(self, width: float = WIDTH, height: float = HEIGHT):
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float, width: float | None = None, **style) -> None:
        """Write text centred vertically at `y`. Text wider than `width` is shortened in the middle."""
        style = {"color": INK, "va": "center"} | style
        weight = style.get("weight", "normal")
        text = printable(text, weight)
        if width is not None:
            text = shorten(text, width, size, weight)
        # parse_math=False: a $ does not start a formula
        self.axes.text(x, y, text, fontsize=size, family=_installed(FONTS), parse_math=False, **style)

    def image(self, image, box: Box, sharp: bool = False, **style) -> None:
        """Draw a Pillow image or array stretched to a box. `sharp` keeps its pixels visible."""
        extent = (box.left, box.left + box.width, box.top + box.height, box.top)
        if isinstance(image, PIL.Image.Image):
            image = _reduced(image, box)
        interpolation = "nearest" if sharp else "antialiased"
        self.axes.imshow(image, extent=extent, aspect="auto", interpolation=interpolation, **style)
        # imshow narrows the view to the image
        width, height = self.figure.get_size_inches()
        self.axes.set(xlim=(0, width), ylim=(height, 0))

    def frame(self, box: Box, colour: str, linewidth: float = 1.0, **style) -> None:
        corner, size = (box.left, box.top), (box.width, box.height)
        self.axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=linewidth, **style))

    def fill(self, box: Box, colour: str) -> None:
        corner, size = (box.left, box.top), (box.width, box.height)
        self.axes.add_patch(Rectangle(corner, *size, facecolor=colour, edgecolor="none"))

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: str, linewidth: float = 1.0) -> None:
        self.axes.plot(*zip(start, end, strict=True), color=colour, linewidth=linewidth, zorder=2)

    def grid(self, box: Box, columns: int, rows: int, colour: str, linewidth: float = 2.0, seam: float = 2.0) -> None:
        """Draw lines around and between the cells of a grid, on a white seam, so that they are visible on any
        image.
        """
        for line_colour, line_width in (("white", linewidth + seam), (colour, linewidth)):
            style: dict[str, Any] = {
                "color": line_colour,
                "linewidth": line_width,
                "solid_capstyle": "projecting",
                "zorder": 3,
            }
            for i in range(columns + 1):
                x = box.left + i * box.width / columns
                self.axes.plot([x, x], [box.top, box.top + box.height], **style)
            for i in range(rows + 1):
                y = box.top + i * box.height / rows
                self.axes.plot([box.left, box.left + box.width], [y, y], **style)


def printable(text: str, weight: str = "normal") -> str:
    """The text with a dot for each control character, and a box for each letter that no font here has."""
    text = "".join(letter if letter.isprintable() else "·" for letter in text)
    if missing := {letter for letter in text if ord(letter) not in _drawable(FONTS, weight)}:
        logger.warning_once(
            "No font that is used here has all letters of the text; they are drawn as boxes. Chinese, Japanese and "
            "Korean need Noto Sans CJK, for example (on Debian: apt install fonts-noto-cjk)."
        )
    return "".join(MISSING if letter in missing else letter for letter in text)


@cache
def _installed(names: tuple[str, ...]) -> list[str]:
    installed = font_manager.get_font_names()
    return [name for name in names if name in installed]


@cache
def _drawable(names: tuple[str, ...], weight: str) -> frozenset[int]:
    """Code points that the installed fonts have."""
    fonts = (font_manager.FontProperties(family=name, weight=weight) for name in _installed(names))
    return frozenset().union(*(font_manager.get_font(font_manager.findfont(font)).get_charmap() for font in fonts))


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in the figure's font, in inches."""
    font = font_manager.FontProperties(family=_installed(FONTS), weight=weight, size=size)
    # a renderer rounds each letter to whole pixels
    return 1.03 * text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def shorten(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Replace the middle of a text by an ellipsis if it is wider than `width` inches."""
    if text_width(text, size, weight) <= width:
        return text

    def without_middle(kept: int) -> str:
        return text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :].lstrip()

    def is_too_wide(kept: int) -> bool:
        return text_width(without_middle(kept), size, weight) > width

    kept = bisect.bisect_left(range(len(text)), True, key=is_too_wide) - 1
    return without_middle(max(kept, 0))


def _reduced(image: PIL.Image.Image, box: Box) -> PIL.Image.Image:
    """The image, reduced to the pixels that the box has on the slide."""
    sides = zip(image.size, (box.width, box.height), strict=True)
    width, height = (max(1, min(pixels, round(inches * DPI))) for pixels, inches in sides)
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS) if (width, height) != image.size else image


def check_out(path: str | os.PathLike) -> Path:
    """Check the path of a file to write, and return it as a `Path`.

    Raises:
        ValueError: if the format is not supported, the folder does not exist, or the path is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{str(path)!r} should end in one of {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} for {path.name} does not exist.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file to write.")
    return path


def save(figure, path: str | os.PathLike) -> None:
    """Write a figure. If writing fails, an existing file is kept.

    Raises:
        ValueError: see `check_out`.
        OSError: if the file cannot be written.
    """
    path = check_out(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        figure.savefig(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
