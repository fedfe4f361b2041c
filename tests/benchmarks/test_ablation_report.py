"""The claims of the digit study, the files of its runs, and its page of results."""

import json
import re
from collections import Counter

import pytest

from benchmark_scripts import ABLATION, importable

pytestmark = pytest.mark.any_transformers

RESULTS = ABLATION.parent / "results/ablation"


@pytest.fixture(autouse=True)
def ablation():
    with importable(ABLATION, also=("pages", "train")):
        yield


def finished(configuration, seed: int, correct: float) -> dict:
    from dataclasses import asdict

    import settings

    accuracy = dict.fromkeys(("all", "transcription", "question", "transcription_exact"), correct)
    costs = {"tiles": 1.0, "tokens": 4.0, "expanded_tokens": 16.0, "forward_mflops": 70.0, "parameters": 1e6}
    return {
        "seed": seed,
        "configuration": settings.settings_of(configuration),
        "schedule": asdict(settings.Schedule()),
        "base": seed % settings.BASES,
        "accuracy": accuracy,
        **costs,
        "cpu_seconds": 3599.0,
        "evaluation_seconds": 1.0,
        "versions": {"torch": "2.13.0"},
    }


def study(seeds: int | None = None):
    """A study in which each row reads 1 % more than the row before it, by a little more or less with each seed."""
    import claims
    import records
    import settings

    results = records.Results({})
    for group in settings.GROUPS.values():
        for place, configuration in enumerate(group.values()):
            if not results.of(configuration):
                count = seeds or claims.seeds_of(configuration)
                runs = [finished(configuration, s, 0.3 + place / 100 + s % 2 / 1000) for s in range(count)]
                results.rows[results.key(configuration)] = runs
    return results


def test_every_claim_is_about_rows_that_are_run():
    import claims
    import settings

    assert set(claims.CLAIMS) <= set(settings.GROUPS)
    for group, found in claims.CLAIMS.items():
        assert {row for claim in found for row in claim.rows} <= set(settings.GROUPS[group])


def test_no_comparison_is_claimed_twice():
    import claims
    import settings

    compared = Counter(
        (claim.kind, *(json.dumps(vars(settings.GROUPS[group][row])) for row in (claim.better, claim.worse)))
        for group, found in claims.CLAIMS.items()
        for claim in found
    )
    assert [comparison for comparison, count in compared.items() if count > 1] == []


def test_rows_with_a_claim_have_8_seeds_in_every_table_and_others_3():
    import claims
    import settings

    assert claims.seeds_of(settings.TABLE_5["one tile"]) == 8  # also as a yardstick
    assert claims.seeds_of(settings.K_CURVE["N"]) == claims.seeds_of(settings.TABLE_2["Base"]) == 8
    assert claims.seeds_of(settings.FIGURE_7["average x4"]) == 3
    assert settings.BASES == 3


def test_every_group_has_a_title_and_every_row_of_the_attribution_its_case_of_the_end_to_end_benchmark():
    import report
    import settings

    assert set(report.TITLES) == set(settings.GROUPS)
    assert set(report.END_TO_END) == set(settings.ATTRIBUTION)
    text = (ABLATION.parent / "bench_end_to_end.py").read_text(encoding="utf-8")
    if "factorial" in text:
        assert all(f'"{case}": Case(' in text for case in report.END_TO_END.values() if case != "InternVL")


def test_experiments_are_about_claims_and_rows_that_there_are():
    import claims
    import experiments
    import settings

    known = {(group, claim.text) for group, found in claims.CLAIMS.items() for claim in found}
    assert set(experiments.EXPERIMENTS) <= known
    for comparisons in experiments.EXPERIMENTS.values():
        assert all(row in settings.GROUPS[group] for each in comparisons for group, row in (each.better, each.worse))


