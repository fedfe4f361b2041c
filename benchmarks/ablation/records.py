"""Storage of finished runs: a JSON file per run in the cache, and a compact file per group in the results."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from settings import Configuration, Schedule


class Records:
    """Runs in `folder`, keyed by all of their settings, so that nothing runs twice and a stopped job resumes."""

    def __init__(self, folder: Path, schedule: Schedule):
        self.folder, self.schedule = folder, schedule

    def path(self, configuration: Configuration, seed: int) -> Path:
        return self.folder / f"{configuration.key(self.schedule, seed)}.json"

    def find(self, configuration: Configuration, seed: int) -> dict | None:
        path = self.path(configuration, seed)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

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

    def missing(self, groups: dict[str, dict[str, Configuration]], seeds: list[int]) -> Iterator[tuple]:
        """(group, name, configuration, seed) of the missing runs: all groups with the first seed, then with the next seed.

        Each run is looked up when the iterator reaches it, so that two processes can share a list.
        """
        for seed in seeds:
            for group, configurations in groups.items():
                for name, configuration in configurations.items():
                    if not self.path(configuration, seed).exists():
                        yield group, name, configuration, seed

    def collect(self, configurations: dict[str, Configuration], seeds: list[int]) -> dict[str, list[dict]]:
        """The finished runs of a group by name, without names that have none."""
        found = {
            name: [record for seed in seeds if (record := self.find(configuration, seed)) is not None]
            for name, configuration in configurations.items()
        }
        return {name: records for name, records in found.items() if records}


def save_group(path: Path, runs: dict[str, list[dict]]) -> None:
    """Write the runs of a group to a file, one run per line."""
    groups = []
    for name, records in runs.items():
        lines = ",\n  ".join(json.dumps(run) for run in records)
        groups.append(f"{json.dumps(name, ensure_ascii=False)}: [\n  {lines}\n]")
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def load_group(path: Path) -> dict[str, list[dict]]:
    return json.loads(path.read_text(encoding="utf-8"))
