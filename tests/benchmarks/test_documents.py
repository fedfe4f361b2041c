"""The document study's text, pages, training and tables. Trainings here have a tiny tower and a language model of three tiny layers."""

import itertools
import json
import re
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers.modeling_utils import load_state_dict

from benchmark_scripts import FOLDER, importable
from part_sources import save_language

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

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
    import corpus
    import tower
    import training

    narrow = tower.tower_config()
    narrow.hidden_size, narrow.num_hidden_layers, narrow.intermediate_size = 16, 1, 16
    monkeypatch.setattr(tower, "tower_config", lambda: narrow)
    monkeypatch.setattr(training, "LONGEST", 0.05)
    save_language("llama", tmp_path / "language_model", tie_word_embeddings=True)
    corpus.corpus_path(tmp_path).write_text(json.dumps(dict.fromkeys(("train", "validation", "test"), SENTENCES * 4)))
    return tmp_path


def planned_runs() -> int:
    from settings import ROWS, SEEDS

    return SEEDS * len(ROWS)


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def test_text_is_plain_words_of_prose_and_in_one_part_only():
    import corpus

    docstring = f"""Return :class:`~io.TextIOWrapper` objects, as `open <builtins>`_ does. {SENTENCES[0]}

    Parameters
    ----------
    x : int

    {SENTENCES[1]}

    >>> print("no prose, but it is long enough to be taken for a paragraph of prose if nobody looks")
    """
    found = list(corpus.prose(docstring))
    assert found == [f"Return objects, as open does. {SENTENCES[0]}", SENTENCES[1]]
    many = [f"{sentence} {number}" for sentence in SENTENCES for number in range(200)]
    parts = corpus.split(iter(many + many))
    assert sorted(itertools.chain(*parts.values())) == sorted(many)
    assert 0 < len(parts["test"]) < len(parts["train"]) / 5
    assert {corpus.part_of(text) for text in parts["test"]} == {"test"}


