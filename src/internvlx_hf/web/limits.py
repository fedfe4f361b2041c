# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Limits on the requests of a visitor of the page: images, tiles and lengths."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from ..cost.request_budget import RequestBudget
from ..evaluation.answering import Answerer
from ..processing.image_files import open_file, other_format, readable_formats
from ..processing.image_sources import PillowSource
from . import pdf_program

MAX_BUDGET = 10_000_000  # visual tokens; no model has as many positions
MAX_PAGE = 100_000  # of a PDF
PAGE_SECONDS = 30  # to render a page


@dataclass(frozen=True)
class Limits(RequestBudget):
    """Limits on the requests of a visitor: the budget of [`RequestBudget`], and those of the page.

    Args:
        max_bytes: maximum size of an upload.
        max_tiles: maximum number of tiles of an image, without the thumbnail.
        max_question: maximum number of characters of a question.

    Raises:
        ValueError: if a limit is not a positive integer.
    """

    max_bytes: int = 20_000_000
    max_tiles: int = 40
    max_question: int = 4000

    def open_upload(self, file: Path) -> PIL.Image.Image:
        """Open and decode an uploaded image, a file of [`Uploads`].

        Raises:
            ValueError: if the image cannot be read or is too large. The message has the file's name, without its folder.
        """
        self._check_bytes(file.name, file.stat().st_size)
        content = BytesIO(file.read_bytes())
        try:
            image = open_file(content, repr(file.name))
        except ValueError as error:
            found = other_format(content)
            what = f"a file of the format {found}" if found else "not an image, or too large to decode"
            raise ValueError(
                f"{file.name!r} is {what}. Upload an image of at most {self.max_pixels:,} pixels, of the format "
                f"{', '.join(readable_formats())}."
            ) from error
        if image.width * image.height > self.max_pixels:
            raise ValueError(
                f"{file.name!r} has {image.width}x{image.height} pixels, expected at most {self.max_pixels:,}. "
                "Upload a smaller image."
            )
        return PillowSource(image, upright=False, convert_rgb=False).decoded().image

    def render_page(self, file: Path, number: float | None) -> bytes:
        """Render a page of an uploaded PDF in a process of its own. Pages are numbered from 1.

        Returns:
            The page, a PNG.

        Raises:
            ValueError: if the PDF cannot be read or has no such page, or the page is too large or takes too long.
        """
        page = _whole("Page", number, MAX_PAGE, "of the PDF")
        self._check_bytes(file.name, file.stat().st_size)
        command = [sys.executable, pdf_program.__file__, file.name, str(page), str(self.max_pixels)]
        environment = os.environ | {"PYTHONUTF8": "1"}
        try:
            with file.open("rb") as content:
                done = subprocess.run(
                    command, stdin=content, capture_output=True, timeout=PAGE_SECONDS, env=environment
                )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"Page {page} of {file.name!r} takes more than {PAGE_SECONDS} seconds. Upload it as an image."
            ) from error
        if done.returncode == pdf_program.EXPECTED:
            raise ValueError(done.stderr.decode().strip())
        if done.returncode:
            raise ValueError(
                f"Page {page} of {file.name!r} takes too much memory or is broken. Upload it as an image."
            )
        self._check_bytes(f"Page {page} of {file.name}", len(done.stdout))
        return done.stdout

    def _check_bytes(self, name: str, size: int) -> None:
        if size > self.max_bytes:
            raise ValueError(
                f"{name!r} has {size:,} bytes, expected at most {self.max_bytes:,}. Upload a smaller image."
            )

    def check_question(self, question: str | None) -> str:
        """The question without surrounding white space.

        Raises:
            ValueError: if the question is empty or too long.
        """
        text = (question or "").strip()
        if not text:
            raise ValueError("The question is empty. Write what you want to know about the image.")
        if len(text) > self.max_question:
            raise ValueError(f"The question has {len(text):,} characters, expected at most {self.max_question:,}.")
        return text

    def check_new_tokens(self, count: float | None) -> int:
        """The maximum length of an answer. Raises: ValueError: if it is out of range."""
        return _whole("Maximum answer length", count, self.max_new_tokens, "tokens")


@dataclass(frozen=True)
class ImageSettings:
    """The slicing of one request's images: arguments of the processor. `max_image_tokens=None` is no budget."""

    slicing: str
    max_patches: int
    min_patches: int = 1
    use_thumbnail: bool = True
    max_image_tokens: int | None = None

    @classmethod
    def of(cls, answerer: Answerer) -> "ImageSettings":
        rule = answerer.image_processor.tiling_rule()
        return cls(rule.slicing, rule.max_tiles, rule.min_tiles, rule.use_thumbnail, answerer.max_image_tokens)

    @classmethod
    def checked(
        cls, limits: Limits, slicing, max_patches, min_patches=1, use_thumbnail=True, max_image_tokens=None
    ) -> "ImageSettings":
        """Check a visitor's choices. The processor checks the slicing strategy and the budget of visual tokens.

        Raises:
            ValueError: if a number is out of range.
        """
        maximum = _whole("Maximum tiles", max_patches, limits.max_tiles, "tiles")
        minimum = _whole("Minimum tiles", min_patches, maximum, "tiles, the chosen maximum")
        budget = None if max_image_tokens is None else _whole("Visual tokens", max_image_tokens, MAX_BUDGET, "tokens")
        return cls(str(slicing), maximum, minimum, bool(use_thumbnail), budget)

    @property
    def images_kwargs(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        tiles = f"at most {self.max_patches} tile{'s' * (self.max_patches > 1)}"
        minimum = f", at least {self.min_patches}" if self.min_patches > 1 else ""
        thumbnail = "" if self.use_thumbnail else ", no thumbnail"
        budget = "" if self.max_image_tokens is None else f", at most {self.max_image_tokens:,} visual tokens"
        return f"{self.slicing}, {tiles}{minimum}{thumbnail}{budget}"


def _whole(name: str, value: Any, maximum: int, unit: str) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not float(value).is_integer() or not 1 <= value <= maximum:
        raise ValueError(f"{name}: {value!r:.50}, expected a whole number from 1 to {maximum:,} {unit}.")
    return int(value)
