"""Finished runs of a study: a JSON file per run in the cache, and all of them in one file of the results."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

RUNS, BASES_FILE = "runs.json", "bases.json"


class Configuration(Protocol):
    """A dataclass with what a run trains."""

    def key(self, schedule: Any, seed: int) -> str:
        """A hash of all settings of a run."""


class Records:
    """Runs in `folder`, keyed by all of their settings, so that nothing runs twice and a stopped job resumes.

    Args:
        published: the folder of a report, whose runs count as finished, too.
    """

    def __init__(self, folder: Path, schedule: Any, published: Path | None = None):
        self.folder, self.schedule = folder, schedule
        self.published = load_results(published / RUNS) if published else Results({})
        self.published_bases = load_bases(published / BASES_FILE) if published else {}

    def path(self, configuration: Configuration, seed: int) -> Path:
        return self.folder / f"{configuration.key(self.schedule, seed)}.json"

    def find(self, configuration: Configuration, seed: int) -> dict | None:
        path = self.path(configuration, seed)
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        wanted = {"seed": seed, "schedule": json.loads(json.dumps(asdict(self.schedule)))}  # lists for tuples
        return next((run for run in self.published.of(configuration) if wanted.items() <= run.items()), None)

    def add(self, configuration: Configuration, seed: int, result: dict) -> None:
        path = self.path(configuration, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "seed": seed,
            "configuration": asdict(configuration),
            "schedule": asdict(self.schedule),
            **result,
        }
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(path)

    def base(self, pages: str, number: int, folder: Path) -> dict | None:
        """The record of a base for a kind of page: the published one, else that in its `folder`; None if there is neither.

        Raises:
            ValueError: if the base was trained again and is another one.
        """
        published, path = self.published_bases.get((pages, number)), folder / "base.json"
        if not path.exists():
            return published
        record = json.loads(path.read_text(encoding="utf-8"))
        if published is not None and record["losses"] != published["losses"]:
            raise ValueError(
                f"{folder} has the losses {record['losses']}, the base of the published runs {published['losses']}: "
                "on this machine, runs cannot be added to the published ones. Leave out --published."
            )
        return published or record

    def collect(self, configurations: Iterable[Configuration], seeds: Sequence[int]) -> "Results":
        """The finished runs of the configurations, each configuration once."""
        results = Results({})
        for configuration in configurations:
            if found := [record for seed in seeds if (record := self.find(configuration, seed)) is not None]:
                results.rows[Results.key(configuration)] = found
        return results


class Results:
    """The finished runs of a study by configuration."""

    def __init__(self, rows: dict[str, list[dict]]):
        self.rows = rows

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    @property
    def schedule(self) -> dict | None:
        """The schedule that all runs share; None without runs."""
        return next((runs[0]["schedule"] for runs in self.rows.values()), None)

    @staticmethod
    def key(configuration: Configuration | dict) -> str:
        fields = configuration if isinstance(configuration, dict) else asdict(configuration)
        return json.dumps(fields, sort_keys=True)

    def of(self, configuration: Configuration) -> list[dict]:
        """The runs of a configuration by seed; none if it has not been run."""
        return self.rows.get(self.key(configuration), [])

    def group(self, configurations: dict[str, Configuration]) -> dict[str, list[dict]]:
        """The runs of a table by the names of its rows, without rows that have none."""
        found = {name: self.of(configuration) for name, configuration in configurations.items()}
        return {name: runs for name, runs in found.items() if runs}

    def save(self, path: Path) -> None:
        """Write one run per line, below its configuration and schedule, which all runs of a row share."""
        rows = []
        for runs in self.rows.values():
            shared = {name: runs[0][name] for name in ("configuration", "schedule")}
            lines = [json.dumps({name: run[name] for name in run if name not in shared}) for run in runs]
            rows.append(f'{json.dumps(shared, ensure_ascii=False)[:-1]}, "runs": [\n  ' + ",\n  ".join(lines) + "\n]}")
        path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def load_results(path: Path) -> Results:
    results = Results({})
    for row in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
        shared = {name: row[name] for name in ("configuration", "schedule")}
        results.rows[Results.key(row["configuration"])] = [{**shared, **run} for run in row["runs"]]
    return results


def load_bases(path: Path) -> dict[tuple[str, int], dict]:
    """The records that `save_bases` wrote, by kind of page and number."""
    bases = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(base.pop("pages"), base.pop("number")): base for base in bases}


def save_bases(path: Path, bases: dict[tuple[str, int], dict]) -> None:
    """Write the records of the bases, by kind of page and number, to one file with a base per line."""
    lines = [json.dumps({"pages": pages, "number": number, **base}) for (pages, number), base in bases.items()]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
