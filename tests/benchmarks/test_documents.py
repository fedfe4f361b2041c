"""The document study's text, pages, training and tables. Trainings here have a tiny tower and a language model of three tiny layers."""

import itertools
import json
import re
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers.modeling_utils import load_state_dict

from benchmark_scripts import FOLDER, importable
from part_sources import save_language

pytestmark = pytest.mark.any_transformers

DOCUMENTS, RESULTS = FOLDER / "documents", FOLDER / "results/documents"
SENTENCES = [
    "The file is opened in text mode, and every line that is read ends with a newline, but for the last one.",
    "If the argument is not a number, an error is raised that names the value and what would have been right.",
]


@pytest.fixture(autouse=True)
def documents():
    with importable(DOCUMENTS):
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a tiny language model and two sentences."""
    import tower
    import training

    narrow = tower.tower_config()
    narrow.hidden_size, narrow.num_hidden_layers, narrow.intermediate_size = 16, 1, 16
    monkeypatch.setattr(tower, "tower_config", lambda: narrow)
    monkeypatch.setattr(training, "LONGEST", 0.05)
    save_language("llama", tmp_path / "language_model", tie_word_embeddings=True)
    (tmp_path / "corpus.json").write_text(json.dumps(dict.fromkeys(("train", "validation", "test"), SENTENCES * 4)))
    return tmp_path


def planned_runs() -> int:
    from settings import GROUPS, SEEDS

    return SEEDS * sum(map(len, GROUPS.values()))


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def test_text_is_prose_without_marks_and_in_one_part_only():
    import corpus

    docstring = f"""Return :class:`~io.TextIOWrapper` objects, as `open <builtins>`_ does. {SENTENCES[0]}

    Parameters
    ----------
    x : int

    {SENTENCES[1]}

    >>> print("no prose, but it is long enough to be taken for a paragraph of prose if nobody looks")
    """
    found = list(corpus.prose(docstring))
    assert found == [f"Return io.TextIOWrapper objects, as open does. {SENTENCES[0]}", SENTENCES[1]]
    many = [f"{sentence} {number}" for sentence in SENTENCES for number in range(200)]
    parts = corpus.split(iter(many + many))
    assert sorted(itertools.chain(*parts.values())) == sorted(many)
    assert 0 < len(parts["test"]) < len(parts["train"]) / 5
    assert {corpus.part_of(text) for text in parts["test"]} == {"test"}


def test_letters_are_found_where_they_are_printed():
    from pages import FACES, SIZES, draw_page

    for number, (face, size) in enumerate(itertools.product(FACES, SIZES)):
        page = draw_page(SENTENCES, (144, 96), rng(number), faces=(face,), sizes=(size,))
        places = [(row, column) for row, line in enumerate(page.lines) for column in range(len(line))]
        rows, columns = np.array(places).T
        x, y = page.left + (columns + 0.5) * page.advance, page.top + (rows + 0.5) * page.pitch
        found = page.letters_at(x, y)
        assert "".join(page.text[index] for index in found) == "".join(page.lines)
        assert (np.diff(found) > 0).all()
        outside = page.letters_at(np.array([-1.0, 150.0]), np.array([50.0, 50.0]))
        assert outside.tolist() == [-1, -1]
        # the box of a letter has ink, that of a space has none
        levels = np.asarray(page.image.convert("L"), float)
        boxes = [
            levels[round(top) : round(top + page.pitch), round(left) : round(left + page.advance)]
            for left, top in zip(x - page.advance / 2, y - page.pitch / 2, strict=True)
        ]
        darkest = np.array([box.min() for box in boxes])
        is_space = np.array([page.text[index] == " " for index in found])
        is_letter = np.array([page.text[index].isalpha() for index in found])
        assert darkest[is_letter].max() < darkest[is_space].min()


def test_tiles_of_the_towers_training_are_those_of_the_image_processor():
    from settings import MAX_TILES, SHAPES, TILE
    from tower import draw_tile

    from internvlx_hf.processing.rvtc import TilingRule

    drawn = {
        (shape, *scales.round(3).tolist(), corner) for shape, scales, corner in (draw_tile(rng(n)) for n in range(150))
    }
    expected = set()
    for shape in SHAPES:
        for slicing in ("edge", "ratio"):
            plan = TilingRule(TILE, TILE, max_tiles=MAX_TILES, slicing=slicing).plan(*shape)
            scales = [
                round(count * TILE / side, 3) for count, side in zip((plan.columns, plan.rows), shape, strict=True)
            ]
            corners = [(column * TILE, row * TILE) for column in range(plan.columns) for row in range(plan.rows)]
            expected |= {(shape, *scales, corner) for corner in corners}
            if plan.has_thumbnail:
                expected.add((shape, *(round(TILE / side, 3) for side in shape), (0, 0)))
    assert drawn <= expected
    assert len(drawn) > 30


@pytest.mark.parametrize(
    ("truth", "read", "words", "letters"),
    [
        ("ends with a newline", "ends with a newline", 1, 1),
        ("ends with a newline", "", 0, 0),
        ("ends with a newline", "ends  with\nthe newline", 3 / 4, 16 / 19),
        ("ends with", "ends with a newline and more", 0, 0),
        ("one two three", "two three", 2 / 3, 9 / 13),
    ],
)
def test_words_and_letters_right_are_one_minus_edits(truth, read, words, letters):
    from reading import letters_right, words_right

    assert words_right([truth], [read]) == pytest.approx(words)
    assert letters_right([truth], [read]) == pytest.approx(letters)
    assert words_right([truth, "x"], [read, "x"]) == pytest.approx(
        (words * len(truth.split()) + 1) / (len(truth.split()) + 1)
    )


def test_marked_words_are_those_of_the_fewest_edits():
    from reading import MISSING, edits, marked

    for truth, read in [("a b c d", "a x c d e"), ("a b c", "c"), ("a", "b a"), ("", "a"), ("a b", "")]:
        words = marked(truth.split(), read.split())
        assert [word for word, _ in words if word != MISSING] == read.split()
        assert sum(not right for _, right in words) == edits(truth.split(), read.split())


def test_all_rows_of_a_seed_see_the_same_pages():
    from lessons import RunLessons, evaluation_pages
    from settings import GROUPS, RunSchedule

    for rows in GROUPS.values():
        lessons = [RunLessons(SENTENCES, row, RunSchedule(), 3) for row in rows.values()]
        for index in (0, 11):
            first, *others = [lesson[index] for lesson in lessons]
            assert all(np.array_equal(first["images"][0], other["images"][0]) for other in others)
            assert all(first["messages"] == other["messages"] for other in others)
    other_seed = replace(lessons[0], seed=4)
    assert not np.array_equal(lessons[0][0]["images"][0], other_seed[0]["images"][0])
    texts, words = (evaluation_pages(SENTENCES, True, 5, random) for random in (False, True))
    assert [page.text for page in texts] == [page.text for page in evaluation_pages(SENTENCES, True, 5, False)]
    assert {page.text for page in texts}.isdisjoint(page.text for page in words)


@pytest.mark.slow
def test_a_base_that_was_stopped_and_resumed_is_that_of_an_uninterrupted_training(cache, monkeypatch):
    import training
    from settings import QUICK_BASE

    schedule = replace(QUICK_BASE, steps=4)
    whole = training.make_base(cache, 0, schedule)
    expected = load_state_dict(whole / "model.safetensors")
    whole.rename(cache / "whole")
    collate, seen = training.StepCollator.__call__, []

    def stop_at_fourth(self, steps):
        seen.append(steps[0]["window"])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return collate(self, steps)

    monkeypatch.setattr(training, "SAVE_STEPS", 2)
    monkeypatch.setattr(training.StepCollator, "__call__", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        training.make_base(cache, 0, schedule)
    found = load_state_dict(training.make_base(cache, 0, schedule) / "model.safetensors")
    assert seen == [4, 2, 1, 4, 1, 4]
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.slow
def test_runs_are_trained_evaluated_kept_and_reported(cache, monkeypatch, capsys):
    """The command with its quick settings: two rows, then the report of a study that is far from complete."""
    import run
    from settings import GROUPS, QUICK

    def command(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--cache", str(cache), *options])
        run.main()
        return capsys.readouterr().out

    text = command()
    records = [json.loads(path.read_text()) for path in sorted((cache / "runs").iterdir())]
    rows = GROUPS["one_tile"]["N, image downsampled"], GROUPS["several_tiles"]["PVTC + LVTC + edge"]
    assert sorted(record["row"]["tile"] for record in records) == sorted(row.tile for row in rows)
    for record in records:
        kinds = [record[kind] for kind in ("paragraphs", "random_words", "wrong_image")]
        assert all(0 <= found["words"] <= 1 and found["loss"] > 0 for found in kinds)
        assert record["schedule"] == json.loads(json.dumps(asdict(QUICK)))
        assert {"seed", "base", "losses", "cpu_seconds", "peak_gigabytes", "versions"} <= record.keys()
    assert f"**The study is not complete**: 2 of {planned_runs()} runs" in text
    assert re.search(r"\| N, image downsampled \|.*\| 1.0 \| 4 \| 4 \|.*\| 1 of 5 \|", text)
    assert command("--report-only") in text
    assert "finished" in command("--plan")
    assert not list(cache.glob("run-*"))


def test_published_runs_count_as_finished_and_stay_in_the_report(tmp_path):
    import run
    from records import BASES_FILE, RUNS, Records, base_folder, save_bases, save_runs
    from settings import SEEDS, RunSchedule

    store = Records(tmp_path / "runs", RunSchedule(), RESULTS)
    published = json.loads((RESULTS / RUNS).read_text())
    finished = {group: sum(map(len, rows.values())) for group, rows in published.items()}
    lines = run.plan(store).splitlines()[1:]
    assert {line.split()[0]: int(line.split()[1]) for line in lines} == finished
    save_runs(tmp_path / RUNS, store.collect())
    save_bases(tmp_path / BASES_FILE, [base for number in range(SEEDS) if (base := store.base(tmp_path, number))])
    for name in (RUNS, BASES_FILE):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()

    folder = base_folder(tmp_path, 1, store.schedule.base)
    folder.mkdir()
    (folder / "base.json").write_text('{"losses": [1.5]}')
    with pytest.raises(ValueError, match=r"losses \[1.5\], the base of the published runs .*--published"):
        store.base(tmp_path, 1)


def test_a_complete_study_is_judged_and_drawn(tmp_path, monkeypatch):
    import report
    from lessons import evaluation_pages
    from records import BASES_FILE, RUNS, save_runs
    from settings import GROUPS, SEEDS, RunSchedule

    texts = SENTENCES * 20
    (tmp_path / "corpus.json").write_text(json.dumps({"test": texts}))
    reads = [page.text.replace("the", "teh") for page in evaluation_pages(texts, False, 8, False)]

    def finished(row, seed: int, words: float) -> dict:
        found = {"words": words, "letters": words, "loss": 1.0, "tiles": 2.0, "read": reads}
        kinds = dict.fromkeys(("paragraphs", "random_words", "wrong_image"), found)
        costs = {"cpu_seconds": {"training": 300.0, "evaluation": 60.0}, "peak_gigabytes": 3.0}
        return {
            "row": row.settings(),
            "seed": seed,
            "base": seed,
            "schedule": asdict(RunSchedule()),
            "split": "test",
            **kinds,
            **costs,
        }

    runs = {
        group: {
            name: [finished(row, seed, 0.2 + 0.1 * place + 0.001 * seed * place) for seed in range(SEEDS)]
            for place, (name, row) in enumerate(rows.items())
        }
        for group, rows in GROUPS.items()
    }
    one_tile = runs["one_tile"]
    one_tile["LVTC"], one_tile["4N"] = one_tile["4N"], one_tile["LVTC"]  # so that LVTC is below
    save_runs(tmp_path / RUNS, runs)
    (tmp_path / BASES_FILE).write_text("[]")
    text = report.write_report(tmp_path, tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    assert f"The study is complete: {planned_runs()} runs from 5 bases." in text
    assert re.search(r"\| more tokens are better: 4N above N \| appears \|", text)
    assert re.search(r"\| LVTC not below the dense 4N \| the other way \|", text)
    assert (tmp_path / report.PICTURE).stat().st_size > 10_000
    assert f"{planned_runs() * 360 / 3600:.2f}" in text  # thread-hours


def test_the_published_page_is_what_the_runs_give():
    import report
    from records import BASES_FILE, RUNS, load_runs

    runs, bases = load_runs(RESULTS / RUNS), json.loads((RESULTS / BASES_FILE).read_text(encoding="utf-8"))
    page = report.page(runs, bases, report.find(runs), (RESULTS / report.PICTURE).exists())
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == page


def test_the_published_runs_are_those_of_the_settings_of_now():
    from records import RUNS, load_runs
    from settings import GROUPS, RunSchedule

    published = load_runs(RESULTS / RUNS)
    assert published
    for group, rows in published.items():
        for name, records in rows.items():
            for record in records:
                assert record["row"] == asdict(GROUPS[group][name])
                assert record["schedule"] == json.loads(json.dumps(asdict(RunSchedule())))
                assert (record["split"], record["base"]) == ("test", record["seed"])


def test_without_its_language_model_the_study_says_what_to_install(monkeypatch):
    import language

    monkeypatch.setattr(language, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"internvlx-hf\[documents\]"):
        language.gguf_folder()


def test_the_extra_and_the_overlay_name_the_same_versions():
    from configparser import ConfigParser

    from paths import ROOT

    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    overlay = (ROOT / "tests/overlays/documents.txt").read_text().splitlines()
    pinned = {line for line in overlay if line and not line.startswith("#")}
    assert pinned <= set(settings["options.extras_require"]["documents"].split())
