"""Write docs/evidence.md from benchmarks/results: per question what was asked, what appears, how sure it is, and the command.

python docs/write_evidence.py
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
sys.path.insert(0, str(DOCS.parent / "benchmarks"))
MISSING = "not measured yet"
# question -> the claim that answers it, as the studies name it
ACCURACY = {
    "Do more tokens read more?": "more tokens are better: 4N above N",
    "Does PVTC read more than InternVL's projector, with as many tokens?": "PVTC above pixel shuffle",
    "Does it read more than a smaller image, with as many tokens?": "PVTC above the downsampled image, at equal tokens",
    "Does LVTC, with N and then 4N tokens, read more than N in all layers?": "LVTC above the base|LVTC above N",
    "Does it read as much as 4N in all layers?": "LVTC not below the dense 4N",
    "Does LVTC add to PVTC?": "LVTC adds to PVTC",
    "Does PVTC add to LVTC?": "PVTC adds to LVTC",
    "Does PVTC as LVTC's high-resolution projector add to it?": "PVTC as the HR projector adds to LVTC",
    "Does PVTC read more because of its attention?": "PVTC needs its attention: above PVTC without it",
    "Does PVTC read more than a pixel shuffle with as many parameters?": "PVTC above a pixel shuffle with as many parameters",
    "Is LVTC's gain that of its additional projectors?": "LVTC's projectors alone are better: N → N above N",
    "Is it that of its extra tokens in the last layers?": "LVTC needs its extra tokens: above N → N",
    "Do LVTC's first layers have to see the image?": "LVTC needs its early layers: above tokens hidden there",
    "Does M₂ = 1, the paper's and our default, read more than M₂ = 2?": "the default M₂ = 1 above 2",
    "Do all of InternVL's tiles read more than one?": "all tiles above one",
    "Does `edge` read more than one tile?": "RVTC by edge above one tile",
    "Does `ratio` read more than `edge`?": "ratio above edge",
    "Does `edge` with 4N tokens per tile read more than `ratio` with N?": "edge with 4N tokens above ratio with N",
}
STUDIES = {
    "digits": ("ablation", "models of a million parameters, handwritten digits", "make ablation"),
    "printed words": ("documents", "a small tower in front of SmolLM2-135M, pages of text", "make documents"),
}
DIAL = {
    "Does one checkpoint read at 16 tokens as much as a specialist with as many steps there?": "at 16, equal steps: not below the specialist",
    "And at 4 tokens?": "at 4, equal steps: not below the specialist",
    "With three steps of four at 4 tokens, in the steps of both specialists: does it read more there?": "at 4, equal cost: above the specialist",
    "And at 16 tokens as much?": "at 16, equal cost: not below the specialist",
    "Does it read more at 4 than the specialist at 16 whose tokens are averaged?": "a small size is worth training: above pooling at test time",
    **{
        f"{what} before layer {k} of 8?": f"merged at {k}: {claim}"
        for what, claim in (
            ("16 tokens merged into 4 without training: do means read more than zeros", "the mean above zeros"),
            ("Do the 4 that FastV's rule keeps read more than means", "fastv above the mean"),
        )
        for k in (2, 4, 6)
    },
}
SPEED = {"InternVL": "InternVL", "RVTC edge": "`edge`", "PVTC": "`edge`, PVTC", "PVTC + LVTC": "`edge`, PVTC, LVTC"}

PAGE = """\
# Evidence

<!-- Written by docs/write_evidence.py from benchmarks/results. Do not edit. -->

What was asked, what appears, how sure it is, and the command that measures it again. No GPU has been measured. No large model has
been trained or evaluated here. What fewer tiles do to the answers of a large model is not known: measure it on your own images.

Words: a *tile* is a square of 448 pixels. A *visual token* stands for a part of an image in the prompt. `edge` cuts {edge}.
`area` cuts {area}. `ratio` is {ratio}. *PVTC* is another projector: the part that turns a tile into tokens. *LVTC* gives
the first layers few tokens (N), and the last ones four times as many (4N).

