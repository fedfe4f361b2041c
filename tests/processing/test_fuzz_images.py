# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Images damaged at random with a fixed seed: each gives the right tiles or a clear error.

*Clear* is a ValueError or OSError that names the file or the value. *Silently wrong* is a result of another shape than the
image's size asks for, pixels that are not finite, or others than an independent reading of the same source gives.
"""

import base64
import io
import struct
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from internvlx_hf.processing import InternVLXImageProcessor
from refusals import refused

pytestmark = pytest.mark.any_transformers

SIDE = 14
PROCESSOR = InternVLXImageProcessor(
    size=SIDE, max_patches=2, do_normalize=False, rescale_factor=1.0, resize_backend="pillow"
)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def outcome(source, expected, *names: str) -> str:
    """`ok`, `clear`, `unclear: ...` or `silently wrong: ...`.

    Args:
        expected: gives the (H, W, 3) levels that the source stands for, or None where any error is right.
        names: one of them has to be in an error's message.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            features = PROCESSOR(source, return_tensors="pt")
        except (ValueError, OSError) as error:
            return "clear" if any(name in str(error) for name in names) else f"unclear: {error!r}"
        except Exception as error:
            return f"unclear: {error!r}"
        return judged(features, expected())


def judged(features, levels: np.ndarray | None) -> str:
    if not features.pixel_values.isfinite().all():
        return "silently wrong: not finite"
    if levels is None:
        return "silently wrong: no image at all"
    tiles = PROCESSOR(np.ascontiguousarray(levels), return_tensors="pt", input_data_format="channels_last")
    if features.pixel_values.shape != tiles.pixel_values.shape:
        return f"silently wrong: {tuple(features.pixel_values.shape)}, not {tuple(tiles.pixel_values.shape)}"
    return "ok" if torch.equal(features.pixel_values, tiles.pixel_values) else "silently wrong: other pixels"


