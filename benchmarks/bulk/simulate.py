# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A hundred million images on paper: shards, failures, stragglers, restarts, and what they cost.

    python benchmarks/bulk/simulate.py > benchmarks/results/bulk.md

The simulation has one event per shard. A worker takes the next shard, and finishes it or fails: then the shard goes back to the
queue, as `internvlx answer --ray` starts it anew, and the worker is away until it has restarted. When the driver dies, every shard
in work is lost. Prices come from `internvlx_hf.cost`, with the speed of a GPU as assumed below: no GPU was measured.
"""

import heapq
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))
from timing import format_table

from internvlx_hf.cost import CostModel, load_setup

# An H100 SXM by its data sheet, and shares of it that servers of such models reach; a price that clouds ask for.
FLOPS, FLOPS_SHARE = 989e12, 0.4
BYTES, BYTES_SHARE = 3.35e12, 0.6
DOLLARS = 2.5  # per GPU-hour
BATCH = 64  # answers that are decoded together
TEXT_TOKENS, ANSWER_TOKENS = 64, 128
IMAGES = 10**8
SIZES = ((448, 448), (1024, 768), (1920, 1080), (4032, 3024))
SETTINGS = (
    ("internvl2-2b", "ratio", 12),
    ("internvl2-8b", "ratio", 12),
    ("internvl-x-2b", "edge", 12),
    ("internvl-x-8b", "edge", 12),
)


@dataclass(frozen=True)
class Fleet:
    """Workers, and what happens to them. Times are in seconds, rates per hour.

    Args:
        seconds: of an image on a worker of full speed.
        shard: images of a shard.
        overhead: of a shard, beside its images: reading its records and keys, renaming its file.
        failures: of a worker. After one, it is away for `restart`: a new process that imports and loads the model.
        driver_failures: of the driver. After one, everything is away for `driver_restart`.
        slow, slowness: share of workers that are slower, and by what factor.
    """

    images: int = IMAGES
    workers: int = 64
    seconds: float = 0.25
    shard: int = 1000
    overhead: float = 1.0
    failures: float = 0.02
    restart: float = 180.0
    driver_failures: float = 0.0
    driver_restart: float = 600.0
    slow: float = 0.05
    slowness: float = 1.5

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard)

    @property
    def work(self) -> float:
        """Worker-seconds of the images alone, at full speed."""
        return self.images * self.seconds


@dataclass(frozen=True)
class Run:
    """Wall-clock seconds; worker-seconds of shards that were lost, of restarts, and of waiting for the last shards; failures."""

    seconds: float
    lost: float
    restarting: float
    waiting: float
    failures: int


def simulate(fleet: Fleet, seed: int = 0) -> Run:
    """One run of all shards."""
    random = Random(seed)
    pending = fleet.shards
    factors = [fleet.slowness if n < round(fleet.slow * fleet.workers) else 1.0 for n in range(fleet.workers)]
    driver = _next(random, fleet.driver_failures)
    ends = [(0.0, worker) for worker in range(fleet.workers)]  # when a worker is free
    started: dict[int, tuple[float, float, bool]] = {}  # by worker: start and end of its shard, and whether it fails
    lost = restarting = 0.0
    failures, last, idle = 0, 0.0, {}
    while ends:
        now, worker = heapq.heappop(ends)
        if now >= driver:
            away = driver + fleet.driver_restart
            busy = [(own, start) for own, (start, _, _) in started.items() if start < driver]
            lost += sum(driver - start for _, start in busy)
            restarting += fleet.driver_restart * fleet.workers
            pending += len(busy)
            failures += 1
            started.clear()
            idle.clear()
            ends = [(away, own) for own in range(fleet.workers)]
            driver = away + _next(random, fleet.driver_failures)
            continue
        if worker in started:
            start, end, fails = started.pop(worker)
            if fails:
                lost += now - start
                restarting += fleet.restart
                failures += 1
                pending += 1
                heapq.heappush(ends, (now + fleet.restart, worker))
                for waiting in list(idle):  # one that had nothing to do takes the shard
                    heapq.heappush(ends, (now, waiting))
                    del idle[waiting]
                    break
                continue
            last = end
        if not pending:
            idle[worker] = now
            continue
        pending -= 1
        length = fleet.overhead + fleet.shard * fleet.seconds * factors[worker]
        failure = _next(random, fleet.failures)
        end = now + min(length, failure)
        started[worker] = (now, end, failure < length)
        heapq.heappush(ends, (end, worker))
    return Run(last, lost, restarting, sum(last - since for since in idle.values() if since < last), failures)


def _next(random: Random, rate: float) -> float:
    """Seconds until the next failure at `rate` per hour."""
    return random.expovariate(rate / 3600) if rate else float("inf")


def gpu_seconds(preset: str, slicing: str, max_tiles: int, size: tuple[int, int]) -> tuple[float, int]:
    """GPU-seconds of an image with its answer, and its tiles."""
    setup = load_setup(preset)
    setup = replace(setup, tiling=replace(setup.tiling, slicing=slicing, max_tiles=max_tiles))
    cost = CostModel(setup, TEXT_TOKENS, ANSWER_TOKENS).of_size(*size)
    prefill = cost.prefill_flops / (FLOPS * FLOPS_SHARE)
    read = (ANSWER_TOKENS - 1) * (
        cost.weight_bytes / BATCH + cost.cache_bytes
    )  # a step reads all weights once, and each cache
    decoding = max(read / (BYTES * BYTES_SHARE), cost.answer_flops / (FLOPS * FLOPS_SHARE))
    return prefill + decoding, cost.tiles


def prices() -> Iterator[list[object]]:
    for preset, slicing, most in SETTINGS:
        for size in SIZES:
            seconds, tiles = gpu_seconds(preset, slicing, most, size)
            hours = seconds * 1e6 / 3600
            yield [
                preset,
                slicing,
                f"{size[0]}x{size[1]}",
                tiles,
                f"{hours:.0f}",
                f"{DOLLARS * hours:,.0f}",
                f"{1 / seconds:.1f}",
            ]


def row(name: str, fleet: Fleet, seed: int = 0) -> list[object]:
    run = simulate(fleet, seed)
    total = run.seconds * fleet.workers
    shares = (fleet.shards * fleet.overhead, run.lost, run.restarting, run.waiting)
    return [
        name,
        f"{fleet.shards:,}",
        f"{run.seconds / 3600:.1f}",
        f"{total / fleet.work:.3f}",
        *(f"{part / total:.2%}" for part in shares),
        run.failures,
    ]


HEADER = [
    "",
    "files",
    "hours",
    "worker-hours, of the images' own",
    "overhead",
    "lost",
    "restarts",
    "waiting at the end",
    "failures",
]


def table(title: str, fleets: dict[str, Fleet]) -> tuple[str, str]:
    return f"## {title}", format_table(HEADER, [row(name, fleet) for name, fleet in fleets.items()])


def tables() -> Iterator[tuple[str, str]]:
    base = Fleet()
    shards = (100, 1000, 10_000, 100_000)
    yield table(f"Shards of {IMAGES:,} images", {f"{shard:,} images": replace(base, shard=shard) for shard in shards})
    rates = (0.0, 0.02, 0.1, 0.5, 2.0)
    fleets = {f"{rate:g} an hour": replace(base, failures=rate) for rate in rates}
    yield table("Failures of a worker, in shards of 1,000", fleets)
    slow = ((0.0, 1.0), (0.05, 1.5), (0.05, 5.0), (0.5, 2.0))
    fleets = {
        f"{share:.0%} of workers {by:g} times as slow": replace(base, slow=share, slowness=by) for share, by in slow
    }
    yield table("Stragglers", fleets)
    restarts = ((0.0, 0), (1 / 24, 600), (1 / 4, 600), (1.0, 600))
    fleets = {
        f"{rate:.2g} an hour": replace(base, driver_failures=rate, driver_restart=away) for rate, away in restarts
    }
    yield table("Failures of the driver, ten minutes each", fleets)
    sizes = (16, 64, 256, 1024)
    yield table("Workers", {f"{workers} workers": replace(base, workers=workers) for workers in sizes})


def main() -> None:
    print(
        f"# Bulk answers on paper\n\nSimulated, not measured: `python benchmarks/bulk/simulate.py`.\n\n{base_words()}\n"
    )
    for title, table in tables():
        print(f"{title}\n\n{table}\n")
    print(
        f"## GPU-hours and dollars per million images\n\nFrom `internvlx cost`: {TEXT_TOKENS} tokens of text, {ANSWER_TOKENS} of answer, "
        f"{BATCH} answers decoded together, bfloat16. Assumed, not measured: {FLOPS / 1e12:.0f} TFLOP/s of which {FLOPS_SHARE:.0%}, "
        f"{BYTES / 1e12:.2f} TB/s of which {BYTES_SHARE:.0%}, ${DOLLARS} a GPU-hour.\n"
    )
    print(
        format_table(["model", "slicing", "image", "tiles", "GPU-hours", "dollars", "images a second"], list(prices()))
    )


def base_words() -> str:
    base = Fleet()
    return (
        f"Where a table does not say otherwise: {base.workers} workers of {base.seconds:g} s an image, shards of {base.shard:,} images "
        f"with {base.overhead:g} s of overhead, {base.failures:g} failures of a worker an hour, {base.restart:g} s to restart it, "
        f"{base.slow:.0%} of the workers {base.slowness:g} times as slow."
    )


if __name__ == "__main__":
    main()