## Exact

| question | what appears | how sure | command |
|---|---|---|---|
| Does a converted model answer as the original, on the same tiles? | logits to 1e-4, greedy tokens exactly | tested on checkpoints of every family, made small | `make test` |
| Are PVTC, RVTC and the other projectors the references'? | the same numbers | tested against outputs of the authors' code | `make test` |
| Is LVTC the paper's? | written from the paper, checked against a slow implementation of it | nobody has published LVTC's numbers | `make test` |
| Are tiles, tokens, FLOPs and cache counted rightly? | as the processor, torch's counter and a real cache say | exact; peak memory is an estimate, within 10 % | `make test` |

[What is exact and what is our choice](exact-or-ours.md) lists every decision.

## Time and memory

One photo and one question, with random weights of InternVL2-1B's sizes in bfloat16, on one CPU thread. Each figure is the mean of two
answers, which differ by up to 6 % ([all figures](../benchmarks/results/end_to_end.md)):
`python benchmarks/bench_end_to_end.py --preset internvl2-1b --dtype bfloat16`.

{speed}

`edge` saves where the image has fewer pixels than the grid that InternVL enlarges it to. At 1920x1080 it saves nothing.

| question | what appears | how sure | command |
|---|---|---|---|
| How many questions does vLLM answer in a second with `edge`, of `ratio`'s? | {vllm} | a small random model on a CPU, images from 224x224 to 1920x1080; one that fills all tiles gains nothing | `python benchmarks/vllm_throughput.py` |
| How much CPU time does a request take in vLLM with LVTC, of 4N tokens in all layers? | {vllm_lvtc} | as above | `python benchmarks/vllm_lvtc.py` |
| What does a GPU take? | not measured | | `make gpu` |

## Answers

Percentage points, with a 95 % interval over trainings from several bases; a claim without all of its bases has no verdict yet. *Appears*, *does not*, *the other way* and *not told apart* are verdicts by
[rules](../benchmarks/evidence/RULES.md) that were written before the runs. *p* counts (by Holm) that many claims were tried at once: above 0.05,
a verdict may be chance.

{studies}

{accuracy}

| question | what appears | how sure | command |
|---|---|---|---|
| Do answers stay when other tiles replace those of `ratio`, without training? | {switched} | models of a million parameters, digits; measure it on your own images | `make ablation` |
| How fast does an upgraded model come back? | {back} | models of a million parameters, digits on pages of one tile | `python benchmarks/ablation/teacher.py` |
| Does a teacher help? | {teacher} | as above, where every page has its right answer | the same |

## Sizes of a tile

[One checkpoint, several sizes](dial.md): models of a million parameters, pages of one tile, digits read ([results](../benchmarks/results/dial/README.md),
`python benchmarks/dial/run.py`). {dial_read}

{dial}

