# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Limits on the requests of a visitor of the page: images, tiles and lengths."""

import os
import subprocess
import sys
from dataclasses import Field, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from ..checkpoints.options import option_type
from ..cost.request_budget import PageBudget
from ..processing.image_files import open_file, other_format, readable_formats
from ..processing.image_settings import ImageSettings
from ..processing.image_sources import PillowSource
from . import pdf_program

MAX_BUDGET = 10_000_000  # visual tokens; no model has as many positions
MAX_PAGE = 100_000  # of a PDF
PAGE_SECONDS = 30  # to render a page


@dataclass(frozen=True)
class Limits(PageBudget):
    """Limits on the requests of a visitor, those of [`PageBudget`], which check what the page sends."""

    def open_upload(self, file: Path) -> PIL.Image.Image:
        """Open and decode an uploaded image, a file of [`Uploads`].

        Raises:
            ValueError: if the image cannot be read or is too large. The message has the file's name, without its
                folder.
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

    def of_setting(self, field: Field) -> tuple[int, str]:
        """The maximum of a whole number among the settings of images, and its unit."""
        return (self.max_tiles, "tiles") if field.metadata.get("limit") == "max_tiles" else (MAX_BUDGET, "tokens")

    def check_settings(self, *values: Any) -> ImageSettings:
        """Check a visitor's choices, values of the fields of [`ImageSettings`] in their order.

        Raises:
            ValueError: if a value is not allowed.
        """
        chosen = {}
        for each, value in zip(fields(ImageSettings), values, strict=False):
            if option_type(each) is int and value is not None:
                maximum, unit = self.of_setting(each)
                value = _whole(each.metadata["label"], value, maximum, unit)
            chosen[each.name] = None if value == "" else value
        return ImageSettings(**chosen)


def _whole(name: str, value: Any, maximum: int, unit: str) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not float(value).is_integer() or not 1 <= value <= maximum:
        raise ValueError(f"{name}: {value!r:.50}, expected a whole number from 1 to {maximum:,} {unit}.")
    return int(value)
