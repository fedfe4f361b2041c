# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Pages of PDF files as images. A page is rendered when its pixels are read, so that one page at a time is in
memory.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock

import PIL.Image

from .image_files import ImageAccess, abbreviated, file_of, is_undecoded, open_file, refuse_large

MAX_PAGES = 100  # of one PDF
DOTS_PER_INCH = 150
MAX_PAGE_PIXELS = 2**24  # a larger page is rendered with fewer dots per inch
_POINTS_PER_INCH = 72
# readers accept a PDF only if its end marker is within so many bytes of its end
_LAST_BYTES = 1024
_PAGES = re.compile(r"(.+)#page=(\d+)(?:-(\d+))?", re.DOTALL)
_pdfium = Lock()  # which is not thread-safe


class PdfPage(PIL.Image.Image):
    """A page of a PDF, an RGB image.

    Args:
        file: the PDF's path or bytes.
        address: the PDF's path with its page, `scan.pdf#page=2`.
        number: number of the page, from 1.
        points: (width, height) of the page in points of 1/72 inch.
    """

    format = "PDF"

    def __init__(self, file: str | bytes, address: str, number: int, points: tuple[float, float]):
        super().__init__()
        self.file, self.address, self.number = file, address, number
        width, height = points
        self.scale = min(DOTS_PER_INCH / _POINTS_PER_INCH, math.sqrt(MAX_PAGE_PIXELS / (width * height)))
        self._mode, self._size = "RGB", (math.ceil(width * self.scale), math.ceil(height * self.scale))
        self.source_name = abbreviated(address)

    def load(self):
        if is_undecoded(self):
            self.im = self.rendered().im
        return super().load()

    def rendered(self) -> PIL.Image.Image:
        """The page with its pixels. This object remains without them.

        Raises:
            ValueError: if PDFium cannot render the page.
        """
        with _opened(self.file, self.source_name) as pdf:
            return pdf[self.number - 1].render(scale=self.scale).to_pil().convert("RGB")


def open_images(source: str | os.PathLike, access: ImageAccess | None = None) -> list[PIL.Image.Image]:
    """Opens an image, or the pages of a PDF in order, without decoding pixels.

    Args:
        source: as for `open_image`, or the path or URL of a PDF, of which `#page=3` or `#page=3-7` at the end selects
            pages.
        access: what the source may name (default: everything).

    Raises:
        ValueError: as for `open_image`; if a PDF is truncated, needs a password or has more than `MAX_PAGES` of the
            selected pages; or if pypdfium2 is not installed.
    """
    access = access or ImageAccess()
    path, selected = _split(source)
    name = abbreviated(path)
    return open_pages(file_of(path, name, access), name, access, selected, os.fspath(path))


def open_pages(
    file: str | bytes,
    name: str,
    access: ImageAccess | None = None,
    selected: tuple[int, int] | None = None,
    path: str | None = None,
) -> list[PIL.Image.Image]:
    """As `open_images`, from a file's path or bytes, which messages call `name`; `selected` are the first and the last
    page.
    """
    access, path = access or ImageAccess(), path or name
    if not _is_pdf(file):
        if selected:
            raise ValueError(f"{name} is not a PDF, so that it has no page {selected[0]}.")
        images = [open_file(file, name)]
    else:
        with _opened(file, name) as pdf:
            count = len(pdf)
            first, last = selected or (1, count)
            if not 1 <= first <= last <= count:
                raise ValueError(f"{name} has {count} pages, expected pages from 1 to {count}, not {first} to {last}.")
            if last - first >= MAX_PAGES:
                raise ValueError(
                    f"{name} has {count} pages, expected at most {MAX_PAGES} at once. Select pages: "
                    f"{abbreviated(f'{path}#page=1-{MAX_PAGES}')}."
                )
            images = [
                PdfPage(file, f"{path}#page={number}", number, pdf.get_page_size(number - 1))
                for number in range(first, last + 1)
            ]
    for image in images:
        refuse_large(image, name, access)
    return images


def without_pages(name: str | os.PathLike) -> str | os.PathLike:
    """The path or URL of an image or a PDF, without the pages that it selects."""
    return _split(name)[0]


def names_pdf(name: str | os.PathLike) -> bool:
    """Whether a path or URL names a PDF, judged by its suffix."""
    return os.fspath(without_pages(name)).partition("?")[0].lower().endswith(".pdf")


def _split(source: str | os.PathLike) -> tuple[str | os.PathLike, tuple[int, int] | None]:
    match = None if os.path.exists(source) else _PAGES.fullmatch(os.fspath(source))
    return (match[1], (int(match[2]), int(match[3] or match[2]))) if match else (source, None)


def _is_pdf(file: str | bytes) -> bool:
    return _bytes_of(file, 0, _LAST_BYTES).lstrip().startswith(b"%PDF-")


def _bytes_of(file: str | bytes, start: int, count: int) -> bytes:
    """So many bytes of a file, from `start` or, if that is negative, from so many bytes before its end."""
    if isinstance(file, bytes):
        return file[start:][:count]
    with open(file, "rb") as opened:
        opened.seek(start if start >= 0 else max(os.path.getsize(file) + start, 0))
        return opened.read(count)


@contextmanager
def _opened(file: str | bytes, name: str) -> Iterator:
    """The `pypdfium2.PdfDocument` of a file. Its errors are ValueErrors."""
    try:
        pdfium = import_module("pypdfium2")
    except ImportError as error:
        raise ValueError(f"{name} is a PDF, which needs pypdfium2: pip install pypdfium2.") from error
    if b"%%EOF" not in _bytes_of(file, -_LAST_BYTES, _LAST_BYTES):
        raise ValueError(f"{name} is truncated, expected a whole PDF: its end marker %%EOF is missing.")
    with _pdfium:
        pdf = None
        try:
            pdf = pdfium.PdfDocument(file)
            pdf.init_forms()  # else the fields that a person has filled in are empty
            yield pdf
        except pdfium.PdfiumError as error:
            if "password" in str(error).lower():
                raise ValueError(
                    f"{name} needs a password, expected a PDF without one: save a copy without it."
                ) from error
            raise ValueError(f"{name} cannot be read as a PDF: {error}") from error
        finally:
            if pdf is not None:
                pdf.close()
