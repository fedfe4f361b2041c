"""The page of results: tables with 95 % intervals, verdicts on the claims, settings, and what the runs took."""

import json
from pathlib import Path

from claims import CLAIMS, SEEDS, seeds_of
from estimates import accuracies, difference, mean, scores, thread_seconds
from evidence import experiments
from evidence.claims import ABOVE, Finding, adjust, judge
from evidence.intervals import Interval
from evidence.tables import bracketed, findings_table, markdown, of_planned, plus_minus, read_tables, summary, verdict
from experiments import EXPERIMENTS
from hyperparameters import hyperparameters
from plots import PLOTS, draw, draw_claims
from records import BASES_FILE, RUNS, Results, load_results
from settings import FAMILIES, GAINS, GROUPS, REPEATED, row_of

TITLES = {
    "table2": "Table 2: PVTC and LVTC, alone and together, one tile per page",
    "denser": "Table 2 on denser pages, which 4N tokens do not hold, one tile per page",
    "attribution": "Table 2: all three methods, alone and together, pages of several tiles",
    "table3": "Table 3: PVTC's queries, its CLS scale and its layers",
    "table4": "Table 4: LVTC's parts",
    "table5": "Table 5: how pages are cut into tiles",
    "figure7": "Figure 7: projectors and baselines at 64x, 16x and 4x compression",
    "k_curve": "Figure 8, right: the layer k at which tokens are expanded, or merged",
    "figure8": "Figure 8, left: LVTC's M₁ and M₂",
    "longer": "Rows of Tables 2 and 5 with three times the steps",
    "families": "Other families: the three methods in a LLaVA, and with a tower without CLS token",
}
# rows of the attribution, and what bench_end_to_end.py calls them
END_TO_END = {
    "Base": "InternVL", "+ PVTC": "PVTC", "+ LVTC": "LVTC", "+ RVTC": "RVTC", "+ PVTC + LVTC": "PVTC + LVTC",
    "+ PVTC + RVTC": "PVTC + RVTC", "+ LVTC + RVTC": "LVTC + RVTC", "Full model": "PVTC + LVTC + RVTC",
}  # fmt: skip
COSTS, MEASURED = "end_to_end_factorial.md", ("first token s", "peak GiB")
HEADER = [
    "configuration", "accuracy, %", "against the first", "transcription", "questions", "pages, all right", "tiles",
    "tokens", "tokens, stage two", "MFLOPs a page", "training, CPU s", "parameters, M", "seeds",
]  # fmt: skip


def table(group: str, runs: dict[str, list[dict]]) -> str:
    """A Markdown table with a row per configuration. Differences are to the first one of its family and kind of page."""
    rows: list[list[str]] = []
    firsts: dict[tuple[str, str], str] = {}
    for name, records in runs.items():
        configuration = GROUPS[group][name]
        first = firsts.setdefault((configuration.family, configuration.pages), name)
        gain = None if name == first else difference(records, runs[first])
        rows.append(
            [
                name,
                plus_minus(accuracies(records)),
                bracketed(gain) if gain else "",
                *(plus_minus(accuracies(records, kind)) for kind in ("transcription", "question")),
                plus_minus(accuracies(records, "transcription_exact")),
                f"{mean(records, 'tiles'):.2f}",
                f"{mean(records, 'tokens'):.1f}",
                f"{mean(records, 'expanded_tokens'):.1f}",
                f"{mean(records, 'forward_mflops'):.0f}",
                f"{mean(records, 'cpu_seconds'):.0f}",
                f"{mean(records, 'parameters') / 1e6:.2f}",
                of_planned(len(records), seeds_of(configuration)),
            ]
        )
    return markdown(HEADER, rows)


def find(results: Results) -> dict[str, list[Finding]]:
    """The findings on all claims by group, adjusted over the whole study."""
    by_group = {
        group: judge(claims, {row: scores(runs) for row, runs in results.group(GROUPS[group]).items()}, SEEDS)
        for group, claims in CLAIMS.items()
    }
    adjusted = iter(adjust([finding for findings in by_group.values() for finding in findings]))
    return {group: [next(adjusted) for _ in findings] for group, findings in by_group.items()}


def thread_hours(results: Results, bases: list[dict]) -> str:
    """The thread-hours of each group. A run that several groups share counts in the first of them."""
    rows, counted, total, seconds = [], set(), 0, 0.0
    if bases:
        seconds = sum(base["cpu_seconds"] for base in bases)
        rows.append(("bases", str(len(bases)), f"{seconds / 3600:.2f}"))
    for group, configurations in GROUPS.items():
        names = {results.key(configuration) for configuration in configurations.values()} - counted
        counted |= names
        runs = [run for name in names for run in results.rows.get(name, [])]
        if runs:
            rows.append((TITLES[group], str(len(runs)), f"{thread_seconds(runs) / 3600:.2f}"))
            seconds += thread_seconds(runs)
            total += len(runs)
    rows.append(("all", str(len(bases) + total), f"{seconds / 3600:.2f}"))
    return markdown(("what", "runs", "thread-hours"), rows)


