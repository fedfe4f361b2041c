"""Reading real text with a real language model: train and evaluate the missing runs, then write the tables.

Each run is saved when it is done, and a base every hundred steps, so you can stop and resume, run a part (`--seeds 0`), or share
the work between two processes (`--shard 0/2`, `--shard 1/2`). `--plan` prints what is left.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

sys.path.append(str(Path(__file__).parents[1]))  # for the package `evidence`

import torch
import transformers
from evidence.records import BASES_FILE, RUNS, Records, save_bases
from settings import QUICK, ROWS, SEEDS, RunSchedule, base_folder

RESULTS = Path("benchmarks/results/documents")
PAGES = "paragraphs"  # the kind of pages, in the records of bases


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: 0 to 4")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th run, starting with the I-th (default: 0/1)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("out/documents"),
        help="folder for text, language model, bases and runs (default: out/documents)",
    )
    parser.add_argument("--results", type=Path, help=f"folder of the report (default: {RESULTS})")
    parser.add_argument("--bases", nargs="+", type=int, metavar="BASE", help="train these bases, and no run")
    parser.add_argument("--quick", action="store_true", help="a few steps of some rows, with meaningless results")
    parser.add_argument("--plan", action="store_true", help="print the runs that are left and how long they take")
    parser.add_argument("--report-only", action="store_true", help="write the report of the finished runs")
    parser.add_argument(
        "--published",
        action="store_true",
        help=f"count the runs of {RESULTS} as finished: train only what is missing there, and add it",
    )
    args = parser.parse_args()
    if args.published and args.quick:
        parser.error("--published runs have the whole schedule: leave out --quick.")
    return args


def train_missing(records: Records, args: argparse.Namespace) -> None:
    from training import make_base, run

    part, parts = map(int, args.shard.split("/"))
    planned = [(seed, name) for seed in args.seeds for name in args.rows]  # base by base: a stopped study is balanced
    for seed, name in planned[part::parts]:
        row = ROWS[name]
        if records.find(row, seed):
            continue
        records.base(PAGES, seed, make_base(args.cache, seed, records.schedule.base))
        result = run(row, records.schedule, seed, args.cache)
        records.add(row, seed, result)
        words = ", ".join(
            f"{100 * result[kind]['words']:.1f}" for kind in ("paragraphs", "random_words", "wrong_image")
        )
        seconds = sum(result["cpu_seconds"].values())
        print(f"{name:30} seed {seed}: words right {words} % ({seconds:.0f} CPU s)", flush=True)


def plan(records: Records) -> str:
    """What is finished and what is left, with thread-hours; missing runs are estimated by the others."""
    found = [records.find(row, seed) for row in ROWS.values() for seed in range(SEEDS)]
    hours = [sum(run["cpu_seconds"].values()) / 3600 for run in found if run]
    left = len(found) - len(hours)
    estimate = f"{left * fmean(hours):.2f}" if hours else "unknown"
    return f"finished: {len(hours)} runs, {sum(hours):.2f} thread-hours\nleft: {left} runs, {estimate} thread-hours"


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a second process helps more than a second thread
    schedule, results = RunSchedule(), args.results or RESULTS
    if args.quick:
        schedule, args.seeds = QUICK, [0]
        args.rows = ["N, image downsampled", "PVTC + LVTC"] if args.rows == list(ROWS) else args.rows
        results = args.results or args.cache / "quick-results"
    records = Records(args.cache / "runs", schedule, RESULTS if args.published else None)
    if args.plan:
        print(plan(records))
        return
    if args.bases is not None:
        from training import make_base

        for number in args.bases:
            print(make_base(args.cache, number, schedule.base))
        return
    if not args.report_only:
        train_missing(records, args)
    results.mkdir(parents=True, exist_ok=True)
    records.collect(ROWS.values(), range(SEEDS)).save(results / RUNS)
    folders = {number: base_folder(args.cache, number, schedule.base) for number in range(SEEDS)}
    bases = {(PAGES, number): records.base(PAGES, number, folder) for number, folder in folders.items()}
    save_bases(results / BASES_FILE, {name: base for name, base in bases.items() if base is not None})
    from report import write_report

    print(write_report(results, args.cache))


if __name__ == "__main__":
    main()
