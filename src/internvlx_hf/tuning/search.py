# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The search for the cheapest setting under which enough images keep their answers: coordinate descent, successive
halving.
"""

import math
from collections.abc import Callable, Sequence

from .bounds import most_missing
from .settings import OWN, Costs, Setting

SMALLEST_RUNG = 8  # images that all settings of an axis are tried on first
HANDFUL = 6  # settings of a first look
# (settings, number of images) -> how many of the first so many images changed their answers, under each setting
Measure = Callable[[Sequence[Setting], int], list[int]]


def most_changed(choosing: int, held_out: int, keep: float) -> int:
    """How many images of the choosing half may change under a setting that is still worth certifying.

    As many as the held-out half allows, where it is large enough to certify `keep`; else a share of 1 - keep.
    """
    allowed = most_missing(held_out, keep)
    return math.floor((1 - keep) * choosing + 1e-9) if allowed is None else allowed


def rungs(count: int) -> list[int]:
    """The numbers of images that settings are tried on: doubling, and in the end all."""
    sizes = [SMALLEST_RUNG]
    while sizes[-1] < count:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], count]


def halve(candidates: Sequence[Setting], count: int, allowed: int, measure: Measure) -> Setting | None:
    """The cheapest candidate, of a list from the cheapest up, under which at most `allowed` of `count` images change.

    Each rung tries the candidates that are left on more images. It drops those that have changed too many, for good,
    and of the others the dearer half. Those come back only if all cheaper ones fail, so that halving costs no
    candidate.
    """
    failed: set[Setting] = set()
    while pool := [each for each in candidates if each not in failed]:
        alive = pool
        for size in rungs(count):
            changed = measure(alive, size)
            failed |= {each for each, number in zip(alive, changed, strict=True) if number > allowed}
            passing = [each for each in alive if each not in failed]
            alive = passing[: math.ceil(len(alive) / 2)]
            if not alive:
                break
        if alive:
            return alive[0]
    return None


def search(costs: Costs, count: int, allowed: int, measure: Measure) -> Setting:
    """Coordinate descent from the model's own settings: along each image setting to the cheapest value that passes, in
    turn.

    Returns:
        The chosen setting, which is the model's own where nothing cheaper passes.
    """
    chosen, tried = OWN, {costs.all_tiles(OWN)}
    while True:
        before = chosen
        for axis in costs.axes:
            candidates = costs.cheaper(chosen, axis, tried)
            if candidates and (found := halve(candidates, count, allowed, measure)) is not None:
                chosen = found
            tried |= set(map(costs.all_tiles, candidates))
        if chosen == before:
            return chosen


def handful(costs: Costs) -> list[Setting]:
    """Cheaper settings for a first look, one change each, the cheapest first: at most `HANDFUL`, evenly over their
    costs.
    """
    found: list[Setting] = []
    for axis in costs.axes:
        found += costs.cheaper(OWN, axis, {costs.all_tiles(each) for each in (OWN, *found)})
    found.sort(key=costs.flops)
    if len(found) <= HANDFUL:
        return found
    places = {round(number * (len(found) - 1) / (HANDFUL - 1)) for number in range(HANDFUL)}
    return [found[place] for place in sorted(places)]
