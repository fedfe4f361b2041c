"""The page of the dial's study."""

import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from claims import CLAIMS

NOT_MEASURED = "not measured yet"
TABLES = {
    "Elastic checkpoints against specialists": [
        *(
            "specialist at 4",
            "specialist at 16",
            "elastic at 4",
            "elastic at 16",
            "elastic 3:1 at 4",
            "elastic 3:1 at 16",
        ),
        "specialist pooled to 4",
    ],
    "16 tokens merged into 4, or dropped, without training": [
        f"{rule} at {k}"
        for k in (2, 4, 6)
        for rule in ("mean", "one", "random", "tome", "fastv", "knock_out", "dropped")
    ],
}


def write_page(path: Path, runs: dict[str, dict[str, float]]) -> None:
    """Write the rows and the claims' differences. `runs`: digits read in percent, by row and base."""
    parts = [
        "# The dial: one checkpoint for several sizes, and merging without training",
        "`python benchmarks/dial/run.py` on the digit study's pages of one tile: models of a million parameters, 8 layers. Digits read "
        f"in %, the mean of {len(runs)} bases of 8 and each base; a base is a unit. The claims in `benchmarks/dial/claims.py` were "
        "written before the runs. There is no verdict with fewer than 8 bases.",
    ]
    for title, names in TABLES.items():
        rows = [f"| {name} | {_mean(runs, name)} | {_each(runs, name)} |" for name in names]
        parts += [f"## {title}", "\n".join(["| row | mean | bases |", "|---|---|---|", *rows])]
    rows = [f"| {claim.text} | {claim.better} - {claim.worse} | {_difference(runs, claim)} |" for claim in CLAIMS]
    parts += ["## Claims", "\n".join(["| claim | difference | points |", "|---|---|---|", *rows])]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _values(runs: dict, name: str) -> list[float]:
    return [run[name] for run in runs.values() if name in run]


def _mean(runs: dict, name: str) -> str:
    values = _values(runs, name)
    return f"{statistics.fmean(values):.1f}" if values else NOT_MEASURED


def _each(runs: dict, name: str) -> str:
    return ", ".join(f"{value:.1f}" for value in _values(runs, name)) or "-"


def _difference(runs: dict, claim) -> str:
    both = [run for run in runs.values() if claim.better in run and claim.worse in run]
    if not both:
        return NOT_MEASURED
    return ", ".join(f"{run[claim.better] - run[claim.worse]:+.1f}" for run in both)
