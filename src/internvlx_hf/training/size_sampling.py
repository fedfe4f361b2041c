# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The size of a tile in each step of a training: drawn from those that the checkpoint offers, by
`tokens_per_tile_sampling`.

A step's size depends on the run's seed and the step's number only. So it is the same in all processes and all batches
of a step, and a resumed run continues with the sizes that it would have had.
"""

from typing import Any

import numpy as np
from transformers import TrainingArguments

from ..modeling import InternVLXConfig
from .arguments import ALL

_STREAM = 0x517E  # a stream of random numbers of its own


def size_weights(arguments: TrainingArguments, config: InternVLXConfig) -> dict[int, float]:
    """The weights of the sizes that a run samples, by their index; empty if it samples none.

    Raises:
        ValueError: if `tokens_per_tile_sampling` names a size that the checkpoint does not offer.
    """
    asked, sizes = getattr(arguments, "tokens_per_tile_sampling", None), config.sizes
    if not asked:
        return {}
    if asked == ALL:
        return dict.fromkeys(range(len(sizes)), 1.0)
    names = [str(size) for size in sizes]
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(
            f"`tokens_per_tile_sampling` has the size {unknown[0]!r}, which the checkpoint does not offer. Expected "
            f"sizes of {', '.join(names)}."
        )
    return {names.index(name): weight for name, weight in asked.items() if weight}


def sampled_sizes(arguments: TrainingArguments, config: InternVLXConfig) -> list[int]:
    """The indices of the sizes that a run samples, see [`size_weights`]."""
    return sorted(size_weights(arguments, config))


def size_of_step(weights: dict[int, float], seed: int, step: int) -> int:
    """The index of the size that a step trains.

    Args:
        weights: see [`size_weights`]; not empty.
        step: number of the steps before it.
    """
    indices = sorted(weights)
    shares = np.array([weights[index] for index in indices])
    return indices[np.random.default_rng([_STREAM, seed, step]).choice(len(indices), p=shares / shares.sum())]


def take_size(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """A collator's batch with its texts for a size, see `InternVLXDataCollator.sampled_sizes`.

    Raises:
        ValueError: if the batch does not have them.
    """
    if size not in batch.get("of_sizes", {}):
        raise ValueError(
            "`tokens_per_tile_sampling` is set, but the batch has no `of_sizes`. Give the collator the sizes as "
            "`sampled_sizes`."
        )
    rest = {name: value for name, value in batch.items() if name not in ("of_sizes", "tile_sizes")}
    return rest | batch["of_sizes"][size]