[The paper in miniature](ablation.md) and [documents](documents.md) have the studies. More benchmarks are in
[benchmarks/results](../benchmarks/results/bench.md): conversion, packing, the image processor, training data, memory of logits.
"""


def rows_of(page: str) -> list[dict[str, str]]:
    """The rows of all tables of a page of results; none if there is no such page."""
    from evidence.tables import read_tables

    path = RESULTS / page
    return list(read_tables(path.read_text(encoding="utf-8"))) if path.exists() else []


def of_other(page: str, column: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    """A column of one row, divided by that of the other; a row is named by a column and its cell."""
    values = [
        float(row[column]) for n, v in (one, other) for row in rows_of(page) if column in row and row.get(n) == v
    ]
    return f"{values[0] / values[1]:.2f} times as much" if len(values) == 2 else MISSING


def speed() -> str:
    rows = [row for row in rows_of("end_to_end.md") if row.get("case") in SPEED and "first token s" in row]
    lines = ["| image | | tiles | tokens | first token | peak memory |", "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = row["image"], SPEED[row["case"]], row["tiles"], row["tokens"], f"{row['first token s']} s"
        lines.append(f"| {' | '.join(cells)} | {row['peak GiB']} GiB |")
    return "\n".join(lines) if rows else MISSING


def found(study: str, names: str) -> str:
    """The verdict on the first claim of one of these names, with its interval."""
    for name in names.split("|"):
        for row in rows_of(f"{study}/README.md"):
            if row.get("claim") == name and (
                row.get("points here, 95 % interval") or "bases" in row.get("verdict", "")
            ):
                points, p = row.get("points here, 95 % interval", ""), row.get("Holm's p", "")
                return f"*{row['verdict']}*: {points}" + f" (p {p})" * bool(p) if points else row["verdict"]
    return MISSING


def accuracy() -> str:
    lines = [f"| question | {' | '.join(STUDIES)} |", "|---" * (1 + len(STUDIES)) + "|"]
    for question, names in ACCURACY.items():
        lines.append(f"| {question} | {' | '.join(found(study, names) for study, *_ in STUDIES.values())} |")
    return "\n".join(lines)


def dial() -> str:
    lines = ["| question | what appears |", "|---|---|"]
    return "\n".join([*lines, *(f"| {question} | {found('dial', claim)} |" for question, claim in DIAL.items())])


def dial_read() -> str:
    """What is read at 16 tokens, and with 4 from a layer on."""
    read = {row["row"]: row["digits read, %"] for row in rows_of("dial/README.md") if "digits read, %" in row}
    if not read:
        return MISSING
    by_rule = (
        f"{rule}: " + ", ".join(read[f"{row} at {k}"] for k in (2, 4, 6))
        for rule, row in (("means", "mean"), ("FastV's rule", "fastv"), ("dropped", "dropped"))
    )
    return (
        f"At 16 tokens {read['specialist at 16']} %, at 4 {read['specialist at 4']} %. A model for 16 whose tokens are merged into 4, or "
        f"dropped, before layer 2, 4 and 6 of 8, without training: {'; '.join(by_rule)} %."
    )


def studies() -> str:
    return "\n".join(
        f"- *{name}*: {what} ([results](../benchmarks/results/{study}/README.md), `{command}`)"
        for name, (study, what, command) in STUDIES.items()
    )


def back() -> str:
    kinds = {"LVTC 4 → 16, warm": "LVTC", "PVTC 16x, warm": "PVTC with a quarter of the tokens"}
    said = [
        f"{short}: {row.get('step 0', '?')} % at first, {row.get('step 800', '?')} % after 800 steps of 16 pages"
        for row in rows_of("teacher.md")
        if (short := kinds.get(row.get("upgrade", "")))
    ]
    return "; ".join(said) or MISSING


def teacher() -> str:
    rows = [row for row in rows_of("teacher.md") if row.get("claim", "").endswith(": a teacher helps")]
    points = ", ".join(row["points here, 95 % interval"].partition(" ")[0] for row in rows)
    return f"{points} points in {len(rows)} upgrades, from {rows[0]['verdict']}" if rows else MISSING


def switched() -> str:
    """What models that were trained with `ratio` read when they are asked under other tiles."""
    rows = [row for row in rows_of("ablation/README.md") if row.get("trained") == "ratio" and "asked" in row]
    return "; ".join(f"{row['asked']}: {row['accuracy, %']} %" for row in rows) or MISSING


def page() -> str:
    from internvlx_hf.processing.rvtc import SLICING_WORDS

    return PAGE.format(
        **SLICING_WORDS,
        speed=speed(),
        vllm=of_other("vllm.md", "questions/s", ("slicing", "edge (RVTC)"), ("slicing", "ratio (InternVL)")),
        vllm_lvtc=of_other(
            "vllm_lvtc.md", "CPU s per request", ("tokens per tile", "LVTC"), ("tokens per tile", "1024 tokens")
        ),
        dial=dial(),
        dial_read=dial_read(),
        studies=studies(),
        accuracy=accuracy(),
        back=back(),
        teacher=teacher(),
        switched=switched(),
    )


if __name__ == "__main__":
    (DOCS / "evidence.md").write_text(page(), encoding="utf-8")
