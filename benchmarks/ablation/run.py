"""The paper's ablations in miniature: train and evaluate the missing runs, then write the tables and plots.

Each run is saved when it is done, and the page is written anew, so you can stop and resume, run parts (`--only slicing --seeds 0`), or
share the work between two processes (`--seeds 0 1 2 3`, `--seeds 4 5 6 7`). `--plan` prints what is left. Runs go base by base: all
rows of a seed before the next seed, so a study that is stopped early is balanced and no base is trained twice.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import transformers

sys.path.append(str(Path(__file__).parents[1]))  # for the package `evidence`
from evidence.records import BASES_FILE, RUNS, Records, save_bases
from report import write_report
from settings import GROUPS, KINDS, QUICK, SEEDS, WAYS, Configuration, Schedule, base_folder

RESULTS = Path("benchmarks/results/ablation")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: 0 to 7")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("out/ablation"),
        help="folder for bases, tiled pages and runs (default: out/ablation)",
    )
    parser.add_argument("--results", type=Path, help=f"folder of the report (default: {RESULTS})")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of one or two configurations per group, into out/"
    )
    parser.add_argument("--plan", action="store_true", help="print the runs that are left and how long they take")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument(
        "--pilot", action="store_true", help="measure on validation pages; for seeds from 100, no report"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="count the runs of benchmarks/results as finished: train only what is missing there, and add it",
    )
    args = parser.parse_args()
    if args.pilot != (min(args.seeds) >= 100):
        parser.error(f"--pilot goes with seeds from 100, got {args.seeds}.")
    if args.published and (args.quick or args.pilot):
        parser.error("--published runs have the whole schedule and test pages: leave out --quick and --pilot.")
    return args


def planned(groups: dict, seeds: list[int]) -> list[tuple[str, str, Configuration, int]]:
    """(group, row, configuration, seed) of all runs in their order."""
    return [
        (group, name, configuration, seed)
        for seed in seeds
        for group, rows in groups.items()
        for name, configuration in rows.items()
    ]


def train_missing(records: Records, groups: dict, seeds: list[int], cache: Path, split: str, publish) -> None:
    from training import make_base, run

    for group, name, configuration, seed in planned(groups, seeds):
        if records.find(configuration, seed) is not None:
            continue
        records.base(configuration.pages, seed, make_base(configuration.pages, seed, records.schedule, cache))
        start = time.perf_counter()
        result = run(configuration, records.schedule, seed, cache, split, WAYS.get(name, ()))
        records.add(configuration, seed, result)
        read = ", ".join(f"{kind} {100 * accuracy['all']:.1f}" for kind, accuracy in result["accuracy"].items())
        print(
            f"{group:10} {name:32} seed {seed}: {read} % ({result['cpu_seconds']:.0f} s training, "
            f"{time.perf_counter() - start:.0f} s in all)",
            flush=True,
        )
        publish()


def plan(records: Records, groups: dict, seeds: list[int]) -> str:
    """A table of the finished and the missing runs of each group, with thread-hours; estimates for those that are missing.

    A missing run is estimated by the finished runs of its row, else of its group, else by all.
    """
    spent: dict[tuple, list[float]] = defaultdict(list)
    left = []
    for group, name, configuration, seed in planned(groups, seeds):
        if (result := records.find(configuration, seed)) is None:
            left.append((group, name))
        else:
            for key in ((group, name), (group,), ()):
                spent[key].append(result["cpu_seconds"] + result["evaluation_seconds"])
    estimates = defaultdict(list)
    for group, name in left:
        known = spent.get((group, name)) or spent.get((group,)) or spent.get(())
        estimates[group].append(statistics.fmean(known) if known else math.nan)
    rows = ["group        finished  thread-hours   left  thread-hours"]
    for group in [*groups, "all"]:
        done = spent[() if group == "all" else (group,)]
        todo = list(itertools.chain(*estimates.values())) if group == "all" else estimates[group]
        rows.append(f"{group:11} {len(done):9} {sum(done) / 3600:13.2f} {len(todo):6} {sum(todo) / 3600:13.2f}")
    return "\n".join(rows)


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the models are small: a second process helps more than a second thread
    schedule, groups, seeds, results = Schedule(), {name: GROUPS[name] for name in args.only}, args.seeds, args.results
    if args.quick:
        schedule, seeds, args.cache = QUICK, [0], args.cache.with_name(f"{args.cache.name}-quick")
        groups = {name: dict(list(group.items())[-2:]) for name, group in groups.items()}
        results = results or args.cache / "results"
    results = results or RESULTS
    runs = "pilots" if args.pilot else "runs"
    records = Records(args.cache / runs, schedule, RESULTS if args.published else None)
    if args.plan:
        print(plan(records, groups, seeds))
        return

    def publish() -> None:
        if not args.pilot:
            save_results(results, records, groups if args.quick else GROUPS, args.cache)
            write_report(results)

    if not args.report_only:
        train_missing(records, groups, seeds, args.cache, "validation" if args.pilot else "test", publish)
    publish()
    print(results / "README.md")


def save_results(folder: Path, records: Records, groups: dict, cache: Path) -> None:
    """Write the finished runs and the records of their bases to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    configurations = [configuration for group in groups.values() for configuration in group.values()]
    records.collect(configurations, range(SEEDS)).save(folder / RUNS)
    bases = {
        (pages, seed): records.base(pages, seed, base_folder(pages, seed, records.schedule, cache))
        for seed in range(SEEDS)
        for pages in KINDS
    }
    save_bases(folder / BASES_FILE, {key: base for key, base in bases.items() if base is not None})


if __name__ == "__main__":
    main()
