# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading any kind of image as 8-bit levels.

A source hides where an image comes from (Pillow, numpy, torch), its layout, bit depth, transparency and EXIF
orientation. It can be read in parts, so that a very large image is never in memory twice.
"""

import ctypes
import math
from copy import copy

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from .image_files import is_undecoded
from .image_headers import PillowHeader, decoded_image

ALPHA = ("white", "drop")


class PillowSource(PillowHeader):
    """A Pillow image of any mode. An undecoded image is decoded when it is read; the given image is not modified.

    Args:
        upright: apply the EXIF orientation.
        convert_rgb: return 3 channels; otherwise L, RGB and RGBA keep theirs.
        alpha: `"white"` puts transparent pixels on white, `"drop"` takes the colours as if all were opaque. Images
            that keep their four channels are not changed.

    Raises:
        ValueError: if the image is empty or a decompression bomb; on reading, also if it is corrupt or truncated, or
            if its values are out of range.
    """

    device = torch.device("cpu")
    is_unit_float = False

    def __init__(self, image: PIL.Image.Image, upright: bool, convert_rgb: bool, alpha: str = "white"):
        super().__init__(image, upright)
        self.mode = self.image.mode if not convert_rgb and self.image.mode in ("L", "RGBA") else "RGB"
        self.channels = len(self.mode)
        self.alpha = alpha

    def decoded(self, least_size: tuple[int, int] | None = None) -> "PillowSource":
        """This source with its pixels in memory, for as long as the returned source lives.

        Args:
            least_size: (height, width). A JPEG file is decoded at a half, a quarter or an eighth of its size if that
                is at least this size. By default it is decoded at full size.
        """
        if not is_undecoded(self.image):
            return self
        if least_size is not None and not self.swaps_axes:
            least_size = least_size[::-1]
        source = copy(self)
        source.image = decoded_image(self.image, self.name, least_size)
        source.width, source.height = source.image.size[::-1] if self.swaps_axes else source.image.size
        return source

    def view(self, padded: bool) -> torch.Tensor | None:
        """The pixels of the whole image in Pillow's own memory, as `read` returns them; None if they have to be
        computed.
        """
        image = self.decoded().image
        is_as_stored = padded and self.transposition is None and image.mode == "RGB" and not self._blends(image)
        return _padded_view(image) if is_as_stored else None

    def read(self, left: int, top: int, right: int, bottom: int, padded: bool = False) -> torch.Tensor:
        """The pixels of a box of the upright image, (channels, bottom - top, right - left) uint8.

        Args:
            padded: an RGB image may have a meaningless fourth channel. Pillow stores one; without it, the pixels have
                to be copied.
        """
        image = part = self.decoded().image
        if (left, top, right, bottom) != (0, 0, self.width, self.height):
            part = part.crop(self._stored_box((left, right), (top, bottom)))
        if self.transposition is not None:
            part = part.transpose(self.transposition)
        try:
            return self._grey(part, _values_per_level(image)) if _is_numeric(image) else self._colours(part, padded)
        except Exception as error:  # Pillow's conversions raise errors of many types
            raise ValueError(f"{self.name} of mode {image.mode} cannot be read as {self.mode}: {error}") from error

    def _grey(self, part: PIL.Image.Image, values_per_level: float) -> torch.Tensor:
        values = np.array(part)
        grey = _to_uint8(torch.from_numpy(values.astype(np.float32)), values_per_level)
        transparent = part.info.get("transparency")
        if self.alpha == "white" and transparent is not None:
            if not isinstance(transparent, int):
                raise ValueError(f"its transparent value is {transparent!r}, expected an integer")
            grey[torch.from_numpy(values == transparent)] = 255
        return grey.expand(self.channels, *grey.shape)

    def _colours(self, part: PIL.Image.Image, padded: bool) -> torch.Tensor:
        if self._blends(part):
            return _on_white(_pixels(part, "RGBA"))[: self.channels]
        if part.mode == "RGBa":  # which Pillow turns into RGBA only
            part = part.convert("RGBA")
        return _pixels(part, self.mode, padded)

    def _blends(self, image: PIL.Image.Image) -> bool:
        return self.alpha == "white" and self.mode != "RGBA" and _has_transparency(image)

    def _stored_box(self, *ranges: tuple[int, int]) -> tuple[int, int, int, int]:
        """The box of the stored image for a box of the upright image, given as its ranges of x and y."""
        stored_ranges = ranges[::-1] if self.swaps_axes else ranges
        (left, right), (top, bottom) = (
            (length - stop, length - start) if is_mirrored else (start, stop)
            for (start, stop), length, is_mirrored in zip(stored_ranges, self.image.size, self.mirrors, strict=True)
        )
        return left, top, right, bottom


def image_size(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    upright: bool = True,
    input_data_format: str | ChannelDimension | None = None,
) -> tuple[int, int]:
    """(width, height) that `InternVLXImageProcessor` sees; an undecoded image is not decoded for it.

    Args:
        upright: whether the EXIF orientation is applied.
        input_data_format: position of an array's channels.

    Raises:
        ValueError: if the image is empty or a decompression bomb.
    """
    if isinstance(image, PIL.Image.Image):
        header = PillowHeader(image, upright)
        return header.width, header.height
    if image.ndim == 2:
        return image.shape[1], image.shape[0]
    height, width = image.shape[-2:] if _is_channels_first(image, input_data_format) else image.shape[:2]
    return width, height


def _has_transparency(image: PIL.Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _pixels(image: PIL.Image.Image, mode: str, padded: bool = False) -> torch.Tensor:
    """(channels of `mode`, H, W) uint8; `padded` as in `PillowSource.read`."""
    if image.mode == "La":
        image = image.convert("LA")
    image = image if image.mode == mode else image.convert(mode)
    view = _padded_view(image) if padded and mode == "RGB" else None
    if view is not None:
        return view
    pixels = _tensor(np.asarray(image))
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)


def _padded_view(image: PIL.Image.Image) -> torch.Tensor | None:
    """The memory of an RGB image, (4, H, W) uint8."""
    try:
        return torch.from_numpy(np.asarray(_ArrowPixels(image))).movedim(-1, 0)
    except (AttributeError, ValueError):  # Pillow before 11.3, or an image in several blocks of memory
        return None


class _ArrowArray(ctypes.Structure):
    """A column of Apache Arrow's C data interface: https://arrow.apache.org/docs/format/CDataInterface.html"""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]


