# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Sizes of pictures: from the headers of files, a folder, a pattern, or as text."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image

Size = tuple[int, int]


@dataclass
class Pictures:
    """Pictures by name and (width, height), upright.

    Args:
        names, sizes: of each picture.
        broken: why a picture could not be read, by name; they are in neither of the lists.
        ignored: files of folders whose names are no picture's.
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
        ValueError: it is no such text, or a side is 0.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is no size, expected WIDTHxHEIGHT in pixels, as 640x480.")
    width, height = map(int, match.groups())
    if not width or not height:
        raise ValueError(f"{text!r} has no pixels, expected a width and a height of at least 1.")
    return width, height


def picture_size(path: str | os.PathLike) -> Size:
    """(width, height) of a file's picture once its EXIF orientation is applied. Reads the header only.

    Raises:
        ValueError: it is no picture, or too large to decode safely.
    """
    from ..processing.image_files import open_image
    from ..processing.image_sources import image_size

    with open_image(path) as image:
        return image_size(image)


def find_pictures(sources: Iterable[str | os.PathLike], *, skip_broken: bool = False) -> Pictures:
    """Measure the pictures of files, of folders with all that is below, and of patterns (`photos/**/*.jpg`).

    In a folder, files are pictures by the endings that Pillow knows; what is given by name or pattern has to be one.

    Args:
        skip_broken: list what cannot be read in `broken`, and go on.

    Raises:
        ValueError: there is nothing, or a file is no picture; the message names it.
    """
    found = Pictures()
    for source in sources:
        for path in _paths(source, found):
            try:
                found.add(str(path), picture_size(path))
            except (ValueError, OSError) as error:
                if not skip_broken:
                    raise
                found.broken[str(path)] = str(error)
    return found


def _paths(source: str | os.PathLike, found: Pictures) -> Iterator[Path]:
    path = Path(source)
    if not str(source):
        raise ValueError("A picture's path is empty, expected a picture, a folder, or a pattern.")
    if path.is_dir():
        paths = sorted(below for below in path.rglob("*") if below.is_file())
        endings = PIL.Image.registered_extensions()
        pictures = [below for below in paths if below.suffix.lower() in endings and not below.name.startswith(".")]
        found.ignored += map(str, sorted(set(paths) - set(pictures)))
        if not pictures:
            raise ValueError(f"The folder {path} holds no pictures ({len(paths)} other files).")
        yield from pictures
    elif path.exists():
        yield path
    elif glob.has_magic(str(source)):
        matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ValueError(f"No file matches {str(source)!r}.")
        yield from files
    else:
        raise ValueError(f"{path} does not exist, expected a picture, a folder, or a pattern such as 'photos/*.jpg'.")
