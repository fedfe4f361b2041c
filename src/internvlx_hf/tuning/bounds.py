# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Exact (Clopper-Pearson) bounds on a share, from how many of some independent images have a property."""

import math
from collections.abc import Callable

CONFIDENCE = 0.95


def lower_bound(found: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The share that `found` of `count` certify: the smallest one under which as many are not less likely than 1 -
    confidence.

    One-sided: the true share is above it in at least `confidence` of all draws. All of n certify (1 - confidence) **
    (1 / n).

    Raises:
        ValueError: if `found` is not from 0 to `count`, or the confidence is not between 0 and 1.
    """
    _check(found, count, confidence)
    if found == 0:
        return 0.0
    if found == count:
        return (1 - confidence) ** (1 / count)
    return _solve(lambda share: at_least(found, count, share), 1 - confidence)


def upper_bound(found: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The largest share that `found` of `count` allow; see `lower_bound`."""
    return 1 - lower_bound(count - found, count, confidence)


def interval(found: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided interval: a bound on each side that is wrong in at most half of 1 - confidence."""
    one_sided = (1 + confidence) / 2
    return lower_bound(found, count, one_sided), upper_bound(found, count, one_sided)


def needed(share: float, confidence: float = CONFIDENCE) -> int:
    """How many images have to agree, all of them, to certify a share between 0 and 1."""
    count = math.ceil(math.log(1 - confidence) / math.log(share))
    return count if lower_bound(count, count, confidence) >= share else count + 1  # a rounded quotient


def most_missing(count: int, share: float, confidence: float = CONFIDENCE) -> int | None:
    """How many of `count` images may disagree for the others to certify `share`; None if even all certify less."""
    if lower_bound(count, count, confidence) < share:
        return None
    missing = 0
    while missing < count and lower_bound(count - missing - 1, count, confidence) >= share:
        missing += 1
    return missing


def at_least(found: int, count: int, share: float) -> float:
    """The probability of `found` or more of `count` where each has probability `share`, between 0 and 1."""
    log_factorials = [math.lgamma(n + 1) for n in range(count + 1)]
    logs = (
        log_factorials[count]
        - log_factorials[k]
        - log_factorials[count - k]
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
        for k in range(found, count + 1)
    )
    return math.fsum(map(math.exp, logs))


def _solve(rising: Callable[[float], float], level: float) -> float:
    """Where a rising function of a share reaches a level, from below."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return low


def _check(found: int, count: int, confidence: float) -> None:
    if count < 1 or not 0 <= found <= count:
        raise ValueError(f"found={found} of count={count}, expected 0 to count of at least one image.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}, expected a number between 0 and 1.")
