"""The page of results: tables with 95 % intervals, verdicts on the claims, settings, and what the runs took."""

from pathlib import Path
from statistics import fmean

from claims import CLAIMS
from corpus import PACKAGES, SHARES
from evidence.claims import Finding, adjust, judge
from evidence.intervals import Score
from evidence.records import BASES_FILE, RUNS, load_bases, load_results
from evidence.tables import findings_table, markdown, of_planned, plus_minus, summary
from language import KEPT_LAYERS
from pages import FACES
from picture import PICTURE, draw
from settings import PATCH, ROWS, SEEDS, Row, RunSchedule

HEADER = [
    "row", "words right, %", "letters right, %", "loss", "random words: words right, %", "another page shown: words right, %",
    "its loss", "cut, %", "tokens", "tokens, last layers", "CPU min", "bases",
]  # fmt: skip
Runs = dict[str, list[dict]]  # the finished runs of each row


def table(runs: Runs) -> str:
    """A Markdown table with a line per row."""
    lines = []
    for name, records in runs.items():
        windows = dict.fromkeys(
            f"{100 * records[0][f'cut by {kind}']:.0f}" for kind in ("windows", "expanded windows")
        )
        lines.append(
            [
                name,
                *(plus_minus(percent(records, "paragraphs", kind)) for kind in ("words", "letters")),
                plus_minus([record["paragraphs"]["loss"] for record in records], 2),
                *(plus_minus(percent(records, kind, "words")) for kind in ("random_words", "wrong_image")),
                plus_minus([record["wrong_image"]["loss"] for record in records], 2),
                "0 / " + " → ".join(windows),  # a page is one tile
                *(str(tokens(ROWS[name], window)) for window in (ROWS[name].window, ROWS[name].expanded_window)),
                f"{fmean(thread_seconds(record) for record in records) / 60:.1f}",
                of_planned(len(records), SEEDS),
            ]
        )
    return markdown(HEADER, lines)


def percent(records: list[dict], kind: str, measure: str) -> list[float]:
    return [100 * record[kind][measure] for record in records]


