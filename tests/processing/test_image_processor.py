# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The image processor: pixels against the reference's, every kind of input, bad input, and memory."""

import base64
import gc
import json
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors import safe_open

from image_cases import photo, random_image, saved, tiles_of
from internvlx_hf.processing import InternVLXImageProcessor, image_sources, resizing
from internvlx_hf.processing.image_sources import ArraySource, PillowSource
from paths import GOLDEN as GOLDEN_ROOT
from refusals import refused

GOLDEN = GOLDEN_ROOT / "rvtc"
ORIENTATION = 0x0112


def levels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Undoes the normalisation: levels of 0 to 255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixel_values * std + mean) * 255


# ---- pixels against the reference


def golden_cases():
    cases = []
    for path in sorted(GOLDEN.glob("pixels_*.safetensors")):
        with safe_open(path, "pt") as file:
            for name, case in json.loads(file.metadata()["cases"]).items():
                cases.append(pytest.param(path, name, case, id=f"{path.stem}-{name}"))
    return cases


def golden_tiles_and_ours(path, name, case, **kwargs):
    with safe_open(path, "pt") as file:
        expected = file.get_tensor(case["tensor"])
    slicing, maximum, _ = name.split(".")
    size = {"height": expected.shape[-2], "width": expected.shape[-1]}
    image = Image.open(GOLDEN / path.name.replace("pixels", "image").replace("safetensors", "png"))
    most = int(maximum.removeprefix("max"))
    return expected, tiles_of(image, slicing=slicing, max_patches=most, size=size, alpha="drop", **kwargs)


@pytest.mark.parametrize(("path", "name", "case"), golden_cases())
def test_pillow_backend_gives_the_golden_pixels(path, name, case):
    expected, tiles = golden_tiles_and_ours(path, name, case, resize_backend="pillow")
    # scaling and shifting in one step rounds once less than the reference: 5e-7 seen, one level is 0.017
    torch.testing.assert_close(tiles, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("path", "name", "case"), golden_cases())
