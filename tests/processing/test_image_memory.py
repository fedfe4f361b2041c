# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Images that are not decoded yet are decoded one at a time, and left as they were."""

import base64
import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvlx_hf.processing import InternVLXImageProcessor
from internvlx_hf.processing.image_files import is_undecoded
from internvlx_hf.processing.image_sources import PillowSource, image_size
from tiny import tiny_config, tiny_processor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ORIENTATION = 0x0112
PROCESSOR = InternVLXImageProcessor(size=28)


def content(format: str, seed: int = 0, **kwargs) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **kwargs)
    return stream.getvalue()


def tiles_of(image, **kwargs) -> torch.Tensor:
    return PROCESSOR(image, return_tensors="pt", **kwargs).pixel_values


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("from_path", [False, True])
def test_a_pillow_image_is_left_undecoded_and_can_be_used_again(format, from_path, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(content(format))
    image = Image.open(path if from_path else io.BytesIO(path.read_bytes()))
    first = tiles_of([image, image])
    assert is_undecoded(image)
    assert torch.equal(tiles_of(image), first[: len(first) // 2])
    decoded = Image.open(path)
    decoded.load()
    assert torch.equal(tiles_of(decoded), first[: len(first) // 2])
    assert image.tobytes() == decoded.tobytes()  # it can still be decoded itself
    assert torch.equal(tiles_of(image), first[: len(first) // 2])


def test_the_frame_that_was_sought_is_the_one_that_is_read():
    frames = [Image.new("L", (40, 40), level) for level in (10, 250)]
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    second = Image.open(stream)
    second.seek(1)
    assert torch.equal(tiles_of(second), tiles_of(frames[1]))


def test_a_file_stays_where_it_was_read_to():
    file = io.BytesIO(content("PNG"))
    image = Image.open(file)
    position = file.tell()
    tiles_of(image)
    assert file.tell() == position


def test_an_image_of_exactly_pillows_limit_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 40)
    assert len(tiles_of(Image.open(io.BytesIO(content("PNG")))))


def test_what_was_done_to_an_image_before_it_was_decoded_counts():
    frames = [Image.new("L", (40, 40), level) for level in (10, 250)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    second = Image.open(stream)
    second.seek(1)
    assert (tiles_of(second, do_normalize=False) * 255).mean() > 200
    small = Image.open(io.BytesIO(content("JPEG")))
    small.draft("L", (20, 20))
    expected = Image.open(io.BytesIO(content("JPEG")))
    expected.draft("L", (20, 20))
    expected.load()
    assert expected.mode == "L"
    assert torch.equal(tiles_of(small), tiles_of(expected))
    turned = Image.open(io.BytesIO(content("PNG")))
    assert image_size(turned) == (70, 40)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = Image.open(io.BytesIO(content("PNG", exif=exif)))
    assert image_size(turned) == (40, 70)
    assert is_undecoded(turned)


@pytest.mark.parametrize("shape", [(40, 70), (40, 70, 1), (40, 70, 3), (40, 70, 4), (3, 40, 70), (4, 40, 70)])
@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_arrays_of_all_layouts_say_their_size(kind, shape):
    assert image_size(kind(shape)) == (70, 40)


@pytest.mark.parametrize("do_exif_transpose", [True, False])
def test_a_turned_tiff_has_the_size_that_decoding_gives_it(do_exif_transpose):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(content("TIFF", exif=exif)))
    source = PillowSource(image, upright=do_exif_transpose, convert_rgb=True)
    assert (source.width, source.height) == (40, 70)  # Pillow turns it whatever one wants
    assert source.read(0, 0, 40, 70).shape == (3, 70, 40)


def test_a_webp_beyond_pillows_limit_is_a_bomb_too(monkeypatch):
    image = Image.open(io.BytesIO(content("WEBP")))  # whose list of tiles is empty before it is decoded
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 40 - 1)
    with pytest.raises(ValueError, match="70x40 pixels is larger than Pillow's limit of 2799"):
        tiles_of(image)


def test_fetching_decodes_nothing(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content("PNG"))
    encoded = base64.b64encode(path.read_bytes()).decode()
    assert all(is_undecoded(image) for image in PROCESSOR.fetch_images([path, str(path), encoded]))


PEAK = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    import torch
    from PIL import Image
    from internvlx_hf.processing import InternVLXImageProcessor

    def memory(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    processor = InternVLXImageProcessor(max_patches=1)
    paths = sys.argv[1:]
    processor(paths[:1], return_tensors="pt")
    for images in (paths, [Image.open(path) for path in paths]):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory("VmRSS")
        processor(images, return_tensors="pt")
        peak = (memory("VmHWM") - before) / (3 * 4000 * 4000)
        assert peak < 4, peak  # of eight images decoded at once; one as Pillow holds it is 4 bytes a pixel
    """
)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
def test_eight_large_images_take_the_memory_of_one(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(8)]
    for path in paths:
        Image.new("RGB", (4000, 4000), (1, 2, 3)).save(path, compress_level=1)
    result = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_images_of_messages_are_not_decoded_before_their_tiles_are_cut(tmp_path, monkeypatch):
    processor = tiny_processor(tiny_config("llama"))
    images = [Image.open(io.BytesIO(content("PNG", seed))) for seed in range(3)]
    processor(images=images, text="<IMG_CONTEXT>" * 3)
    assert all(is_undecoded(image) for image in images)