def bases_table(bases: list[dict]) -> str:
    """What each base reads of validation pages, in each way of cutting them and with each window that it was trained with."""
    rows = []
    for base in bases:
        read = [f"{name}: {100 * shares['all']:.1f}" for name, shares in base["validation"].items()]
        rows.append((base["family"], base["pages"], str(base["number"]), "; ".join(read)))
    return markdown(("family", "pages", "base", "digits read of validation pages, %"), rows, left=4)


def versions(results: Results) -> str:
    """The versions that the runs were made with."""
    found = {
        ", ".join(f"{name} {v}" for name, v in run["versions"].items())
        for runs in results.rows.values()
        for run in runs
    }
    return "Made with " + "; ".join(sorted(found)) + "." if found else ""


def finished(results: Results) -> list[str]:
    """The groups whose runs are all there; all groups where none is, as after a quick run."""
    groups = [
        group for group, rows in GROUPS.items() if all(len(results.of(row)) >= seeds_of(row) for row in rows.values())
    ]
    return groups or list(GROUPS)


def progress(results: Results, groups: list[str]) -> str:
    """How much of the study is finished, and which groups the page leaves out."""
    planned = {
        results.key(configuration): seeds_of(configuration)
        for configurations in GROUPS.values()
        for configuration in configurations.values()
    }
    count = sum(min(len(results.rows.get(name, [])), seeds) for name, seeds in planned.items())
    if count == sum(planned.values()):
        return f"The study is complete: {count} runs of {len(planned)} configurations."
    lines = [f"**The study is not complete**: {count} of {sum(planned.values())} runs are finished."]
    if left_out := [f"- {title}" for group, title in TITLES.items() if group not in groups]:
        lines += ["", "No figure is given before all runs of a table are there. These are missing:", "", *left_out]
    return "\n".join(lines)


def attribution(results: Results, measured: str) -> str:
    """Each method alone and together: accuracy, tokens and FLOPs here, time and memory from the end-to-end benchmark's table."""
    costs = {(row["image"], row["case"]): row for row in read_tables(measured) if "case" in row}
    images = list(dict.fromkeys(image for image, _ in costs))
    rows = []
    for name, records in results.group(GROUPS["attribution"]).items():
        case = END_TO_END[name]
        rows.append(
            [
                case,
                plus_minus(accuracies(records)),
                f"{mean(records, 'tokens'):.1f}",
                f"{mean(records, 'expanded_tokens'):.1f}",
                f"{mean(records, 'forward_mflops'):.0f}",
                *(costs.get((image, case), {}).get(field, "") for image in images for field in MEASURED),
            ]
        )
    header = ["methods", "digits read, %", "tokens", "tokens, stage two", "MFLOPs a page"]
    return markdown(header + [f"{field}, {image}" for image in images for field in MEASURED], rows)


def families_table(results: Results, findings: dict[str, list[Finding]]) -> str:
    """The rows that all families have: accuracies, what each gains over its family's N tokens or one tile, and the verdict."""
    rows = []
    for name in REPEATED:
        cells = [name]
        for family in FAMILIES:
            group, row = row_of(family, name)
            runs = results.of(GROUPS[group][row])
            cells.append(plus_minus(accuracies(runs)) if runs else "")
            cells.append(gain_of(results, findings.get(group, []), family, name) if name in GAINS and runs else "")
        rows.append(cells)
    return markdown(["", *(cell for family in FAMILIES for cell in (f"{family}, %", f"{family}: gain"))], rows)


def gain_of(results: Results, findings: list[Finding], family: str, name: str) -> str:
    """A row's gain over the row that `GAINS` names, with the verdict of the claim about it, if there is one."""
    (group, row), (_, other) = row_of(family, name), row_of(family, GAINS[name])
    known = difference(results.of(GROUPS[group][row]), results.of(GROUPS[group][other]))
    claimed = [f for f in findings if (f.claim.kind, f.claim.better, f.claim.worse) == (ABOVE, row, other)]
    return ", ".join([bracketed(known) if known else "", *(verdict(finding) for finding in claimed)])


def experiments_table(results: Results, findings: dict[str, list[Finding]], groups: list[str]) -> str:
    """The claims of `groups` that do not appear, with the experiments whose rows are in `groups`."""

    def compare(better: tuple[str, str], worse: tuple[str, str]) -> Interval | None:
        if not {better[0], worse[0]} <= set(groups):
            return None
        return difference(*(results.of(GROUPS[group][row]) for group, row in (better, worse)))

    return experiments.experiments_table(
        {name: findings.get(name, []) for name in groups}, EXPERIMENTS, compare, TITLES
    )