def test_torch_backend_is_within_one_level_of_the_golden_pixels_but_for_two_in_ten_thousand(path, name, case):
    expected, tiles = golden_tiles_and_ours(path, name, case)
    difference = (levels(tiles) - levels(expected)).abs().round()
    # These images are noise, the worst case: a level in 0.5 % of the pixels. A rounding of the first axis may come
    # out of the second one as two levels, which happens to one pixel in ten thousand, and not in photographs.
    assert (difference > 0).float().mean() < 0.01
    assert (difference > 1).float().mean() < 2e-4
    assert difference.max() <= 2


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="older versions of Pillow resample rows first")
@settings(max_examples=40)
@given(st.tuples(*[st.integers(5, 150)] * 4))
def test_pillow_backend_is_pillows_own_resize(sizes):
    width, height, new_width, new_height = sizes
    image = random_image(width, height)
    source = ArraySource(np.array(image), convert_rgb=True, input_data_format="channels_last")
    resizer = resizing.Resizer(source, "pillow", Image.Resampling.BICUBIC, torch.device("cpu"))
    (resized,) = resizer((new_height, new_width))
    expected = np.array(image.resize((new_width, new_height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized.movedim(0, -1), expected)  # the same 8-bit levels


@pytest.mark.parametrize("large", [5000, 2**24])
@pytest.mark.parametrize("backend", ["torch", "pillow"])
@pytest.mark.parametrize("size", [(130, 95), (95, 130), (60, 300)])
@pytest.mark.parametrize("orientation", [1, 4, 6])
def test_reading_and_resizing_in_bands_change_no_value(large, backend, size, orientation, monkeypatch):
    image = random_image(*size)
    image.getexif()[ORIENTATION] = orientation
    kwargs = {"resize_backend": backend, "slicing": "ratio"}
    whole = tiles_of(image, **kwargs)
    monkeypatch.setattr(resizing, "LARGE", large)
    monkeypatch.setattr(resizing, "PIXELS_PER_BAND", 1000)
    assert torch.equal(tiles_of(image, **kwargs), whole)


@pytest.mark.parametrize("size", [(20, 15), (130, 95), (60, 300)])
@pytest.mark.parametrize("large", [5000, 2**24])
def test_the_layout_in_memory_changes_no_value(size, large, monkeypatch):
    image = random_image(*size)
    kwargs = {"slicing": "ratio"}
    planar = torch.from_numpy(np.array(image)).movedim(-1, 0).contiguous()
    monkeypatch.setattr(resizing, "_is_interleaved", lambda pixels: True)  # so that nothing is rearranged
    expected = tiles_of(planar, input_data_format="channels_first", **kwargs)
    monkeypatch.undo()
    monkeypatch.setattr(resizing, "LARGE", large)
    cut_out = np.zeros((size[1] + 2, size[0] + 2, 3), np.uint8)
    cut_out[1:-1, 1:-1] = image
    for source in (image, planar, np.array(image), cut_out[1:-1, 1:-1], np.array(image) / np.float32(255)):
        assert torch.equal(tiles_of(source, **kwargs), expected)
    monkeypatch.setattr(image_sources, "_ArrowPixels", lambda image: image.lacks_arrow)  # as before Pillow 11.3
    assert torch.equal(tiles_of(image, **kwargs), expected)


def test_pixels_are_read_from_pillows_own_memory():
    image = random_image(40, 30)
    source = PillowSource(image, upright=True, convert_rgb=True)
    view = source.view(padded=True)
    if view is None:
        pytest.skip("this Pillow does not lend its memory")
    expected = np.moveaxis(np.array(image), -1, 0)
    np.testing.assert_array_equal(view[:3], expected)
    assert source.read(0, 0, 40, 30).shape == expected.shape  # without what Pillow stores beside them
    del source, image
    gc.collect()
    np.testing.assert_array_equal(view[:3], expected)  # the memory is kept for as long as it is seen


def test_rescaling_and_normalising_follow_their_switches():
    image = random_image(28, 28)
    level = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float()
    for kwargs, expected in [
        ({}, (level / 255 - 0.5) / 0.25),
        ({"do_normalize": False}, level / 255),
        ({"do_normalize": False, "rescale_factor": 2.0}, level * 2),
        ({"do_normalize": False, "do_rescale": False}, level),
        ({"do_rescale": False}, (level - 0.5) / 0.25),
    ]:
        tiles = tiles_of(image, image_mean=[0.5] * 3, image_std=[0.25] * 3, **kwargs)
        torch.testing.assert_close(tiles, expected, atol=1e-6, rtol=1e-6)  # float32 rounding of one multiply-add


# ---- every kind of input


def routes(image: Image.Image, folder: Path):
    """The same RGB image by every route that keeps all of its pixels."""
    rgb = np.array(image)
    png = saved(image)
    path = folder / "picture.png"
    path.write_bytes(png)
    flipped = rgb[:, ::-1].copy()[:, ::-1]  # negative strides
    read_only = rgb.copy()
    read_only.flags.writeable = False
    with_alpha = np.concatenate([rgb, 255 - rgb[..., :1]], axis=-1)
    yield from {
        "path": str(path),
        "Path": path,
        "base64": base64.b64encode(png).decode(),
        "data uri": "data:image/png;base64," + base64.b64encode(png).decode(),
        "numpy hwc": rgb,
        "numpy chw": np.moveaxis(rgb, -1, 0),
        "numpy contiguous chw": np.moveaxis(rgb, -1, 0).copy(),
        "numpy flipped": flipped,
        "numpy read-only": read_only,
        "numpy float": (rgb / 255).astype(np.float32),
        "numpy double levels": rgb.astype(np.float64),
        "numpy uint16": rgb.astype(np.uint16) * 257,
        "numpy big-endian uint16": (rgb.astype(np.uint16) * 257).astype(">u2"),
        "torch hwc": torch.from_numpy(rgb),
        "torch chw": torch.from_numpy(rgb).movedim(-1, 0),
        "torch float": torch.from_numpy(rgb).movedim(-1, 0) / 255,
        "torch half": (torch.from_numpy(rgb) / 255).half(),
        "torch int64": torch.from_numpy(rgb).long(),
        "torch uint16": torch.from_numpy(rgb.astype(np.uint16) * 257),
        "numpy rgba": with_alpha,
        "pil rgba": Image.fromarray(with_alpha),
    }.items()


def test_an_image_gives_the_same_tiles_by_every_route(tmp_path):
    image = random_image(70, 41)
    expected = tiles_of(image)
    for name, route in routes(image, tmp_path):
        assert torch.equal(tiles_of(route, alpha="drop"), expected), name


def test_floats_of_zero_to_one_keep_their_range_without_rescaling():
    image = torch.from_numpy(np.array(random_image(28, 28))).movedim(-1, 0) / 255
    tiles = tiles_of(image, do_rescale=False, do_normalize=False)
    torch.testing.assert_close(tiles[0], image, atol=1e-6, rtol=0)  # these floats are whole levels


def test_without_rgb_conversion_four_channels_stay_and_alpha_weighs_nothing():
    rgba = np.array(random_image(50, 40, "RGBA"))
    kwargs = {"image_mean": [0.0] * 4, "image_std": [1.0] * 4, "resize_backend": "pillow"}
    for image in (rgba, np.moveaxis(rgba, -1, 0), Image.fromarray(rgba)):
        tiles = tiles_of(image, do_convert_rgb=False, **kwargs)
        assert tiles.shape[1] == 4
        rgb_tiles = tiles_of(rgba[..., :3], image_mean=[0.0] * 3, image_std=[1.0] * 3, resize_backend="pillow")
        assert torch.equal(tiles[:, :3], rgb_tiles)


def test_a_batch_is_its_images_one_after_another():
    images = [random_image(70, 41), np.array(random_image(30, 90, seed=1)), random_image(20, 20, seed=2)]
    expected = [tiles_of(image) for image in images]
    processor = InternVLXImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True)
    for batch in (images, [images[:1], [], images[1:]], tuple(images)):
        features = processor(batch, return_tensors="pt")
        assert torch.equal(features.pixel_values, torch.cat(expected))
        assert features.num_patches.tolist() == [len(tiles) for tiles in expected]
    array = np.stack([np.array(random_image(70, 41, seed=seed)) for seed in range(3)])
    assert torch.equal(tiles_of(array), torch.cat([tiles_of(image) for image in array]))


def test_an_image_processor_with_a_size_and_no_tile_settings_only_resizes(tmp_path):
    size = {"height": 28, "width": 28}
    processor = InternVLXImageProcessor(do_resize=True, size=size)
    processor.save_pretrained(tmp_path)
    for resizer in (processor, InternVLXImageProcessor.from_pretrained(tmp_path)):
        assert resizer.get_number_of_image_patches(90, 90) == len(resizer(random_image(90, 90)).pixel_values) == 1
        # a word about tiles, at a call or before, and it cuts
        assert resizer.get_number_of_image_patches(90, 90, {"slicing": "edge"}) == 5
        assert len(resizer(random_image(90, 90), max_patches=6).pixel_values) == 5
    for kwargs in ({"do_resize": True, "slicing": "edge"}, {"do_resize": True, "crop_to_patches": True}, {}):
        assert InternVLXImageProcessor(size=size, **kwargs).get_number_of_image_patches(90, 90) == 5
    assert InternVLXImageProcessor().crop_to_patches is True


def test_a_call_that_asks_for_several_tiles_gets_them():
    processor = InternVLXImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=False, max_patches=12)
    image = random_image(90, 90)
    one_tile = ({}, {"max_patches": 1}, {"slicing": "area"}, {"max_patches": 6, "crop_to_patches": False})
    several = (({"max_patches": 6}, 5), ({"min_patches": 4, "max_patches": None}, 10))
    for asked, tiles in (*((call, 1) for call in one_tile), *several):
        assert processor.get_number_of_image_patches(90, 90, asked) == tiles
        assert len(processor(image, **asked).pixel_values) == tiles
    assert processor([image, image], max_patches=[6, 1])["num_patches"] == [5, 1]
    assert processor.crop_to_patches is False


