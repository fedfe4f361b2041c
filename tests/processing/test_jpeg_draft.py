# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""JPEG files decoded at a fraction of their size: as many tiles, nearly the same pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from image_cases import photo, saved, tiles_of
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.processing import InternVLXImageProcessor
from internvlx_hf.processing.image_files import is_undecoded
from internvlx_hf.processing.image_sources import PillowSource
from refusals import refused
from tiny import tiny_config, tiny_processor

ORIENTATION = 0x0112
LEVELS = {"do_normalize": False, "rescale_factor": 1.0, "slicing": "ratio"}


def opened(width: int, height: int, orientation: int = 1, format: str = "JPEG") -> Image.Image:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = photo(width // 8, height // 8).resize((width, height))  # a large photograph is smooth
    return Image.open(io.BytesIO(saved(image, format, exif=exif, quality=90)))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(400, 300), (300, 700)])
def test_a_draft_gives_as_many_tiles_and_nearly_the_same_pixels(size, orientation):
    image = opened(*size, orientation)
    whole, draft = (tiles_of(image, jpeg_draft=is_draft, **LEVELS) for is_draft in (False, True))
    assert whole.shape == draft.shape
    assert not torch.equal(whole, draft)
    # the levels that the image processor's docstring names
    assert (whole - draft).abs().mean() < 4
    assert is_undecoded(image)
    assert torch.equal(tiles_of(image, **LEVELS), whole)  # the image is left as it was


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((100, 60), (100, 60)),
        ((112, 56), (56, 28)),
        ((111, 57), (111, 57)),
        ((225, 113), (57, 29)),
        ((999, 300), (125, 38)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_draft_is_never_smaller_than_the_tiles(size, decoded, orientation):
    width, height = size if orientation == 1 else size[::-1]
    source = PillowSource(opened(width, height, orientation), upright=True, convert_rgb=True).decoded((28, 56))
    assert (source.width, source.height) == decoded
    assert source.read(0, 0, *decoded).shape == (3, *decoded[::-1])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "MPO"])
def test_other_files_and_decoded_images_stay_as_they_are(format):
    image = opened(300, 200, format=format)
    assert torch.equal(tiles_of(image, jpeg_draft=True), tiles_of(image)) is (
        format != "MPO"
    )  # which is of JPEG images
    image.load()
    assert torch.equal(tiles_of(image, jpeg_draft=True), tiles_of(image))
    assert torch.equal(tiles_of(np.array(image), jpeg_draft=True), tiles_of(image))


def test_the_setting_is_saved_and_off_where_a_processor_was_saved_without_it(tmp_path):
    InternVLXImageProcessor(jpeg_draft=True).save_pretrained(tmp_path)
    loaded = InternVLXImageProcessor.from_pretrained(tmp_path)
    assert loaded.jpeg_draft is True
    image = opened(2000, 1000)
    assert torch.equal(
        loaded(image, size=28, return_tensors="pt").pixel_values[0], tiles_of(image, jpeg_draft=True)[0]
    )
    assert InternVLXImageProcessor.from_dict({}).jpeg_draft is False
    with refused("jpeg_draft"):
        tiles_of(image, jpeg_draft="yes")


def test_training_sees_the_pixels_that_inference_sees():
    processor = tiny_processor(tiny_config("llama"))
    processor.image_processor.jpeg_draft = True
    image = opened(300, 200)
    messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "Yes."}]
    encoded = SampleEncoder(processor)({"messages": messages, "images": [image]})
    seen = processor.image_processor(encoded.images[0], return_tensors="pt", **encoded.images_kwargs)
    expected = processor.image_processor(image, return_tensors="pt")
    torch.testing.assert_close(seen.pixel_values, expected.pixel_values)
