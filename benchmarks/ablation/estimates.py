"""Scores, means and intervals over the runs of a row."""

import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from evidence.intervals import Interval, Score, interval, paired_differences


def scores(runs: list[dict], pages: str = "dense", kind: str = "all") -> list[Score]:
    """The accuracies of runs in percent, on dense pages or on half empty ones."""
    return [Score(run["seed"], run["base"], 100 * run["accuracy"][pages][kind]) for run in runs]


def accuracies(runs: list[dict], pages: str = "dense", kind: str = "all") -> list[float]:
    return [score.value for score in scores(runs, pages, kind)]


def untrained(runs: list[dict], way: str) -> list[float]:
    """The accuracies in percent of finished models that are asked in another way than they were trained."""
    return [100 * run["untrained"][way]["all"] for run in runs]


def difference(runs: list[dict], others: list[dict]) -> Interval | None:
    """The difference in accuracy between two rows, in points, paired by seed. None without a common seed."""
    differences = paired_differences(scores(runs), scores(others))
    return interval([difference.value for difference in differences]) if differences else None


def mean(runs: list[dict], field: str) -> float:
    return statistics.fmean(run[field] for run in runs)


def cut(runs: list[dict], borders: str = "tiles") -> float:
    """The share in percent of the digits that borders of tiles cut, or of windows; of dense pages."""
    return 100 * runs[0]["accuracy"]["dense"][f"cut by {borders}"]


def thread_seconds(runs: list[dict]) -> float:
    """The computing time of one thread that the runs took, training and evaluation."""
    return sum(run["cpu_seconds"] + run["evaluation_seconds"] for run in runs)