class _ArrowPixels:
    """An RGB image's memory for numpy, (H, W, 4), read-only. The memory stays valid as long as this object lives."""

    def __init__(self, image: PIL.Image.Image):
        self.capsules = image.__arrow_c_array__()
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        pixels = _ArrowArray.from_address(pointer_of(self.capsules[1], b"arrow_array"))
        channels = pixels.children[0].contents if pixels.n_children == 1 else pixels
        shape = (image.height, image.width, 4)
        if channels.length != math.prod(shape) or channels.offset or channels.n_buffers != 2:
            raise ValueError(f"Pillow's memory holds {channels.length} values, expected {shape}.")
        self.__array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (channels.buffers[1], False),
            "version": 3,
        }


def _on_white(rgba: torch.Tensor) -> torch.Tensor:
    """(4, H, W) levels on a white background, (3, H, W)."""
    rgb, alpha = rgba[:3], rgba[3:]
    if alpha.min() == 255:
        return rgb
    darkness = (255 - rgb).to(torch.int32) * alpha
    return (255 - (darkness + 127) // 255).to(torch.uint8)


class ArraySource:
    """A numpy array or torch tensor, (H, W, C) or (C, H, W) with 1, 3 or 4 channels.

    uint8 holds levels of 0 to 255, uint16 levels of 0 to 65535. Floats range from 0 to 1 if their largest value is at
    most 1; other floats and integers are levels of 0 to 255. All are rounded to 8 bits, so that an image gives the
    same tiles in every format. `alpha` is as for `PillowSource`.

    Raises:
        ValueError: if the array is empty, has another shape, or has values outside these ranges.
    """

    def __init__(
        self, array, convert_rgb: bool, input_data_format: str | ChannelDimension | None, alpha: str = "white"
    ):
        array = as_real_tensor(array)
        shape = tuple(array.shape)
        if not _is_channels_first(array, input_data_format):
            array = array.movedim(-1, 0)
        if 0 in shape:
            raise ValueError(f"The image array of shape {shape} is empty, expected at least 1x1 pixels.")
        self.channels, self.height, self.width = array.shape
        if self.channels not in (1, 3, 4):
            raise ValueError(f"The image array of shape {shape} has {self.channels} channels, expected 1, 3 or 4.")
        self.blends_alpha = convert_rgb and self.channels == 4 and alpha == "white"
        if convert_rgb:
            array = array if self.blends_alpha else array[:3].expand(3, self.height, self.width)
            self.channels = 3
        self.array = array
        self.device = array.device
        self.levels = _levels(array)
        self.is_unit_float = array.is_floating_point() and self.levels == 1 / 255

    def decoded(self, least_size: tuple[int, int] | None = None) -> "ArraySource":
        return self

    def view(self, padded: bool = False) -> torch.Tensor | None:
        """The pixels of the whole image in the array's own memory; None if they have to be computed from it."""
        return self.array if self.array.dtype == torch.uint8 and not self.blends_alpha else None

    def read(self, left: int, top: int, right: int, bottom: int, padded: bool = False) -> torch.Tensor:
        """The pixels of a box of the image, (channels, bottom - top, right - left) uint8; there is no padding."""
        pixels = _to_uint8(self.array[:, top:bottom, left:right], self.levels)
        return _on_white(pixels) if self.blends_alpha else pixels


# formats whose 16-bit images Pillow stores as 32-bit integers of 0..65535 (for PNG, only older versions do)
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")


def _is_numeric(image: PIL.Image.Image) -> bool:
    """Whether the mode's values are not 8-bit levels."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _values_per_level(image: PIL.Image.Image) -> float:
    """How many units of a numeric image's values make one 8-bit level.

    32-bit integers have no fixed range: if the file format does not define one, values up to 255 are 8-bit levels.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS):
        return 257.0
    values = np.asarray(image)  # Pillow's own extrema ignore NaN
    smallest, largest = float(values.min()), float(values.max())
    if image.mode == "F":
        return _float_levels(smallest, largest)
    if smallest < 0 or largest > 65535:
        raise ValueError(_out_of_range(smallest, largest, "0..255 or 0..65535"))
    return 1.0 if largest <= 255 else 257.0


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


