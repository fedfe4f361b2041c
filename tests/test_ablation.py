"""The ablations' bookkeeping, pages and tables; what they train for real is in benchmarks/results/ablation."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmark_scripts import ABLATION, importable

pytestmark = pytest.mark.any_transformers


@pytest.fixture(autouse=True)
def ablation():
    with importable(ABLATION, also=("pages", "train")):
        yield


def finished(seed: int, correct: float, **fields) -> dict:
    accuracy = dict.fromkeys(("all", "transcription", "question", "transcription_exact"), correct)
    costs = dict.fromkeys(("tiles", "tokens", "expanded_tokens", "forward_mflops", "cpu_seconds", "parameters"), 1.0)
    return {"seed": seed, "accuracy": accuracy, **costs, **fields}


def test_configurations_that_two_tables_share_are_one_run():
    import settings

    schedule = settings.Schedule()
    shared = [settings.FIGURE_8["M1=4 M2=2"], settings.TABLE_4["+ HR + multi"], settings.K_CURVE["N → 4N, k=5"]]
    assert len({configuration.key(schedule, 0) for configuration in shared}) == 1
    assert settings.ATTRIBUTION["+ RVTC"].key(schedule, 0) == settings.TABLE_5["edge"].key(schedule, 0)
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


def test_rows_of_the_main_family_are_keyed_as_if_there_were_no_other(tmp_path):
    import settings
    import training

    schedule = settings.Schedule()
    keys = {
        "73369d0be563be5b": settings.TABLE_2["+ PVTC"],
        "3cc2a8316be5a44b": settings.TABLE_4["LVTC N → 4N"],
        "0d96e3861d73aa29": settings.FIGURE_7["downsampled x64"],
    }
    assert {key: row.key(schedule, 3) for key, row in keys.items()} == {key: key for key in keys}
    folder = training.base_folder("dense", 1, schedule, tmp_path)
    assert folder.name == "base-dense-ccccc3e2-1-1350-0.002-16"
    other = training.base_folder("dense", 1, schedule, tmp_path, "LLaVA")
    assert other.name.startswith("base-LLaVA-")
    assert other.name.endswith("-dense-ccccc3e2-1-1350-0.002-16")
    assert settings.in_family(settings.PVTC, "SigLIP").key(schedule, 3) not in keys


def test_every_family_repeats_the_rows_with_its_own_tower_and_projector():
    import settings

    for family in settings.FAMILIES:
        rows = {
            name: settings.GROUPS[group][row]
            for name in settings.REPEATED
            for group, row in [settings.row_of(family, name)]
        }
        assert {row.family for row in rows.values()} == {family}
        own = settings.FAMILIES[family].projector
        assert {name: row.projector["projector_type"] for name, row in rows.items()} == dict.fromkeys(rows, own) | {
            "+ PVTC": "pvtc"
        }
    llava = settings.GROUPS["families"]["LLaVA: + LVTC"]
    assert llava.lvtc == settings.lvtc() | {"hr_projector_type": "linear", "lr_projector_type": "linear"}


def pretend_to_train(monkeypatch) -> list[tuple]:
    """Replaces training by a list of what would have been trained."""
    import training

    trained: list[tuple] = []

    def run(configuration, schedule, seed, cache):
        trained.append((configuration.key(schedule, 0), seed))
        return finished(seed, 0.5, evaluation_seconds=1.0)

    monkeypatch.setattr(training, "run", run)
    monkeypatch.setattr(training, "make_bases", lambda *_: None)
    return trained


def test_rows_of_claims_come_first_seed_by_seed_and_shared_rows_once(monkeypatch):
    import run
    import settings

    monkeypatch.setattr(run, "seeds_of", lambda configuration: 1 if configuration == settings.PVTC else 3)
    groups = {"a": {"x": settings.BASE, "y": settings.PVTC}, "b": {"z": settings.BASE, "w": settings.LVTC}}
    order = [(group, name, seed) for group, name, _, seed in run.planned(groups, [0, 1, 2, 3])]
    claims = [(group, name, seed) for seed in range(3) for group, name in (("a", "x"), ("b", "w"))]
    assert order == [*claims, ("a", "y", 0)]


def test_a_second_call_trains_nothing_and_two_shards_share_the_work(tmp_path, monkeypatch):
    import records
    import run
    import settings

    trained = pretend_to_train(monkeypatch)
    store = records.Records(tmp_path, settings.QUICK)
    for shard in ("0/2", "1/2", "0/1"):
        run.train_missing(store, settings.GROUPS, [0, 3], shard, tmp_path)
    expected = {(c.key(settings.QUICK, 0), seed) for _, _, c, seed in run.planned(settings.GROUPS, [0, 3])}
    assert len(trained) == len(expected)
    assert set(trained) == expected


def test_finished_runs_need_no_bases(tmp_path, monkeypatch):
    import records
    import run
    import settings
    import training

    store, made = records.Records(tmp_path, settings.QUICK), []
    pretend_to_train(monkeypatch)
    monkeypatch.setattr(training, "make_bases", lambda bases, schedule, cache, family: made.extend(bases))
    run.train_missing(store, {"table2": settings.TABLE_2, "table5": settings.TABLE_5}, [0], "0/1", tmp_path)
    assert {kind for kind, _ in made} == {"dense", "spread"}
    made.clear()
    run.train_missing(store, {"table2": settings.TABLE_2, "table5": settings.TABLE_5}, [0], "0/1", tmp_path)
    assert made == []
    one = next(iter(settings.TABLE_5.values()))
    store.path(one, 0).unlink()
    run.train_missing(store, {"table2": settings.TABLE_2, "table5": settings.TABLE_5}, [0], "0/1", tmp_path)
    assert made == [("spread", 0)]


def test_the_plan_counts_what_is_left_and_estimates_it_by_finished_runs(tmp_path, monkeypatch):
    import records
    import run
    import settings

    store, groups = records.Records(tmp_path, settings.QUICK), {"table3": settings.TABLE_3}
    for name, seed, spent in (("Base", 0, 3599), ("global + local", 0, 7199)):
        store.add(settings.TABLE_3[name], seed, finished(seed, 0.5) | {"cpu_seconds": spent, "evaluation_seconds": 1})
    monkeypatch.setattr(run, "seeds_of", lambda configuration: 2)
    total = run.plan(store, groups, [0, 1]).splitlines()[-1].split()
    # Base and PVTC again take 1 h and 2 h, the five other rows 1.5 h a run
    assert total == ["all", "2", "3.00", "12", "18.00"]


def test_no_handwriting_is_in_two_splits():
    import task

    splits = task.split_digits()
    assert sum(len(digits.labels) for digits in splits.values()) == 1797
    shapes = [{shape.tobytes() for shape in digits.shapes} for digits in splits.values()]
    assert all(not a & b for i, a in enumerate(shapes) for b in shapes[:i])


def test_every_slicing_asks_the_same_of_the_same_pages():
    import task

    drawn = {slicing: task.make_samples("test", 24, "spread", slicing, 64, seed=1) for slicing in task.SLICINGS}
    asked = {slicing: [(s.answer, s.kind) for s in samples] for slicing, samples in drawn.items()}
    assert all(questions == asked["whole"] for questions in asked.values())
    tiles = {slicing: sum(len(s.pixel_values) for s in samples) for slicing, samples in drawn.items()}
    assert tiles["whole"] == 24 < tiles["area"] < tiles["edge"] < tiles["ratio"]


@pytest.mark.parametrize("name", ["few", "dense", "denser", "spread"])
def test_text_has_one_size_and_only_spread_pages_fill_more_than_a_tile(name):
    import task

    kind, rng = task.KINDS[name], task.np.random.default_rng(0)
    digits = task.split_digits(kind.digit)["test"]
    assert digits.shapes.shape[1:] == (kind.digit, kind.digit)
    assert sum(kind.layouts.values()) == pytest.approx(1)
    sizes = {task.compose_page(digits, layout, rng, cell=kind.cell).image.size for layout in kind.layouts}
    assert sizes == {(columns * kind.cell[0], rows * kind.cell[1]) for columns, rows in kind.layouts}
    assert any(max(size) > 64 for size in sizes) == kind.tiled
    assert len(sizes) > 1 or not kind.tiled


def test_batches_are_what_the_processor_itself_makes():
    import task

    samples = task.make_samples("test", 3, "spread", "edge", 64, seed=1)
    kind, processor = task.KINDS["spread"], task.build_processor("edge")
    processor.image_seq_length = 4
    batch = task.Collator(processor, tokens=4)(samples)
    prompts = task.Collator(processor, tokens=4, for_generation=True)(samples)
    digits = task.split_digits(kind.digit)["test"]
    for row in range(len(samples)):
        streams = [task.np.random.default_rng((task.SPLIT_NUMBERS["test"], 1, *n)) for n in ([row], [row, 1])]
        conversation, *_ = task.draw_sample(kind, digits, *streams, 1.0)
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

    processor, bases = task.build_processor(), {}
    for family in settings.FAMILIES:
        bases[family] = training.build_model(settings.base_row(family), processor)
        bases[family].save_pretrained(tmp_path / family)
    configurations = {c.key(settings.QUICK, 0): c for group in settings.GROUPS.values() for c in group.values()}
    for configuration in configurations.values():
        model = training.build_model(configuration, processor)
        grid = configuration.tile * settings.PATCHES // settings.TILE
        assert model.config.image_seq_length == (grid // configuration.window) ** 2
        base = bases[configuration.family]
        training.start_from(model, tmp_path / configuration.family)
        for part in ("vision_tower", "language_model"):
            mine, theirs = (getattr(m.model, part).state_dict() for m in (model, base))
            same = {name for name in theirs if torch.equal(mine[name], theirs[name])}
            resized = {"embeddings.position_embeddings"} if configuration.tile != settings.TILE else set()
            assert theirs.keys() - same <= resized


def test_a_base_of_another_width_is_refused(tmp_path, monkeypatch):
    import settings
    import task
    import training

    training.build_model(settings.base_row(), task.build_processor()).save_pretrained(tmp_path)
    model = training.build_model(settings.base_row(), task.build_processor())
    del model.model.language_model.layers[-1]
    with pytest.raises(ValueError, match="does not fit"):
        training.start_from(model, tmp_path)


@pytest.mark.slow
def test_a_base_is_trained_once_and_runs_start_from_it(tmp_path):
    import settings
    import training

    for _ in range(2):
        training.make_bases([("few", 1)], settings.QUICK, tmp_path)
    folder = training.base_folder("few", 1, settings.QUICK, tmp_path)
    record = json.loads((folder / "base.json").read_text())
    assert list(record["validation"]) == ["whole"]
    result = training.run(settings.FIGURE_7["pvtc x64"], settings.QUICK, 4, tmp_path)
    assert result["base"] == 1
    assert result["tokens"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("family", "query"), [("LLaVA", "cls"), ("SigLIP", "pooled")])
def test_bases_and_runs_of_another_family(family, query, tmp_path, monkeypatch):
    import settings
    import task
    import training

    monkeypatch.setitem(settings.KINDS, "dense", settings.KINDS["few"])  # shorter texts
    row = settings.GROUPS["families"][f"{family}: + PVTC"]
    schedule = replace(settings.QUICK, base_steps=1, stage1_steps=1, stage2_steps=1, batch=2)
    counters = []
    monkeypatch.setattr(
        training, "share_loss", lambda logits, counts, tiles: counters.append(logits.shape) or logits.sum()
    )
    result = training.run(row, schedule, 4, tmp_path)
    assert (result["base"], result["tokens"], counters) == (1, 4, [(2, 10)])
    assert training.base_folder("dense", 1, schedule, tmp_path, family).exists()
    model = training.build_model(row, task.build_processor())
    assert model.config.projector_config.global_query == query


def test_a_tower_learns_to_count_from_its_pooled_output_or_its_cls_token():
    import training
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features, pooled = torch.randn(2, 5, 3), torch.randn(2, 3)
    torch.testing.assert_close(training.summary(BaseModelOutputWithPooling(features)), features[:, 0])
    assert training.summary(BaseModelOutputWithPooling(features, pooled)) is pooled


def baseline(kind: str, window: int, seed: int = 0):
    """A model with a baseline as its projector, and random tiles."""
    import settings
    import task
    import training

    configuration = settings.Configuration(window=window, projector={"projector_type": kind})
    torch.manual_seed(0)
    return training.build_model(configuration, task.build_processor(), seed).eval(), torch.randn(3, 3, 64, 64)


def kept_tokens(model, tiles) -> list[set[int]]:
    """Which of the tokens before pruning each tile keeps."""
    projector = model.model.multi_modal_projector
    before = []
    projector.projector.register_forward_hook(lambda _, __, tokens: before.append(tokens))
    after = model.get_image_features(tiles).pooler_output
    matches = (after[:, :, None] == before[-1][:, None]).all(-1)  # (tiles, N², 4N²)
    assert (matches.sum(-1) == 1).all()
    kept = matches.float().argmax(-1)
    assert (kept.diff(dim=1) > 0).all()  # in raster order
    return [set(row.tolist()) for row in kept]


def test_average_pooling_gives_the_same_token_for_a_window_in_any_order():
    model, _ = baseline("average", 8)
    projector = model.model.multi_modal_projector
    features = torch.randn(2, 65, model.config.vision_config.hidden_size)
    shuffled = torch.cat([features[:, :1], features[:, 1:][:, torch.randperm(64)]], 1)
    assert projector(features).shape == (2, 1, model.config.text_config.hidden_size)
    torch.testing.assert_close(projector(features), projector(shuffled))


@pytest.mark.parametrize(("window", "tokens"), [(8, 1), (4, 4), (2, 16)])
def test_pruning_by_attention_keeps_the_windows_that_the_cls_token_looks_at(window, tokens):
    model, tiles = baseline("cls_pruning", window)
    with torch.no_grad():
        kept = kept_tokens(model, tiles)
        tower = model.model.vision_tower(tiles, output_attentions=True)
    looks = tower.attentions[-1][:, :, 0, 1:].mean(1).view(3, 8, 8)
    side = window // 2
    windows = looks.unfold(1, side, side).unfold(2, side, side).sum((-2, -1)).flatten(1)
    assert kept == [set(row.topk(tokens).indices.tolist()) for row in windows]


def test_random_pruning_is_fixed_for_a_tile_and_a_seed():
    model, tiles = baseline("random_pruning", 4)
    with torch.no_grad():
        kept = kept_tokens(model, tiles)
        assert all(len(chosen) == 4 for chosen in kept)
        assert kept_tokens(model, tiles.flip(0)) == kept[::-1]
        assert kept_tokens(baseline("random_pruning", 4, seed=1)[0], tiles) != kept


def test_position_embeddings_of_smaller_tiles_are_interpolated():
    import baselines

    positions = torch.cat([torch.full((1, 1, 2), 9.0), torch.arange(64.0)[None, :, None].expand(1, 64, 2)], 1)
    assert baselines.resized_positions(positions, 8) is positions
    resized = baselines.resized_positions(positions, 4)
    assert resized.shape == (1, 17, 2)
    assert (resized[:, 0] == 9).all()
    # the middle of each 2x2 of a linear ramp; bicubic interpolation bends it at the border
    torch.testing.assert_close(resized[0, 1:, 0].view(4, 4)[1, 1], torch.tensor(22.5))


def test_a_downsampled_image_costs_as_many_tokens_as_a_pooled_one():
    import settings
    import task
    import training

    for ratio in (4, 16, 64):
        configuration = settings.at_ratio("downsampled", ratio, "dense", 1)
        samples = task.make_samples("test", 1, "dense", "whole", configuration.tile, seed=1)
        model = training.build_model(configuration, task.build_processor(tile=configuration.tile))
        tokens = model.get_image_features(samples[0].pixel_values.float()).pooler_output
        assert tokens.shape[:2] == (1, 64 // ratio)


def test_the_cls_tokens_loss_is_the_cross_entropy_of_the_shares_of_digits():
    import training

    counts = torch.tensor([[4, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1] * 10])
    known = torch.zeros(3, 10)  # a page of one tile, and one of two
    known[0, 0] = 100
    assert training.share_loss(known, counts, [1, 2]).item() == pytest.approx(math.log(10) / 2)
    assert training.share_loss(known.flip(0), counts, [2, 1]).item() > 10
