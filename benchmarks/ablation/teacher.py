"""How fast an upgraded model recovers, with and without its source as the teacher, in miniature.

A trained pixel-shuffle model is converted (PVTC, LVTC, or slicing by edge), then trained on new pages. Its accuracy is measured
before the first step and after some. Each run is saved when it is done, so you can stop and resume, or share the work
(`--shard 0/2`, `--shard 1/2`). `--plan` prints what is left. One seed of every row comes before the next seed.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import transformers
from plots import draw_recovery
from settings import OPTIMISER, QUICK, SLICINGS, Schedule, base_folder
from task import BLOCK, Collator, Sample, build_processor, cached_samples
from training import evaluate, in_order_of, make_base, train_row
from transformers import PrinterCallback, TrainerCallback, set_seed

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.distillation import DistillationTrainer
from internvlx_hf.training.trainer import InternVLXTrainer

sys.path.append(str(Path(__file__).parents[1]))
from evidence.claims import Claim, Finding, adjust, judge
from evidence.intervals import Score
from evidence.records import Records
from evidence.tables import findings_table, markdown, plus_minus, summary

RESULTS = Path("benchmarks/results/teacher.md")
SEEDS = 8
NEW_PAGES, SOURCE_PAGES, TEST_PAGES = 200, 0, 1000  # seeds of pages: of these runs, of sources, of tests
RECOVERED = 0.99  # share of the source's accuracy
CLAIM_STEP = 100
# said of the published runs, until this study is run again
PAGES = """\
**These runs are of an earlier study**, on pages whose digits lay on the grid of tiles and windows (PVTC: 4 digits each, LVTC: 16, `edge`: 6
to 48 on one tile or several), with eight seeds over three bases; a claim counts a base once. The study's pages have margins now."""


@dataclass(frozen=True)
class Plan:
    """The training of every run. `schedule` is that of the sources, `checkpoints` are the steps after which accuracy is measured."""

    schedule: Schedule = field(default_factory=Schedule)
    checkpoints: tuple[int, ...] = (0, 25, 50, 100, 200, 400, 800)
    rate: float = 5e-4
    weight: float = 0.5
    temperature: float = 1.0

    @property
    def steps(self) -> int:
        return self.checkpoints[-1]


