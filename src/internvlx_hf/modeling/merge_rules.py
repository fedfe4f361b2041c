# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The rules by which a tile's tokens are merged where its size shrinks, by the name that a request gives as
`merge_rule`.

A rule is a function of (tiles, N₁², D) tokens in raster order and the side s of a block: it returns (tiles, (N₁ / s)²,
D). One that does not merge blocks also returns their places, (tiles, (N₁ / s)²) in ascending order: the numbers of the
tokens whose positions they keep; it stands in `MOVING_RULES`, too. A rule of `SCORED_RULES` also gets (tiles, N₁²)
scores, see `merge_scores.py`. To add
a rule, write a file with a function, and add it here and to the test's cases.
"""

from collections.abc import Callable

import torch

from .merge_fastv import keep_attended
from .merge_knock_out import knock_out
from .merge_mean import merge_mean
from .merge_one import take_first
from .merge_random import take_random
from .merge_tome import merge_similar
from .setting_checks import require_choice

MergeRule = Callable[..., torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
MERGE_RULES: dict[str, MergeRule] = {
    "mean": merge_mean,
    "one": take_first,
    "random": take_random,
    "knock_out": knock_out,
    "fastv": keep_attended,
    "tome": merge_similar,
}
SCORED_RULES = (keep_attended,)
MOVING_RULES = (keep_attended, merge_similar)


def find_rule(name: str) -> MergeRule:
    """The rule with this name.

    Raises:
        ValueError: if there is none.
    """
    require_choice("merge_rule", name, MERGE_RULES)
    return MERGE_RULES[name]
