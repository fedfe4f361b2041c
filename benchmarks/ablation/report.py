"""The page of results: tables with 95 % intervals, verdicts on the claims, settings, and what the runs took."""

from pathlib import Path

from claims import CLAIMS
from estimates import accuracies, cut, difference, mean, scores, thread_seconds, untrained
from evidence.claims import Finding, adjust, judge
from evidence.records import BASES_FILE, RUNS, Results, load_bases, load_results
from evidence.tables import bracketed, findings_table, markdown, of_planned, plus_minus, summary
from hyperparameters import hyperparameters
from plots import PLOTS, draw, draw_claims
from settings import GROUPS, LAYERS, SEEDS, SLICINGS, WAYS

TITLES = {
    "projectors": "Projectors, one tile per page",
    "steps": "Projectors with two and four times the steps",
    "layers": "LVTC and its controls, one tile per page",
    "slicing": "How pages are cut into tiles",
}
HEADER = [
    "configuration", "accuracy, %", "against the first", "half empty pages, %", "transcription", "questions", "cut, %", "tiles",
    "tokens", "tokens, last layers", "MFLOPs a page", "training, CPU s", "parameters, M", "bases",
]  # fmt: skip


def table(runs: dict[str, list[dict]]) -> str:
    """A Markdown table with a row per configuration. Differences are to the first one."""
    rows: list[list[str]] = []
    for name, records in runs.items():
        first = next(iter(runs))
        gain = None if name == first else difference(records, runs[first])
        rows.append(
            [
                name,
                plus_minus(accuracies(records)),
                bracketed(gain) if gain else "",
                plus_minus(accuracies(records, "half empty")),
                *(plus_minus(accuracies(records, kind=kind)) for kind in ("transcription", "question")),
                cut_cell(records),
                f"{mean(records, 'tiles'):.2f}",
                f"{mean(records, 'tokens'):.1f}",
                f"{mean(records, 'expanded_tokens'):.1f}",
                f"{mean(records, 'forward_mflops'):.0f}",
                f"{mean(records, 'cpu_seconds'):.0f}",
                f"{mean(records, 'parameters') / 1e6:.2f}",
                of_planned(len(records), SEEDS),
            ]
        )
    return markdown(HEADER, rows)


def cut_cell(records: list[dict]) -> str:
    """The shares of the digits that borders of tiles cut, and of windows; both kinds of windows, if LVTC has two."""
    windows = dict.fromkeys(f"{cut(records, borders):.0f}" for borders in ("windows", "expanded windows"))
    return f"{cut(records):.1f} / {' → '.join(windows)}"


def find(results: Results) -> dict[str, list[Finding]]:
    """The findings on all claims by group, adjusted over the whole study. Claims of a group may be about rows of others."""
    runs = results.group({name: row for rows in GROUPS.values() for name, row in rows.items()})
    known = {name: scores(found) for name, found in runs.items()}
    shares = {name: cut(found) for name, found in runs.items()}
    by_group = {group: judge(claims, known, SEEDS, shares) for group, claims in CLAIMS.items()}
    adjusted = iter(adjust([finding for findings in by_group.values() for finding in findings]))
    return {group: [next(adjusted) for _ in findings] for group, findings in by_group.items()}


def knocked_out_table(results: Results) -> str:
    """Accuracy without the image from each layer on. Rows lack until a run of theirs is finished."""
    rows = []
    for name, records in knocked_out(results).items():
        cells = [plus_minus(untrained(records, way)) for way in WAYS[name]]
        rows.append([name, *cells, plus_minus(accuracies(records)), of_planned(len(records), SEEDS)])
    return markdown(["configuration", *(f"layer {k}" for k in range(LAYERS)), "not at all", "bases"], rows)


def knocked_out(results: Results) -> dict[str, list[dict]]:
    rows = {name: row for group in ("projectors", "layers") for name, row in GROUPS[group].items()}
    return results.group({name: rows[name] for name in WAYS if name in rows})


def switches_table(results: Results) -> str:
    """What models that were trained with one slicing read of pages that are cut in another way."""
    rows = []
    for name, records in results.group({name: SLICINGS[name] for name in WAYS if name in SLICINGS}).items():
        for way in WAYS[name]:
            shown = [run["untrained"][way] for run in records]
            cuts, tiles = (sum(found[field] for found in shown) / len(shown) for field in ("cut by tiles", "tiles"))
            own = " (as trained)" * (way == SLICINGS[name].slicing)
            cells = [plus_minus(untrained(records, way)), f"{100 * cuts:.1f}", f"{tiles:.2f}"]
            rows.append([name, way + own, *cells, of_planned(len(records), SEEDS)])
    return markdown(["trained", "asked", "accuracy, %", "cut, %", "tiles", "bases"], rows, left=2)


def thread_hours(results: Results, bases: dict) -> str:
    """The thread-hours of the bases and of each group."""
    parts = [("bases", len(bases), sum(base["cpu_seconds"] for base in bases.values()))]
    for group, rows in GROUPS.items():
        runs = [run for found in results.group(rows).values() for run in found]
        parts.append((TITLES[group], len(runs), thread_seconds(runs)))
    parts.append(("all", sum(count for _, count, _ in parts), sum(seconds for _, _, seconds in parts)))
    rows = [(name, str(count), f"{seconds / 3600:.2f}") for name, count, seconds in parts if count]
    return markdown(("what", "runs", "thread-hours"), rows)


