# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How large an image will be for the image processor, from its file's header."""

import os
import struct

from transformers.image_utils import ChannelDimension, get_image_size, is_pil_image

from ..processing import image_sources

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def upright_size(image, upright: bool, input_data_format: str | ChannelDimension | None = None) -> tuple[int, int]:
    """(width, height) that `InternVLXImageProcessor` sees.

    Args:
        image: a Pillow image, which need not be decoded and is left so, or an array.
        upright: whether its EXIF orientation is applied.

    Raises:
        ValueError: the image is empty.
    """
    if not is_pil_image(image):
        if image.ndim == 2:
            return image.shape[1], image.shape[0]
        height, width = get_image_size(image, channel_dim=input_data_format)
        return width, height
    if not all(image.size):
        raise ValueError(f"an image measures {image.width}x{image.height} pixels, expected at least 1x1")
    return image_sources.upright_size(image) if upright and _may_have_exif(image) else image.size


def _may_have_exif(image) -> bool:
    """False only for a PNG whose chunks hold none: to look for it, Pillow would decode the image."""
    if image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    file = getattr(image, "fp", None)
    return file is None or _has_metadata_after_pixels(file)


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
