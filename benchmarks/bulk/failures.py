# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The simulation's failures beside measured ones: actors of a local Ray, killed at random while they answer.

    make build/ray/.installed
    PYTHONPATH=build/ray python benchmarks/bulk/failures.py [--shards 60] [--seconds 4] [--between 25]

A shard takes a fixed time (its worker sleeps before it answers), so that other programs do not disturb it. Every `--between` seconds on average,
a busy actor gets SIGKILL. Measured are the lost work, how long an actor is away, and the time of the whole run; the simulation gets the
first two kinds of number (a shard's seconds, the restart, the rate) and says what the whole should take.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

sys.path.extend(
    map(str, (Path(__file__).parent, Path(__file__).parent.parent, Path(__file__).parents[2] / "tests/helpers"))
)
from simulate import Fleet, simulate
from timing import format_table

from internvlx_hf.chat import ray_answers
from internvlx_hf.chat.ray_answers import LOCAL, RayTask, ShardWorker, answer_on_ray
from tiny import save_tiny

RUNS = 1000


class SlowWorker(ShardWorker):
    """An actor that sleeps before each shard, and notes when it starts and ends one."""

    def __init__(self, task: RayTask, folder: str, seconds: float):
        super().__init__(task)
        self.log, self.seconds = Path(folder, f"{os.getpid()}.log"), seconds

    def note(self, *words) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps([time.time(), *words]) + "\n")

    def answer(self, shard: int):
        self.note("start", shard)
        time.sleep(self.seconds)
        outcome = super().answer(shard)
        self.note("end", shard)
        return outcome


def kill_at_random(folder: Path, between: float, kills: list[tuple[float, int]], ended: threading.Event) -> None:
    generator = random.Random(0)
    while not ended.wait(generator.expovariate(1 / between)):
        logs = {int(path.stem): path.read_text().splitlines() for path in folder.glob("*.log")}
        busy = [
            pid
            for pid, lines in logs.items()
            if lines and "start" in lines[-1] and pid not in {own for _, own in kills}
        ]
        if busy and not ended.is_set():
            pid = generator.choice(busy)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills.append((time.time(), pid))


def run(folder: Path, args: argparse.Namespace) -> tuple[dict[int, list], list[tuple[float, int]]]:
    """The notes of each actor by its process, and the kills."""
    logs, ended, kills = folder / "logs", threading.Event(), []
    logs.mkdir()
    model = save_tiny(folder / "model")
    records = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]}
        for n in range(args.shards)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"source": str(folder / "data.jsonl"), "image_root": None, "split": "train", "share_tiles": False}
    task = RayTask(str(model), None, {}, data, folder / "out", args.shards, {}, 1, 8, {"device": "cpu"}, 1)
    ray_answers.ShardWorker = _with_arguments(str(logs), args.seconds)
    killer = threading.Thread(target=kill_at_random, args=(logs, args.between, kills, ended), daemon=True)
    killer.start()
    try:
        outcome = answer_on_ray(LOCAL, task, model)
    finally:
        ended.set()
    if outcome.copied != args.shards:
        raise RuntimeError(f"{outcome} of {args.shards} shards")
    return {int(path.stem): list(map(json.loads, path.read_text().splitlines())) for path in logs.glob("*.log")}, kills


def _with_arguments(folder: str, seconds: float) -> type:
    class Worker(SlowWorker):
        def __init__(self, task: RayTask):
            super().__init__(task, folder, seconds)

    return Worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a shard")
    parser.add_argument("--between", type=float, default=25.0, help="seconds between kills, on average")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        notes, kills = run(Path(folder), args)
    starts = sorted(notes.items(), key=lambda each: each[1][0][0])
    first, last = starts[0][1][0][0], max(note[0] for each in notes.values() for note in each)
    seconds = statistics.median(
        end[0] - start[0] for each in notes.values() for start, end in zip(each[::2], each[1::2], strict=False)
    )
    lost = sum(when - notes[pid][-1][0] for when, pid in kills if notes[pid][-1][1] == "start")
    later = [each[0][0] for _, each in starts[os.cpu_count() :]]  # those that took the place of a killed one
    away = [start - when for (when, _), start in zip(kills, later, strict=False)]
    restart = statistics.mean(away) if away else 0.0
    working = sum(each[-1][0] - each[0][0] for each in notes.values())
    fleet = Fleet(
        images=args.shards, workers=os.cpu_count() or 1, seconds=seconds, shard=1, overhead=0, slow=0, restart=restart
    )
    fleet = replace(fleet, failures=3600 * len(kills) / working)
    simulated = [simulate(fleet, seed) for seed in range(RUNS)]
    walls, losses = sorted(one.seconds for one in simulated), sorted(one.lost for one in simulated)
    low, high = int(0.05 * RUNS), int(0.95 * RUNS)
    print(
        f"{args.shards} shards of {seconds:.2f} s on {fleet.workers} actors, {len(kills)} kills ({fleet.failures:.0f} an hour of an actor), "
        f"{restart:.1f} s until another starts\n"
    )
    rows = [
        [
            "seconds of the run",
            f"{last - first:.1f}",
            f"{statistics.mean(walls):.1f}",
            f"{walls[low]:.1f} to {walls[high]:.1f}",
        ],
        [
            "worker-seconds lost",
            f"{lost:.1f}",
            f"{statistics.mean(losses):.1f}",
            f"{losses[low]:.1f} to {losses[high]:.1f}",
        ],
        ["failures", len(kills), f"{statistics.mean(one.failures for one in simulated):.1f}", ""],
    ]
    print(format_table(["", "measured", f"simulated, mean of {RUNS}", "90 % of the simulated"], rows))


if __name__ == "__main__":
    main()
