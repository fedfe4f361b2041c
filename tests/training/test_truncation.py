"""Samples that are truncated to `max_length` are warned of and counted, whether the data are measured or not."""

import json

import pytest

from training_helpers import run, write_data


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"train_sampling_strategy": "random"}, {"streaming": True}],
    ids=["measured", "shuffled", "stream"],
)
def test_truncated_samples_are_warned_of_and_counted(settings, tmp_path, monkeypatch, capsys):
    warnings = []
    monkeypatch.setattr("internvlx_hf.training.truncation.logger.warning", warnings.append)
    evaluation = str(write_data(tmp_path / "eval", 8, seed=3))
    common = {
        "max_steps": 2,
        "save_strategy": "no",
        "eval_data": evaluation,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    trainer = run(tmp_path, **common, **settings, max_length=34)
    samples = [trainer.eval_dataset.encode(index) for index in range(8)]
    in_evaluation = sum(sample.was_cut for sample in samples)
    assert 0 < in_evaluation < 8
    counted = json.loads((tmp_path / "out" / "training_recipe.json").read_text())["truncated"]
    assert counted["evaluation"] == in_evaluation
    assert counted["training"] > 0
    numbers = f"{counted['training']} for training, {in_evaluation} for evaluation"
    assert f"Truncated samples, to max_length=34: {numbers}.\n" in capsys.readouterr().out
    uses = [message.split(" are truncated to max_length=34")[0] for message in warnings]
    assert uses == (["Samples for training"] if settings else []) + ["Samples for evaluation"]
