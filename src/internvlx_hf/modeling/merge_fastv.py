# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""FastV's rule (arXiv 2403.06764): keep the tokens that the prompt's last token attends to most, wherever they are.

The weights are those of the layer before the boundary, the mean over its heads. That layer's queries, keys and values
are computed a second time, and one row of its attention, so that the model's attention may be any kernel and no matrix
of tokens x tokens is made. Only tokens of this forward compete, without regard to sliding windows. It cannot run on
packed rows, whose samples have a last token each, nor in engines.
"""

import torch


def keep_attended(tiles: torch.Tensor, side: int, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(tiles, N², D) and the attention that each token gets, (tiles, N²) -> (tiles, (N / s)², D) in raster order, and
    their places.
    """
    places = scores.topk(tiles.shape[1] // side**2, dim=1).indices.sort(dim=1).values
    return tiles.take_along_dim(places[..., None], dim=1), places
