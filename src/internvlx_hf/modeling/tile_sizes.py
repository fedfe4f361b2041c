# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Sizes: how many tokens a tile has before and after a boundary layer.

"64" has 64 tokens in all layers. "64:256" grows before layer `lvtc_config.expand_layer` (LVTC). "256:64" is merged and
"256:0" dropped before layer `merge_layer`. A checkpoint offers a list of them, and each tile of a request has one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from .setting_checks import require


@dataclass(frozen=True)
class TileSize:
    """A size that a checkpoint offers.

    Args:
        before, after: tokens of a tile on both sides of the boundary.
        boundary: the first layer that sees `after`; None if there is none.
        has_lvtc: whether LVTC's LR and HR projectors add tokens to the tile.
        keeps_positions: whether the tokens after the boundary have positions from before it, instead of being counted
            anew.
    """

    before: int
    after: int
    boundary: int | None = None
    has_lvtc: bool = False
    keeps_positions: bool = False

    def __str__(self) -> str:
        return size_name(self.before, self.after)

    @property
    def positions(self) -> int:
        """Positions that a tile takes in the stage where it takes more."""
        return self.before if self.keeps_positions else max(self.before, self.after)

    def in_stages(self, boundaries: Sequence[int]) -> list[int]:
        """Tokens in each stage, one more than `boundaries`."""
        later = (self.boundary is not None and self.boundary <= layer for layer in boundaries)
        return [self.before, *(self.after if is_later else self.before for is_later in later)]


def size_name(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before}:{after}"


def parse_size(size: object) -> tuple[int, int]:
    """Tokens of a tile before and after the boundary: 64 and "64" are (64, 64), "64:256" is (64, 256).

    Raises:
        ValueError: if it is neither a positive number nor a pair of which only the second may be 0.
    """
    is_size = not isinstance(size, bool) and isinstance(size, int | str)
    match = re.fullmatch(r"([1-9][0-9]*)(?::(0|[1-9][0-9]*))?", str(size)) if is_size else None
    if match is None:
        raise ValueError(
            f"`tokens_per_tile` has {size!r}, which is no size. Expected tokens per tile ('64'), or a pair before and "
            "after a layer ('64:256', '256:64', '256:0')."
        )
    return int(match[1]), int(match[2] or match[1])


def check_grid(size: str, tokens: int, patch_grid: int) -> int:
    """Side M of the windows that give a tile `tokens` tokens.

    Raises:
        ValueError: if no window of M² patches does.
    """
    side = isqrt(tokens)
    fitting = [str(n * n) for n in range(1, patch_grid + 1) if patch_grid % n == 0]
    require(
        side * side == tokens and patch_grid % side == 0,
        f"`tokens_per_tile` has {size!r}, but a {patch_grid}x{patch_grid} grid of patches does not divide into "
        f"{tokens} tokens. Expected one of {', '.join(fitting)}.",
    )
    return patch_grid // side


def check_change(size: TileSize, expanded: int | None) -> None:
    """Check that a pair's grids fit. `expanded` is N₂², tokens of a tile that LVTC's HR projector gives; None without
    one.

    Raises:
        ValueError: if it grows without an HR projector or to another number, or shrinks by blocks that do not divide
            the grid.
    """
    if size.after > size.before:
        require(
            size.after == expanded,
            f"`tokens_per_tile` has '{size}', which grows: it needs an HR projector of {size.after} tokens per tile. "
            "Expected `lvtc_config` with an `hr_projector_type` and a `downsample_ratio` that give them, got "
            + ("none." if expanded is None else f"one of {expanded} tokens."),
        )
    before, after = isqrt(size.before), isqrt(size.after)
    small, large = sorted((before, after))
    require(
        not small or (after**2 == size.after and large % small == 0),
        f"`tokens_per_tile` has '{size}', but blocks of s x s tokens do not turn a {before}x{before} grid into "
        f"{size.after} tokens. Expected one of "
        f"{', '.join(str((before // s) ** 2) for s in range(2, before + 1) if before % s == 0)}, or 0.",
    )
