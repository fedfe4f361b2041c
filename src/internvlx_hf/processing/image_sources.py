# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Opening images, and reading any kind of image as 8-bit levels.

A source hides where an image comes from (Pillow, numpy, torch), its layout, bit depth and EXIF orientation. It can be
read part by part, so that an image of many megapixels is never held a second time.
"""

import base64
import math
import os
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import httpx  # the client that transformers downloads images with
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

EXIF_ORIENTATION_TAG = 0x0112
_TIFF_WIDTH, _TIFF_LENGTH = 0x0100, 0x0101
# What makes an image with this EXIF orientation upright; and whether that swaps the axes of the stored image, and
# whether it mirrors the stored x and y.
_UPRIGHT = {
    1: (None, False, False, False),
    2: (PIL.Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: (PIL.Image.Transpose.ROTATE_180, False, True, True),
    4: (PIL.Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: (PIL.Image.Transpose.TRANSPOSE, True, False, False),
    6: (PIL.Image.Transpose.ROTATE_270, True, False, True),
    7: (PIL.Image.Transpose.TRANSVERSE, True, True, True),
    8: (PIL.Image.Transpose.ROTATE_90, True, True, False),
}


def open_image(source: str | os.PathLike) -> PIL.Image.Image:
    """Opens an image without decoding its pixels and without applying its EXIF orientation.

    Args:
        source: an http(s) URL, a path, a base64 string or a `data:image/...;base64,` URI.

    Raises:
        ValueError: nothing there can be opened, or it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    name = _abbreviated(source)
    file = _image_file(source)
    try:
        image = PIL.Image.open(file)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to decode safely: {error} {_HOW_TO_RAISE_THE_LIMIT}") from error
    except Exception as error:  # each plugin of Pillow raises what it likes
        raise ValueError(
            f"{name} is not an image that Pillow can read. Expected an http(s) URL, the path of an image file, or a "
            f"base64 string. ({error})"
        ) from error
    _refuse_bomb(image, name)
    return image


def _image_file(source: str | os.PathLike):
    if not isinstance(source, str) or os.path.isfile(source):
        return source
    if source.startswith(("http://", "https://")):
        return BytesIO(_download(source))
    encoded = source.split(",", 1)[-1] if source.startswith("data:image/") else source
    try:
        return BytesIO(base64.b64decode(encoded))
    except ValueError:
        return source  # the path of no file, as Pillow will say


def _download(url: str) -> bytes:
    try:
        return httpx.get(url, timeout=60, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        raise ValueError(f"{_abbreviated(url)} cannot be downloaded: {error}") from error


def _abbreviated(source) -> str:
    text = repr(os.fspath(source))
    return text if len(text) <= 200 else f"{text[:100]}...({len(text)} characters)"


_HOW_TO_RAISE_THE_LIMIT = "Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it, or pass a smaller image."


def _refuse_bomb(image: PIL.Image.Image, name: str):
    """Pillow itself only warns up to twice its limit."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    # the list of tiles still to be decoded is empty once the pixels are in memory
    is_decoded = not getattr(image, "tile", None)
    if not is_decoded and limit is not None and math.prod(image.size) > limit:
        raise ValueError(
            f"{name} of {image.width}x{image.height} pixels is larger than Pillow's limit of {limit} pixels "
            f"against decompression bombs. {_HOW_TO_RAISE_THE_LIMIT}"
        )


class PillowSource:
    """A Pillow image of any mode.

    Args:
        image: decoded now if it was not yet.
        upright: apply the EXIF orientation.
        convert_rgb: give 3 channels; otherwise L, RGB and RGBA keep theirs.

    Raises:
        ValueError: the image is empty, corrupt, truncated or a decompression bomb.
    """

    device = torch.device("cpu")

    def __init__(self, image: PIL.Image.Image, upright: bool, convert_rgb: bool):
        file_name = getattr(image, "filename", "")
        name = f"The {image.format or image.mode} image{' ' + _abbreviated(file_name) if file_name else ''}"
        _refuse_bomb(image, name)
        if not all(image.size):
            raise ValueError(f"{name} measures {image.width}x{image.height} pixels, expected at least 1x1.")
        try:
            image.load()
        except Exception as error:  # each decoder of Pillow raises what it likes
            raise ValueError(f"{name} is corrupt or truncated, expected a whole image: {error}") from error
        # read after loading, for Pillow turns TIFF images upright itself when it loads them
        orientation = _orientation(image) if upright else 1
        self.transposition, self.swaps_axes, *self.mirrors = _UPRIGHT.get(orientation, _UPRIGHT[1])
        self.image = image
        self.width, self.height = image.size[::-1] if self.swaps_axes else image.size
        self.mode = image.mode if not convert_rgb and image.mode in ("L", "RGBA") else "RGB"
        self.channels = len(self.mode)
        self.levels = _LEVELS_OF_MODE.get(image.mode) or (
            _float_levels(*image.getextrema()) if image.mode == "F" else 1
        )
        self.is_unit_float = False

    def read(self, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
        """The pixels of a box of the upright image, (channels, bottom - top, right - left) uint8."""
        part = self.image
        if (left, top, right, bottom) != (0, 0, self.width, self.height):
            part = part.crop(self._stored_box((left, right), (top, bottom)))
        if self.transposition is not None:
            part = part.transpose(self.transposition)
        if part.mode in _LEVELS_OF_MODE or part.mode == "F":
            grey = _to_uint8(torch.from_numpy(np.array(part).astype(np.float32)), self.levels)
            return grey.expand(self.channels, *grey.shape)
        pixels = _tensor(np.asarray(part if part.mode == self.mode else part.convert(self.mode)))
        return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)

    def _stored_box(self, *ranges: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where a box of the upright image, given as its ranges of x and y, lies in the stored one."""
        stored_ranges = ranges[::-1] if self.swaps_axes else ranges
        (left, right), (top, bottom) = (
            (length - stop, length - start) if is_mirrored else (start, stop)
            for (start, stop), length, is_mirrored in zip(stored_ranges, self.image.size, self.mirrors, strict=True)
        )
        return left, top, right, bottom


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) once the EXIF orientation is applied, told from the header of an image that is not decoded yet."""
    swaps_axes = _UPRIGHT.get(_orientation(image), _UPRIGHT[1])[1]
    return image.size[::-1] if swaps_axes and not _opened_upright(image) else image.size


def _opened_upright(image: PIL.Image.Image) -> bool:
    """Whether the header's size is the upright one already: some versions of Pillow open a TIFF so."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and image.size != (tags.get(_TIFF_WIDTH), tags.get(_TIFF_LENGTH))


