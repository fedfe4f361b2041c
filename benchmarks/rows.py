"""The common format of benchmark results: rows with a value, an optional target, and a verdict."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

AT_MOST, AT_LEAST = "<=", ">="


@dataclass(frozen=True)
class Row:
    """One result.

    Args:
        value: the figure; None if it could not be measured, which misses any target.
        unit: of the value; a ratio has none.
        target: what the value has to keep to, None for no target. A ratio within one run: seconds depend on the machine.
        direction: whether the value has to be at most (`<=`) or at least (`>=`) the target.
        note: why there is no value, or what else a reader has to know.
    """

    name: str
    value: float | None
    unit: str = ""
    target: float | None = None
    direction: str = AT_MOST
    note: str = ""

    def __post_init__(self):
        if self.direction not in (AT_MOST, AT_LEAST):
            raise ValueError(
                f"direction of {self.name!r} should be {AT_MOST!r} or {AT_LEAST!r}, got {self.direction!r}"
            )

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `no target`. NaN misses."""
        if self.target is None:
            return "no target"
        if self.value is None:
            return "missed"
        is_met = self.value <= self.target if self.direction == AT_MOST else self.value >= self.target
        return "met" if is_met else "missed"

    def cells(self) -> list[str]:
        value = "-" if self.value is None else f"{self.value:.4g}{' ' * bool(self.unit)}{self.unit}"
        target = "-" if self.target is None else f"{self.direction} {self.target:.4g}"
        return [self.name, value, target, self.verdict, self.note]


HEADER = ["what", "value", "target", "verdict", ""]


def write_rows(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    return [Row(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


def run_script(
    doc: str, measure: Callable[[argparse.Namespace], list[Row]], parser: argparse.ArgumentParser | None = None
) -> None:
    """A benchmark's `main`: parse arguments, measure, and write the rows to `--json`.

    Args:
        doc: the script's docstring.
        measure: prints its own tables and returns the rows.
        parser: with the script's own arguments; its `--help` shows `doc`.
    """
    parser = parser or argparse.ArgumentParser()
    parser.description, parser.formatter_class = doc, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as rows of JSON")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        write_rows(rows, args.json)