def page(results: Results, bases: list[dict], findings: dict[str, list[Finding]], measured: str = "") -> str:
    """The text of the page. `measured` is the end-to-end benchmark's page."""
    groups = finished(results)
    every = [finding for group in groups for finding in findings.get(group, [])]
    parts = [
        "# The paper in miniature: results",
        INTRODUCTION,
        progress(results, groups),
        "## The claims",
        summary(every),
    ]
    parts += ["![The difference that each claim is about, with its interval](claims.png)", READING]
    if any(finding.is_complete for finding in every):
        parts += ["## Where a claim does not appear", experiments.TEXT, experiments_table(results, findings, groups)]
    if "attribution" in groups and results.group(GROUPS["attribution"]):
        parts += ["## Attribution: each method alone and together", attribution(results, measured)]
        parts.append(ATTRIBUTION + (f" {MEASUREMENT}" if measured else ""))
    for group, title in TITLES.items():
        if group not in groups or not (runs := results.group(GROUPS[group])):
            continue
        parts.append(f"## {title}")
        if group == "families":
            parts += [FAMILIES_TEXT, families_table(results, findings), COSTS_OF_FAMILIES]
        parts.append(table(group, runs))
        if found := [finding for finding in findings.get(group, []) if finding.differences]:
            parts.append(findings_table(found))
        if group in PLOTS:
            parts.append(f"![{PLOTS[group]}]({group}.png)")
    if bases:
        parts += ["## The bases", BASES_TEXT, bases_table(bases)]
    parts += [
        "## What the runs took",
        TIMES,
        thread_hours(results, bases),
        versions(results),
        "## Settings",
        hyperparameters(results.schedule),
    ]
    return "\n\n".join(parts) + "\n"


def write_report(folder: Path) -> str:
    """Write `README.md` and the plots of the runs in `folder`, and return the text of the page."""
    results, bases = load_results(folder / RUNS), []
    groups = finished(results)
    if (folder / BASES_FILE).exists():
        bases = json.loads((folder / BASES_FILE).read_text(encoding="utf-8"))
    findings = find(results)
    for group in PLOTS:
        if group in groups and (runs := results.group(GROUPS[group])):
            draw(group, runs, folder / f"{group}.png")
    draw_claims({group: found for group, found in findings.items() if group in groups}, TITLES, folder / "claims.png")
    costs = folder.parent / COSTS
    text = page(results, bases, findings, costs.read_text(encoding="utf-8") if costs.exists() else "")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


INTRODUCTION = """\
Generated by `make ablation`; no figure in here is typed by hand. What the task is and how to read the results: `docs/ablation.md`. The
rules of the verdicts, written before the runs: [RULES.md](../../evidence/RULES.md). Every run: [runs.json](runs.json).

Accuracy is the share of digits that greedy generation puts in their place on pages of handwriting that no training saw, the
mean of transcriptions and of questions; "pages, all right" is the share of transcriptions without an error. A figure with ± is a
mean over seeds and half of its 95 % t-interval; differences, with their interval in brackets, are taken seed by seed.
Tokens are visual tokens a page in the first layers of the language model, and in its last ones after LVTC's expansion; FLOPs
are those of one page's forward with its answer, a multiplication and an addition counted as two. "Against the first" compares
with the first row that has the same kind of page; each ratio of Figure 7 has its own."""

READING = """\
Orange: *appears*. Blue: *the other way*. Black: *does not*. Grey: *not told apart*, or seeds are missing. Ticks are the means of
the bases, the shaded range is ± the claim's bound; the axis is linear within ± 1 point and logarithmic beyond."""

ATTRIBUTION = """\
Digits read, tokens and FLOPs are those of the pages of several tiles, as in the table of these rows below; InternVL's slicing
("ratio") where RVTC is not among the methods."""

MEASUREMENT = f"""\
Time to the first token and peak memory are those of InternVL2-1B's geometry for an image of the given size: [how they were
measured](../{COSTS})."""

FAMILIES_TEXT = """\
Rows of Tables 2 and 5, repeated with other towers and language models of the same size. A gain is over N tokens of the family's own
projector, or over one tile. LLaVA: CLIP's features before its last layer, a two-layer MLP, Llama; PVTC's global query is the CLS token.
SigLIP: a tower without CLS token, pixel shuffle, Qwen3; PVTC's global query is the pooled output."""

COSTS_OF_FAMILIES = """\
Further scores and costs of the new rows. "Against the first" is against N tokens on dense pages, and against one tile on spread ones."""

BASES_TEXT = """\
Before a run gives them new projectors: accuracy on validation pages, by slicing and side M of the pixel shuffle's window."""

TIMES = """\
Computing time of one thread, training and evaluation. A run that several tables share counts in the first of them."""
