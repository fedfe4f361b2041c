"""`tokens_per_tile_sampling`: each step of a training has a size of a tile, drawn from those that the checkpoint offers."""

import json
from collections import Counter
from functools import wraps
from types import SimpleNamespace

import pytest
import torch

from dial_cases import dial
from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.checkpoints.names import RECIPE
from internvlx_hf.data import InternVLXDataCollator, TrainingData, load_training_data
from internvlx_hf.training import size_sampling
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.size_sampling import size_of_step, size_weights
from refusals import refused
from tiny import tiny_config
from training_helpers import RANDOM, TRAINED, losses, run, save_dial, saved_weights, sized, write_data


def weights(sampling, **config):
    arguments = SimpleNamespace(tokens_per_tile_sampling=sampling)
    return size_weights(arguments, tiny_config(**dial(2, 3, TRAINED), **config))


# -- which size a step has


def test_all_sizes_are_drawn_equally_often():
    assert weights("all") == dict.fromkeys(range(5), 1.0)
    assert weights({"4": 2.0, "16:4": 1.0, "16": 0.0}) == {1: 2.0, 3: 1.0}
    assert weights(None) == {}


def test_sizes_are_drawn_by_weight_and_depend_on_seed_and_step_only():
    drawn = [size_of_step({1: 3.0, 0: 1.0}, seed=2, step=step) for step in range(400)]
    assert 260 < Counter(drawn)[1] < 340
    assert drawn == [size_of_step({0: 2.0, 1: 6.0}, seed=2, step=step) for step in range(400)]
    assert drawn != [size_of_step({1: 3.0, 0: 1.0}, seed=3, step=step) for step in range(400)]


