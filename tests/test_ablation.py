"""The digit study's pages, rows, controls and bookkeeping; what they train for real is in benchmarks/results/ablation."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark_scripts import ABLATION, importable

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]


@pytest.fixture(autouse=True)
def ablation():
    with importable(ABLATION, also=("pages", "train")):
        yield


def finished(seed: int) -> dict:
    dense = {"all": 0.5, "cut by tiles": 0.0}
    return {"seed": seed, "base": seed, "accuracy": {"dense": dense}, "cpu_seconds": 3599, "evaluation_seconds": 1.0}


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """Replaces training by a list of what would have been trained."""
    import training

    done: list[tuple] = []
    bases = Path("no base")
    monkeypatch.setattr(training, "make_base", lambda pages, number, *_: done.append(("base", pages, number)) or bases)
    monkeypatch.setattr(training, "run", lambda row, _, seed, *__: done.append((row.pages, seed)) or finished(seed))
    return done


def test_runs_go_base_by_base_and_a_second_call_trains_nothing(tmp_path, trained):
    import run
    import settings
    from evidence import records

    store, published = records.Records(tmp_path, settings.QUICK), []
    for _ in range(2):
        run.train_missing(store, settings.GROUPS, [0, 1], tmp_path, "test", lambda: published.append(len(trained)))
    rows = sum(map(len, settings.GROUPS.values()))
    assert [entry[-1] for entry in trained] == [0] * 2 * rows + [1] * 2 * rows
    assert len(published) == 2 * rows
    assert all(before == ("base", *after) for before, after in zip(trained[::2], trained[1::2], strict=True))


# -- pages


def drawn(pages: str, slicing: str = "whole", count: int = 64, **options):
    import task

    return task.make_samples("test", count, pages, slicing, seed=1, **options)


def test_no_handwriting_is_in_two_splits():
    from digit_pages import SPLITS, handwriting

    shapes = [{shape.tobytes() for digit in handwriting(split, 12) for shape in digit} for split in SPLITS]
    assert sum(len(digit) for split in SPLITS for digit in handwriting(split, 12)) == 1797
    assert all(not a & b for i, a in enumerate(shapes) for b in shapes[:i])


def test_every_slicing_asks_the_same_of_the_same_pages_and_edge_and_ratio_cut_many_of_them_differently():
    found = {slicing: drawn("several", slicing) for slicing in ("whole", "area", "edge", "ratio")}
    asked = {slicing: [(s.answer, s.kind) for s in samples] for slicing, samples in found.items()}
    assert all(questions == asked["whole"] for questions in asked.values())
    tiles = {slicing: sum(len(s.pixel_values) for s in samples) for slicing, samples in found.items()}
    assert tiles["whole"] == 64 < tiles["area"] < tiles["edge"] < tiles["ratio"]
    assert sum(a.grid != b.grid for a, b in zip(found["edge"], found["ratio"], strict=True)) >= 6


def test_patches_are_named_after_the_digits_on_them():
    import task

    for sample in drawn("several", "ratio", 8):
        named = task.patch_labels(sample)
        assert named.shape == (len(sample.pixel_values), 64)
        assert set(named.flatten().tolist()) - {10} <= set(sample.digits.tolist())
        dark = sample.pixel_values.float().mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)).flatten(1)
        assert dark[named < 10].mean() < dark[named == 10].mean()


def test_batches_are_what_the_processor_itself_makes():
    import settings
    import task

    samples = drawn("several", "edge", 3, filled=1.0)
    processor = task.build_processor("edge")
    processor.image_seq_length = 4
    batch = task.Collator(processor, tokens=4)(samples)
    prompts = task.Collator(processor, tokens=4, for_generation=True)(samples)
    for row in range(len(samples)):
        streams = [np.random.default_rng((task.SPLIT_NUMBERS["test"], 1, *n)) for n in ([row], [row, 1])]
        conversation, *_ = task.draw_sample(settings.KINDS["several"], "test", *streams, 1.0, 1.0)
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


# -- rows


def built(row):
    import task
    import training

    torch.manual_seed(0)
    return training.build_model(row, task.build_processor())


# what the rows of a table differ in, beside their projector, LVTC and control
MEANT = {"projectors": {"window"}, "steps": {"stage2_times"}, "layers": {"window"}, "slicing": {"slicing", "window"}}


@pytest.mark.parametrize("group", MEANT)
def test_rows_of_a_table_start_alike_but_for_what_they_are_named_after(group):
    """Initial statistics, rates, trained parameters, data order and steps."""
    import settings
    import training

    rows, schedule = settings.GROUPS[group], settings.Schedule()
    first = next(iter(rows.values()))
    for name, row in rows.items():
        differing = {field for field, value in asdict(row).items() if value != getattr(first, field)}
        assert differing <= MEANT[group] | {"projector", "lvtc", "control"}, name
        stages = [(steps, rate, trained) for _, steps, rate, trained in training.stages_of(row, schedule)]
        assert stages == [
            (schedule.stage1_steps, schedule.stage1_rate, training.NEW_MODULES),
            (schedule.stage2_steps * row.stage2_times, schedule.stage2_rate, ("",)),
        ]
        model = built(row)
        for path, module in model.named_modules():
            if path.startswith(training.NEW_MODULES) and isinstance(module, torch.nn.Linear):
                # as torch starts a linear layer: uniform, with a variance of 1/3 of the inputs' inverse number
                assert module.weight.detach().std() * (3 * module.in_features) ** 0.5 == pytest.approx(1, abs=0.05), (
                    path
                )
        frozen = [path for path, parameter in model.named_parameters() if not parameter.requires_grad]
        assert not frozen, name


def test_pvtc_without_attention_sees_its_patches_in_the_query_only():
    import settings

    model = built(settings.NO_ATTENTION)
    projector, features = model.model.multi_modal_projector.eval(), torch.randn(2, 65, 64)
    expected = projector(features)
    torch.nn.init.normal_(projector.patch_embedding.linear.weight)
    assert torch.equal(projector(features), expected)
    assert not torch.equal(built(settings.PVTC).model.multi_modal_projector.eval()(features), expected)


def test_a_masked_image_is_hidden_from_text_and_not_from_itself():
    from evidence.hidden_image import without_image

    low = torch.finfo(torch.float32).min
    causal = torch.full((5, 5), low).triu(1)
    mask = torch.stack([causal, causal.clone().index_fill_(1, torch.tensor([0]), low)])[:, None]  # row 1 is padded
    before, tokens = torch.tensor([1, 0]), torch.tensor([2, 2])
    seen = (without_image(mask, before, tokens) == 0).int().tolist()
    assert seen[0][0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert seen[1][0][3:] == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    last = (without_image(mask[:, :, -1:], before, tokens) == 0).int().tolist()
    assert [row[0] for row in last] == [seen[0][0][-1:], seen[1][0][-1:]]


@pytest.mark.parametrize("row", ["N", "LVTC"])
def test_a_knocked_out_image_changes_no_answer_and_an_early_one_does(row):
    """From layer 0 on, the logits after the image do not depend on it; from a later layer on they do, and afterwards all is as before."""
    import settings
    import task
    from evidence.hidden_image import knocked_out

    model = built({**settings.PROJECTORS, **settings.LAYERWISE}[row]).eval()
    batch = task.Collator(task.build_processor(), model.config.image_seq_length)(drawn("one", count=3))
    del batch["labels"]
    others = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    answers = (batch["input_ids"] != model.config.image_token_id) & batch["attention_mask"].bool()

    def differs() -> bool:
        with torch.no_grad():
            return not torch.allclose(*(model(**inputs).logits[answers] for inputs in (batch, others)), atol=1e-6)

    for layer in (0, settings.EXPAND_LAYER, settings.LAYERS - 1):
        with knocked_out(model, layer):
            assert differs() == (layer > 0)
            if layer == 0:
                generated = [model.generate(**inputs, max_new_tokens=4, do_sample=False) for inputs in (batch, others)]
                assert torch.equal(*generated)
    assert differs()
    alone = task.Collator(task.build_processor(), model.config.image_seq_length)(drawn("one", count=1))
    prompt = {"input_ids": alone["input_ids"]}  # a training whose samples are of one length has no mask
    with knocked_out(model, 0), torch.no_grad():
        one, other = (model(**prompt, pixel_values=sign * alone["pixel_values"]).logits[:, -1] for sign in (1, -1))
    assert torch.allclose(one, other, atol=1e-6)


def test_a_base_of_another_width_is_refused(tmp_path):
    import settings
    import training

    built(settings.BASE_4N).save_pretrained(tmp_path)
    model = built(settings.BASE_4N)
    del model.model.language_model.layers[-1]
    with pytest.raises(ValueError, match="does not fit"):
        training.start_from(model, tmp_path)


@pytest.mark.slow
def test_a_base_is_trained_once_and_runs_start_from_it(tmp_path):
    import settings
    import training

    for _ in range(2):
        folder = training.make_base("several", 1, settings.QUICK, tmp_path)
    record = json.loads((folder / "base.json").read_text())
    assert list(record["validation"]) == list(training.BASE_SLICINGS["several"])
    ways = {"no image": 0, "ratio": ("ratio", 6)}
    result = training.run(settings.SLICINGS["edge"], settings.QUICK, 1, tmp_path, measured=ways)
    assert (result["base"], list(result["untrained"])) == (1, list(ways))
    assert result["untrained"]["ratio"]["tiles"] > result["accuracy"]["dense"]["tiles"]
