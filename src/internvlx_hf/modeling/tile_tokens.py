# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The tokens of a prompt's tiles, each of which may have its own size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .configuration_internvlx import InternVLXConfig
from .outputs import InternVLXImageFeatures
from .tile_sizes import TileSize

# of every tile: (tiles, N², D) if all have as many tokens, else (N², D) each
Tokens = torch.Tensor | list[torch.Tensor]


def read_sizes(config: InternVLXConfig, tile_sizes: torch.Tensor | Sequence[int] | None, tiles: int) -> list[TileSize]:
    """The size of each tile.

    Args:
        tile_sizes: (tiles,), indices in `config.tokens_per_tile`; None for the default.

    Raises:
        ValueError: if it has another shape, or an index that there is not.
    """
    offered = config.sizes
    if tile_sizes is None:
        return [offered[0]] * tiles
    numbers = tile_sizes.tolist() if isinstance(tile_sizes, torch.Tensor) else [int(size) for size in tile_sizes]
    names, is_flat = list(map(str, offered)), all(isinstance(size, int) for size in numbers)
    if len(numbers) != tiles or not is_flat or not all(0 <= size < len(names) for size in numbers):
        raise ValueError(
            f"`tile_sizes` must be ({tiles},), for each tile the index of its size among {', '.join(names)}, got "
            f"{numbers}."
        )
    return [offered[number] for number in numbers]


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of a prompt's tiles.

    Args:
        sizes: each tile's, or one that all have.
        counts: each tile's number of placeholders; or (tiles, N₁², D), tokens, if all have as many.
        rows: (R₁, D), V_LR[0], the tokens that replace the placeholders.
        lr: V_LR[1:], T − 1 entries of N₁² tokens for each tile; the j-th is added before layer s + i·j.
        hr: V_HR, N₂² tokens for each tile that LVTC expands; None without an HR projector.
    """

    sizes: list[TileSize]
    counts: list[int] | torch.Tensor
    rows: torch.Tensor
    lr: Sequence[Tokens] = ()
    hr: Tokens | None = None

    @property
    def changes(self) -> bool:
        """Whether the number of a tile's tokens changes between layers."""
        return any(size.boundary is not None for size in self.sizes)

    @property
    def of_tiles(self) -> list[TileSize]:
        """The size of each tile."""
        return self.sizes if len(self.sizes) > 1 else self.sizes * len(self.counts)

    def in_stage(self, number: int, stage: int, boundaries: Sequence[int]) -> torch.Tensor:
        """(R, D), an entry of `lr` for all tiles' rows in a stage, zeros where a tile has none."""
        tokens = self.lr[number]
        if isinstance(tokens, torch.Tensor):
            return tokens.flatten(0, 1)
        rows = [size.in_stages(boundaries)[stage] for size in self.of_tiles]
        return torch.cat(
            [own if len(own) else own.new_zeros(n, own.shape[1]) for own, n in zip(tokens, rows, strict=True)]
        )

    def split(self, rows: torch.Tensor, stage: int, boundaries: Sequence[int]) -> Tokens:
        """(R, ...) rows of all tiles in a stage -> those of each."""
        counts = [size.in_stages(boundaries)[stage] for size in self.sizes]
        return rows.unflatten(0, (len(self.counts), counts[0])) if len(counts) == 1 else list(rows.split(counts))


def take(tokens: Tokens | None, tiles: list[int] | None) -> Any:
    """(tiles, N², D), the tokens of some tiles, which must have as many each; None for all tiles."""
    if tokens is None or (tiles is None and isinstance(tokens, torch.Tensor)):
        return tokens
    return torch.stack(list(tokens) if tiles is None else [tokens[tile] for tile in tiles])


def put(tokens: Tokens, tiles: list[int] | None, new: torch.Tensor) -> Tokens:
    """The tokens with `new` ones, (tiles, N², D), for some tiles; None for all tiles."""
    if tiles is None:
        return new
    by_tile = dict(zip(tiles, new, strict=True))
    return [by_tile.get(tile, own) for tile, own in enumerate(tokens)]


def of_one_size(tokens: Tokens) -> Tokens:
    """The same tokens, as one tensor if all tiles have as many."""
    is_same = not isinstance(tokens, torch.Tensor) and len({len(own) for own in tokens}) == 1
    return torch.stack(list(tokens)) if is_same else tokens


def flat(tokens: Tokens) -> torch.Tensor:
    """(R, D), the tokens of all tiles in order."""
    return tokens.flatten(0, 1) if isinstance(tokens, torch.Tensor) else torch.cat(tokens)


def read_image_tokens(
    config: InternVLXConfig, images: InternVLXImageFeatures, embeddings: torch.Tensor
) -> ImageTokens:
    """Read what `get_image_features` returned. `generate` may have repeated its entries for beams, tile by tile.

    Args:
        embeddings: (B, L, D), for its device and dtype.

    Raises:
        ValueError: if a tensor is missing or does not have an entry with the right number of tokens for each tile.
    """
    first, later = images.pooler_output, list(images.deepstack_features or [])
    rows = flat(first).to(embeddings.device, embeddings.dtype)  # type: ignore[arg-type]
    if config.tokens_per_tile is None:  # nothing that depends on the number of tiles is read on the host
        return _of_the_only_size(config, *map(of_one_size, (first, *later)), rows=rows)  # type: ignore[arg-type]
    numbers = None
    if later and not later[-1][0].is_floating_point():
        numbers = torch.stack(list(later.pop())).flatten()
    sizes = read_sizes(config, numbers, len(first))  # type: ignore[arg-type]
    counts = [len(tokens) for tokens in first]  # type: ignore[union-attr]
    if not config.boundaries:
        return ImageTokens(sizes, counts, rows)
    lvtc = config.lvtc_config if any(size.has_lvtc for size in sizes) else None
    num_lr, has_hr = (0, False) if lvtc is None else (lvtc.num_lr_projectors - 1, lvtc.hr_projector_type is not None)
    before = [[size.before * (size.has_lvtc or not number) for size in sizes] for number in range(1 + num_lr)]
    expected = before + [[size.after * size.has_lvtc for size in sizes]] * has_hr
    got = [[len(tokens) for tokens in entry] for entry in (first, *later)]  # type: ignore[union-attr]
    if got != expected:
        _refuse(*([[(len(entry), *dict.fromkeys(entry)) for entry in entries] for entries in (expected, got)]))
    return ImageTokens(sizes, counts, rows, later[:num_lr], later[-1] if has_hr else None)


def _of_the_only_size(config: InternVLXConfig, first: torch.Tensor, *later: Tokens, rows: torch.Tensor) -> ImageTokens:
    """The tokens of a model without a list of sizes: (tiles, N², D) each."""
    lvtc = config.lvtc_config
    if lvtc is None:
        return ImageTokens([TileSize(first.shape[1], first.shape[1])], first, rows)
    size = config.sizes[0]
    num_lr, has_hr = lvtc.num_lr_projectors - 1, lvtc.hr_projector_type is not None
    tiles = first.shape[0]
    expected = [(tiles, size.before)] * (1 + num_lr) + [(tiles, size.after)] * has_hr
    got = [tuple(each.shape[:2]) if isinstance(each, torch.Tensor) else (len(each),) for each in (first, *later)]
    if got != expected:
        _refuse(expected, got)
    return ImageTokens([size], first, rows, later[:num_lr], later[-1] if has_hr else None)


def _refuse(expected: list, got: list) -> None:
    raise ValueError(
        f"LVTC needs `pooler_output` and `deepstack_features` of (tiles, tokens) {expected}, got {got}. Pass them as "
        "`get_image_features` returns them."
    )
