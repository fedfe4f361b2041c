"""The page of results: tables with 95 % intervals, verdicts on the claims, settings, and what the runs took."""

import json
from pathlib import Path
from statistics import fmean

from claims import CLAIMS
from corpus import PACKAGES, SHARES
from evidence.claims import Finding, adjust, judge
from evidence.intervals import Score
from evidence.tables import findings_table, markdown, of_planned, plus_minus, summary
from language import KEPT_LAYERS
from pages import FACES, LEADING, SIZES
from picture import PICTURE, draw
from records import BASES_FILE, RUNS, Runs, load_runs
from settings import FINE_WINDOW, GROUPS, PATCH, SEEDS, SHAPES, TILE, Row

TITLES = {
    "one_tile": "Pages of one tile",
    "several_tiles": "Pages of one to six tiles",
}
HEADER = [
    "row", "words right, %", "letters right, %", "loss", "random words: words right, %", "another page shown: words right, %",
    "its loss", "tiles", "tokens", "tokens, last layers", "CPU min", "bases",
]  # fmt: skip


def table(group: str, runs: dict[str, list[dict]]) -> str:
    """A Markdown table with a line per row."""
    lines = []
    for name, records in runs.items():
        row, tiles = GROUPS[group][name], fmean(record["paragraphs"]["tiles"] for record in records)
        lines.append(
            [
                name,
                *(plus_minus(percent(records, "paragraphs", kind)) for kind in ("words", "letters")),
                plus_minus([record["paragraphs"]["loss"] for record in records], 2),
                *(plus_minus(percent(records, kind, "words")) for kind in ("random_words", "wrong_image")),
                plus_minus([record["wrong_image"]["loss"] for record in records], 2),
                f"{tiles:.1f}",
                f"{tiles * tokens(row):.0f}",
                f"{tiles * (tokens(row, FINE_WINDOW) if row.lvtc else tokens(row)):.0f}",
                f"{fmean(thread_seconds(record) for record in records) / 60:.1f}",
                of_planned(len(records), SEEDS),
            ]
        )
    return markdown(HEADER, lines)


def percent(records: list[dict], kind: str, measure: str) -> list[float]:
    return [100 * record[kind][measure] for record in records]