def _orientation(image: PIL.Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing, and Pillow raises what it likes
        return 1


class ArraySource:
    """A numpy array or torch tensor, (H, W, C) or (C, H, W) with 1, 3 or 4 channels.

    uint8 holds levels of 0 to 255 and uint16 of 0 to 65535. Floats whose largest value is at most 1 are taken for
    0 to 1, other floats and integers for levels of 0 to 255. They are rounded to 8 bits, so that an image gives
    the same tiles by every route.

    Raises:
        ValueError: the array is empty, has another shape, or values outside these ranges.
    """

    def __init__(self, array, convert_rgb: bool, input_data_format: str | ChannelDimension | None):
        if isinstance(array, np.ndarray):
            array = _tensor(array)
        shape = tuple(array.shape)
        if not _is_channels_first(array, input_data_format):
            array = array.movedim(-1, 0)
        if 0 in shape:
            raise ValueError(f"The image array of shape {shape} is empty, expected at least 1x1 pixels.")
        self.channels, self.height, self.width = array.shape
        if self.channels not in (1, 3, 4):
            raise ValueError(f"The image array of shape {shape} has {self.channels} channels, expected 1, 3 or 4.")
        if convert_rgb:
            array = array[:3].expand(3, self.height, self.width)
            self.channels = 3
        self.array = array
        self.device = array.device
        self.levels = _levels(array)
        self.is_unit_float = array.is_floating_point() and self.levels == 1 / 255

    def read(self, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
        """The pixels of a box of the image, (channels, bottom - top, right - left) uint8."""
        return _to_uint8(self.array[:, top:bottom, left:right], self.levels)


# values per 8-bit level, of the modes of Pillow that hold 16 bits (it gives some 16-bit files as 32-bit integers)
_LEVELS_OF_MODE = dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N", "I"), 257.0)


def _levels(array: torch.Tensor) -> float:
    """How many units of the array's values make one 8-bit level."""
    if array.dtype == torch.uint8:
        return 1.0
    if array.dtype == torch.uint16:
        return 257.0
    if array.dtype == torch.bool:
        return 1 / 255
    smallest, largest = (float(value) for value in array.aminmax())
    if array.is_floating_point():
        return _float_levels(smallest, largest, most=255)
    if smallest < 0 or largest > 255:
        raise ValueError(_out_of_range(smallest, largest, f"0..255 for {array.dtype}"))
    return 1.0


def _float_levels(smallest: float, largest: float, most: float = 65535) -> float:
    if not (smallest >= 0 and largest <= most):  # also true of NaN
        raise ValueError(_out_of_range(smallest, largest, f"floats of 0..1 or of 0..{most}"))
    if largest <= 1:
        return 1 / 255
    return 1.0 if largest <= 255 else 257.0


def _out_of_range(smallest, largest, expected: str) -> str:
    return f"The image has values of {smallest:g}..{largest:g}, expected {expected}."


def _to_uint8(values: torch.Tensor, levels: float) -> torch.Tensor:
    if values.dtype == torch.uint8:
        return values
    return (values.to(torch.float32) / levels).round_().clamp_(0, 255).to(torch.uint8)


class _Lent:
    """Memory that is read-only, lent to torch as if it were not: torch warns of it, though nothing here writes to it."""

    def __init__(self, array: np.ndarray):
        self.array = array  # kept alive by whoever holds this
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's own memory. Only a foreign byte order or negative strides, unknown to torch, are copied."""
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Lent(array)))


def _is_channels_first(array: torch.Tensor, input_data_format: str | ChannelDimension | None) -> bool:
    if array.ndim != 3:
        raise ValueError(f"The image array has shape {tuple(array.shape)}, expected (H, W, C) or (C, H, W).")
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        except ValueError as error:
            raise ValueError(
                f"The image array of shape {tuple(array.shape)} has no channel axis, expected (H, W, C) or (C, H, W) "
                "with 1, 3 or 4 channels."
            ) from error
    return ChannelDimension(input_data_format) == ChannelDimension.FIRST
