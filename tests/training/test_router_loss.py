"""Training a mixture of experts: the weight of the routers' loss, and the weights that change."""

import json

import pytest

from internvlx_hf.training.arguments import ModelArguments
from internvlx_hf.training.loading import load_model
from training_helpers import changed, losses, run, save_checkpoint, saved_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("moe") / "base", "qwen3_moe")


@pytest.mark.slow
def test_a_mixture_of_experts_trains_with_the_routers_loss(base, tmp_path):
    settings = {"model_name_or_path": str(base), "max_steps": 2, "gradient_checkpointing": True}
    runs = {
        weight: run(tmp_path, **settings, output_dir=str(tmp_path / weight), router_aux_loss_coef=float(weight))
        for weight in ("0.0", "0.5")
    }
    assert losses(runs["0.5"])[0] > losses(runs["0.0"])[0] + 0.4  # a balanced router's loss is 1
    weights = {weight: saved_weights(tmp_path / weight) for weight in runs}
    assert any("mlp.gate." in name for name in changed(*weights.values()))
    record = json.loads((tmp_path / "0.5" / "training_recipe.json").read_text())
    assert record["settings"]["router_aux_loss_coef"] == 0.5
    assert load_model(ModelArguments(str(tmp_path / "0.5"))).config.text_config.output_router_logits


def test_a_weight_below_zero_is_refused(base):
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef` is -0\.1, expected 0 or more"):
        load_model(ModelArguments(str(base), router_aux_loss_coef=-0.1))


def test_a_dense_model_takes_no_weight(tmp_path):
    save_checkpoint(tmp_path)
    with pytest.raises(
        ValueError, match=r"`router_aux_loss_coef` is 0\.1, but the language model 'qwen2' has no experts"
    ):
        load_model(ModelArguments(str(tmp_path), router_aux_loss_coef=0.1))