class _WritableView:
    """Read-only memory, declared writable: torch would warn of it, although nothing here writes to it."""

    def __init__(self, array: np.ndarray):
        self.array = array  # kept alive by this object
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def as_real_tensor(array) -> torch.Tensor:
    """A numpy array or torch tensor as a tensor of a type that torch computes with, sharing its memory if possible.

    Raises:
        ValueError: if it does not hold real numbers or does not have 2 to 4 axes.
    """
    shape, dtype = tuple(array.shape), array.dtype
    if isinstance(array, np.ndarray):
        if dtype.kind not in "buif":
            raise ValueError(f"The image array of shape {shape} is of type {dtype}, expected integers or floats.")
        if dtype in (np.uint32, np.uint64):
            array = array.astype(np.int64)
        elif dtype == np.longdouble:
            array = array.astype(np.float64)
        array = _tensor(array)
    elif array.is_complex() or array.is_quantized:
        raise ValueError(f"The image array of shape {shape} is of type {dtype}, expected integers or floats.")
    elif dtype in (torch.uint32, torch.uint64):
        array = array.to(torch.int64)
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"The image array has shape {shape}, expected (H, W), (H, W, C) or (C, H, W), or a batch of these."
        )
    return array


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory. Arrays that torch does not support (byte order, negative strides) are
    copied.
    """
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_WritableView(array)))


def _is_channels_first(array: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None) -> bool:
    if array.ndim != 3:
        raise ValueError(f"The image array has shape {tuple(array.shape)}, expected (H, W, C) or (C, H, W).")
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"The image array of shape {tuple(array.shape)} has no channel axis, expected (H, W, C) or (C, H, W) "
                "with 1, 3 or 4 channels."
            ) from error
    return ChannelDimension(input_data_format) == ChannelDimension.FIRST
