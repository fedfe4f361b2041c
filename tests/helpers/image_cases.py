"""Images for the image processor, and the tiles that it makes of them."""

import io

import numpy as np
import torch
from PIL import Image

from internvlx_hf.processing import InternVLXImageProcessor


def random_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode if mode == "L" else None)


def photo(width: int, height: int) -> Image.Image:
    """Smooth, with edges: neighbouring pixels are alike, as in a photograph."""
    return random_image(width // 8 + 1, height // 8 + 1).resize((width, height), Image.Resampling.BICUBIC)


def tiles_of(images, **kwargs) -> torch.Tensor:
    kwargs = {"size": {"height": 28, "width": 28}, "return_tensors": "pt"} | kwargs
    return InternVLXImageProcessor()(images, **kwargs).pixel_values


def saved(image: Image.Image, format: str = "PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()
