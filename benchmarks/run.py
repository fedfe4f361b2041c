"""Run the benchmarks one after another and print a final table with every row's value, target and verdict.

Each script runs in its own process; one that crashes or takes too long counts as a missed row, and the others still run.
Rows go to FOLDER/NAME.json, those of all scripts to FOLDER/all.json. The exit status is 1 if a target is missed.

    python benchmarks/run.py [--full] [--only lvtc pvtc] [--out out/bench] [--timeout 60]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rows import HEADER, Row, read_rows
from timing import print_table

FOLDER = Path(__file__).parent
# Arguments of `--full`, a run for each list; a script without any runs as it does by default.
FULL = {
    "end_to_end": [["--preset", "internvl2-1b", "--dtype", "bfloat16"]],
    "image_processor": [["--repeats", "31"]],
    "lvtc": [["--width", "384", "--tiles", "1", "5"]],
    "pvtc": [[], ["--tiles", "5", "--train"]],
    "trainer": [["--steps", "24"]],
    "training_data": [["--repeats", "11"]],
}


def scripts(folder: Path) -> dict[str, Path]:
    return {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}


def run_script(path: Path, arguments: list[str], result: Path, timeout: float) -> list[Row]:
    """The rows of one script. If it fails, a missed row with the reason, then the rows that it wrote before."""
    result.unlink(missing_ok=True)
    command = [sys.executable, str(path), "--json", str(result), *arguments]
    try:
        status = subprocess.run(command, timeout=timeout).returncode
        why = f"ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        why = f"took more than {timeout / 60:g} minutes"
    rows = read_rows(result) if result.exists() else []
    if not result.exists() and not why:
        why = "wrote no results"
    return [*([failed(why)] if why else []), *rows]


def failed(why: str) -> Row:
    return Row("runs", None, target=0, note=why)


def run_all(chosen: dict[str, Path], out: Path, full: bool, timeout: float) -> dict[str, list[Row]]:
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, path in chosen.items():
        runs = FULL.get(name, [[]]) if full else [[]]
        for number, arguments in enumerate(runs):
            title = " ".join([name, *arguments])
            print(f"== {title}", flush=True)
            start, computed = time.perf_counter(), children_seconds()
            result = out / (f"{name}-{number}.json" if number else f"{name}.json")
            found[title] = run_script(path, arguments, result, timeout)
            minutes, computed = (time.perf_counter() - start) / 60, (children_seconds() - computed) / 60
            print(f"== {title}: {minutes:.1f} minutes, {computed:.1f} of them computing\n", flush=True)
            write_all(found, out / "all.json")
    return found


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_all(found: dict[str, list[Row]], path: Path) -> None:
    listed = {title: [asdict(row) | {"verdict": row.verdict} for row in rows] for title, rows in found.items()}
    path.write_text(json.dumps(listed, indent=1), encoding="utf-8")


def summarize(found: dict[str, list[Row]]) -> int:
    """Print the final table, with missed rows at the end, and return the number of missed targets."""
    order = ("no target", "met", "missed")
    listed = [(title, row) for title, rows in found.items() for row in rows]
    listed.sort(key=lambda each: order.index(each[1].verdict))
    print_table(["benchmark", *HEADER], [[title, *row.cells()] for title, row in listed])
    verdicts = [row.verdict for _, row in listed]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in order))
    return verdicts.count("missed")


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    known = scripts(folder)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="with the arguments of the recorded results (hours)")
    parser.add_argument("--only", nargs="+", choices=list(known), metavar="NAME", help=", ".join(known))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--timeout", type=float, help="minutes for a script (default: 30, with --full 240)")
    args = parser.parse_args(arguments)
    chosen = {name: path for name, path in known.items() if name in (args.only or known)}
    timeout = args.timeout or (240 if args.full else 30)
    return 1 if summarize(run_all(chosen, args.out, args.full, 60 * timeout)) else 0


if __name__ == "__main__":
    sys.exit(main())
