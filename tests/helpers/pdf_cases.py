"""PDF files for tests."""

import io
from collections.abc import Sequence

from PIL import Image

COLOURS = ("red", "blue", "lime")


def pdf(*sizes: tuple[int, int], **kwargs) -> bytes:
    """A PDF with a page of each size in points, each of one of `COLOURS`."""
    first, *others = (Image.new("RGB", size, COLOURS[i % 3]) for i, size in enumerate(sizes))
    stream = io.BytesIO()
    first.save(stream, "PDF", save_all=True, append_images=others, resolution=72, **kwargs)
    return stream.getvalue()


def levels(image: Image.Image) -> tuple[int, ...]:
    """The colour of an image's middle, rounded."""
    pixel: Sequence[int] = image.getpixel((image.width // 2, image.height // 2))
    return tuple(round(level / 255) for level in pixel)
