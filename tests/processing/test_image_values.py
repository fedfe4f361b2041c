# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Bit depths that Pillow's modes do not tell, and numbers that would give pixels that are none."""

import io

import numpy as np
import pytest
from PIL import Image

from internvlx_hf.processing import InternVLXImageProcessor

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


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_integers_of_more_than_sixteen_bits_are_refused(value):
    values = GREY.astype(np.int32)
    values[3, 4] = value
    with pytest.raises(ValueError, match=r"expected 0\.\.255 or 0\.\.65535"):
        levels_of(Image.fromarray(values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1, 70000])
def test_floats_that_are_no_levels_are_refused(value):
    values = GREY.astype(np.float32)
    values[3, 4] = value
    for image in (Image.fromarray(values), values[None]):
        with pytest.raises(ValueError, match=r"expected floats of 0\.\.1 or"):
            levels_of(image)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_std": 0.0}, "image_std=0.0, expected finite positive numbers"),
        ({"image_std": [0.2, 0.0, 0.2]}, r"image_std=\(0.2, 0.0, 0.2\), expected finite positive"),
        ({"image_std": -1.0}, "image_std=-1.0, expected finite positive"),
        ({"image_std": float("nan")}, "image_std=nan, expected finite positive"),
        ({"image_std": 1e-46}, "image_std=1e-46, expected finite positive"),
        ({"image_mean": [0.0, float("inf"), 0.0]}, "image_mean=.*inf.*, expected finite numbers"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\(0.5, 0.5\) has the shape \(2,\), expected 1, 3 numbers"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan, expected finite numbers other than 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor=inf, expected finite numbers other than 0"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0, expected finite numbers other than 0"),
        ({"rescale_factor": "big"}, "rescale_factor"),
        ({"image_std": "small"}, "image_std"),
        ({"image_std": [[0.2] * 3]}, "image_std"),
    ],
)
def test_numbers_that_give_no_pixels_are_refused_when_made_and_when_called(kwargs, message):
    with pytest.raises(ValueError, match=message):
        InternVLXImageProcessor(**kwargs)
    with pytest.raises(ValueError, match=message):
        InternVLXImageProcessor()(Image.fromarray(GREY), **kwargs)


def test_numbers_that_overflow_together_are_refused():
    kwargs = {"rescale_factor": 1e30, "image_std": 1e-30}
    with pytest.raises(ValueError, match=r"rescale_factor=1e\+30.*image_std=\[1e-30.*not finite"):
        InternVLXImageProcessor(**kwargs)(Image.fromarray(GREY))


def test_numbers_that_are_not_used_are_not_looked_at():
    processor = InternVLXImageProcessor(do_normalize=False, image_std=0.0)
    assert np.isfinite(processor(Image.fromarray(GREY), return_tensors="np").pixel_values).all()


def test_as_many_numbers_as_channels_are_wanted_of_what_is_not_converted():
    rgba = Image.fromarray(np.stack([GREY] * 4, axis=-1))
    with pytest.raises(ValueError, match=r"image_mean=.* has 3 numbers, expected one for each of 4 channels"):
        InternVLXImageProcessor(do_convert_rgb=False)(rgba)