def test_changed_tiling_holds_for_all_calls():
    processor = InternVLXImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=False)
    with refused("max_patches=0"):
        processor.change_tiling(slicing="area", max_patches=0)
    with refused("Unknown setting 'slicng'", "`slicing`"):
        processor.change_tiling(slicng="area", max_patches=4)
    assert (processor.slicing, processor.max_patches, processor.crop_to_patches) == ("edge", 6, False)
    processor.change_tiling(slicing="area")
    assert processor.get_number_of_image_patches(90, 90) == 1
    processor.change_tiling(max_patches=4)
    assert processor.tiling_rule().max_tiles == 4
    assert processor.get_number_of_image_patches(90, 90) == len(processor(random_image(90, 90)).pixel_values) == 5


@pytest.mark.parametrize(("return_tensors", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_tensors_are_of_the_wanted_kind(return_tensors, kind):
    features = InternVLXImageProcessor(size=28)(random_image(70, 41), return_tensors=return_tensors)
    assert isinstance(features["pixel_values"], kind)
    assert isinstance(features["num_patches"], kind)
    assert features["pixel_values"][0].shape == (3, 28, 28)


def test_an_image_of_a_whole_grid_needs_no_resizing():
    image = random_image(56, 28)
    tiles = tiles_of(image, do_resize=False, use_thumbnail=False, do_normalize=False, rescale_factor=1.0)
    np.testing.assert_array_equal(torch.cat(tuple(tiles), dim=-1).movedim(0, -1), np.array(image))
    with refused("57x28 pixels and do_resize is False", "56x28 for its 2x1 tiles"):
        tiles_of(random_image(57, 28), do_resize=False)


@settings(max_examples=60)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    st.integers(1, 8),
    st.sampled_from(["edge", "area", "ratio"]),
    st.booleans(),
    st.booleans(),
)
def test_tiles_made_are_the_tiles_predicted(width, height, mode, maximum, slicing, use_thumbnail, crop):
    kwargs = {"max_patches": maximum, "slicing": slicing, "use_thumbnail": use_thumbnail, "crop_to_patches": crop}
    processor = InternVLXImageProcessor(size={"height": 28, "width": 28})
    features = processor(random_image(width, height).convert(mode), return_tensors="pt", **kwargs)
    predicted = processor.get_number_of_image_patches(height, width, kwargs)
    assert predicted == len(features.pixel_values) == features.num_patches.item()
    assert features.pixel_values.isfinite().all()


# ---- EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_gives_the_same_tiles_by_every_route(orientation, tmp_path):
    stored = random_image(70, 41)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    path.write_bytes(saved(stored, exif=exif))
    upright = tiles_of(ImageOps.exif_transpose(Image.open(path)))
    encoded = base64.b64encode(path.read_bytes()).decode()
    for image in (str(path), encoded, Image.open(path), ImageOps.exif_transpose(Image.open(path))):
        assert torch.equal(tiles_of(image), upright)
    for image in (str(path), encoded, Image.open(path)):
        assert torch.equal(tiles_of(image, do_exif_transpose=False), tiles_of(stored))


@pytest.mark.parametrize("exif", [b"no exif", b"II*\0"])
def test_a_broken_exif_block_is_ignored(exif, path_of):
    image = random_image(70, 41)
    assert torch.equal(tiles_of(path_of(saved(image, exif=exif))), tiles_of(image))


@pytest.mark.parametrize("do_exif_transpose", [True, False])
def test_a_rotated_tiff_is_rotated_once(tmp_path, do_exif_transpose):
    # Pillow turns TIFF files itself when it decodes them, whatever one wants
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = random_image(70, 41)
    path = tmp_path / "photo.tiff"
    path.write_bytes(saved(stored, "TIFF", exif=exif))
    expected = tiles_of(stored.transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(tiles_of(str(path), do_exif_transpose=do_exif_transpose), expected)


# ---- saving, memory, devices


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("size", [(640, 480), (300, 2000)])
def test_tiles_on_a_gpu_are_within_one_level_of_those_on_the_cpu(size):
    image = photo(*size)
    tiles = tiles_of(image, device="cuda", slicing="ratio")
    assert tiles.device.type == "cuda"
    on_cpu = tiles_of(image, slicing="ratio")
    from_tensor = tiles_of(torch.from_numpy(np.array(image)).cuda(), slicing="ratio")
    assert torch.equal(from_tensor, tiles)
    # a GPU holds the weights in float32, a CPU in 16 bits
    assert (levels(tiles.cpu()) - levels(on_cpu)).abs().round().max() <= 1
