"""Reading real text with a real language model: train and evaluate the missing runs, then write the tables.

Each run is saved when it is done, and a base every hundred steps, so you can stop and resume, run a part (`--seeds 0`), or share
the work between two processes (`--shard 0/2`, `--shard 1/2`). `--plan` prints what is left.
"""

import argparse
import itertools
import sys
from pathlib import Path
from statistics import fmean

sys.path.append(str(Path(__file__).parents[1]))  # for the package `evidence`

import torch
import transformers
from records import BASES_FILE, RUNS, Records, planned, save_bases, save_runs
from settings import GROUPS, QUICK, SEEDS, RunSchedule

RESULTS = Path("benchmarks/results/documents")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: 0 to 4")
    parser.add_argument(
        "--rows", nargs="+", choices=[name for rows in GROUPS.values() for name in rows], help="default: all"
    )
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
    for number, (group, name, row, seed) in enumerate(planned(args.seeds)):
        if number % parts != part or (args.rows and name not in args.rows) or records.find(row, seed):
            continue
        make_base(args.cache, seed, records.schedule.base)
        records.base(args.cache, seed)
        result = run(row, records.schedule, seed, args.cache)
        records.add(row, seed, result)
        words = ", ".join(
            f"{100 * result[kind]['words']:.1f}" for kind in ("paragraphs", "random_words", "wrong_image")
        )
        seconds = sum(result["cpu_seconds"].values())
        print(f"{group:13} {name:20} seed {seed}: words right {words} % ({seconds:.0f} CPU s)", flush=True)


def plan(records: Records) -> str:
    """A table of the finished and the missing runs of each group, with thread-hours; missing ones are estimated by the others."""
    spent: dict[str, list[float]] = {}
    left: dict[str, int] = {}
    for group, _, row, seed in planned():
        result = records.find(row, seed)
        if result is None:
            left[group] = left.get(group, 0) + 1
        else:
            spent.setdefault(group, []).append(sum(result["cpu_seconds"].values()))
    rows = ["group          finished  thread-hours   left  thread-hours"]
    for group in GROUPS:
        seconds, missing = spent.get(group, []), left.get(group, 0)
        known = seconds or list(itertools.chain(*spent.values()))
        hours = f"{missing * fmean(known) / 3600:13.2f}" if known else f"{'unknown':>13}"
        rows.append(f"{group:13} {len(seconds):9} {sum(seconds) / 3600:13.2f} {missing:6} {hours}")
    return "\n".join(rows)


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a second process helps more than a second thread
    schedule, results = RunSchedule(), args.results or RESULTS
    if args.quick:
        schedule, args.seeds = QUICK, [0]
        args.rows = args.rows or ["N, image downsampled", "PVTC + LVTC + edge"]
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
    save_runs(results / RUNS, records.collect())
    save_bases(results / BASES_FILE, [base for number in range(SEEDS) if (base := records.base(args.cache, number))])
    from report import write_report

    print(write_report(results, args.cache))


if __name__ == "__main__":
    main()
