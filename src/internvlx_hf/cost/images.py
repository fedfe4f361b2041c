# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Sizes of images: from the headers of files, folders or patterns, or given as text."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import PIL.Image

Size = tuple[int, int]


@dataclass
class ImageSizes:
    """Names and (width, height) of upright images.

    Args:
        names, sizes: name and size of each image.
        broken: why images could not be read, by name; these are in neither list.
        ignored: files in folders whose extension is not an image's.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def add(self, name: str, size: Size) -> None:
        self.names.append(name)
        self.sizes.append(size)


def parse_size(text: str) -> Size:
    """`"640x480"` -> (640, 480), width first.

    Raises:
        ValueError: if the text is not a size, or a side is 0.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size, expected WIDTHxHEIGHT in pixels, such as 640x480.")
    width, height = map(int, match.groups())
    if not width or not height:
        raise ValueError(f"{text!r} has no pixels, expected a width and a height of at least 1.")
    return width, height


def read_image_size(path: str | os.PathLike) -> Size:
    """(width, height) of an image file after its EXIF orientation is applied. Reads only the header.

    Raises:
        ValueError: if it is not an image, or too large to decode safely.
    """
    from ..processing.image_files import open_image

    with open_image(path) as image:
        return _size(image)


def _size(image: "PIL.Image.Image") -> Size:
    from ..processing.image_headers import PillowHeader  # not image_sources, which imports torch

    header = PillowHeader(image)
    return header.width, header.height


def _add(found: ImageSizes, path: str | os.PathLike) -> None:
    """Add an image file, or each page of a PDF."""
    from ..processing.pdf_files import open_images

    for image in open_images(path):
        with image:
            found.add(getattr(image, "address", str(path)), _size(image))


def find_images(sources: Iterable[str | os.PathLike], *, skip_broken: bool = False) -> ImageSizes:
    """Read the sizes of image files, of all images in folders and their subfolders, and of patterns
    (`photos/**/*.jpg`).

    In a folder, files with the extensions that Pillow reads, and PDFs, count as images; a file given by name or
    pattern must be one. Each page of a PDF is an image; `scan.pdf#page=3-7` selects pages.

    Args:
        skip_broken: list unreadable images in `broken` and continue (default: raise).

    Raises:
        ValueError: if nothing is found, or a file is not an image; the message names it.
    """
    found = ImageSizes()
    for source in sources:
        for path in _paths(source, found):
            try:
                _add(found, path)
            except (ValueError, OSError) as error:
                if not skip_broken:
                    raise
                found.broken[str(path)] = str(error)
    return found


def _paths(source: str | os.PathLike, found: ImageSizes) -> Iterator[Path]:
    from ..processing.image_files import names_image
    from ..processing.pdf_files import names_pdf, without_pages

    path = Path(source)
    if not str(source):
        raise ValueError("An image path is empty, expected an image, a folder or a pattern.")
    if path.is_dir():
        paths = sorted(below for below in path.rglob("*") if below.is_file())
        images = [
            below for below in paths if (names_image(below) or names_pdf(below)) and not below.name.startswith(".")
        ]
        found.ignored += map(str, sorted(set(paths) - set(images)))
        if not images:
            raise ValueError(f"The folder {path} has no images ({len(paths)} other files).")
        yield from images
    elif os.path.exists(without_pages(path)):
        yield path
    elif glob.has_magic(str(source)):
        matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ValueError(f"No file matches {str(source)!r}.")
        yield from files
    else:
        raise ValueError(f"{path} does not exist, expected an image, a folder or a pattern such as 'photos/*.jpg'.")
