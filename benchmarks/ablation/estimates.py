"""Estimates over the seeds of a configuration: means and differences with their standard errors."""

import statistics
from dataclasses import dataclass


@dataclass
class Estimate:
    mean: float
    error: float | None  # standard error of the mean; None for a single run

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.error is None else f"{self.mean:.1f} ± {self.error:.1f}"

    def signed(self) -> str:
        return f"{'−' if self.mean < 0 else '+'}{Estimate(abs(self.mean), self.error)}"


def estimate(values: list[float]) -> Estimate:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error)


def accuracy(runs: list[dict], kind: str = "all") -> Estimate:
    """The accuracy of runs, in percent."""
    return estimate([100 * run["accuracy"][kind] for run in runs])


def difference(runs: list[dict], others: list[dict]) -> Estimate | None:
    """The difference in accuracy between two configurations, in points, paired by seed. None without a common seed.

    Runs with the same seed see the same pages in the same order, so the difference is more precise than either accuracy.
    """
    other = {run["seed"]: run for run in others}
    pairs = [(run, other[run["seed"]]) for run in runs if run["seed"] in other]
    return estimate([100 * (a["accuracy"]["all"] - b["accuracy"]["all"]) for a, b in pairs]) if pairs else None


def mean(runs: list[dict], field: str) -> float:
    return statistics.fmean(run[field] for run in runs)