WRONG = {
    "a size that is not offered": ({"64": 1.0}, "'64'", "16, 4, 4:16, 16:4, 16:0"),
    "no weight": ({"16": 0}, "{'16': 0.0}", "above 0"),
    "a negative weight": ({"16": -1}, "{'16': -1.0}", "not be negative"),
    "no JSON": ("sometimes", "'sometimes'", "numbers by size"),
    "no numbers": ({"16": "often"}, "'often'", "numbers by size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_are_refused(name, tmp_path):
    sampling, *message = WRONG[name]
    with refused(*message):
        asked = InternVLXTrainingArguments(str(tmp_path), tokens_per_tile_sampling=sampling, use_cpu=True)
        weights(asked.tokens_per_tile_sampling)


def test_the_default_is_one_size(tmp_path):
    for nothing in (None, "{}", {}):
        arguments = InternVLXTrainingArguments(str(tmp_path), tokens_per_tile_sampling=nothing, use_cpu=True)
        assert arguments.tokens_per_tile_sampling is None


# -- what a collator makes of it


@pytest.mark.parametrize("packing", [False, True])
def test_texts_of_every_size_are_those_of_a_processor_with_that_size(packing, tmp_path):
    config, path = tiny_config(**dial(2, 3, TRAINED)), str(write_data(tmp_path))
    settings = {"packing": packing, "pad_to_multiple_of": 8}

    def batch(size=None, **more):
        processor = sized(config, tokens_per_tile=size)
        data = load_training_data(path, processor)
        assert isinstance(data, TrainingData)
        return InternVLXDataCollator(processor, **settings, **more)([data[i] for i in range(6)])

    own = batch("16", sampled_sizes=TRAINED)
    assert sorted(own["of_sizes"]) == [0, 1, 2, 3, 4]
    for index, size in enumerate(TRAINED):
        want = batch(size)
        got = {"pixel_values": own["pixel_values"], **own["of_sizes"][index]}
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=0)
        assert ("tile_sizes" in got) == (index > 0)


def test_a_batch_without_the_sizes_is_refused():
    with refused("of_sizes", "sampled_sizes"):
        size_sampling.take_size({"input_ids": torch.zeros(1, 1)}, 0)


# -- whole runs


WAYS = {
    "padded": {},
    "packed": {"packing_tokens": 160, "attn_implementation": "varlen_sdpa"},
    "cost-grouped": {"train_sampling_strategy": "group_by_cost"},
    "checkpointed": {"gradient_checkpointing": True},
    "packed stream": {"streaming": True, "packing_tokens": 160, "attn_implementation": "varlen_sdpa"},
    "LoRA": {"lora_rank": 2, "lora_dropout": 0.3},
}


@pytest.mark.parametrize(
    ("size", "how"),
    [
        *(("4:16", "padded"), ("16:4", "packed"), ("16:0", "cost-grouped"), ("4", "checkpointed")),
        *(("4:16", "packed stream"), ("4:16", "LoRA")),
    ],
)
@pytest.mark.slow
def test_steps_of_one_sampled_size_are_those_of_a_run_with_that_size(size, how, tmp_path):
    """The order of cost-grouped batches is that of the largest sampled size, which here is the only one."""
    base = save_dial(tmp_path / "base")
    common = {"model_name_or_path": base, "max_steps": 4, "save_strategy": "no", **WAYS[how]}
    fixed = run(tmp_path, **common, tokens_per_tile=size, output_dir=str(tmp_path / "fixed"))
    sampled = run(tmp_path, **common, tokens_per_tile_sampling={size: 1}, output_dir=str(tmp_path / "sampled"))
    assert losses(sampled) == losses(fixed)
    assert (
        sampled.state.log_history[-1]["stage_two_tokens_seen"] == fixed.state.log_history[-1]["stage_two_tokens_seen"]
    )


@pytest.fixture
def drawn(monkeypatch):
    """The sizes that the steps' batches had, as the model saw them."""
    seen = []
    forward = InternVLXForConditionalGeneration.forward

    @wraps(forward)  # whose signature names the labels
    def watched(model, *args, **kwargs):
        if model.training:
            sizes = kwargs.get("tile_sizes")
            tiles = len(kwargs["pixel_values"]) if kwargs.get("pixel_values") is not None else 0
            seen.append({0} if sizes is None and tiles else set() if sizes is None else set(sizes.tolist()))
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(InternVLXForConditionalGeneration, "forward", watched)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("how", ["padded", "packed stream", "LoRA"])
def test_a_resumed_run_continues_with_its_sizes_and_its_data(how, tmp_path, drawn):
    """With dropout, two batches a step, and an evaluation at the checkpoint's first size."""
    base, data = save_dial(tmp_path / "base", RANDOM), str(write_data(tmp_path / "data", 24))
    common = {"model_name_or_path": base, "train_data": data, "tokens_per_tile_sampling": "all", **WAYS[how]}
    batches = 1 if "packed" in how else 2
    common |= {"gradient_accumulation_steps": batches, "eval_data": data, "max_steps": 6}
    whole = run(tmp_path, **common, output_dir=str(tmp_path / "whole"))
    sizes, expected = list(drawn), [size_of_step(weights("all"), 42, step) for step in range(6)]
    for step, size in enumerate(expected):
        assert set().union(*sizes[batches * step : batches * (step + 1)]) <= {size}
    assert len(set(expected)) > 2
    drawn.clear()
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = run(tmp_path, **common, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=checkpoint)
    assert drawn == sizes[3 * batches :]
    assert losses(resumed) == losses(whole)
    before, after = (saved_weights(tmp_path / name) for name in ("whole", "resumed"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert whole.evaluate()["eval_loss"] == resumed.evaluate()["eval_loss"]


@pytest.mark.slow
def test_all_sizes_are_trained_and_lose(tmp_path):
    """A run learns the answers at each of its sizes, and every parameter of a size gets gradients."""
    base = save_dial(tmp_path / "base")
    common = {"model_name_or_path": base, "max_steps": 40, "save_strategy": "no", "learning_rate": 3e-3}
    trainer = run(tmp_path, **common, tokens_per_tile_sampling='{"16": 1, "4": 3, "16:4": 3}')
    found = losses(trainer)
    assert sum(found[-5:]) < 0.5 * sum(found[:5])
    start, end = saved_weights(tmp_path / "base"), saved_weights(tmp_path / "out")
    of_sizes = [name for name in start if ".sizes." in name and "multi_modal_projector" in name]
    assert of_sizes
    assert not any(torch.equal(start[name], end[name]) for name in of_sizes)
    record = json.loads((tmp_path / "out" / RECIPE).read_text())["settings"]["tokens_per_tile_sampling"]
    assert record == {"16": 1.0, "4": 3.0, "16:4": 3.0}