def test_below_a_claim_that_does_not_appear_stand_its_finished_experiments():
    import report
    import settings
    from evidence.tables import read_tables

    results = study()
    for run in results.of(settings.TABLE_5["ratio"]):  # 1 % below "edge", by a little more or less
        run["accuracy"]["all"] = 0.28 + run["seed"] % 3 / 1000
    findings = report.find(results)
    rows = list(read_tables(report.experiments_table(results, findings, ["table2", "table5", "longer"])))
    place = next(number for number, row in enumerate(rows) if row["claim"] == "ratio above edge")
    assert rows[place]["verdict"] == "the other way"
    assert rows[place + 1] == {
        "claim": "",
        "what is changed": "schedule: three times the steps of stage 2",
        "points, 95 % interval": "−1.0 [−1.0, −1.0]",
        "seeds": "3",
        "verdict": "",
    }
    assert not rows[place + 2]["what is changed"]  # the groups of the others are not finished
    assert "PVTC above pixel shuffle" not in {row["claim"] for row in rows}


def test_a_claim_that_two_tables_make_is_named_with_its_table():
    import report
    import settings
    from evidence.tables import read_tables

    results, groups = study(), ["table2", "denser"]
    for configuration in (settings.TABLE_2["+ PVTC + LVTC"], settings.DENSER["PVTC + LVTC"]):
        for run in results.of(configuration):
            run["accuracy"]["all"] = 0.2 + run["seed"] % 3 / 1000
    rows = read_tables(report.experiments_table(results, report.find(results), groups))
    names = {row["claim"] for row in rows if row["claim"].startswith("PVTC adds to LVTC")}
    assert names == {f"PVTC adds to LVTC ({report.TITLES[group]})" for group in groups}


def test_an_unfinished_run_is_none_and_kept_runs_read_back_as_they_were(tmp_path):
    import records
    import settings

    store = records.Records(tmp_path, settings.Schedule())
    for seed, configuration in ((0, settings.BASE), (1, settings.BASE), (0, settings.LVTC)):
        run = finished(configuration, seed, 0.5)
        store.add(configuration, seed, {name: run[name] for name in ("base", "accuracy")})
    store.path(settings.PVTC, 0).with_suffix(".unfinished").write_text("{")
    results = store.collect([settings.BASE, settings.PVTC, settings.LVTC, settings.BASE], range(8))
    assert len(results) == 3
    assert results.of(settings.PVTC) == []
    results.save(tmp_path / records.RUNS)
    assert records.load_results(tmp_path / records.RUNS).rows == results.rows
    assert list(results.group({"x": settings.PVTC, "y": settings.BASE})) == ["y"]
    assert [run["seed"] for run in results.of(settings.BASE)] == [0, 1]


def test_records_of_bases_are_kept_with_their_page_and_number(tmp_path):
    import records

    (tmp_path / "one").mkdir()
    (tmp_path / "one/base.json").write_text('{"losses": [1.5], "cpu_seconds": 7200.0}')
    folders = {("LLaVA", "dense", 1): tmp_path / "one", ("SigLIP", "few", 0): tmp_path / "none"}
    path = tmp_path / records.BASES_FILE
    records.save_bases(path, folders, {})
    base = {"family": "LLaVA", "pages": "dense", "number": 1, "losses": [1.5], "cpu_seconds": 7200.0}
    assert json.loads(path.read_text()) == [base]
    # a published base stays where it was not trained again
    published = {("SigLIP", "few", 0): {"losses": [0.5]}}
    records.save_bases(path, folders, published)
    assert records.load_bases(path) == {("LLaVA", "dense", 1): {"losses": [1.5], "cpu_seconds": 7200.0}} | published


def test_a_base_that_comes_out_differently_takes_no_further_runs(tmp_path):
    import records

    (tmp_path / "base.json").write_text('{"losses": [1.5], "cpu_seconds": 7200.0}')
    assert records.base_record(tmp_path, {"losses": [1.5], "cpu_seconds": 3600.0})["cpu_seconds"] == 3600.0
    with pytest.raises(ValueError, match=r"losses \[1.5\], the base of the published runs \[1.25\].*--published"):
        records.base_record(tmp_path, {"losses": [1.25]})


def test_published_runs_count_as_finished(tmp_path, monkeypatch):
    """In a fresh clone, only what the published results lack is left."""
    import records
    import run
    import settings

    published = records.load_results(RESULTS / records.RUNS)
    store = records.Records(tmp_path, settings.Schedule(), RESULTS)
    plan = run.plan(store, settings.GROUPS, list(range(8))).splitlines()[-1].split()
    assert int(plan[1]) == len(published)
    run.save_results(tmp_path, store, settings.GROUPS, tmp_path)
    for name in (records.RUNS, records.BASES_FILE):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()
    other = records.Records(tmp_path, settings.QUICK, RESULTS)
    assert other.find(settings.BASE, 0) is None


