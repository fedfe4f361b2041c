# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How large an image will be for the image processor, from its file's header."""

from transformers.image_utils import ChannelDimension, get_image_size, is_pil_image

from .image_sources import PillowSource


def upright_size(image, upright: bool, input_data_format: str | ChannelDimension | None = None) -> tuple[int, int]:
    """(width, height) that `InternVLXImageProcessor` sees.

    Args:
        image: a Pillow image, which need not be decoded and is left so, or an array.
        upright: whether its EXIF orientation is applied.

    Raises:
        ValueError: the image is empty, or a decompression bomb.
    """
    if is_pil_image(image):
        source = PillowSource(image, upright=upright, convert_rgb=True)
        return source.width, source.height
    if image.ndim == 2:
        return image.shape[1], image.shape[0]
    height, width = get_image_size(image, channel_dim=input_data_format)
    return width, height
