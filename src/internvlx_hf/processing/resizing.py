# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Resizing images to 8-bit levels, with torch or exactly as Pillow does, without a second copy of a very large
image.
"""

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .image_sources import ArraySource, PillowSource

# Images of more than LARGE pixels are resized band by band: one band is read, resized along one axis, and discarded.
LARGE = 2**24
PIXELS_PER_BAND = 2**20
# Pillow's filters that torch offers with antialiasing for 8-bit levels
TORCH_MODES = {PIL.Image.Resampling.BICUBIC: "bicubic", PIL.Image.Resampling.BILINEAR: "bilinear"}
Size = tuple[int, int]


class Resizer:
    """Resizes one image to any number of sizes, reading its pixels once.

    Both backends resample one axis, round to 8 bits, and then resample the other. So the first step can be done in
    bands without changing a value.

    Args:
        backend: `"torch"` or `"pillow"`.
        resample: one of Pillow's filters.
        device: device of the resized levels, on which torch resizes.
        rows_first: resample rows first for all sizes, which is torch's own order.
    """

    def __init__(
        self,
        source: PillowSource | ArraySource,
        backend: str,
        resample,
        device: torch.device,
        rows_first: bool = False,
    ):
        self.rows_first = rows_first
        self.source = source.decoded()  # once for all bands
        self.resize_part = RESIZE_BACKENDS[backend]
        self.resample = resample
        self.device = device
        # there, the layout affects only the speed, and four interleaved channels take no longer than three
        self.may_choose_layout = backend == "torch" and device.type == "cpu"

    def __call__(self, *sizes: Size) -> list[torch.Tensor]:
        """The whole image resized to each size (height, width), as (C, height, width) 8-bit levels."""
        source = self.source
        is_large = source.width * source.height > LARGE
        whole = source.view(padded=self.may_choose_layout)
        if is_large and (whole is None or not _is_interleaved(whole)):
            return self._resize_by_bands(sizes)
        whole = self._read_whole() if whole is None else whole
        whole = self._in_fastest_layout(whole.to(self.device), sizes)
        return [self._resize_whole(whole, size)[: source.channels] for size in sizes]

    def _read_whole(self) -> torch.Tensor:
        """The whole image, read in bands if it is not small, so that nothing but its own memory is allocated."""
        source = self.source
        bands = self._bands(along_columns=False)
        if len(bands) == 1:
            return source.read(*bands[0], padded=self.may_choose_layout)
        for left, top, right, bottom in bands:
            band = source.read(left, top, right, bottom, padded=self.may_choose_layout)
            if not top:
                whole = empty((source.height, source.width, len(band)), torch.uint8).movedim(-1, 0)
            channels = min(len(band), len(whole))  # one of them may have padding
            whole[:channels, top:bottom] = band[:channels]
        return whole

    def _in_fastest_layout(self, pixels: torch.Tensor, sizes: tuple[Size, ...]) -> torch.Tensor:
        """The pixels with interleaved channels if the image shrinks, with separate channels if it grows."""
        if not self.may_choose_layout:
            return pixels
        if max(height * width for height, width in sizes) > self.source.width * self.source.height:
            return pixels[: self.source.channels].contiguous()
        if _is_interleaved(pixels):
            return pixels
        interleaved = empty((*pixels.shape[1:], len(pixels)), torch.uint8)
        for channel, values in enumerate(pixels):
            np.copyto(interleaved[..., channel].numpy(), values.numpy())  # much faster than torch's copy
        return interleaved.movedim(-1, 0)

    def _resize_whole(self, whole: torch.Tensor, size: Size) -> torch.Tensor:
        height, width = whole.shape[-2:]
        if size == (height, width):
            return whole
        columns_first = self._resamples_columns_first(size)
        if columns_first or self.device.type != "cpu":  # on a CPU, both backends resample rows first
            whole = self.resize_part(whole, (size[0], width) if columns_first else (height, size[1]), self.resample)
        return self.resize_part(whole, size, self.resample)

    def _resize_by_bands(self, sizes: tuple[Size, ...]) -> list[torch.Tensor]:
        source = self.source
        intermediate: dict[Size, torch.Tensor] = {}
        for columns_first in (False, True):
            chosen = [size for size in sizes if self._resamples_columns_first(size) == columns_first]
            for left, top, right, bottom in self._bands(columns_first) if chosen else ():
                band = source.read(left, top, right, bottom, padded=self.may_choose_layout).to(self.device)
                band = self._in_fastest_layout(band, sizes)
                for size in chosen:
                    if size not in intermediate:
                        intermediate_size = (size[0], source.width) if columns_first else (source.height, size[1])
                        intermediate[size] = empty((*intermediate_size, len(band)), torch.uint8, self.device).movedim(
                            -1, 0
                        )
                    part = intermediate[size][:, :, left:right] if columns_first else intermediate[size][:, top:bottom]
                    height, width = part.shape[-2:]
                    part.copy_(self.resize_part(band, (height, width), self.resample))
        return [self.resize_part(intermediate[size], size, self.resample)[: source.channels] for size in sizes]

    def _resamples_columns_first(self, size: Size) -> bool:
        """Whether columns are resampled first. The order affects the pixels; it is Pillow 13's with every installed
        version.
        """
        if self.rows_first:
            return False
        lost_height, lost_width = self.source.height - size[0], self.source.width - size[1]
        return lost_height > max(0, 2 * lost_width)

    def _bands(self, along_columns: bool) -> list[tuple[int, int, int, int]]:
        """Boxes (left, top, right, bottom) of whole rows or columns that together cover the image."""
        width, height = self.source.width, self.source.height
        if along_columns:
            step = max(1, PIXELS_PER_BAND // height)
            return [(left, 0, min(left + step, width), height) for left in range(0, width, step)]
        step = max(1, PIXELS_PER_BAND // width)
        return [(0, top, width, min(top + step, height)) for top in range(0, height, step)]


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    if device is None or device.type == "cpu":
        # numpy requests huge pages, whose first write is twice as fast
        return torch.from_numpy(np.empty(shape, str(dtype).removeprefix("torch.")))
    return torch.empty(shape, dtype=dtype, device=device)


def _is_interleaved(pixels: torch.Tensor) -> bool:
    return pixels[None].is_contiguous(memory_format=torch.channels_last)


def _resize_with_torch(pixels: torch.Tensor, size: Size, resample) -> torch.Tensor:
    """Resizes (C, H, W) 8-bit levels to `size` (height, width)."""
    mode = TORCH_MODES[resample]
    if pixels.device.type == "cpu":
        return F.interpolate(pixels[None], size, mode=mode, antialias=True)[0]
    # torch resizes 8-bit levels only on a CPU
    resized = F.interpolate(pixels[None].float(), size, mode=mode, antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _resize_with_pillow(pixels: torch.Tensor, size: Size, resample) -> torch.Tensor:
    """Resizes (C, H, W) 8-bit levels to `size` (height, width) with Pillow's pixels."""
    array = pixels.movedim(0, -1).numpy(force=True)
    if array.shape[-1] == 3:
        resized = np.array(PIL.Image.fromarray(array).resize(size[::-1], resample))
        return torch.from_numpy(resized).movedim(-1, 0).to(pixels.device)
    # Pillow would use a fourth channel as alpha weights
    channels = [PIL.Image.fromarray(channel).resize(size[::-1], resample) for channel in np.moveaxis(array, -1, 0)]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).to(pixels.device)


RESIZE_BACKENDS = {"torch": _resize_with_torch, "pillow": _resize_with_pillow}
