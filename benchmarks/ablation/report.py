"""Tables of the finished runs: mean ± standard error over seeds."""

from pathlib import Path

from estimates import accuracy, difference, mean
from orderings import orderings_table
from plots import draw
from records import load_group

TITLES = {
    "table2": "Table 2: the three modules, alone and together",
    "table3": "Table 3: PVTC's queries, its CLS scale and its layers",
    "table4": "Table 4: LVTC's parts",
    "table5": "Table 5: how pages are cut into tiles",
    "figure7": "Figure 7: projectors at 64x, 16x and 4x compression",
    "figure8": "Figure 8: LVTC's k, M₁ and M₂",
}
PLOTS = {
    "table2": "accuracy over FLOPs",
    "table5": "accuracy over tokens",
    "figure7": "accuracy over tokens",
    "figure8": "accuracy over k, M₁, M₂",
}


def table(runs: dict[str, list[dict]]) -> str:
    """A Markdown table with a row per configuration. Differences are to the first one."""
    reference = next(iter(runs.values()))
    header = [
        "configuration", "accuracy, %", "against the first", "transcription", "questions", "pages, all right", "tiles",
        "tokens", "tokens, stage two", "MFLOPs a page", "training, CPU s", "parameters, M", "seeds",
    ]  # fmt: skip
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, records in runs.items():
        gain = difference(records, reference)
        rows.append(
            [
                name,
                str(accuracy(records)),
                "" if records is reference or gain is None else gain.signed(),
                str(accuracy(records, "transcription")),
                str(accuracy(records, "question")),
                str(accuracy(records, "transcription_exact")),
                f"{mean(records, 'tiles'):.2f}",
                f"{mean(records, 'tokens'):.1f}",
                f"{mean(records, 'expanded_tokens'):.1f}",
                f"{mean(records, 'forward_mflops'):.0f}",
                f"{mean(records, 'cpu_seconds'):.0f}",
                f"{mean(records, 'parameters') / 1e6:.2f}",
                str(len(records)),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_report(folder: Path) -> str:
    """Write `README.md` and the plots of the groups in `folder`, and return the text of the report."""
    groups = {name: load_group(folder / f"{name}.json") for name in TITLES if (folder / f"{name}.json").exists()}
    parts = ["# The paper in miniature", INTRODUCTION]
    for name, runs in groups.items():
        parts += [f"## {TITLES[name]}", table(runs), orderings_table(name, runs)]
        if name in PLOTS:
            draw(name, runs, folder / f"{name}.png")
            parts.append(f"![{PLOTS[name]}]({name}.png)")
    text = "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


INTRODUCTION = """\
Made by `make ablation`. What the task is, what was tuned, and what this does and does not prove: `docs/ablation.md`.

Accuracy is the share of digits that greedy generation puts in their place on pages of handwriting that no training saw, the
mean of transcriptions and of questions; "pages, all right" is the share of transcriptions without an error. All are mean ±
standard error over seeds. Differences are taken seed by seed, since runs of a seed see the same pages in the same order.
Tokens are visual tokens a page in the first layers of the language model, and in its last ones after LVTC's expansion; FLOPs
are those of one page's forward with its answer, a multiplication and an addition counted as two; training is the computing
time of one thread. The JSON files hold every run: settings, losses, versions.

Below each table, the paper's orderings: the difference here in points, and whether it is more than two standard errors and
half a point."""
