# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Transparency: on white for new processors, dropped as the reference drops it for those saved before."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from image_cases import saved
from internvlx_hf.processing import InternVLXImageProcessor, resizing
from internvlx_hf.processing.image_sources import PillowSource
from json_files import json_of, write_json
from refusals import refusals

SIDE = 28


def ink() -> Image.Image:
    """Black ink on transparency that is black below: one black square, if alpha is dropped."""
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((3, 3, 20, 24), fill=(0, 0, 0, 255), width=3)
    return image


def levels_of(image, **kwargs) -> np.ndarray:
    """(3, H, W) levels of an image of one tile."""
    kwargs = {"size": {"height": SIDE, "width": SIDE}, "do_normalize": False, "rescale_factor": 1.0} | kwargs
    (tile,) = InternVLXImageProcessor()(image, return_tensors="pt", **kwargs).pixel_values
    return tile.numpy()


def expected_on_white(image: Image.Image) -> np.ndarray:
    """Exact, one pixel at a time, and rounded."""
    pixels = np.array(image.convert("RGBA")).astype(np.float64)
    blended = pixels[..., :3] * pixels[..., 3:] / 255 + 255 - pixels[..., 3:]
    return np.moveaxis(np.floor(blended + 0.5), -1, 0)


def reloaded(image, format, **kwargs):
    return Image.open(io.BytesIO(saved(image, format, **kwargs)))


def translucent(mode: str = "RGBA") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def palette(with_bytes: bool) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 4, (SIDE, SIDE), dtype=np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 9, 9, 9])
    image.info["transparency"] = bytes([0, 255, 100, 255]) if with_bytes else 1
    return image


def with_colour_key(mode: str, key) -> Image.Image:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 3, (SIDE, SIDE), dtype=np.uint8) * 100)
    image = grey.convert(mode)
    image.info["transparency"] = key
    return image


def test_black_ink_on_transparency_is_seen():
    white = levels_of(ink())
    np.testing.assert_array_equal(white, expected_on_white(ink()))
    assert white.min() == 0
    assert white.max() == 255
    assert levels_of(ink(), alpha="drop").max() == 0


CASES = {
    "RGBA": lambda: translucent(),
    "LA": lambda: translucent("LA"),
    "RGBa": lambda: translucent("RGBa"),
    "La": lambda: translucent("LA").convert("La"),
    "PA": lambda: palette(with_bytes=True).convert("PA"),
    "P, an index": lambda: palette(with_bytes=False),
    "P, bytes": lambda: palette(with_bytes=True),
    "PNG of P": lambda: reloaded(palette(with_bytes=True), "PNG"),
    "PNG of LA": lambda: reloaded(translucent("LA"), "PNG"),
    "GIF": lambda: reloaded(palette(with_bytes=False), "GIF", transparency=1),
    "WebP": lambda: reloaded(translucent(), "WEBP", lossless=True, exact=True),
    "TIFF": lambda: reloaded(translucent(), "TIFF"),
    "L with a key": lambda: with_colour_key("L", 100),
    "RGB with a key": lambda: with_colour_key("RGB", (100, 100, 100)),
    "1 with a key": lambda: with_colour_key("1", 0),
    "PNG of L with a key": lambda: reloaded(with_colour_key("L", 100), "PNG"),
    "PNG of RGB with a key": lambda: reloaded(with_colour_key("RGB", (0, 0, 0)), "PNG"),
    "PNG of 1 with a key": lambda: reloaded(with_colour_key("1", 0), "PNG"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_transparent_mode_comes_out_on_white_or_in_pillows_own_colours(case):
    image = CASES[case]()
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    assert np.array(rgba)[..., 3].min() < 255  # else the case shows nothing
    # Pillow's own way from premultiplied colours loses up to a level, before either side sees them
    np.testing.assert_array_equal(levels_of(image), expected_on_white(rgba))
    dropped = np.moveaxis(np.array(rgba.convert("RGB")), -1, 0)
    np.testing.assert_array_equal(levels_of(CASES[case](), alpha="drop"), dropped)


def test_a_colour_key_of_sixteen_bits_comes_out_on_white():
    values = np.random.default_rng(0).integers(0, 3, (SIDE, SIDE)).astype(np.uint16) * 30000
    image = Image.fromarray(values)
    image.info["transparency"] = 30000
    expected = np.where(values == 30000, 255, np.round(values / 257))
    np.testing.assert_array_equal(levels_of(image)[0], expected)
    np.testing.assert_array_equal(levels_of(image, alpha="drop")[0], np.round(values / 257))


@pytest.mark.parametrize("as_array", [False, True])
def test_a_large_transparent_image_is_blended_part_by_part(as_array, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 4), dtype=np.uint8)
    image = pixels if as_array else Image.fromarray(pixels)
    whole = InternVLXImageProcessor(size=SIDE)(image, return_tensors="pt").pixel_values
    monkeypatch.setattr(resizing, "LARGE", 5000)
    monkeypatch.setattr(resizing, "PIXELS_PER_BAND", 1000)
    assert torch.equal(InternVLXImageProcessor(size=SIDE)(image, return_tensors="pt").pixel_values, whole)


def test_without_conversion_to_rgb_a_key_of_a_grey_image_counts_and_four_channels_are_left_alone():
    kwargs = {"do_convert_rgb": False}
    grey = with_colour_key("L", 100)
    levels = levels_of(grey, **kwargs)
    assert levels.shape[0] == 1
    np.testing.assert_array_equal(levels[0], expected_on_white(grey)[0])
    np.testing.assert_array_equal(levels_of(translucent(), **kwargs), np.moveaxis(np.array(translucent()), -1, 0))


def test_an_opaque_image_is_not_converted(monkeypatch):
    opaque = translucent("RGB")
    monkeypatch.setattr("internvlx_hf.processing.image_sources._on_white", lambda rgba: pytest.fail("was blended"))
    PillowSource(opaque, upright=True, convert_rgb=True).read(0, 0, SIDE, SIDE)
    levels_of(np.array(opaque))


def test_new_processors_take_white_and_those_saved_without_the_key_drop(tmp_path):
    processor, path, load = InternVLXImageProcessor(), tmp_path / "preprocessor_config.json", InternVLXImageProcessor
    processor.save_pretrained(tmp_path)
    assert processor.alpha == load.from_pretrained(tmp_path).alpha == json_of(path)["alpha"] == "white"
    config = {name: value for name, value in json_of(path).items() if name != "alpha"}
    write_json(path, config)
    assert load.from_pretrained(tmp_path, alpha="white").alpha == "white"
    loaded = load.from_pretrained(tmp_path)
    assert loaded.alpha == load.from_dict(config).alpha == "drop"
    loaded.save_pretrained(tmp_path)
    assert json_of(path)["alpha"] == "drop"


test_an_unknown_alpha_is_refused = refusals(
    (lambda: InternVLXImageProcessor(alpha="black"), "alpha='black' is unknown", "one of white, drop"),
    (lambda: levels_of(ink(), alpha="black"), "alpha='black' is unknown", "one of white, drop"),
)
