"""Images and settings that the image processor refuses, by name."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from image_cases import photo, random_image, saved, tiles_of
from internvlx_hf.processing import InternVLXImageProcessor
from internvlx_hf.processing.image_files import names_image, open_file, open_image
from refusals import refused


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_image_is_refused(format, path_of):
    content = saved(photo(300, 200), format)
    path = path_of(content[: len(content) // 2])
    with refused("bad.img"):
        tiles_of(path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no/such/file.png", "'no/such/file.png' does not exist. Expected the path of an image file"),
        ([3], "An image is a int"),
        (Image.new("RGB", (0, 5)), "0x5 pixels … at least 1x1"),
        *((np.zeros(shape, np.uint8), f"shape {shape} is empty") for shape in ((0, 5, 3), (5, 0, 3), (3, 0, 0))),
        (np.zeros((30, 30, 5), np.uint8), "shape (30, 30, 5) has no channel axis"),
        (np.full((30, 30, 3), 300), "values of 300..300 … 0..255 for torch.int64"),
        (np.full((30, 30, 3), -1.0), "values of -1..-1 … floats of 0..1 or of 0..255"),
        (np.full((30, 30, 3), np.nan), "values of nan"),
    ],
)
def test_what_is_no_image_is_refused(source, said):
    with refused(said):
        tiles_of(source)


def test_what_is_no_image_file_is_refused_by_a_short_name(path_of):
    with refused("bad.img", "is not an image that Pillow can read"):
        tiles_of(path_of(b"no image"))
    with refused("characters") as error:
        tiles_of("A" * 100_000)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("excess", [1.5, 3])  # Pillow itself warns of the first, and raises for the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(excess, path_of, monkeypatch):
    path = path_of(saved(Image.new("RGB", (100, 90))))
    opened = Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(9000 / excess))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("was decoded"))
    with refused("9000 pixels" if excess > 2 else "100x90 pixels is larger than Pillow's limit of 6000"):
        tiles_of(path)
    with refused("100x90 pixels is larger than Pillow's limit"):
        tiles_of(opened)


def test_a_large_decoded_image_is_not_a_bomb(monkeypatch):
    image = random_image(100, 90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert len(tiles_of(image)) > 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"slicing": "edges"}, "slicing='edges' … one of 'edge'"),
        ({"resize_backend": "opencv"}, "resize_backend='opencv' is unknown … one of torch, pillow"),
        (
            {"resample": Image.Resampling.LANCZOS},
            "not supported by resize_backend='torch' … BICUBIC or BILINEAR",
        ),
        ({"min_patches": 4, "max_patches": 2}, "min_patches=4 is larger than max_patches=2"),
        ({"max_patches": 0}, "max_patches=0 … a whole number from 1"),
        ({"size": {"shortest_edge": 448}}, "size={'shortest_edge': 448} … a tile's height and width"),
        ({"image_std": 0.0}, "image_std=0.0 … finite positive numbers"),
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std=(0.2, 0.0, 0.2) … finite positive"),
        ({"image_std": -1.0}, "image_std=-1.0 … finite positive"),
        ({"image_std": float("nan")}, "image_std=nan … finite positive"),
        ({"image_std": 1e-46}, "image_std=1e-46 … finite positive"),
        ({"image_mean": [0.0, float("inf"), 0.0]}, "image_mean= … inf … finite numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean=(0.5, 0.5) has the shape (2,) … 1, 3 numbers"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan … finite numbers other than 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor=inf … finite numbers other than 0"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0 … finite numbers other than 0"),
        ({"rescale_factor": "big"}, "rescale_factor"),
        ({"image_std": "small"}, "image_std"),
        ({"image_std": [[0.2] * 3]}, "image_std"),
        ({"size": {"height": 448, "width": -1}}, "size has width=-1 … a positive"),
    ],
)
def test_impossible_arguments_are_refused_when_made_and_when_called(kwargs, message):
    with refused(message):
        InternVLXImageProcessor(**kwargs)
    with refused(message):
        InternVLXImageProcessor()(random_image(30, 30), **kwargs)
    with refused(message):
        InternVLXImageProcessor().get_number_of_image_patches(30, 30, kwargs)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("way", ["path", "base64", "data URI", "bytes of a record"])
def test_a_format_that_starts_a_program_is_refused_by_its_name(way, path_of, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript runs"))
    encoded = base64.b64encode(EPS).decode()
    sources = {"path": path_of(EPS), "base64": encoded, "data URI": f"data:image/png;base64,{encoded}"}
    with refused("is a file of the format EPS", "one of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        open_file(EPS, "it") if way == "bytes of a record" else tiles_of(sources[way])


@pytest.mark.parametrize("format", ["PPM", "JPEG2000", "ICO", "PCX"])
def test_one_list_has_the_formats_of_all_image_files(format, path_of):
    path = path_of(saved(random_image(20, 30), format))
    with refused(f"is a file of the format {format}", "one of JPEG"):
        open_image(path)
    assert not names_image(f"page.{format.lower()}")


def test_the_pictures_of_a_phone_are_opened():
    content = saved(random_image(20, 30), "MPO", save_all=True, append_images=[random_image(20, 30)])
    assert open_file(content, "it").format == "MPO"
    assert torch.equal(tiles_of(open_file(content, "it")), tiles_of(Image.open(io.BytesIO(content))))
    assert names_image("photo.mpo")
