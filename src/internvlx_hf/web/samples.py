# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Sample images for visitors who have none at hand, drawn on request."""

from io import BytesIO

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

SIZE = 640, 480
LINES = ("Invoice 1042", "12 apples      4.80", "3 loaves       9.60", "1 basket      15.00", "Total         29.40")


def _house() -> PIL.Image.Image:
    image = PIL.Image.new("RGB", SIZE, "#9ed0f5")
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((0, 340, *SIZE), fill="#6aa84f")
    draw.ellipse((500, 40, 580, 120), fill="#ffd54a")
    draw.rectangle((190, 220, 430, 380), fill="#f3e3c3")
    draw.polygon([(170, 220), (310, 110), (450, 220)], fill="#b5442e")
    draw.rectangle((280, 290, 340, 380), fill="#6b4a2f")
    for left in (215, 365):
        draw.rectangle((left, 260, left + 42, 302), fill="#cfe8ff", outline="#555555", width=3)
    return image


def _page() -> PIL.Image.Image:
    image = PIL.Image.new("RGB", SIZE, "white")
    draw = PIL.ImageDraw.Draw(image)
    font = PIL.ImageFont.load_default(28)
    for row, line in enumerate(LINES):
        draw.text((60, 60 + 70 * row), line, fill="black", font=font)
    return image


SAMPLES = {"A house": _house, "A page": _page}


def sample_png(name: str) -> bytes:
    """The image's file."""
    png = BytesIO()
    SAMPLES[name]().save(png, "PNG")
    return png.getvalue()