@dataclass(frozen=True)
class Upgrade:
    """A row: the conversion of a source, as options of `convert_checkpoint`, and whether the source teaches the result."""

    options: dict
    taught: bool
    pages: str
    slicing: str = "whole"  # of the student
    source_slicing: str = "whole"

    def key(self, plan: Plan, seed: int) -> str:
        """A hash of all settings of a run."""
        text = json.dumps([asdict(self), asdict(plan), OPTIMISER, seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# The source has 16 tokens per tile; both upgrades have 4 in the first layers.
CONVERSIONS = {
    "PVTC 16x": ({"projector": "pvtc", "downsample_ratio": 1 / 4}, "one"),
    "LVTC 4 → 16": ({"lvtc": {"downsample_ratio": 1 / 2}, "downsample_ratio": 1 / 4}, "one"),
}
ROWS = {
    f"{name}, {init}{', teacher' * taught}": Upgrade({**options, "init": init}, taught, pages)
    for name, (options, pages) in CONVERSIONS.items()
    for init in ("paper", "warm")
    for taught in (False, True)
} | {
    f"edge{', teacher' * taught}": Upgrade({"slicing": "edge"}, taught, "several", "edge", "ratio")
    for taught in (False, True)
}
CLAIMS = [
    Claim(f"{start}: a teacher helps", f"{start}, teacher", start)
    for start in (*(f"{name}, {init}" for name in CONVERSIONS for init in ("paper", "warm")), "edge")
] + [
    Claim(f"{name}{end}: warm above paper", f"{name}, warm{end}", f"{name}, paper{end}")
    for name in CONVERSIONS
    for end in ("", ", teacher")
]


# -- sources


def source_folder(row: Upgrade, number: int, plan: Plan, cache: Path) -> Path:
    """The trained pixel-shuffle model that is upgraded, with a processor. Those of `edge` were trained with tiles of `ratio`."""
    schedule = plan.schedule
    base = base_folder(row.pages, number, schedule, cache)
    folder = base.with_name(base.name.replace("base-", f"source-{row.source_slicing}-", 1))
    while not (folder / "config.json").exists():
        make_base(row.pages, number, schedule, cache)
        try:
            with atomic_folder(folder) as unfinished:
                if row.source_slicing == "whole":
                    model = InternVLXForConditionalGeneration.from_pretrained(base)
                else:
                    model, *_ = train_row(SLICINGS[row.source_slicing], schedule, number, cache)
                processor = build_processor(row.source_slicing)
                processor.image_seq_length = model.config.image_seq_length
                model.save_pretrained(unfinished)
                processor.save_pretrained(unfinished)
        except (BlockingIOError, FileExistsError):  # another process makes it
            time.sleep(1)
    return folder


# -- runs


class PairCollator:
    """Batches pairs of a student's and a teacher's view of the same page."""

    def __init__(self, student: Collator, teacher: Collator | None):
        self.student, self.teacher = student, teacher

    def __call__(self, pairs: list[tuple[Sample, Sample]]) -> dict:
        own, others = zip(*pairs, strict=True)
        batch = self.student(list(own))
        return batch if self.teacher is None else batch | {"teacher": self.teacher(list(others))}


class MeasureAccuracy(TrainerCallback):
    """Measures the accuracy on test pages after some steps. It draws no random numbers."""

    def __init__(self, checkpoints: tuple[int, ...], measure):
        self.checkpoints, self.measure = checkpoints, measure
        self.found: dict[int, dict] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._measure(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._measure(state.global_step)

    def _measure(self, step: int) -> None:
        if step in self.checkpoints:
            self.found[step] = self.measure()


def run(row: Upgrade, plan: Plan, seed: int, cache: Path, split: str = "test") -> dict:
    """Convert, train and measure; the record of a run."""
    number, schedule = seed, plan.schedule
    source = source_folder(row, number, plan, cache)
    teacher = InternVLXForConditionalGeneration.from_pretrained(source).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        convert_checkpoint(source, Path(folder) / "student", seed=seed, **row.options)
        student = InternVLXForConditionalGeneration.from_pretrained(Path(folder) / "student")
    processor = build_processor(row.slicing)
    collators = [Collator(processor, model.config.image_seq_length) for model in (student, teacher)]

    def samples(kind: str, count: int, slicing: str, pages: int) -> list[Sample]:
        return cached_samples(cache, kind, count, row.pages, slicing, pages, filled=1.0)

    def accuracy(model, slicing: str) -> dict:
        test = samples(split, schedule.test_pages, slicing, TEST_PAGES)
        return evaluate(model, test)

    count = math.ceil(plan.steps * schedule.batch / BLOCK) * BLOCK
    views = [
        in_order_of(seed, samples("train", count, slicing, NEW_PAGES)) for slicing in (row.slicing, row.source_slicing)
    ]
    watch = MeasureAccuracy(plan.checkpoints, lambda: accuracy(student, row.slicing))
    arguments = InternVLXTrainingArguments(
        output_dir=str(cache / f"trainer-{os.getpid()}"),
        max_steps=plan.steps,
        per_device_train_batch_size=schedule.batch,
        train_sampling_strategy="sequential",
        learning_rate=plan.rate,
        logging_steps=max(1, plan.steps // 20),
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=seed,
        # constant after the warm-up, so that the accuracy after n steps is that of a training of n steps, short of its decay
        **OPTIMISER | {"lr_scheduler_type": "constant_with_warmup"},
    )
    common = {
        "args": arguments,
        "train_dataset": list(zip(*views, strict=True)),
        "data_collator": PairCollator(collators[0], collators[1] if row.taught else None),
        "callbacks": [watch],
    }
    set_seed(seed)
    if row.taught:
        trainer = DistillationTrainer(
            student, teacher=teacher, weight=plan.weight, temperature=plan.temperature, **common
        )
    else:
        trainer = InternVLXTrainer(student, **common)
    trainer.remove_callback(PrinterCallback)
    cpu = time.process_time()
    trainer.train()
    names = ("loss", "ce_loss", "teacher_kl")
    return {
        "base": number,
        "source_accuracy": accuracy(teacher, row.source_slicing)["all"],
        "accuracy": {step: found["all"] for step, found in watch.found.items()},
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "logs": [
            {name: round(entry[name], 4) for name in names if name in entry}
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
    }


# -- the report


def planned(seeds: list[int]) -> Iterator[tuple[str, Upgrade, int]]:
    for seed, (name, row) in itertools.product(seeds, ROWS.items()):
        yield name, row, seed


def plan_table(records: Records, seeds: list[int]) -> str:
    """Finished and missing runs of each row, with thread-hours; those of missing runs are the mean of finished ones."""
    spent: dict[str, list[float]] = {name: [] for name in ROWS}
    left = dict.fromkeys(ROWS, 0)
    for name, row, seed in planned(seeds):
        if (record := records.find(row, seed)) is None:
            left[name] += 1
        else:
            spent[name].append(record["cpu_seconds"] / 3600)
    everything = list(itertools.chain(*spent.values()))
    lines = ["row                            finished  thread-hours   left  thread-hours"]
    for name in ROWS:
        known = spent[name] or everything
        todo = left[name] * (statistics.fmean(known) if known else math.nan)
        lines.append(f"{name:30} {len(spent[name]):8} {sum(spent[name]):13.2f} {left[name]:6} {todo:13.2f}")
    return "\n".join(lines)


def recovery(record: dict) -> int | None:
    """The first measured step from which the accuracy stays at 99 % of the source's; None if there is none."""
    enough = RECOVERED * record["source_accuracy"]
    steps = sorted((int(step), share >= enough) for step, share in record["accuracy"].items())
    late = list(itertools.takewhile(lambda entry: entry[1], reversed(steps)))
    return late[-1][0] if late else None


def recovery_text(records: list[dict], plan: Plan) -> str:
    found = [recovery(record) for record in records]
    if not found:
        return ""
    median = statistics.median_high([math.inf if step is None else step for step in found])
    reached = sum(step is not None for step in found)
    text = f"{median:.0f}" if math.isfinite(median) else f"more than {plan.steps}"
    return text if reached == len(found) else f"{text} ({reached} of {len(found)} within {plan.steps})"


def findings(runs: dict[str, list[dict]], step: int = CLAIM_STEP) -> list[Finding]:
    scores = {
        name: [
            Score(record["seed"], record["base"], 100 * share)
            for record in records
            if (share := record["accuracy"].get(str(step))) is not None
        ]
        for name, records in runs.items()
    }
    return adjust(judge(CLAIMS, scores, SEEDS))


def report(runs: dict[str, list[dict]], plan: Plan) -> str:
    """The page of results; an incomplete study renders too."""
    seeds = max(map(len, runs.values()), default=0)
    rows = []
    for name in ROWS:
        records = runs.get(name, [])
        cells = [name, f"{len(records)} of {SEEDS}"]
        cells.append(plus_minus([100 * record["source_accuracy"] for record in records]) if records else "")
        for step in plan.checkpoints:
            values = [100 * record["accuracy"][str(step)] for record in records]
            cells.append(plus_minus(values) if values else "")
        rows.append([*cells, recovery_text(records, plan)])
    state = "" if seeds else " **The study has not been run.**"
    hours = sum(record["cpu_seconds"] for records in runs.values() for record in records) / 3600
    picture = f"\n![Accuracy over steps, with and without a teacher]({RESULTS.stem}.png)\n" if runs else ""
    header = ["upgrade", "seeds", "source", *(f"step {step}" for step in plan.checkpoints), "steps to 99 %"]
    return f"""\
# The way back to quality, in miniature

`python benchmarks/ablation/teacher.py`, {hours:.1f} thread-hours on CPU cores.{state} Generated; do not edit.

{PAGES}

Accuracy in percent on {plan.schedule.test_pages} test pages of handwritten digits, mean and 95 % interval over seeds. A trained
pixel-shuffle model with 16 tokens per tile (for `edge`: 4, trained on the tiles of `ratio`) is converted, then trained on new
pages with all parameters: {plan.steps} steps of
{plan.schedule.batch} pages, AdamW at {plan.rate:g} after the warm-up, constant. `paper` and `warm` are the starts of
`internvlx convert --init`. With a teacher: the source itself, w = {plan.weight:g}, T = {plan.temperature:g}; without: the pages' answers alone.
*Steps to 99 %*: the median over seeds of the first measured step from which accuracy stays at 99 % of the source's.

{markdown(header, rows)}
{picture}
## Claims

About the accuracy after {CLAIM_STEP} steps, by [the rules of the studies](../evidence/RULES.md).

{summary(found := findings(runs))}

{findings_table(found)}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: 0 to 7")
    parser.add_argument("--shard", default="0/1", help="I/N: run only every N-th run, starting with the I-th")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--cache", type=Path, default=Path("out/ablation"), help="that of run.py, with its bases")
    parser.add_argument("--plan", action="store_true", help="print the runs that are left and how long they take")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of the first seed, without a report in benchmarks/"
    )
    parser.add_argument(
        "--pilot", action="store_true", help="measure on validation pages; for seeds from 100, no report"
    )
    args = parser.parse_args()
    if args.pilot != (min(args.seeds) >= 100):
        parser.error(f"--pilot goes with seeds from 100, got {args.seeds}.")
    return args


def main() -> None:
    args = parse_arguments()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # the models are small: a second process helps more than a second thread
    plan, seeds, cache, results = Plan(), args.seeds, args.cache, RESULTS
    if args.quick:
        plan = replace(plan, schedule=QUICK, checkpoints=(0, 2))
        seeds, cache = seeds[:1], cache.with_name(f"{cache.name}-quick")
        results = cache / RESULTS.name
    records = Records(cache / "teacher", plan)
    if args.plan:
        print(plan_table(records, seeds))
        return
    part, parts = map(int, args.shard.split("/"))
    for index, (name, row, seed) in enumerate(planned(seeds)):
        if args.report_only or index % parts != part or name not in args.rows or records.find(row, seed):
            continue
        record = run(row, plan, seed, cache, "validation" if args.pilot else "test")
        records.add(row, seed, record)
        curve = ", ".join(f"{step}: {100 * share:.1f}" for step, share in record["accuracy"].items())
        print(
            f"{name:30} seed {seed}: source {100 * record['source_accuracy']:.1f}; {curve} ({record['cpu_seconds']:.0f} s)"
        )
    if not args.pilot:
        finished = records.collect(ROWS.values(), seeds)
        runs = finished.group(ROWS)
        results.parent.mkdir(parents=True, exist_ok=True)
        if runs:
            finished.save(results.with_suffix(".json"))
            draw_recovery(
                runs, dict.fromkeys(row.split(", ")[0] for row in ROWS), RECOVERED, results.with_suffix(".png")
            )
        results.write_text(report(runs, plan), encoding="utf-8")
        print(results)


if __name__ == "__main__":
    main()