def tokens(row: Row, window: int) -> int:
    """Visual tokens of a page."""
    return (row.tile // PATCH // window) ** 2


def thread_seconds(record: dict) -> float:
    return sum(record["cpu_seconds"].values())


def find(runs: Runs) -> list[Finding]:
    """The findings on all claims, adjusted over the whole study. The score of a run is its words right."""
    return adjust(judge(CLAIMS, {name: scores(records) for name, records in runs.items()}, SEEDS))


def scores(records: list[dict]) -> list[Score]:
    return [Score(run["seed"], run["base"], 100 * run["paragraphs"]["words"]) for run in records]


def progress(runs: Runs) -> str:
    planned, finished = SEEDS * len(ROWS), sum(map(len, runs.values()))
    if finished == planned:
        return f"The study is complete: {finished} runs from {SEEDS} bases."
    return f"**The study is not complete**: {finished} of {planned} runs are finished."


def bases_table(bases: dict) -> str:
    header = ["base", "window", "words right, %", "letters right, %", "loss"]
    lines = [
        [
            str(number),
            name,
            *(f"{100 * found[kind]:.1f}" for kind in ("words", "letters")),
            f"{found['loss']:.2f}",
        ]
        for (_, number), base in bases.items()
        for name, found in base["validation"].items()
    ]
    return markdown(header, lines, left=2)


def costs(runs: Runs, bases: dict) -> str:
    """Thread-hours and peak memory of bases and runs."""
    trained = {
        "bases": [(base["cpu_seconds"], base["peak_gigabytes"]) for base in bases.values()],
        "runs": [(thread_seconds(run), run["peak_gigabytes"]) for records in runs.values() for run in records],
    }
    trained["all"] = [*trained["bases"], *trained["runs"]]
    rows = [
        [
            name,
            str(len(found)),
            f"{sum(seconds for seconds, _ in found) / 3600:.2f}",
            f"{max(peak for _, peak in found):.1f}",
        ]
        for name, found in trained.items()
        if found
    ]
    return markdown(["what", "trainings", "thread-hours", "peak memory, GB"], rows)


def settings_table(runs: Runs) -> str:
    """All settings of the schedules, from the records; the parts of a schedule within one another are flattened."""
    schedule = next((run["schedule"] for found in runs.values() for run in found), None)
    fixed = {
        "typefaces": ", ".join(FACES),
        "text": f"plain words of Python's library and topics, {', '.join(PACKAGES)}; {SHARES['test']} % test, {SHARES['validation']} % validation",
        "layers kept of SmolLM2's 30": ", ".join(map(str, KEPT_LAYERS)),
    }
    fixed |= optimiser()
    named = [
        [name, value.replace("|", r"\|")]
        for name, value in (fixed | (flat("run", schedule) if schedule else {})).items()
    ]
    return markdown(["setting", "value"], named, left=2)


def flat(prefix: str, settings: dict) -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        found |= flat(name, value) if isinstance(value, dict) else {f"{prefix}: {name.replace('_', ' ')}": str(value)}
    return found


def optimiser() -> dict[str, str]:
    """The optimiser's settings, read from the arguments that trainings use."""
    from training import training_arguments

    schedule = RunSchedule()
    arguments = training_arguments(Path("unused"), schedule.steps, schedule.batch, schedule, False)
    names = (
        "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type",
        "lr_scheduler_kwargs", "warmup_steps", "bf16",
    )  # fmt: skip
    return {
        f"optimiser: {name}": str(getattr(getattr(arguments, name), "value", getattr(arguments, name)))
        for name in names
    }


def page(runs: Runs, bases: dict, has_picture: bool) -> str:
    findings = find(runs)
    parts = ["# Documents: results", INTRODUCTION, progress(runs)]
    if has_picture:
        parts.append(f"![Pages that no training saw, and what the models read]({PICTURE})")
    parts += ["## The claims", summary(findings), findings_table(findings)]
    parts += ["## The rows", table(runs) if runs else "No run is finished."]
    if bases:
        parts += ["## The bases", BASES_READ, bases_table(bases)]
    parts += ["## What it took", COSTS, costs(runs, bases), "## Settings", settings_table(runs)]
    return "\n\n".join(parts) + "\n"


def read(folder: Path) -> tuple[Runs, dict]:
    """The finished runs of each row, and the records of their bases."""
    return load_results(folder / RUNS).group(ROWS), load_bases(folder / BASES_FILE)


def write_report(folder: Path, cache: Path) -> str:
    """Write `README.md` of the runs in `folder`, and with the text in `cache` also the picture; return the text of the page."""
    runs, bases = read(folder)
    draw(runs, cache, folder / PICTURE)
    text = page(runs, bases, (folder / PICTURE).exists())
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


INTRODUCTION = """\
Generated by `make documents`; no figure in here is typed by hand. What the task is and how to read the results: `docs/documents.md`. The
rules of the verdicts, written before the runs: [RULES.md](../../evidence/RULES.md). Every run: [runs.json](runs.json).

"Words right" is 1 − (the fewest words to insert, delete or replace) / (words on the page), over all pages together, where no page
counts less than 0; letters alike. Pages are paragraphs that no training saw, and pages of words in random order, which nobody can
guess. "Another page shown" asks for a page's text with another page in its place: what a model scores there, it has guessed. The
loss is that of the true text in nats per token. A figure with ± is a mean over bases and half of its 95 % t-interval.

"Cut" is the share of the letters that borders of tiles cut (none: a page is one tile) / that borders of windows cut (before and after
LVTC's expansion). An earlier study, whose texts began within a pixel of the corner, is in the history of this file."""

BASES_READ = """\
On validation pages, with the base's own projectors, before any run."""

COSTS = """\
Computing time of one thread: that of a base for its tower and its own training, that of a run for training and evaluation."""