def tokens(row: Row, window: int | None = None) -> int:
    """Visual tokens per tile."""
    return (row.tile // PATCH // (window or row.window)) ** 2


def thread_seconds(record: dict) -> float:
    return sum(record["cpu_seconds"].values())


def find(runs: Runs) -> dict[str, list[Finding]]:
    """The findings on all claims by group, adjusted over the whole study. The score of a run is its words right."""
    by_group = {
        group: judge(claims, {name: scores(records) for name, records in runs.get(group, {}).items()}, SEEDS)
        for group, claims in CLAIMS.items()
    }
    adjusted = iter(adjust([finding for findings in by_group.values() for finding in findings]))
    return {group: [next(adjusted) for _ in findings] for group, findings in by_group.items()}


def scores(records: list[dict]) -> list[Score]:
    return [Score(run["seed"], run["base"], 100 * run["paragraphs"]["words"]) for run in records]


def progress(runs: Runs) -> str:
    planned = SEEDS * sum(map(len, GROUPS.values()))
    finished = sum(len(records) for rows in runs.values() for records in rows.values())
    if finished == planned:
        return f"The study is complete: {finished} runs from {SEEDS} bases."
    return f"**The study is not complete**: {finished} of {planned} runs are finished."


def bases_table(bases: list[dict]) -> str:
    header = [
        "base",
        "pages, window M",
        "words right, %",
        "letters right, %",
        "loss",
        "the tower alone: letters named, %",
    ]
    lines = [
        [
            str(base["seed"]),
            name,
            *(f"{100 * found[kind]:.1f}" for kind in ("words", "letters")),
            f"{found['loss']:.2f}",
            f"{100 * base['tower']['validation']['letters_right']:.1f}",
        ]
        for base in bases
        for name, found in base["validation"].items()
    ]
    return markdown(header, lines, left=2)


def costs(runs: Runs, bases: list[dict]) -> str:
    """Thread-hours and peak memory of bases and runs."""
    lines = []
    if bases:
        seconds = sum(base["cpu_seconds"] for base in bases)
        lines.append(["bases", len(bases), seconds, max(base["peak_gigabytes"] for base in bases)])
    for group, rows in runs.items():
        records = [record for found in rows.values() for record in found]
        if records:
            peak = max(record["peak_gigabytes"] for record in records)
            lines.append([TITLES[group].lower(), len(records), sum(map(thread_seconds, records)), peak])
    if lines:
        lines.append(
            ["all", *(sum(line[column] for line in lines) for column in (1, 2)), max(line[3] for line in lines)]
        )
    shown = [[str(name), str(count), f"{seconds / 3600:.2f}", f"{peak:.1f}"] for name, count, seconds, peak in lines]
    return markdown(["what", "trainings", "thread-hours", "peak memory, GB"], shown)


def settings_table(runs: Runs) -> str:
    """All settings of the schedules, from the records; the parts of a schedule within one another are flattened."""
    schedule = next((run["schedule"] for rows in runs.values() for found in rows.values() for run in found), None)
    fixed = {
        "pages of one tile, pixels": f"{TILE}x{TILE}",
        "pages of several tiles, pixels (share)": ", ".join(
            f"{w}x{h} ({share:g})" for (w, h), share in SHAPES.items()
        ),
        "letters": f"{', '.join(FACES)}; {' or '.join(map(str, SIZES))} pixels, lines {LEADING} pixels more",
        "text": f"Python's library and topics, {', '.join(PACKAGES)}; {SHARES['test']} % test, {SHARES['validation']} % validation",
        "layers kept of SmolLM2's 30": ", ".join(map(str, KEPT_LAYERS)),
    }
    fixed |= optimiser()
    named = [[name, value] for name, value in (fixed | (flat("run", schedule) if schedule else {})).items()]
    return markdown(["setting", "value"], named, left=2)


def flat(prefix: str, settings: dict) -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        found |= flat(name, value) if isinstance(value, dict) else {f"{prefix}: {name.replace('_', ' ')}": str(value)}
    return found


def optimiser() -> dict[str, str]:
    """The optimiser's settings, read from the arguments that trainings use."""
    from settings import RunSchedule
    from training import training_arguments

    arguments = training_arguments(Path("unused"), 300, 1, RunSchedule(), False)
    names = (
        "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type",
        "lr_scheduler_kwargs", "warmup_steps", "bf16",
    )  # fmt: skip
    return {
        f"optimiser: {name}": str(getattr(getattr(arguments, name), "value", getattr(arguments, name)))
        for name in names
    }


def page(runs: Runs, bases: list[dict], findings: dict[str, list[Finding]], has_picture: bool) -> str:
    every = [finding for found in findings.values() for finding in found]
    parts = ["# Documents: results", INTRODUCTION, progress(runs)]
    if has_picture:
        parts.append(f"![Pages that no training saw, and what the models read]({PICTURE})")
    parts += ["## The claims", summary(every)]
    for group, title in TITLES.items():
        parts += [f"## {title}", *([table(group, runs[group])] if runs.get(group) else ["No run is finished."])]
        if found := [finding for finding in findings.get(group, []) if finding.differences]:
            parts.append(findings_table(found))
    if bases:
        parts += ["## The bases", BASES_READ, bases_table(bases)]
    parts += ["## What it took", COSTS, costs(runs, bases), "## Settings", settings_table(runs)]
    return "\n\n".join(parts) + "\n"


def write_report(folder: Path, cache: Path) -> str:
    """Write `README.md` of the runs in `folder`, and with the text in `cache` also the picture; return the text of the page."""
    runs, bases = load_runs(folder / RUNS), []
    if (folder / BASES_FILE).exists():
        bases = json.loads((folder / BASES_FILE).read_text(encoding="utf-8"))
    draw(runs, cache, folder / PICTURE)
    text = page(runs, bases, find(runs), (folder / PICTURE).exists())
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


INTRODUCTION = """\
Generated by `make documents`; no figure in here is typed by hand. What the task is and how to read the results: `docs/documents.md`. The
rules of the verdicts, written before the runs: [RULES.md](../../evidence/RULES.md). Every run: [runs.json](runs.json).

"Words right" is 1 − (the fewest words to insert, delete or replace) / (words on the page), over all pages together, where no page
counts less than 0; letters alike. Pages are paragraphs that no training saw, and pages of words in random order, which nobody can
guess. "Another page shown" asks for a page's text with another page in its place: what a model scores there, it has guessed. The
loss is that of the true text in nats per token. A figure with ± is a mean over bases and half of its 95 % t-interval.

Of an earlier study, the runs whose seed has a base of its own are kept; its other runs, rows and claims are in the history of this file.
Its pages begin within a pixel of the corner, so that windows cut letters at the same places on every page; in tiles,
borders cut letters of some slicings more than of others. Claims about slicings are therefore left out."""

BASES_READ = """\
On validation pages, with the base's own projectors, before any run."""

COSTS = """\
Computing time of one thread: that of a base for its tower and its own training, that of a run for training and evaluation."""
