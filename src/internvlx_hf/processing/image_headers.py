# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Size and orientation of a Pillow image, by its header where that suffices. Imports no torch, so that asking for them
is quick.
"""

import os
import struct

import PIL.Image

from .image_files import is_undecoded, name_of, refuse_bomb
from .pdf_files import PdfPage

EXIF_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# For each EXIF orientation: the transposition that makes the image upright, whether it swaps the axes of the stored
# image, and whether it mirrors the stored x and y.
_UPRIGHT = {
    1: (None, False, False, False),
    2: (PIL.Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: (PIL.Image.Transpose.ROTATE_180, False, True, True),
    4: (PIL.Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: (PIL.Image.Transpose.TRANSPOSE, True, False, False),
    6: (PIL.Image.Transpose.ROTATE_270, True, False, True),
    7: (PIL.Image.Transpose.TRANSVERSE, True, True, True),
    8: (PIL.Image.Transpose.ROTATE_90, True, True, False),
}


class PillowHeader:
    """A Pillow image's name, size and orientation; its pixels are decoded only if the header could mislead.

    Args:
        upright: apply the EXIF orientation.

    Raises:
        ValueError: if the image is empty or a decompression bomb.
    """

    def __init__(self, image: PIL.Image.Image, upright: bool = True):
        self.name = name_of(image)
        refuse_bomb(image, self.name)
        if not all(image.size):
            raise ValueError(f"{self.name} measures {image.width}x{image.height} pixels, expected at least 1x1.")
        if is_undecoded(image) and _header_may_mislead(image):
            image = decoded_image(image, self.name)
        self.image = image
        orientation = _orientation(image) if upright else 1
        self.transposition, self.swaps_axes, *self.mirrors = _UPRIGHT.get(orientation, _UPRIGHT[1])
        self.width, self.height = image.size[::-1] if self.swaps_axes else image.size


def decoded_image(image: PIL.Image.Image, name: str, least_size: tuple[int, int] | None = None) -> PIL.Image.Image:
    """The image with its pixels. Its file is read again, so that only one image of a batch is in memory at a time.

    Args:
        least_size: smallest sufficient (width, height) of the stored image, for formats that can be decoded at a
            fraction.
    """
    if isinstance(image, PdfPage):
        return image.rendered()
    file = getattr(image, "fp", None)
    position = None
    try:
        position = file.tell() if file is not None else None
        decoded = image if position is None else _reopened(image, file)
        if least_size is not None and decoded is not image:
            decoded.draft(None, least_size)
        expected_size = decoded.size
        decoded.load()
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise ValueError(f"{name} is corrupt or truncated, expected a whole image: {error}") from error
    finally:
        if file is not None and position is not None and not file.closed:
            file.seek(position)
    if decoded.size != expected_size and not _header_may_mislead(image):
        raise ValueError(f"{name} of {expected_size} pixels by its header has {decoded.size} when decoded.")
    return decoded


def _reopened(image: PIL.Image.Image, file) -> PIL.Image.Image:
    if image.tell():
        return image  # not at the first frame
    again = PIL.Image.open(file, formats=[image.format if image.format in PIL.Image.OPEN else "JPEG"])
    is_same = type(again) is type(image) and (again.size, again.mode) == (image.size, image.mode)
    return again if is_same else image  # differs after `draft`


def _header_may_mislead(image: PIL.Image.Image) -> bool:
    """Whether the upright image's size or orientation is known only after decoding."""
    if image.format == "TIFF":
        # Pillow turns it upright on decoding, and some versions report the size before that
        return _orientation(image) != 1
    if image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info:
        return False
    file = getattr(image, "fp", None)
    return file is not None and _has_metadata_after_pixels(file)


def _has_metadata_after_pixels(file) -> bool:
    position = file.tell()
    try:
        file.seek(0)
        if file.read(8) != _PNG_SIGNATURE:
            return True
        after_pixels = False
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            after_pixels |= kind == b"IDAT"
            if after_pixels and kind in _PNG_METADATA:
                return True
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)


def _orientation(image: PIL.Image.Image) -> int:
    try:
        # not a PNG's own method, which decodes the image to look for metadata after the pixels
        return PIL.Image.Image.getexif(image).get(EXIF_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is ignored; Pillow raises errors of many types
        return 1
