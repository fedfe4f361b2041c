"""gpu.jsonl: a line for each turn as soon as it is measured, and for what was found out besides."""

import json
import statistics
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from lines import TURNS, Line

FINDING = 1.15  # a way's share of the base's seconds, by its share of the FLOPs
NEEDED = ("gpu", "driver", "torch", "transformers", "internvlx_hf", "python")


class Records:
    """The records of a file.

    Args:
        path: is made with the first record.
        stamp: what each record says of its run: `machine`, a dict with `NEEDED`, and `command`.
    """

    def __init__(self, path: Path, stamp: dict):
        missing = [name for name in NEEDED if not stamp["machine"].get(name)]
        if missing or not stamp["command"]:
            raise ValueError(f"the stamp of these records is {stamp}, expected a command and a machine with {NEEDED}.")
        self.path, self.stamp = path, stamp
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, _ = text.rpartition("\n")  # a run that was cut may leave a part of a line
        self.all = [json.loads(line) for line in whole.splitlines()]
        self.own = [record for record in self.all if record["machine"] == stamp["machine"]]

    def add(self, **record) -> None:
        record |= self.stamp | {"at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.all.append(record)
        self.own.append(record)
        if len(self.all) == 1 or self.path.read_bytes()[-1:] == b"\n":
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            self._rewrite()

    def forget(self, names: list[str]) -> None:
        """Remove the records of these lines on this machine, so that they are measured again."""
        gone = [record for record in self.own if record["line"] in names]
        self.all, self.own = ([each for each in kept if each not in gone] for kept in (self.all, self.own))
        if gone:
            self._rewrite()

    def _rewrite(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.all), encoding="utf-8")
        part.replace(self.path)

    def turns(self, line: Line, way: str, case: dict) -> list[dict]:
        place = {"kind": "turn", "line": line.name, "way": way, "case": case}
        return [record for record in self.own if place.items() <= record.items()]

    def facts(self, kind: str, line: str | None = None) -> list[dict]:
        return [each for each in self.own if each["kind"] == kind and line in (None, each["line"])]

    def row(self, line: Line, way: str, case: dict) -> "Row | None":
        """The medians; None before there are three turns."""
        turns = self.turns(line, way, case)
        if len(turns) < TURNS:
            return None

        def median(group: str, name: str, of=lambda value: value):
            values = [of(turn[group][name]) for turn in turns]
            return None if None in values else statistics.median(values)

        first = turns[0]
        return Row(
            {name: median("times", name, lambda pair: pair[0]) for name in first["times"]},
            {name: flops for name, (_, flops) in first["times"].items()},
            {name: median("others", name) for name in first["others"]},
        )


@dataclass(frozen=True)
class Row:
    """Medians of a way: seconds and FLOPs by the name of what takes them, and other figures."""

    seconds: dict[str, float]
    flops: dict[str, float | None]
    others: dict[str, float | None]

    def shares(self, base: "Row", name: str) -> tuple[float, float | None]:
        """Of the base's seconds, and of its FLOPs, if these were counted."""
        flops, of = self.flops[name], base.flops[name]
        return self.seconds[name] / base.seconds[name], flops / of if flops and of else None


def is_finding(seconds: float, flops: float | None) -> bool:
    return flops is not None and seconds / flops > FINDING
