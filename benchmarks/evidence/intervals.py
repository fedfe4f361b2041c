"""Scores of runs, their differences paired by seed, t-intervals, p-values and Holm's adjustment."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """The result of one run in percent (or a difference of two, in points), with its seed and the base it started from."""

    seed: int
    base: int
    value: float

    def __post_init__(self):
        if not math.isfinite(self.value):
            raise ValueError(f"The score of seed {self.seed} should be a finite number, got {self.value}.")


@dataclass(frozen=True)
class Interval:
    """A mean and its t-interval. With a single value the interval is the whole line."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return self.high - self.mean


def interval(values: list[float], confidence: float = CONFIDENCE) -> Interval:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, len(values))
    half = _standard_error(values) * float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    return Interval(mean, mean - half, mean + half, len(values))


def p_inside(values: list[float], low: float, high: float) -> float:
    """p-value of "the expected value lies in (low, high)": below α exactly if the (1 - α) t-interval lies in there.

    With one infinite bound this is a one-sided t-test, doubled, so that all p-values compare with the same 5 %. With two bounds
    it is the same for the nearer one.
    """
    if len(values) < 2:
        return 1.0
    mean, error = statistics.fmean(values), _standard_error(values)
    distance = min(mean - low, high - mean)
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return min(1.0, 2 * float(stdtr(len(values) - 1, -distance / error)))


def paired_differences(scores: Iterable[Score], others: Iterable[Score]) -> list[Score]:
    """`scores` minus `others`, seed by seed, for the seeds that both have.

    Raises:
        ValueError: if a seed occurs twice, or started from two different bases.
    """
    by_seed, other_by_seed = _by_seed(scores), _by_seed(others)
    differences = []
    for seed in sorted(by_seed.keys() & other_by_seed.keys()):
        score, other = by_seed[seed], other_by_seed[seed]
        if score.base != other.base:
            raise ValueError(
                f"Runs of a seed should start from the same base, got bases {score.base} and {other.base} for seed {seed}."
            )
        differences.append(Score(seed, score.base, score.value - other.value))
    return differences


def base_means(scores: Iterable[Score]) -> dict[int, float]:
    """The mean of the scores of each base."""
    groups: dict[int, list[float]] = {}
    for score in scores:
        groups.setdefault(score.base, []).append(score.value)
    return {base: statistics.fmean(values) for base, values in sorted(groups.items())}


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those below α keeps the probability of any false rejection below α."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _by_seed(scores: Iterable[Score]) -> dict[int, Score]:
    by_seed: dict[int, Score] = {}
    for score in scores:
        if score.seed in by_seed:
            raise ValueError(f"A row should have one run per seed, got two for seed {score.seed}.")
        by_seed[score.seed] = score
    return by_seed
