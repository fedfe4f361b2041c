"""Which axis an image is resampled along first shows in its pixels: the order is Pillow 13's, whichever version there is."""

import numpy as np
import pytest
import torch
from PIL import Image

from image_cases import random_image
from internvlx_hf.processing.image_sources import PillowSource
from internvlx_hf.processing.resizing import Resizer

SIDE = 32


@pytest.mark.parametrize(
    ("width", "height", "first"),
    [
        # columns first where more than twice as many rows are lost as columns, and where only columns are gained
        (40, 47, "rows"),
        (40, 48, "rows"),
        (40, 49, "columns"),
        (48, 64, "rows"),
        (48, 65, "columns"),
        (20, 31, "rows"),
        (20, 33, "columns"),
    ],
)
def test_the_order_of_the_axes_is_that_of_pillow_13(width, height, first):
    image = random_image(width, height)
    half_way = {"rows": (SIDE, height), "columns": (width, SIDE)}
    expected, other = (
        np.asarray(image.resize(half_way[order]).resize((SIDE, SIDE)))
        for order in (first, *(half_way.keys() - {first}))
    )
    assert (expected != other).any()
    source = PillowSource(image, upright=True, convert_rgb=True)
    (resized,) = Resizer(source, "pillow", Image.Resampling.BICUBIC, torch.device("cpu"))((SIDE, SIDE))
    np.testing.assert_array_equal(resized.movedim(0, -1).numpy(), expected)
