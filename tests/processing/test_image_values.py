# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Bit depths that Pillow's modes do not tell, and numbers that would give pixels that are none."""

import io

import numpy as np
import pytest
from PIL import Image

from internvlx_hf.processing import InternVLXImageProcessor
from refusals import refused

SIDE = 28
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def levels_of(image) -> np.ndarray:
    processor = InternVLXImageProcessor(size=SIDE, do_normalize=False, rescale_factor=1.0)
    return processor(image, return_tensors="np").pixel_values[0, 0]


def reloaded(values: np.ndarray, format: str) -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format)
    return Image.open(stream)


def test_integers_of_eight_bits_do_not_turn_black():
    for image in (Image.fromarray(GREY.astype(np.int32)), Image.fromarray(GREY).convert("I")):
        assert image.mode == "I"
        np.testing.assert_array_equal(levels_of(image), GREY)
    np.testing.assert_array_equal(levels_of(reloaded(GREY.astype(np.int32), "TIFF")), GREY)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_a_file_of_sixteen_bits_keeps_its_range_however_dark_it_is(format):
    dark = (GREY // 2).astype(np.uint16)  # all of it below 256: by its range it would pass for 8 bits
    for values in (dark, dark * 257):
        np.testing.assert_array_equal(levels_of(reloaded(values, format)), np.round(values / 257))
    np.testing.assert_array_equal(levels_of(Image.fromarray(dark)), np.round(dark / 257))


def test_integers_beyond_eight_bits_are_sixteen():
    np.testing.assert_array_equal(levels_of(Image.fromarray(GREY.astype(np.int32) * 257)), GREY)


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        *((value, np.int32, "0..255 or 0..65535") for value in (-1, 65536, 2**31 - 1)),
        *((value, np.float32, "floats of 0..1 or") for value in (np.nan, np.inf, -np.inf, -1, 70000)),
    ],
)
def test_numbers_that_are_no_levels_are_refused(value, dtype, said):
    values = GREY.astype(dtype)
    values[3, 4] = value
    for image in (Image.fromarray(values), *[values[None]][: dtype == np.float32]):
        with refused(f"expected {said}"):
            levels_of(image)


def test_numbers_that_overflow_together_are_refused():
    kwargs = {"rescale_factor": 1e30, "image_std": 1e-30}
    with refused("rescale_factor=1e+30", "image_std=[1e-30", "not finite"):
        InternVLXImageProcessor(**kwargs)(Image.fromarray(GREY))


def test_numbers_that_are_not_used_are_not_looked_at():
    processor = InternVLXImageProcessor(do_normalize=False, image_std=0.0)
    assert np.isfinite(processor(Image.fromarray(GREY), return_tensors="np").pixel_values).all()


def test_as_many_numbers_as_channels_are_wanted_of_what_is_not_converted():
    rgba = Image.fromarray(np.stack([GREY] * 4, axis=-1))
    with refused("image_mean=", "has 3 numbers", "one for each of 4 channels"):
        InternVLXImageProcessor(do_convert_rgb=False)(rgba)