def test_pages_of_a_test_have_the_words_that_training_texts_have_often():
    import corpus
    from settings import COMMON

    train = ["The file is opened, and every line of the file is read. " * (COMMON // 2), "rare " * (COMMON - 1)]
    test = [f"Rare file. {SENTENCES[0]} " * 4, "file is the file"]
    found = corpus.with_common_words({"train": train, "validation": [], "test": test})
    assert found["train"] == train
    assert found["test"] == [" ".join(["file. The file is is the"] * 4)]


def test_letters_are_found_where_they_are_printed_anywhere_on_the_page():
    from pages import FACES, draw_page

    corners = []
    for number, (_, face) in enumerate(itertools.product(range(8), FACES)):
        page = draw_page(SENTENCES, rng(number), faces=(face,))
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
        assert darkest[is_letter].max() < darkest[is_space].min(initial=255)
        corners.append((page.left % 8, page.top % 8))  # against the patches
    assert len(set(corners)) > 8


def test_letters_that_borders_cut_are_counted():
    from pages import Page
    from PIL import Image

    page = Page(Image.new("RGB", (64, 64)), ["ab d", "e"], left=2, top=4, advance=8, pitch=16)
    assert page.share_cut(1) == 0
    # borders at 16, 32 and 48: "b" is on 10…18, "d" on 26…34, "a" on 2…10; the first line on 4…17, the second on 20…33
    assert page.share_cut(4) == 1
    assert page.share_cut(2) == pytest.approx(2 / 4)  # "d" across, and the second line down
    assert Page(page.image, ["ab d"], 0, 0, 8, 16).share_cut(4) == 0


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


def test_pages_of_a_training_depend_on_its_seed_only_and_those_of_a_test_on_nothing():
    from lessons import RunLessons, evaluation_pages
    from settings import RunSchedule

    lessons, other_seed = (RunLessons(SENTENCES, RunSchedule(), seed) for seed in (3, 4))
    assert lessons[11]["messages"] == lessons[11]["messages"]
    assert not np.array_equal(lessons[0]["images"][0], other_seed[0]["images"][0])
    texts, words = (evaluation_pages(SENTENCES, 5, random) for random in (False, True))
    assert [page.text for page in texts] == [page.text for page in evaluation_pages(SENTENCES, 5)]
    assert {page.text for page in texts}.isdisjoint(page.text for page in words)


@pytest.mark.slow
def test_rows_start_alike_but_for_what_they_are_named_after(cache, tmp_path):
    """The base's weights, initial statistics, rates and trained parameters."""
    import training
    from models import assemble, load
    from settings import QUICK, ROWS

    base, known = training.make_base(cache, 0, QUICK.base), {}
    rates = {"model.language_model": QUICK.rate, training.TOWER: QUICK.tower_rate}
    for name, row in ROWS.items():
        assemble(tmp_path / "start", base, base, row, seed=0)
        model, _ = load(tmp_path / "start")
        arguments = training.training_arguments(tmp_path, 2, 2, QUICK, row.lvtc is not None)
        optimizer = training.InternVLXTrainer(model=model, args=arguments).create_optimizer()
        rate_of = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        for path, parameter in model.named_parameters():
            part = ".".join(path.split(".")[:2])
            assert rate_of.get(parameter, 0) == (
                0 if parameter is model.get_input_embeddings().weight else rates.get(part, QUICK.projector_rate)
            ), (name, path)
            if part in rates and not (row.tile < 64 and "position" in path):
                assert torch.equal(parameter, known.setdefault(path, parameter)), (name, path)
            elif parameter.ndim == 2 and "cls_scale" not in path:  # a linear layer starts as torch's
                assert parameter.std().item() * (3 * parameter.shape[1]) ** 0.5 == pytest.approx(1, abs=0.05), path
        shutil.rmtree(tmp_path / "start")


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
    assert seen == [4, 2, 4, 2, 4, 2]
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.slow
def test_runs_are_trained_evaluated_kept_and_reported(cache, monkeypatch, capsys):
    """The command with its quick settings: two rows, then the report of a study that is far from complete."""
    import run
    from settings import QUICK, ROWS

    def command(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--cache", str(cache), *options])
        run.main()
        return capsys.readouterr().out

    text = command()
    records = [json.loads(path.read_text()) for path in sorted((cache / "runs").iterdir())]
    rows = ROWS["N, image downsampled"], ROWS["PVTC + LVTC"]
    assert sorted(record["configuration"]["tile"] for record in records) == sorted(row.tile for row in rows)
    for record in records:
        kinds = [record[kind] for kind in ("paragraphs", "random_words", "wrong_image")]
        assert all(0 <= found["words"] <= 1 and found["loss"] > 0 for found in kinds)
        assert record["schedule"] == json.loads(json.dumps(asdict(QUICK)))
        assert {"seed", "base", "losses", "cpu_seconds", "peak_gigabytes", "versions"} <= record.keys()
    assert f"**The study is not complete**: 2 of {planned_runs()} runs" in text
    assert re.search(r"\| N, image downsampled \|.*\| 4 \| 4 \|.*\| 1 of 5 \|", text)
    assert command("--report-only") in text
    assert "finished: 2 runs" in command("--plan")
    assert not list(cache.glob("run-*"))


def test_a_complete_study_is_judged_and_drawn(tmp_path):
    import corpus
    import report
    from evidence.records import BASES_FILE, RUNS, Records, Results
    from lessons import evaluation_pages
    from settings import ROWS, SEEDS, RunSchedule

    texts = SENTENCES * 20
    corpus.corpus_path(tmp_path).write_text(json.dumps({"test": texts}))
    reads = [page.text.replace("the", "teh") for page in evaluation_pages(texts, 8)]

    def finished(row, seed: int, words: float) -> dict:
        found = {"words": words, "letters": words, "loss": 1.0, "read": reads}
        kinds = dict.fromkeys(("paragraphs", "random_words", "wrong_image"), found)
        costs = {"cpu_seconds": {"training": 300.0, "evaluation": 60.0}, "peak_gigabytes": 3.0}
        return {
            "seed": seed,
            "configuration": asdict(row),
            "schedule": asdict(RunSchedule()),
            "base": seed,
            "split": "test",
            "cut by windows": 0.31,
            "cut by expanded windows": 0.71,
            **kinds,
            **costs,
        }

    places = {name: place for place, name in enumerate(ROWS)}
    places["LVTC"], places["4N"] = places["4N"], places["LVTC"]  # so that LVTC is below
    results = Results({})
    for name, row in ROWS.items():
        share = 0.2 + 0.1 * places[name]
        results.rows[results.key(row)] = [
            finished(row, seed, share + 0.001 * seed * places[name]) for seed in range(SEEDS)
        ]
    results.save(tmp_path / RUNS)
    (tmp_path / BASES_FILE).write_text("[]")
    for schedule, known in ((RunSchedule(), True), (RunSchedule(steps=199), False)):
        store = Records(tmp_path / "elsewhere", schedule, tmp_path)  # finds what is published with its settings
        assert (store.find(ROWS["PVTC"], 3) is not None) is known
    text = report.write_report(tmp_path, tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    assert f"The study is complete: {planned_runs()} runs from 5 bases." in text
    assert re.search(r"\| more tokens are better: 4N above N \| appears \|", text)
    assert re.search(r"\| LVTC not below the dense 4N \| the other way \|", text)
    assert re.search(r"\| LVTC \|.*\| 0 / 31 → 71 \| 4 \| 16 \| 6.0 \| 5 \|", text)
    assert (tmp_path / report.PICTURE).stat().st_size > 10_000
    assert f"{planned_runs() * 360 / 3600:.2f}" in text  # thread-hours
    rows = text.partition("| setting |")[2].splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}  # also where a value has a "|"


def test_the_published_page_is_what_the_runs_of_the_settings_of_now_give():
    import report
    from evidence.records import RUNS, Results, load_results
    from settings import ROWS, RunSchedule

    page = report.page(*report.read(RESULTS), (RESULTS / report.PICTURE).exists())
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == page
    results = load_results(RESULTS / RUNS)
    assert set(results.rows) <= set(map(Results.key, ROWS.values()))
    for run in itertools.chain(*results.rows.values()):
        assert run["schedule"] == json.loads(json.dumps(asdict(RunSchedule())))
        assert (run["split"], run["base"]) == ("test", run["seed"])
        assert run["versions"] == next(iter(results.rows.values()))[0]["versions"]


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
