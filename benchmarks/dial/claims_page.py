"""The page of the dial's study: rows with their cost, and verdicts by the rules in ../evidence/RULES.md."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))
from claims import CLAIMS
from evidence.claims import adjust, judge
from evidence.intervals import Score
from evidence.tables import findings_table, markdown, of_planned, plus_minus, summary

BASES = 8
TABLES = {
    "Elastic checkpoints against specialists": [
        "specialist at 16",
        "specialist at 4",
        "elastic at 16",
        "elastic at 4",
        "elastic 3:1 at 16",
        "elastic 3:1 at 4",
        "specialist pooled to 4",
    ],
    "16 tokens merged into 4, or dropped, without training": [
        f"{rule} at {k}"
        for k in (2, 4, 6)
        for rule in ("mean", "one", "random", "tome", "fastv", "knock_out", "dropped")
    ],
}
HEADER = ("row", "digits read, %", "of each base", "MFLOPs a page", "training steps", "CPU s of the training", "bases")


def write_page(path: Path, runs: dict[str, dict[str, float]], costs: dict[str, tuple[float, int]]) -> None:
    """Write the rows and the findings.

    Args:
        runs: digits read in percent, by base and row; and CPU seconds of the trainings.
        costs: by row, MFLOPs of a prompt with a page before its answer, and the steps that its weights were trained.
    """
    found = judge(CLAIMS, {row: _scores(runs, row) for row in costs}, BASES)
    findings = adjust(found)
    parts = [
        "# The dial: one checkpoint for several sizes, and merging without training",
        f"**What it costs at the large size**: a checkpoint for 16 tokens alone reads {_read(runs, 'specialist at 16')}; one for 16 and 4 "
        f"{_read(runs, 'elastic at 16')}, and {_read(runs, 'elastic 3:1 at 16')} if the small size is drawn three times as often. Merged into "
        f"4 tokens before layer 6 of 8, without training: {_read(runs, 'mean at 6')}.",
        "`python benchmarks/dial/run.py` on the digit study's dense pages of one tile: models of a million parameters, 8 layers. Each "
        "seed starts from the digit study's base of its number; the base is the unit. The claims in `benchmarks/dial/claims.py` were "
        "written before the runs, and are judged by [the studies' rules](../../evidence/RULES.md).",
        "*Specialists* are trained on one size. *Elastic* checkpoints have twice a specialist's steps of the second stage: drawn 1 : 1, "
        "each size has as many as its specialist; drawn 3 : 1, the small size has three quarters of them. *MFLOPs a page*: a prompt with one page, "
        "before its answer. *CPU s*: of one thread, the training and the evaluation of its rows.",
        summary(findings),
        "## Claims",
        findings_table(findings),
    ]
    for title, names in TABLES.items():
        parts += [f"## {title}", markdown(HEADER, [_row(runs, costs, name) for name in names])]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _scores(runs: dict, row: str) -> list[Score]:
    return [Score(int(base), int(base), run[row]) for base, run in runs.items() if row in run]


def _read(runs: dict, row: str) -> str:
    values = [score.value for score in _scores(runs, row)]
    return f"{plus_minus(values)} %" if values else "not measured yet"


def _row(runs: dict, costs: dict, name: str) -> list[str]:
    values = [score.value for score in _scores(runs, name)]
    mflops, steps = costs[name]
    seconds = [run[key] for run in runs.values() if (key := f"CPU seconds of {_training(name)}") in run]
    return [
        name,
        plus_minus(values) if values else "not measured yet",
        ", ".join(f"{value:.1f}" for value in values),
        f"{mflops:.1f}",
        str(steps),
        f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        of_planned(len(values), BASES),
    ]


def _training(name: str) -> str:
    """The training whose weights a row has; rows of merging have none of their own."""
    kind, _, size = name.rpartition(" at ")
    return f"{kind} {size}" if kind == "specialist" else kind
