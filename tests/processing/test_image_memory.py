# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Images that are not decoded yet are decoded one at a time, and left as they were."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import forked
from image_cases import random_image, saved, tiles_of
from internvlx_hf.processing import InternVLXImageProcessor
from internvlx_hf.processing.image_files import is_undecoded
from internvlx_hf.processing.image_sources import image_size
from paths import HELPERS
from process_memory import IS_MEASURABLE
from refusals import refused
from tiny import tiny_config, tiny_processor

ORIENTATION = 0x0112
PROCESSOR = InternVLXImageProcessor(size=28)


def content(format: str, seed: int = 0, **kwargs) -> bytes:
    return saved(random_image(70, 40, seed=seed), format, **kwargs)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
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


@pytest.mark.parametrize("format", ["TIFF", "GIF"])
def test_the_frame_that_was_sought_is_the_one_that_is_read(format):
    frames = [Image.new("L", (40, 40), level) for level in (10, 250)]
    second = Image.open(io.BytesIO(saved(frames[0], format, save_all=True, append_images=frames[1:])))
    second.seek(1)
    assert torch.equal(tiles_of(second), tiles_of(frames[1]))


def test_a_file_stays_where_it_was_read_to():
    file = io.BytesIO(content("PNG"))
    image, position = Image.open(file), file.tell()
    tiles_of(image)
    assert file.tell() == position


def test_an_image_of_exactly_pillows_limit_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 40)
    assert len(tiles_of(Image.open(io.BytesIO(content("PNG")))))


def test_what_was_done_to_an_image_before_it_was_decoded_counts():
    small, expected = (Image.open(io.BytesIO(content("JPEG"))) for _ in range(2))
    for image in (small, expected):
        image.draft("L", (20, 20))
    expected.load()
    assert expected.mode == "L"
    assert torch.equal(tiles_of(small), tiles_of(expected))


@pytest.mark.parametrize(("orientation", "size"), [(1, (70, 40)), (6, (40, 70))])
def test_the_size_of_an_undecoded_image_is_that_upright(orientation, size):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.open(io.BytesIO(content("PNG", exif=exif)))
    assert image_size(image) == size
    assert image_size(image, upright=False) == (70, 40)
    assert is_undecoded(image)


@pytest.mark.parametrize("shape", [(40, 70), (40, 70, 1), (40, 70, 3), (40, 70, 4), (3, 40, 70), (4, 40, 70)])
@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_arrays_of_all_layouts_say_their_size(kind, shape):
    assert image_size(kind(shape)) == (70, 40)


def test_a_webp_beyond_pillows_limit_is_a_bomb_too(monkeypatch):
    image = Image.open(io.BytesIO(content("WEBP")))  # whose list of tiles is empty before it is decoded
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 40 - 1)
    with refused("70x40 pixels is larger than Pillow's limit of 2799"):
        tiles_of(image)


def test_fetching_decodes_nothing(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content("PNG"))
    encoded = base64.b64encode(path.read_bytes()).decode()
    assert all(is_undecoded(image) for image in PROCESSOR.fetch_images([path, str(path), encoded]))


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import Image
from internvlx_hf.processing import InternVLXImageProcessor
from process_memory import peak_of

def excess(processor, images):
    tiles = []
    before, peak = peak_of(lambda: tiles.append(processor(images, return_tensors="pt").pixel_values))
    return peak - before - tiles[0].nbytes

processor, one_tile = InternVLXImageProcessor(), InternVLXImageProcessor(max_patches=1)
upright, turned, *several = sys.argv[2:]
processor(Image.new("RGB", (900, 900)), return_tensors="pt")  # whatever is made once
one_tile(several[:1], return_tensors="pt")
print(json.dumps({
    "upright": excess(processor, upright),
    "turned": excess(processor, turned),
    "RGB": excess(processor, Image.new("RGB", (8000, 4500), 1)),
    "grey": excess(processor, Image.new("L", (16000, 5000), 1)),
    "array": excess(processor, np.ones((12000, 3000, 3), np.uint8)),
    "float array": excess(processor, np.ones((3, 3000, 4000), np.float32)),
    "eight paths": excess(one_tile, several),
    "eight Pillow images": excess(one_tile, [Image.open(path) for path in several]),
}))
"""


@pytest.fixture(scope="module")
def excess(tmp_path_factory):
    """By kind of image, the memory that its tiles take to make, beyond themselves and what was held before."""
    if not IS_MEASURABLE:
        pytest.skip("reads the peak memory from Linux's /proc")
    folder = tmp_path_factory.mktemp("large")
    paths = [folder / name for name in ("upright.jpg", "turned.jpg", *(f"{number}.png" for number in range(8)))]
    for path, orientation in zip(paths[:2], (1, 6), strict=True):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.new("RGB", (8000, 4500), (10, 200, 90)).save(path, exif=exif)
    for path in paths[2:]:
        Image.new("RGB", (3000, 3000), (1, 2, 3)).save(path, compress_level=1)
    done = forked.python("-c", MEASURE, HELPERS, *paths)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "decoded_bytes"),
    [
        ("upright", 3 * 8000 * 4500),
        ("turned", 3 * 8000 * 4500),
        ("RGB", 3 * 8000 * 4500),
        ("grey", 16000 * 5000),
        ("array", 3 * 12000 * 3000),
        ("float array", 4 * 3 * 3000 * 4000),
    ],
)
def test_a_large_image_takes_at_most_twice_its_size_and_64_mebibytes(excess, kind, decoded_bytes):
    assert decoded_bytes > 64 * 2**20  # more than what is allowed beside it
    assert excess[kind] <= 2 * decoded_bytes + 64 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eight paths", "eight Pillow images"])
def test_eight_large_images_take_the_memory_of_one(excess, kind):
    assert excess[kind] < 4 * 3 * 3000 * 3000  # of eight decoded at once; one as Pillow holds it is 4 bytes a pixel


def test_images_of_messages_are_not_decoded_before_they_are_split(tmp_path, monkeypatch):
    processor = tiny_processor(tiny_config("llama"))
    images = [Image.open(io.BytesIO(content("PNG", seed))) for seed in range(3)]
    processor(images=images, text="<IMG_CONTEXT>" * 3)
    assert all(is_undecoded(image) for image in images)
