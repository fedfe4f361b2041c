# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Resizing images to 8-bit levels, by torch or exactly as Pillow, without a second copy of a large image."""

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .image_sources import ArraySource, PillowSource

# Images above LARGE pixels are resized band by band: one band is read, resized along one axis, and dropped.
LARGE = 2**22
PIXELS_PER_BAND = 2**20
# the filters of Pillow that torch has with antialiasing for 8-bit levels
TORCH_MODES = {PIL.Image.Resampling.BICUBIC: "bicubic", PIL.Image.Resampling.BILINEAR: "bilinear"}


class Resizer:
    """Resizes one image to any number of sizes.

    Both backends resample one axis, round to 8 bits, and then resample the other. So the first step may be done
    in bands without changing a value.

    Args:
        backend: `"torch"` or `"pillow"`.
        resample: a filter of Pillow.
        device: where the resized levels are wanted; torch resizes there.
    """

    def __init__(self, source: PillowSource | ArraySource, backend: str, resample, device: torch.device):
        source = source.decoded()
        if source.width * source.height <= LARGE:
            # converted and turned upright once for all sizes
            whole = source.read(0, 0, source.width, source.height).to(device)
            source = ArraySource(whole, convert_rgb=False, input_data_format="channels_first")
        self.source = source
        self.resize_part = RESIZE_BACKENDS[backend]
        self.resample = resample
        self.device = device

    def __call__(self, size: tuple[int, int]) -> torch.Tensor:
        """The whole image resized to `size` (height, width), as (C, height, width) 8-bit levels."""
        source = self.source
        if size == (source.height, source.width):
            return source.read(0, 0, source.width, source.height).to(self.device)
        columns_first = self._resamples_columns_first(size)
        is_large = source.width * source.height > LARGE
        if not is_large and not columns_first and self.device.type == "cpu":
            # there, both backends resample rows first
            return self.resize_part(source.read(0, 0, source.width, source.height), size, self.resample)
        half_way_size = (size[0], source.width) if columns_first else (source.height, size[1])
        # channels last in memory, which torch resizes fastest
        half_way = torch.empty(*half_way_size, source.channels, dtype=torch.uint8, device=self.device).movedim(-1, 0)
        for left, top, right, bottom in (
            self._bands(columns_first) if is_large else [(0, 0, source.width, source.height)]
        ):
            band = source.read(left, top, right, bottom).to(self.device)
            part = half_way[:, :, left:right] if columns_first else half_way[:, top:bottom]
            height, width = part.shape[-2:]
            part.copy_(self.resize_part(band, (height, width), self.resample))
        return self.resize_part(half_way, size, self.resample)

    def _resamples_columns_first(self, size: tuple[int, int]) -> bool:
        """The order of the axes shows in the pixels: it is that of Pillow 13, whatever version is installed."""
        lost_height, lost_width = self.source.height - size[0], self.source.width - size[1]
        return lost_height > max(0, 2 * lost_width)

    def _bands(self, along_columns: bool) -> list[tuple[int, int, int, int]]:
        """Boxes (left, top, right, bottom) of whole rows or columns that together are the image."""
        width, height = self.source.width, self.source.height
        if along_columns:
            step = max(1, PIXELS_PER_BAND // height)
            return [(left, 0, min(left + step, width), height) for left in range(0, width, step)]
        step = max(1, PIXELS_PER_BAND // width)
        return [(0, top, width, min(top + step, height)) for top in range(0, height, step)]


def _resize_with_torch(pixels: torch.Tensor, size: tuple[int, int], resample) -> torch.Tensor:
    """Resizes (C, H, W) 8-bit levels to `size` (height, width)."""
    mode = TORCH_MODES[resample]
    if pixels.device.type == "cpu":
        return F.interpolate(pixels[None], size, mode=mode, antialias=True)[0]
    # only on a CPU does torch resize 8-bit levels
    resized = F.interpolate(pixels[None].float(), size, mode=mode, antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _resize_with_pillow(pixels: torch.Tensor, size: tuple[int, int], resample) -> torch.Tensor:
    """Resizes (C, H, W) 8-bit levels to `size` (height, width) with Pillow's pixels."""
    array = pixels.movedim(0, -1).numpy(force=True)
    if array.shape[-1] == 3:
        resized = np.array(PIL.Image.fromarray(array).resize(size[::-1], resample))
        return torch.from_numpy(resized).movedim(-1, 0).to(pixels.device)
    # Pillow would weigh a fourth channel as alpha
    channels = [PIL.Image.fromarray(channel).resize(size[::-1], resample) for channel in np.moveaxis(array, -1, 0)]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).to(pixels.device)


RESIZE_BACKENDS = {"torch": _resize_with_torch, "pillow": _resize_with_pillow}
