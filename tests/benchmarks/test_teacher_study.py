"""The study of upgrades with a teacher: its rows, its verdicts and its page; what it trains is in benchmarks/results/teacher.md."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmark_scripts import ABLATION, importable
from paths import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

STEPS = (0, 25, 50, 100, 200, 400, 800)


@pytest.fixture
def study():
    with importable(ABLATION, also=("pages", "train")):
        yield import_module("teacher")


def record(seed, shares, source=0.9, **fields):
    accuracy = dict(zip(map(str, STEPS), shares, strict=True))
    return {
        "seed": seed,
        "base": seed,
        "source_accuracy": source,
        "accuracy": accuracy,
        "cpu_seconds": 36.0,
        **fields,
    }


def test_every_claim_is_about_two_rows_and_every_upgrade_has_both_starts_with_and_without_a_teacher(study):
    for claim in study.CLAIMS:
        assert {*claim.rows} <= study.ROWS.keys()
    assert {claim.better for claim in study.CLAIMS} | {claim.worse for claim in study.CLAIMS} == study.ROWS.keys()
    assert sum(row.taught for row in study.ROWS.values()) == len(study.ROWS) / 2
    plan = study.Plan()
    assert len({row.key(plan, 0) for row in study.ROWS.values()}) == len(study.ROWS)
    assert study.CLAIM_STEP in plan.checkpoints == STEPS


def test_a_recovery_lasts(study):
    late = record(0, [0.2, 0.895, 0.5, 0.8, 0.892, 0.9, 0.895])
    assert study.recovery(late) == 200
    assert study.recovery(record(0, [0.9] * 7)) == 0
    assert study.recovery(record(0, [0.9] * 6 + [0.5])) is None
    assert study.recovery_text([late, late, record(0, [0.5] * 7)], study.Plan()) == "200 (2 of 3 within 800)"
    assert study.recovery_text([record(0, [0.5] * 7)] * 2, study.Plan()) == "more than 800 (0 of 2 within 800)"


def test_the_page_says_how_much_of_the_study_has_run(study, tmp_path):
    plan = study.Plan()
    assert ".png" not in study.report({}, plan)
    assert "**The study has not been run.**" in study.report({}, plan)
    assert "| edge, teacher | 0 of 8 |" in study.report({}, plan)
    rows = ("PVTC 16x, warm", "PVTC 16x, warm, teacher")
    runs = {
        name: [record(seed, [0.1, 0.2, 0.3, 0.5 + 0.2 * taught + seed / 1000, 0.6, 0.6, 0.899]) for seed in range(8)]
        for taught, name in enumerate(rows)
    }
    page = study.report(runs, plan)
    assert "has not been run" not in page
    assert "0.2 thread-hours" in page
    assert "| PVTC 16x, warm, teacher | 8 of 8 | 90.0 ± 0.0 | 10.0 ± 0.0 | 20.0 ± 0.0 |" in page
    assert "| PVTC 16x, warm: a teacher helps | appears |  | +20.0 [+20.0, +20.0] |" in page
    assert "| edge: a teacher helps | 0 of 8 bases |" in page
    assert "](teacher.png)" in page
    study.draw_recovery(runs, ["PVTC 16x", "edge"], study.RECOVERED, tmp_path / "teacher.png")
    with Image.open(tmp_path / "teacher.png") as picture:
        assert picture.width < 800  # one panel: `edge` has no run
    assert (ROOT / "benchmarks" / "results" / "teacher.md").read_text().startswith(page.split("\n")[0])


def test_the_plan_counts_what_is_left(study, tmp_path):
    records = study.Records(tmp_path, study.Plan())
    name, row, seed = next(study.planned([0, 1]))
    records.add(row, seed, record(0, [0.5] * 7))
    table = study.plan_table(records, [0, 1])
    assert f"{name:30}        1          0.01      1          0.01" in table


def test_pairs_of_views_become_a_batch_with_its_teacher(study):
    def collator(tokens):
        return study.Collator(SimpleNamespace(image_token_id=5, tokenizer=SimpleNamespace(pad_token_id=0)), tokens)

    def view(tiles):
        ids = torch.tensor([5] * tiles + [9, 8, 7])
        labels = torch.tensor([-100] * (tiles + 1) + [8, 7])
        return study.Sample(ids, labels, torch.zeros(tiles, 3, 4, 4).half(), "87", "question", *3 * [None])

    batch = study.PairCollator(collator(4), collator(16))([(view(1), view(2)), (view(1), view(1))])
    assert batch["input_ids"].shape == (2, 7)
    assert batch["teacher"]["input_ids"].shape == (2, 35)
    assert len(batch["teacher"]["pixel_values"]) == 3
    for part in (batch, batch["teacher"]):
        assert part["labels"][part["labels"] != -100].tolist() == [8, 7] * 2
    assert "teacher" not in study.PairCollator(collator(4), None)([(view(1), view(1))])
