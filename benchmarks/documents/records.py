"""Storage of finished runs: a JSON file per run in the cache, and all of them in one file of the results."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from settings import GROUPS, SEEDS, BaseSchedule, Row, RunSchedule

RUNS, BASES_FILE = "runs.json", "bases.json"
Runs = dict[str, dict[str, list[dict]]]  # the runs of each row of each group


class Records:
    """Runs in `folder`, named after all of their settings: nothing runs twice, and a stopped study resumes.

    Args:
        published: the folder of a report, whose runs count as finished, too.
    """

    def __init__(self, folder: Path, schedule: RunSchedule, published: Path | None = None):
        self.folder, self.schedule = folder, schedule
        runs = load_runs(published / RUNS) if published else {}
        self.published = [run for rows in runs.values() for records in rows.values() for run in records]
        bases = json.loads((published / BASES_FILE).read_text(encoding="utf-8")) if published else []
        self.published_bases = {base["seed"]: base for base in bases}

    def path(self, row: Row, seed: int) -> Path:
        return self.folder / f"{row.key}-{self.schedule.key}-{seed}.json"

    def find(self, row: Row, seed: int) -> dict | None:
        path = self.path(row, seed)
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        wanted = {"row": row.settings(), "seed": seed, "schedule": json.loads(json.dumps(asdict(self.schedule)))}
        return next((run for run in self.published if wanted.items() <= run.items()), None)

    def base(self, cache: Path, number: int) -> dict | None:
        """The record of a base: the published one, else that in `cache`; None if there is neither.

        Raises:
            ValueError: if the base was trained again and is another one.
        """
        path, published = (
            base_folder(cache, number, self.schedule.base) / "base.json",
            self.published_bases.get(number),
        )
        if not path.exists():
            return published
        record = json.loads(path.read_text(encoding="utf-8"))
        if published is not None and record["losses"] != published["losses"]:
            raise ValueError(
                f"{path.parent} has the losses {record['losses']}, the base of the published runs {published['losses']}: "
                "on this machine, runs cannot be added to the published ones. Leave out --published."
            )
        return published or record

    def add(self, row: Row, seed: int, result: dict) -> None:
        path = self.path(row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"row": row.settings(), "seed": seed, "schedule": asdict(self.schedule), **result}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(path)

    def collect(self) -> Runs:
        """The finished runs, without rows that have none."""
        found: Runs = {}
        for group, rows in GROUPS.items():
            runs = {
                name: [run for seed in range(SEEDS) if (run := self.find(row, seed))] for name, row in rows.items()
            }
            found[group] = {name: records for name, records in runs.items() if records}
        return found


def planned(seeds: Sequence[int] = range(SEEDS)) -> Iterator[tuple[str, str, Row, int]]:
    """(group, name, row, seed) of all runs, a seed after the other, so that a stopped study is balanced."""
    for seed in seeds:
        for group, rows in GROUPS.items():
            for name, row in rows.items():
                yield group, name, row, seed


def save_runs(path: Path, runs: Runs) -> None:
    """Write the runs, one per line."""
    groups = []
    for group, rows in runs.items():
        lines = [
            f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(run) for run in records) + "\n]"
            for name, records in rows.items()
        ]
        groups.append(f"{json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n}")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def load_runs(path: Path) -> Runs:
    return json.loads(path.read_text(encoding="utf-8"))


def save_bases(path: Path, bases: Sequence[dict]) -> None:
    """Write the records of bases, one per line."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, bases)) + "\n]\n", encoding="utf-8")


def base_folder(cache: Path, number: int, schedule: BaseSchedule) -> Path:
    return cache / f"base-{number}-{schedule.key}"