def bases_table(bases: dict) -> str:
    """What each base reads of validation pages, in each way of cutting them that it was trained with."""
    rows = []
    for (pages, number), base in bases.items():
        read = [
            f"{slicing}: " + " / ".join(f"{100 * found['all']:.1f}" for found in kinds.values())
            for slicing, kinds in base["validation"].items()
        ]
        rows.append((pages, str(number), "; ".join(read), f"{base['cpu_seconds']:.0f}"))
    return markdown(("pages", "base", "digits read of dense / half empty validation pages, %", "CPU s"), rows, left=3)


def versions(results: Results) -> str:
    """The versions that the runs were made with."""
    found = {
        ", ".join(f"{name} {v}" for name, v in run["versions"].items())
        for runs in results.rows.values()
        for run in runs
    }
    return "Made with " + "; ".join(sorted(found)) + "." if found else ""


def progress(results: Results) -> str:
    """How much of the study is finished."""
    rows = [configuration for group in GROUPS.values() for configuration in group.values()]
    count, planned = sum(len(results.of(row)) for row in rows), SEEDS * len(rows)
    if count == planned:
        return f"The study is complete: {count} runs of {len(rows)} configurations from {SEEDS} bases."
    return (
        f"**The study is not complete**: {count} of {planned} runs are finished. A row says of how many of {SEEDS} bases its "
        "figures are the mean; a claim has a verdict when all bases are in."
    )


def page(results: Results, bases: dict, findings: dict[str, list[Finding]]) -> str:
    """The text of the page."""
    every = [finding for found in findings.values() for finding in found]
    parts = ["# The paper in miniature: results", INTRODUCTION, progress(results), "## The claims", summary(every)]
    parts += ["![The difference that each claim is about, with its interval](claims.png)", READING]
    for group, title in TITLES.items():
        runs = results.group(GROUPS[group])
        parts += [f"## {title}", table(runs) if runs else "No run is finished."]
        parts.append(findings_table(findings[group]))
        if runs and group in PLOTS:
            parts.append(f"![{PLOTS[group]}]({group}.png)")
    if any(WAYS.keys() & results.group(rows).keys() for rows in GROUPS.values()):
        parts += ["## Which layers look at the image", KNOCKED_OUT, knocked_out_table(results)]
        parts.append(f"![{PLOTS['knocked_out']}](knocked_out.png)")
        parts += ["## Switches without training", SWITCHES, switches_table(results)]
    parts += [
        "## The bases",
        BASES_TEXT,
        bases_table(bases),
        "## What the runs took",
        TIMES,
        thread_hours(results, bases),
    ]
    parts += [versions(results), "## Settings", hyperparameters(results.schedule)]
    return "\n\n".join(filter(None, parts)) + "\n"


def write_report(folder: Path) -> str:
    """Write `README.md` and the plots of the runs in `folder`, and return the text of the page."""
    results, bases = load_results(folder / RUNS), load_bases(folder / BASES_FILE)
    findings = find(results)
    every = {name: row for rows in GROUPS.values() for name, row in rows.items()}
    for name in PLOTS:
        draw(name, results.group(every), folder / f"{name}.png")
    draw_claims(findings, TITLES, folder / "claims.png")
    text = page(results, bases, findings)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


INTRODUCTION = """\
Generated by `make ablation`; no figure in here is typed by hand. What the task is and how to read the results: `docs/ablation.md`. The
rules of the verdicts, written before the runs: [RULES.md](../../evidence/RULES.md). Every run: [runs.json](runs.json). An earlier
study, on pages whose digits lay on the grid of tiles and windows, is in the history of this file.

Accuracy is the share of digits that greedy generation puts in their place on dense pages of handwriting that no training saw, the
mean of transcriptions and of questions. Half of a half empty page is blank. A figure with ± is a mean over bases and half of its 95 %
t-interval; differences, with their interval in brackets, are taken base by base. "Cut" is the share of the digits that borders of tiles
cut / that borders of windows cut (before and after LVTC's expansion). Tokens are visual tokens a page in the first layers of the
language model, and in its last ones after LVTC's expansion; FLOPs are those of one page's forward with its answer, a multiplication and an
addition counted as two."""

READING = """\
Orange: *appears*. Blue: *the other way*. Black: *does not*. Grey: *not told apart*, or bases are missing. Ticks are the
bases, the shaded range is ± the claim's bound; the axis is linear within ± 1 point and logarithmic beyond."""

KNOCKED_OUT = """\
Accuracy when text cannot attend to visual tokens from a layer on, in finished models, without training, on half as many pages. A masked
token takes no softmax mass. From layer 0 on, the model never sees the image: what is left is guessing."""

SWITCHES = """\
A model that was trained with one slicing, asked about pages that are cut in another way or into fewer tiles. It *runs* without
training; whether the answers stay depends on the pages, and has to be measured on one's own."""

BASES_TEXT = "Before a run gives them new projectors: accuracy on validation pages, by slicing."

TIMES = "Computing time of one thread, training and evaluation."
