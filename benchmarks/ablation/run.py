"""The paper's ablations in miniature: train and evaluate the missing runs, then write the tables and plots.

Each run is saved when it is done, so you can stop and resume, run parts (`--only table2 --seeds 0`), or share the work
between two processes (`--shard 0/2`, `--shard 1/2`). `--plan` prints what is left. Rows that a claim needs come first, all of
them with one seed before the next, so a study that is stopped early is balanced.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from claims import SEEDS, seeds_of
from records import BASES_FILE, RUNS, Records, base_record, save_bases
from report import write_report
from settings import BASES, GROUPS, QUICK, Configuration, Schedule, settings_of

RESULTS = Path("benchmarks/results/ablation")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: 0 to 7")
    parser.add_argument(
        "--shard", default="0/1", help="I/N: run only every N-th missing run, starting with the I-th (default: 0/1)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("out/ablation"),
        help="folder for bases, tiled pages and runs (default: out/ablation)",
    )
    parser.add_argument("--results", type=Path, help=f"folder of the report (default: {RESULTS})")
    parser.add_argument("--stage2-steps", type=int, help="steps of stage 2 in another schedule; needs --results")
    parser.add_argument(
        "--configurations", nargs="+", metavar="NAME", help="run only these configurations of the groups"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of one or two configurations per group, into out/"
    )
    parser.add_argument("--plan", action="store_true", help="print the runs that are left and how long they take")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument(
        "--published",
        action="store_true",
        help="count the runs of benchmarks/results as finished: train only what is missing there, and add it",
    )
    args = parser.parse_args()
    if (args.stage2_steps or args.configurations) and not args.results:
        parser.error("--stage2-steps and --configurations need --results: these would not be the published tables.")
    if args.published and (args.quick or args.stage2_steps):
        parser.error("--published runs have the whole schedule: leave out --quick and --stage2-steps.")
    return args


def planned(groups: dict, seeds: list[int]) -> list[tuple[str, str, Configuration, int]]:
    """(group, row, configuration, seed) of all runs in their order. Equal configurations of two groups are one run."""
    rows = [(group, name, configuration) for group, rows in groups.items() for name, configuration in rows.items()]
    counts = [seeds_of(configuration) for _, _, configuration in rows]
    runs = {}
    for only_claims, seed in itertools.product((True, False), seeds):
        for (group, name, configuration), count in zip(rows, counts, strict=True):
            if seed < count and (count == max(counts) or not only_claims):
                runs.setdefault((json.dumps(settings_of(configuration)), seed), (group, name, configuration, seed))
    return list(runs.values())


def pages_of_families(configurations: Iterable[Configuration]) -> dict[str, list[str]]:
    """The kinds of pages for which each family needs bases."""
    kinds: dict[str, dict[str, None]] = defaultdict(dict)
    for configuration in configurations:
        kinds[configuration.family][configuration.pages] = None
    return {family: list(pages) for family, pages in kinds.items()}


def train_missing(records: Records, groups: dict, seeds: list[int], shard: str, cache: Path) -> None:
    from training import base_folder, make_bases, run

    part, parts = map(int, shard.split("/"))
    missing = [run for run in planned(groups, seeds) if records.find(*run[2:]) is None]
    kinds_of = pages_of_families(configuration for _, _, configuration, _ in missing)
    for group, name, configuration, seed in missing:
        if records.path(configuration, seed).exists():  # another process has trained it
            continue
        for family, kinds in kinds_of.items():
            bases = [(kind, seed % BASES) for kind in kinds]
            make_bases(bases, records.schedule, cache, family)
            for base in bases:
                folder = base_folder(*base, records.schedule, cache, family)
                base_record(folder, records.published_bases.get((family, *base)))
        if int(configuration.key(records.schedule, 0), 16) % parts != part:
            continue
        start = time.perf_counter()
        result = run(configuration, records.schedule, seed, cache)
        records.add(configuration, seed, result)
        accuracy = ", ".join(f"{100 * result['accuracy'][kind]:.1f}" for kind in ("all", "transcription", "question"))
        print(
            f"{group:11} {name:22} seed {seed}: {accuracy} % ({result['cpu_seconds']:.0f} s training, "
            f"{time.perf_counter() - start:.0f} s in all)",
            flush=True,
        )


def seconds(result: dict) -> float:
    return result["cpu_seconds"] + result["evaluation_seconds"]


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
                spent[key].append(seconds(result))
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
    if args.configurations:
        groups = {g: {n: c for n, c in group.items() if n in args.configurations} for g, group in groups.items()}
    if args.quick:
        schedule, seeds, args.cache = QUICK, [0], args.cache.with_name(f"{args.cache.name}-quick")
        groups = {name: dict(list(group.items())[-2:]) for name, group in groups.items()}
        results = results or args.cache / "results"
    if args.stage2_steps:
        schedule = replace(schedule, stage2_steps=args.stage2_steps)
    results = results or RESULTS
    records = Records(args.cache / "runs", schedule, RESULTS if args.published else None)
    if args.plan:
        print(plan(records, groups, seeds))
        return
    if not args.report_only:
        train_missing(records, groups, seeds, args.shard, args.cache)
    shown = groups if args.quick or args.configurations else GROUPS  # `--only` trains a part, the page has everything
    save_results(results, records, shown, args.cache)
    print(write_report(results))


def save_results(folder: Path, records: Records, groups: dict, cache: Path) -> None:
    """Write the finished runs and the records of their bases to files in `folder`."""
    from training import base_folder

    folder.mkdir(parents=True, exist_ok=True)
    configurations = [configuration for group in groups.values() for configuration in group.values()]
    records.collect(configurations, range(SEEDS)).save(folder / RUNS)
    folders = {
        (family, kind, number): base_folder(kind, number, records.schedule, cache, family)
        for family, kinds in pages_of_families(configurations).items()
        for kind in kinds
        for number in range(BASES)
    }
    save_bases(folder / BASES_FILE, folders, records.published_bases)


if __name__ == "__main__":
    main()