def test_thread_hours_count_a_shared_run_once():
    import report
    import settings
    from evidence.tables import read_tables

    results = study(seeds=1)
    rows = list(read_tables(report.thread_hours(results, [{"cpu_seconds": 7200.0}])))
    assert rows[0] == {"what": "bases", "runs": "1", "thread-hours": "2.00"}
    assert rows[-1]["runs"] == str(1 + len(results))
    assert float(rows[-1]["thread-hours"]) == pytest.approx(2 + len(results))
    assert sum(int(row["runs"]) for row in rows[:-1]) == 1 + len(results)
    assert len(results) < sum(map(len, settings.GROUPS.values()))


def test_the_attribution_joins_accuracy_with_the_end_to_end_benchmark():
    import report
    from evidence.tables import read_tables

    measured = (
        "| image | case | tiles | first token s | peak GiB |\n| --- | --- | --- | --- | --- |\n"
        "| 640x480 | InternVL | 13 | 88.72 | 2.46 |\n| 640x480 | RVTC | 1 | 7.13 | 1.83 |\n"
    )
    rows = {row["methods"]: row for row in read_tables(report.attribution(study(seeds=2), measured))}
    assert len(rows) == 8
    assert rows["InternVL"]["digits read, %"] == "30.0 ± 0.6"
    assert rows["RVTC"]["first token s, 640x480"] == "7.13"
    assert rows["RVTC"]["peak GiB, 640x480"] == "1.83"
    assert rows["PVTC"]["first token s, 640x480"] == ""


def test_rows_are_compared_on_the_same_pages_only():
    import report
    import settings
    from evidence.tables import read_tables

    table = report.table("figure7", study(seeds=2).group(settings.FIGURE_7))
    compared = {row["configuration"]: row["against the first"] for row in read_tables(table)}
    firsts = {f"pixel_shuffle x{ratio}" for ratio in (4, 16, 64)}
    assert {name for name, difference in compared.items() if not difference} == firsts
    assert compared["ldpv2 x64"] == "+1.0 [+1.0, +1.0]"


def test_the_families_stand_side_by_side_with_what_each_gains_and_the_verdict():
    import report
    import settings
    from evidence.tables import read_tables

    results = study()
    rows = {row[""]: row for row in read_tables(report.families_table(results, report.find(results)))}
    assert list(rows) == ["N", "4N", "+ PVTC", "+ LVTC", "one tile", "edge"]
    assert rows["N"] == dict.fromkeys(rows["N"], "") | {
        "": "N",
        "InternVL, %": "30.0 ± 0.0",
        "LLaVA, %": "30.0 ± 0.0",
        "SigLIP, %": "36.0 ± 0.0",
    }
    assert {rows["+ PVTC"][f"{family}: gain"] for family in settings.FAMILIES} == {"+2.0 [+2.0, +2.0], appears"}
    assert rows["4N"]["LLaVA: gain"] == "+1.0 [+1.0, +1.0]"  # without a claim, so with fewer seeds


def test_a_page_of_a_study_that_has_just_begun_has_no_verdicts():
    import report
    import settings

    results = study(seeds=1)
    del results.rows[results.key(settings.TABLE_2["+ PVTC"])]
    bases = [
        {
            "family": "InternVL",
            "pages": "few",
            "number": 2,
            "validation": {"whole, M = 2": {"all": 0.987}},
            "cpu_seconds": 60.0,
        }
    ]
    text = report.page(results, bases, report.find(results))
    assert "| InternVL | few | 2 | whole, M = 2: 98.7 |" in text
    assert "Made with torch 2.13.0." in text
    assert "**The study is not complete**: " in text
    assert "| 1 of 8 seeds |" in text
    assert "| + LVTC | 33.0 | +3.0 |" in text
    assert "| + PVTC |" not in text.partition("## Table 2")[2].partition("\n## ")[0]
    assert "*appears*, 0 *does not*" in text
    assert " without all of their seeds." in text


