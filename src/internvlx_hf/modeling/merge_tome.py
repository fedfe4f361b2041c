# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""ToMe's rule (arXiv 2210.09461): merge the tokens that are most alike, wherever they are, by bipartite soft matching.

In each round, every second token of a tile is matched with the most similar of the others, by the cosine of their
hidden states, and the best pairs become the mean of all tokens that they stand for. (ToMe compares keys; hidden states
need no second pass.) A merged token has the place of the first of its tokens. It needs no attention weights, and runs
where the mean does.
"""

import torch
import torch.nn.functional as F


def merge_similar(tiles: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tiles, N², D) -> (tiles, (N / s)², D) ordered by place, and their places (tiles, (N / s)²)."""
    count, wanted = tiles.shape[1], tiles.shape[1] // side**2
    places = torch.arange(count, device=tiles.device).expand(len(tiles), -1)
    weights = tiles.new_ones(len(tiles), count, dtype=torch.float32)
    sums = tiles.float()
    while count > wanted:
        pairs = min(count - wanted, count // 2)
        sums, weights, places = _merge_pairs(sums, weights, places, pairs)
        count -= pairs
    return (sums / weights[..., None]).to(tiles.dtype), places


def _merge_pairs(
    sums: torch.Tensor, weights: torch.Tensor, places: torch.Tensor, pairs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge the `pairs` most similar pairs of each tile.

    Args:
        sums, weights, places: of (tiles, n) tokens the sum (..., D) and the number of those that they stand for, and
            the first place.
    """
    alike = F.normalize(sums, dim=-1)
    best, match = (alike[:, ::2] @ alike[:, 1::2].transpose(1, 2)).max(-1)  # [t, ⌈n/2⌉], tokens of the second half
    merged = best.argsort(dim=1, descending=True, stable=True)[:, :pairs]
    partner = 1 + 2 * match.gather(1, merged)
    gone = 2 * merged
    is_kept = torch.ones_like(places, dtype=torch.bool).scatter(1, gone, value=False)
    sums = sums.scatter_add(
        1, partner[..., None].expand(-1, -1, sums.shape[-1]), sums.take_along_dim(gone[..., None], 1)
    )
    weights = weights.scatter_add(1, partner, weights.gather(1, gone))
    places = places.scatter_reduce(1, partner, places.gather(1, gone), "amin")
    kept = is_kept.int().argsort(dim=1, descending=True, stable=True)[:, : places.shape[1] - pairs]
    order = kept.gather(1, places.gather(1, kept).argsort(dim=1))
    return sums.take_along_dim(order[..., None], 1), weights.gather(1, order), places.gather(1, order)
