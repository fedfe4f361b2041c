# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checks of a configuration's values. Each raises a `ValueError` that gives the value and what would be right."""

from collections.abc import Collection
from math import inf, isclose

import torch

RATIO_TOLERANCE = 1e-6  # accepts 1/3 rounded to float32


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: object, choices: Collection) -> None:
    require(value in choices, f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def require_dtype(place: str, dtype: str | torch.dtype | None) -> None:
    known = dtype is None or isinstance(getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype)
    require(known, f"`dtype` of {place} must be a torch dtype or the name of one ('bfloat16'), got {dtype!r}.")


def window_size(downsample_ratio: float, grid: int, name: str) -> int:
    """Side M of the window that becomes one token, M = 1 / ratio (paper, section 3.1: N = S / M).

    Args:
        downsample_ratio: tokens per patch along one side, in (0, 1].
        grid: side S of the patch grid.
        name: the ratio's name, for messages.

    Raises:
        ValueError: if the ratio is not 1 / M (1/3 as `1 / 3`, not as 0.333), or M does not divide S.
    """
    inverse = 1 / downsample_ratio if 0 < downsample_ratio <= 1 else inf
    require(
        inverse < inf,
        f"`{name}` must be 1 / M with a whole window side M (1, 0.5, 0.25, ...), got {downsample_ratio}.",
    )
    side = round(inverse)
    if not isclose(downsample_ratio, 1 / side, rel_tol=RATIO_TOLERANCE):
        near = min((m for m in range(1, grid + 1) if grid % m == 0), key=lambda m: abs(m - inverse))
        raise ValueError(
            f"`{name}` must be 1 / M with a whole window side M (1, 0.5, 0.25, ...), got {downsample_ratio}. Did you "
            f"mean 1/{near} = {1 / near}?"
        )
    require(
        grid % side == 0,
        f"`{name}`={downsample_ratio} means windows of {side}x{side} patches, which do not divide the {grid}x{grid} "
        f"grid of patches. Take a ratio whose inverse divides {grid}.",
    )
    return side


def compressing_window(grid: int) -> int:
    """The smallest side M of a window of several patches that divides a grid of S patches a side; 1 if none up to 4
    does.
    """
    return next((side for side in (2, 3, 4) if grid % side == 0), 1)


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