def decoded(content: bytes) -> np.ndarray | None:
    """The levels by Pillow alone; None for what it cannot read to its end."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        rgba = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.array(rgba.convert("RGB"))
    except Exception:
        return None


def saved(format: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 3 * 8, 11, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    broken = bytearray(content)
    match generator.integers(5):
        case 0:
            del broken[generator.integers(len(broken)) :]
        case 1:
            for _ in range(generator.integers(1, 9)):
                broken[generator.integers(len(broken))] ^= 1 << generator.integers(8)
        case 2:
            start = generator.integers(len(broken))
            broken[start : start + 4] = struct.pack(">I", generator.choice([0, 1, 255, 2**16, 2**31, 2**32 - 1]))
        case 3:
            start = generator.integers(len(broken))
            del broken[start : start + generator.integers(1, 20)]
        case 4:
            broken[:4] = generator.bytes(4)
    return bytes(broken)


def assert_only_ok_and_clear(outcomes: dict[str, str]) -> None:
    wrong = {name: what for name, what in outcomes.items() if what not in ("ok", "clear")}
    assert not wrong, (Counter(outcomes.values()), wrong)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_read_right_or_refused_by_name(format, tmp_path):
    generator = np.random.default_rng(FORMATS.index(format))
    outcomes = {}
    for seed in range(120):
        content = damaged(saved(format, seed), generator)
        path = tmp_path / f"damaged-{seed}.img"
        path.write_bytes(content)
        outcomes[f"{seed}: {content!r:.300}"] = outcome(path, lambda content=content: pillow_blend(content), path.name)
    assert_only_ok_and_clear(outcomes)
    assert "clear" in outcomes.values()  # else nothing was damaged


def pillow_blend(content: bytes) -> np.ndarray | None:
    """As `decoded`, but blended as `image_sources` rounds it, which Pillow does otherwise by a level."""
    levels = decoded(content)
    if levels is None:
        return None
    return blended(Image.open(io.BytesIO(content)))


def blended(image: Image.Image) -> np.ndarray | None:
    """The levels of an image that can be decoded; None where its colour key makes no sense to Pillow."""
    key = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        if not isinstance(key, int | None):
            return None
        values = np.asarray(image).astype(np.float64)
        per_level = (
            257 if image.format in ("PNG", "PPM") or "16" in image.mode else 1 / 255 if image.mode == "F" else 1
        )
        levels = np.where(values == key, 255, np.round(values / per_level).clip(0, 255)).astype(np.uint8)
        return np.stack([levels] * 3, axis=-1)
    try:
        image = image.convert({"La": "LA"}.get(image.mode, image.mode)).convert("RGBA")
    except Exception:
        return None
    rgba = np.array(image.convert("RGBA")).astype(np.int64)
    if (rgba[..., 3] == 255).all():
        return np.array(image.convert("RGB"))
    return (255 - ((255 - rgba[..., :3]) * rgba[..., 3:] + 127) // 255).astype(np.uint8)


DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.uint32, np.uint64, np.float16, np.float32)
DTYPES += (np.float64, np.bool_, np.complex64, np.object_, "U3", "datetime64[s]")
RANGES = ((0, 1), (0, 255), (0, 256), (-1, 1), (0, 65535), (0, 1e30), (5, 5), (0, 0), (np.nan, np.nan), (0, np.inf))
SIZES = (0, 1, 2, 3, 4, 9, 30)


def array_of(generator: np.random.Generator) -> np.ndarray:
    shape = tuple(generator.choice(SIZES, generator.choice([0, 1, 2, 3, 4, 5], p=[0.05, 0.05, 0.2, 0.5, 0.1, 0.1])))
    if len(shape) >= 3 and generator.integers(2):
        shape = (*shape[:-1], generator.choice([1, 3, 4]))
    low, high = RANGES[generator.integers(len(RANGES))]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = low + (high - low) * generator.random(shape)
        dtype = DTYPES[generator.integers(len(DTYPES))]
        return np.asarray(values).astype("int64" if "datetime" in str(dtype) else dtype).astype(dtype)


def levels_of(array: np.ndarray) -> np.ndarray | None:
    """(H, W, 3) levels by the documented rules, for one image only; None for other arrays."""
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4):  # the first axis is asked first, as in transformers
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size or array.dtype.kind not in "buif":
        return None
    values = array.astype(np.float32)
    if not (values.min() >= 0 and values.max() <= (65535 if array.dtype == np.uint16 else 255)):
        return None
    if array.dtype == np.uint16:
        values = values / np.float32(257)
    elif array.dtype.kind == "b" or (array.dtype.kind == "f" and values.max() <= 1):
        values = values * np.float32(255)
    levels = np.round(values).astype(np.int64)
    if levels.shape[-1] == 4:
        levels = 255 - ((255 - levels[..., :3]) * levels[..., 3:] + 127) // 255
    return np.broadcast_to(levels, (*levels.shape[:2], 3)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_arrays_of_any_shape_type_and_range_are_read_right_or_refused(seed):
    generator = np.random.default_rng(seed)
    outcomes = {}
    for number in range(200):
        array = array_of(generator)
        names = (str(array.shape), str((1, *array.shape)), str(array.shape[1:]), "values of")
        source = array
        if number % 3 == 0 and array.dtype.kind in "buif":
            source = torch.from_numpy(array)
        if array.ndim == 4 and len(array) != 1:
            continue  # a batch
        name = f"{number}: {array.shape} {array.dtype} {array.ravel()[:3]}"
        outcomes[name] = outcome(source, lambda array=array: levels_of(array), *names)
    assert_only_ok_and_clear(outcomes)
    assert {"ok", "clear"} <= set(outcomes.values())


MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBX",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)
MODES += ("I;16L", "I;16B", "I;16N")
KEYS = (None, 0, 3, -1, 2**40, b"", b"\0\x80", bytes(256), (0, 0, 0), (1, 2), "red", 1.5)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_with_any_colour_key_is_read_or_refused(mode):
    generator = np.random.default_rng(MODES.index(mode))
    outcomes = {}
    for key in KEYS:
        image = Image.new(mode, (9, 7))
        size = len(image.tobytes())
        data = generator.bytes(size)
        if mode == "F":
            data = generator.random(63).astype(np.float32).tobytes()
        elif mode == "I":
            data = generator.integers(0, 256, 63, dtype=np.int32).tobytes()
        image.frombytes(data)
        if mode in ("P", "PA"):
            image.putpalette(generator.bytes(768))
        if key is not None:
            image.info["transparency"] = key
        outcomes[repr(key)] = outcome(image, lambda image=image: blended(image), mode)
    assert_only_ok_and_clear(outcomes)
    assert outcomes["None"] == "ok"


PIECES = (
    "http://",
    "https://",
    "file://",
    "data:",
    "image/png",
    ";base64",
    ",",
    "[::1",
    "]",
    ":",
    "/",
    "..",
    "\0",
    "ü",
    "%",
    "%00",
)
PIECES += (
    "iVBORw0KGgo",
    "/9j/",
    "=",
    "\n",
    " ",
    "~",
    "\udc80",
    "x.png",
    "localhost",
    "127.0.0.1:1",
    "@",
    "#",
    "?",
    "\\",
    "A" * 300,
)


def test_strings_of_any_kind_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    outcomes = {}
    for _ in range(300):
        text = "".join(PIECES[i] for i in generator.integers(len(PIECES), size=generator.integers(1, 7)))
        if "localhost" in text and text.startswith("http"):
            continue  # somebody may be at home
        outcomes[text] = outcome(text, lambda: None, repr(text)[:90])
    assert_only_ok_and_clear(outcomes)
    assert set(outcomes.values()) == {"clear"}


def test_damaged_base64_is_read_right_or_refused():
    generator = np.random.default_rng(0)
    outcomes = {}
    for seed in range(150):
        content = saved("PNG", seed)
        text = bytearray(base64.b64encode(content))
        place = generator.integers(len(text))
        match generator.integers(3):
            case 0:
                del text[place:]
            case 1:
                text[place] = generator.integers(32, 127)
            case 2:
                text[place:place] = b"\r\n"
        text = text.decode()

        def expected(text=text):
            return decoded(base64.b64decode("".join(text.split()) + "=" * (-len("".join(text.split())) % 4)))

        outcomes[text] = outcome(text, expected, repr(text)[:90])
    assert_only_ok_and_clear(outcomes)
    assert {"ok", "clear"} == set(outcomes.values())


@pytest.mark.parametrize("source", [None, 3, 1.5, b"\x89PNG", {}, {"url": "x"}, object(), [None], [[3]], "", " ", {1}])
def test_what_is_no_image_is_refused_by_its_type(source):
    with refused(repr(source) if isinstance(source, str) else "image"):
        PROCESSOR(source)