def test_a_page_gives_no_figure_of_a_table_before_all_of_its_runs_are_there():
    import report
    import settings

    results = study()
    missing = settings.TABLE_2["+ PVTC"]  # also a row of Table 3 and of Figure 7
    results.rows[results.key(missing)].pop()
    text = report.page(results, [], report.find(results))
    for group, title in report.TITLES.items():
        left_out = group in ("table2", "table3", "figure7")
        assert (f"\n- {title}\n" in text, f"\n## {title}\n" in text) == (left_out, not left_out)
        assert (f"\n| {next(iter(settings.GROUPS[group]))} |" in text) or left_out
    assert " of 8 seeds |" not in text.partition("## Other families")[0]
    assert " without all of their seeds" not in text


def test_the_page_lists_the_settings_that_the_code_uses():
    import hyperparameters
    import settings

    text = hyperparameters.hyperparameters()
    for name, value in {**settings.OPTIMISER, **vars(settings.Schedule())}.items():
        assert f"| `{name}` | {hyperparameters.shown(value)} |" in text
    for name in ("drop_path_rate", "layer_scale_init_value", "rms_norm_eps", "num_lr_projectors", "insert_interval"):
        assert f"| `{name}` | " in text
    assert "| `cls_scale` | 4x96 |" in text
    assert all(f"| {group} | {row} |" in text for group, rows in settings.GROUPS.items() for row in rows)


@pytest.mark.slow
def test_the_page_of_a_complete_study_has_all_rows_claims_and_plots(tmp_path):
    import claims
    import plots
    import report
    import settings

    results = study()
    results.save(tmp_path / "runs.json")
    text = report.write_report(tmp_path)
    assert text == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "The study is complete: " in text
    assert " of 8 seeds |" not in text
    for group, rows in settings.GROUPS.items():
        part = text.partition(f"## {report.TITLES[group]}")[2].partition("\n## ")[0]
        assert all(f"\n| {row} | " in part for row in rows)
        assert all(f"\n| {claim.text} | " in part for claim in claims.CLAIMS.get(group, []))
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {*plots.PLOTS, "claims"}
    assert all(f"]({picture}.png)" in text for picture in pictures)


def test_the_published_runs_are_those_of_the_settings_of_now():
    import records
    import settings

    results = records.load_results(RESULTS / records.RUNS)
    known = {results.key(configuration) for group in settings.GROUPS.values() for configuration in group.values()}
    assert set(results.rows) <= known
    assert all(run["base"] == run["seed"] % settings.BASES for runs in results.rows.values() for run in runs)


def test_the_published_page_is_what_the_runs_give():
    import records
    import report

    results = records.load_results(RESULTS / records.RUNS)
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    groups, found = report.finished(results), report.find(results)
    assert report.progress(results, groups) in page
    for group in groups:
        if findings := [finding for finding in found.get(group, []) if finding.differences]:
            assert report.findings_table(findings) in page, group


def test_the_documentation_gives_no_result_and_the_settings_as_they_are():
    import claims
    import settings

    text = (ABLATION.parents[1] / "docs/ablation.md").read_text(encoding="utf-8")
    tuning = text.partition("\n## What was tuned\n")[2].partition("\n## ")[0]  # pilots on validation pages
    assert tuning
    assert set(re.findall(r"\d+\.\d+|\d+ %|[+−]\d+", text.replace(tuning, ""))) == {
        "4.3",
        "95 %",
    }  # a section and the level of the intervals
    words = {3: "three", 8: "eight"}
    assert f"over {words[claims.SEEDS]} seeds and {words[settings.BASES]} bases" in text
    assert f"Rows without a claim have {words[claims.SEEDS_WITHOUT_CLAIM]} seeds" in text
    base, fine = settings.BASE.window, settings.BASE_4N.window
    patches = settings.PATCHES**2
    for row in (
        f"| patches per tile | 1024 | {patches} |",
        f"| N tokens (base, M₁) | 256, M = 2 | {patches // base**2}, M = {base} |",
        f"| 4N tokens (M₂) | 1024, M = 1 | {patches // fine**2}, M = {fine} |",
        f"| language model | 24 layers, k = 17 | {settings.LAYERS} layers, k = {settings.EXPAND_LAYER} |",
    ):
        assert row in text
