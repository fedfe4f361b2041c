"""Shared by the benchmarks: alternating timings of several variants, and plain tables."""

import statistics
import time
from collections.abc import Callable

import torch


def time_alternately(
    runs: dict[str, Callable[[], object]], repeats: int = 7, settled: bool = False
) -> dict[str, float]:
    """Median seconds of each run. They alternate, so that disturbances affect all of them.

    On a GPU wall-clock time. On a CPU the time that one thread computes (call `use_one_thread` first): it does not count
    what other programs take away, so the ratios hold on a shared machine.

    Args:
        settled: in each turn, run once before the run that is timed: it takes the memory that the others gave back.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            if settled:
                run()
            _synchronize()
            start = clock()
            run()
            _synchronize()
            if repeat:  # the first round warms up
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def use_one_thread() -> None:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def print_table(header: list[str], rows: list[list[object]]) -> None:
    print(format_table(header, rows), flush=True)


def format_table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, ["-" * width for width in widths], *rows]
    )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
