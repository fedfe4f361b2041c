"""The ablations' bookkeeping, pages and tables; what they train for real is in benchmarks/results/ablation."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from paths import ROOT

pytestmark = pytest.mark.any_transformers

FOLDER = ROOT / "benchmarks/ablation"
MODULES = ("settings", "task", "records", "estimates", "report", "orderings", "plots", "training", "run")


@pytest.fixture(autouse=True)
def ablation(monkeypatch):
    """The scripts import one another by name; what other tests may call the same is left as it was."""
    before = {name: sys.modules.pop(name, None) for name in (*MODULES, "pages", "train")}
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    yield
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def finished(seed: int, correct: float, **fields) -> dict:
    accuracy = dict.fromkeys(("all", "transcription", "question", "transcription_exact"), correct)
    costs = dict.fromkeys(("tiles", "tokens", "expanded_tokens", "forward_mflops", "cpu_seconds", "parameters"), 1.0)
    return {"seed": seed, "accuracy": accuracy, **costs, **fields}


def test_configurations_that_two_tables_share_are_one_run():
    import settings

    schedule = settings.Schedule()
    shared = [settings.TABLE_2["+ LVTC"], settings.TABLE_4["+ HR + multi"], settings.FIGURE_8["k=5"]]
    assert len({configuration.key(schedule, 0) for configuration in shared}) == 1
    assert settings.TABLE_2["+ RVTC"].key(schedule, 0) == settings.TABLE_5["edge"].key(schedule, 0)
    assert settings.TABLE_2["Base"].key(schedule, 0) == settings.FIGURE_7["pixel_shuffle x16"].key(schedule, 0)


def test_any_change_of_settings_makes_another_run():
    import settings

    schedule, base = settings.Schedule(), settings.BASE
    keys = [
        base.key(schedule, 0),
        base.key(schedule, 1),
        base.key(replace(schedule, stage1_rate=1.0), 0),
        replace(base, window=8).key(schedule, 0),
    ]
    assert len(set(keys)) == 4


def test_a_stopped_job_goes_on_with_what_is_missing_first_seed_first(tmp_path):
    import records
    import settings

    store = records.Records(tmp_path, settings.QUICK)
    groups = {"a": {"x": settings.BASE, "y": settings.PVTC}, "b": {"z": settings.LVTC}}
    store.add(settings.PVTC, 0, {"accuracy": {"all": 0.5}})
    # what a killed process leaves behind is not a finished run
    store.path(settings.BASE, 0).with_suffix(".unfinished").write_text("{")
    missing = [(name, seed) for _, name, _, seed in store.missing(groups, [0, 1])]
    assert missing == [("x", 0), ("z", 0), ("x", 1), ("y", 1), ("z", 1)]


def test_a_second_call_trains_nothing_and_two_shards_share_the_work(tmp_path, monkeypatch):
    import records
    import run
    import settings
    import training

    trained = []

    def pretend(configuration, schedule, seed, cache):
        trained.append(configuration.key(schedule, seed))
        return finished(seed, 0.5)

    monkeypatch.setattr(training, "run", pretend)
    store = records.Records(tmp_path, settings.QUICK)
    for shard in ("0/2", "1/2", "0/1"):
        run.train_missing(store, settings.GROUPS, [0, 1], shard, tmp_path)
    expected = {
        configuration.key(settings.QUICK, seed)
        for group in settings.GROUPS.values()
        for configuration in group.values()
        for seed in (0, 1)
    }
    assert sorted(trained) == sorted(expected)


def test_kept_runs_read_back_as_they_were(tmp_path):
    import records

    runs = {"N → 4N": [finished(0, 0.25), finished(1, 0.5)], "other": [finished(0, 0.75)]}
    records.save_group(tmp_path / "group.json", runs)
    assert records.load_group(tmp_path / "group.json") == runs


def test_means_and_standard_errors_are_those_of_the_seeds():
    import estimates

    runs = [finished(seed, correct) for seed, correct in enumerate((0.2, 0.4, 0.6))]
    known = estimates.accuracy(runs)
    assert known.mean == pytest.approx(40)
    assert known.error == pytest.approx(20 / 3**0.5)  # sample deviation 20 over the root of 3 runs
    assert str(known) == "40.0 ± 11.5"
    assert str(estimates.accuracy(runs[:1])) == "20.0"
    assert estimates.estimate([-3.0, -1.0]).signed() == "−2.0 ± 1.0"


def test_differences_are_taken_seed_by_seed():
    import estimates

    runs = [finished(seed, correct) for seed, correct in enumerate((0.3, 0.5, 0.7))]
    others = [finished(seed, correct) for seed, correct in enumerate((0.2, 0.4, 0.6))]
    known = estimates.difference(runs, others)
    assert (known.mean, known.error) == (pytest.approx(10), pytest.approx(0))
    assert estimates.difference(runs[:1], others[1:]) is None


def test_every_ordering_of_the_paper_is_about_configurations_that_are_run():
    import orderings
    import settings

    assert set(orderings.PAPER) == set(settings.GROUPS)
    for group, claims in orderings.PAPER.items():
        named = {name for _, better, worse in claims for name in (better, worse)}
        assert named <= set(settings.GROUPS[group])


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [
        ((0.50, 0.52, 0.54), "appears"),
        ((0.30, 0.28, 0.32), "the other way round"),
        ((0.10, 0.70, 0.50), "not told apart"),
        ((0.402, 0.402, 0.402), "not told apart"),  # sure, but a fifth of a point
        ((0.90,), "one seed"),
    ],
)
def test_an_ordering_appears_only_beyond_two_standard_errors_and_half_a_point(correct, verdict):
    import orderings

    runs = {
        "+ LVTC": [finished(seed, value) for seed, value in enumerate(correct)],
        "Base": [finished(seed, 0.4) for seed in range(3)],
    }
    (found,) = orderings.findings("table2", runs)
    assert found.claim == "LVTC above the base"
    assert found.verdict == verdict


@pytest.mark.slow
def test_the_report_has_a_row_for_every_configuration_and_its_plots(tmp_path):
    import records
    import report
    import settings

    for name, group in settings.GROUPS.items():
        runs = {configuration: [finished(0, 0.25), finished(1, 0.75)] for configuration in group}
        records.save_group(tmp_path / f"{name}.json", runs)
    text = report.write_report(tmp_path)
    assert text == (tmp_path / "README.md").read_text(encoding="utf-8")
    for group in settings.GROUPS.values():
        assert all(f"| {configuration} | 50.0 ± 25.0 |" in text for configuration in group)
    assert text.count("| the paper's ordering |") == len(settings.GROUPS)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(report.PLOTS)


def test_the_kept_results_are_those_of_the_configurations_of_now():
    import settings

    results = FOLDER.parent / "results/ablation"
    for path in results.glob("*.json"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        group = settings.GROUPS[path.stem]
        for name, runs in kept.items():
            assert runs[0]["configuration"] == json.loads(json.dumps(vars(group[name]))), (path.name, name)


def test_no_handwriting_is_in_two_splits():
    import task

    splits = task.split_digits()
    assert sum(len(digits.labels) for digits in splits.values()) == 1797
    shapes = [{shape.tobytes() for shape in digits.shapes} for digits in splits.values()]
    assert all(not a & b for i, a in enumerate(shapes) for b in shapes[:i])


def test_every_slicing_asks_the_same_of_the_same_pages():
    import task

    drawn = {slicing: task.make_samples("test", 12, slicing, seed=1) for slicing in task.SLICINGS}
    asked = {slicing: [(s.answer, s.kind) for s in samples] for slicing, samples in drawn.items()}
    assert all(questions == asked["whole"] for questions in asked.values())
    tiles = {slicing: sum(len(s.pixel_values) for s in samples) for slicing, samples in drawn.items()}
    assert tiles["whole"] == 12 < tiles["area"] <= tiles["edge"] < tiles["ratio"]


def test_batches_are_what_the_processor_itself_makes():
    import task

    samples, processor = task.make_samples("test", 3, "edge", seed=1), task.build_processor("edge")
    processor.image_seq_length = 4
    batch = task.Collator(processor, tokens=4)(samples)
    prompts = task.Collator(processor, tokens=4, for_generation=True)(samples)
    digits = task.split_digits()["test"]
    for row in range(len(samples)):
        streams = [task.np.random.default_rng((task.SPLIT_NUMBERS["test"], 1, *n)) for n in ([row], [row, 1])]
        conversation, _ = task.draw_sample(digits, *streams, 1.0)
        expected = processor.apply_chat_template([conversation], return_labels=True, return_tensors="pt")
        seen = batch["attention_mask"][row].bool()
        torch.testing.assert_close(batch["input_ids"][row][seen], expected["input_ids"][0])
        torch.testing.assert_close(batch["labels"][row][seen], expected["labels"][0])
        asked = processor.apply_chat_template(
            [conversation[:1]], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        seen = prompts["attention_mask"][row].bool()
        torch.testing.assert_close(prompts["input_ids"][row][seen], asked["input_ids"][0])


def test_digits_count_in_their_place_only():
    import task

    assert task.share_in_place("12\n34", "12\n34") == 1
    assert task.share_in_place("12\n34", "1234") == 1
    assert task.share_in_place("1234", "234") == 0
    assert task.share_in_place("12", "1234") == 0.5


@pytest.mark.slow
def test_every_configuration_fits_together_and_starts_from_the_base(tmp_path):
    import settings
    import task
    import training

    processor = task.build_processor()
    base = training.build_model(training.BASE, processor)
    base.save_pretrained(tmp_path)
    configurations = {c.key(settings.QUICK, 0): c for group in settings.GROUPS.values() for c in group.values()}
    for configuration in configurations.values():
        model = training.build_model(configuration, processor)
        assert model.config.image_seq_length == (settings.PATCHES // configuration.window) ** 2
        training.start_from(model, tmp_path)
        for part in ("vision_tower", "language_model"):
            mine, theirs = (getattr(m.model, part).state_dict() for m in (model, base))
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_base_of_another_width_is_refused(tmp_path, monkeypatch):
    import task
    import training

    training.build_model(training.BASE, task.build_processor()).save_pretrained(tmp_path)
    model = training.build_model(training.BASE, task.build_processor())
    del model.model.language_model.layers[-1]
    with pytest.raises(ValueError, match="does not fit"):
        training.start_from(model, tmp_path)


def test_average_pooling_gives_the_same_token_for_a_window_in_any_order():
    import settings
    import task
    import training

    average = settings.Configuration(window=8, projector={"projector_type": "average"})
    projector = training.build_model(average, task.build_processor()).model.multi_modal_projector
    features = torch.randn(2, 65, training.VISION_WIDTH)
    shuffled = torch.cat([features[:, :1], features[:, 1:][:, torch.randperm(64)]], 1)
    assert projector(features).shape == (2, 1, training.WIDTH)
    torch.testing.assert_close(projector(features), projector(shuffled))
