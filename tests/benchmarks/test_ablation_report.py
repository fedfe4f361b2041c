"""The digit study's claims, what it keeps of finished runs, and its page."""

import json
from dataclasses import asdict

import pytest

from benchmark_scripts import ABLATION, importable

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

RESULTS = ABLATION.parent / "results/ablation"


@pytest.fixture(autouse=True)
def ablation():
    with importable(ABLATION, also=("pages", "train")):
        yield


def accuracy(share: float) -> dict:
    kinds = ("all", "transcription", "question", "transcription_exact", "question_exact")
    cuts = {"cut by tiles": 0.01, "cut by windows": 0.5, "cut by expanded windows": 0.75}
    return dict.fromkeys(kinds, share) | cuts | {"tiles": 2.0}


def finished(name: str, configuration, seed: int, share: float) -> dict:
    import settings

    costs = ("tiles", "tokens", "expanded_tokens", "forward_mflops", "cpu_seconds", "evaluation_seconds", "parameters")
    return {
        "seed": seed,
        "configuration": asdict(configuration),
        "schedule": asdict(settings.Schedule()),
        "base": seed,
        "accuracy": {"dense": accuracy(share), "half empty": accuracy(share / 2)},
        "untrained": {way: accuracy(share / 3) for way in settings.WAYS.get(name, ())},
        **dict.fromkeys(costs, 1800.0),
        "versions": {"torch": "2.13.0"},
    }


def study(seeds: int = 8):
    """Finished runs of all rows; each row of a table is a point above the one before."""
    import settings
    from evidence import records

    results = records.Results({})
    for group in settings.GROUPS.values():
        for place, (name, row) in enumerate(group.items()):
            shares = [0.3 + place / 100 + seed % 2 / 1000 for seed in range(seeds)]
            results.rows[results.key(row)] = [finished(name, row, seed, share) for seed, share in enumerate(shares)]
    return results


def test_an_unfinished_run_is_none_and_kept_runs_read_back_as_they_were(tmp_path):
    import settings
    from evidence import records

    store = records.Records(tmp_path, settings.Schedule())
    for seed, row in ((0, settings.BASE), (1, settings.BASE), (0, settings.LVTC)):
        store.add(row, seed, {"base": seed})
    store.path(settings.PVTC, 0).with_suffix(".unfinished").write_text("{")
    results = store.collect([settings.BASE, settings.PVTC, settings.LVTC, settings.BASE], range(8))
    assert len(results) == 3
    assert results.of(settings.PVTC) == []
    results.save(tmp_path / records.RUNS)
    assert records.load_results(tmp_path / records.RUNS).rows == results.rows
    assert [run["seed"] for run in results.of(settings.BASE)] == [0, 1]
    assert len(json.loads((tmp_path / records.RUNS).read_text())) == 2  # a row each
    again = records.Records(tmp_path / "elsewhere", settings.Schedule(), tmp_path)
    assert again.find(settings.BASE, 1)["base"] == 1
    assert records.Records(tmp_path / "elsewhere", settings.QUICK, tmp_path).find(settings.BASE, 1) is None


def test_a_base_that_comes_out_differently_takes_no_further_runs(tmp_path):
    import settings
    from evidence import records

    schedule, published = settings.Schedule(), tmp_path / "published"
    published.mkdir()
    records.save_bases(published / records.BASES_FILE, {("one", 1): {"losses": [1.5], "cpu_seconds": 3600.0}})
    store = records.Records(tmp_path, schedule, published)
    assert store.base("one", 0, tmp_path) is None
    folder = settings.base_folder("one", 1, schedule, tmp_path)
    folder.mkdir()
    (folder / "base.json").write_text('{"losses": [1.5], "cpu_seconds": 7200.0}')
    assert store.base("one", 1, folder)["cpu_seconds"] == 3600.0
    (folder / "base.json").write_text('{"losses": [1.25]}')
    with pytest.raises(ValueError, match=r"losses \[1.25\], the base of the published runs \[1.5\].*--published"):
        store.base("one", 1, folder)


def test_the_page_of_a_study_that_has_just_begun_has_figures_and_no_verdict():
    import report
    import settings

    results = study(seeds=1)
    del results.rows[results.key(settings.PVTC)]
    text = report.page(
        results,
        {
            ("one", 0): {
                "validation": {"whole": {"dense": {"all": 0.987}, "half empty": {"all": 0.5}}},
                "cpu_seconds": 60.0,
            }
        },
        report.find(results),
    )
    assert "| one | 0 | whole: 98.7 / 50.0 | 60 |" in text
    assert "**The study is not complete**: 23 of 192 runs are finished." in text
    assert "| 1 of 8 bases |" in text
    assert "| 0 of 8 bases |" in text
    assert "| LVTC | 30.0 |  | 15.0 |" in text
    assert "\n| PVTC | " not in text
    assert "0 *appears*, 0 *does not*" in text
    assert " without all of their bases." in text
    nothing = report.page(type(results)({}), {}, report.find(type(results)({})))
    assert nothing.count("No run is finished.") == len(settings.GROUPS)


def test_a_claim_about_rows_that_are_cut_differently_is_refused():
    import report
    import settings

    results = study(seeds=1)
    for run in results.of(settings.SLICINGS["ratio"]):
        run["accuracy"]["dense"]["cut by tiles"] = 0.325
    with pytest.raises(ValueError, match=r"'all tiles above one' compares rows of which .* 32\.5 and 1\.0 %"):
        report.find(results)


@pytest.mark.slow
def test_the_page_of_a_complete_study_has_all_rows_claims_and_plots(tmp_path):
    import claims
    import plots
    import report
    import settings

    study().save(tmp_path / "runs.json")
    text = report.write_report(tmp_path)
    assert text == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "The study is complete: 192 runs of 24 configurations from 8 bases." in text
    assert " of 8 bases |" not in text
    for group, rows in settings.GROUPS.items():
        part = text.partition(f"## {report.TITLES[group]}")[2].partition("\n## ")[0]
        assert all(f"\n| {row} | " in part for row in rows)
        assert all(f"\n| {claim.text} | " in part for claim in claims.CLAIMS[group])
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {*plots.PLOTS, "claims"}
    assert all(f"]({picture}.png)" in text for picture in pictures)


def test_the_published_page_is_what_the_published_runs_of_the_settings_of_now_give():
    import report
    import settings
    from evidence import records

    results = records.load_results(RESULTS / records.RUNS)
    known = {results.key(row) for group in settings.GROUPS.values() for row in group.values()}
    assert set(results.rows) <= known
    assert all(run["base"] == run["seed"] for runs in results.rows.values() for run in runs)
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert report.progress(results) in page
    for findings in report.find(results).values():
        assert report.findings_table(findings) in page
