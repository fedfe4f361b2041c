"""`vision_drop_path_rate`: stochastic depth of the tower's layers in training, and nothing else."""

import pytest
import torch

from internvlx_hf.training.drop_path import DropPath, add_drop_path
from internvlx_hf.training.train import SETTINGS, parse_arguments, prepare_model
from tiny import tiny_model

RATE = 0.5


def model_with_drop_path(rate: float = RATE):
    model = tiny_model(vision_config={"num_hidden_layers": 3})
    add_drop_path(model, model.config, rate)
    return model


def tiles(number: int = 1) -> torch.Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_branch_is_dropped_or_scaled():
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    module = torch.nn.Identity().train()
    dropped, weights = DropPath(0.25)(module, (), (branch, None))
    assert weights is None
    values = {tuple(tile.unique().tolist()) for tile in dropped}
    assert len(values) == 2
    torch.testing.assert_close(torch.tensor(sorted(values)).flatten(), torch.tensor([0.0, 1 / 0.75]))
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)  # 3 standard errors
    assert DropPath(0.25)(module.eval(), (), branch) is branch


def test_the_rate_rises_linearly_over_the_layers():
    layers = model_with_drop_path().model.vision_tower.encoder.layer
    rates = [
        [hook.rate for hook in branch._forward_hooks.values()]
        for layer in layers
        for branch in (layer.attention, layer.mlp)
    ]
    assert rates == [[0.0], [0.0], [0.25], [0.25], [0.5], [0.5]]


def test_it_changes_features_in_training_only_and_nothing_that_is_saved():
    plain, model = tiny_model(vision_config={"num_hidden_layers": 3}), model_with_drop_path()
    assert plain.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        expected = plain.eval().model.vision_tower(tiles()).last_hidden_state
        torch.testing.assert_close(
            model.eval().model.vision_tower(tiles()).last_hidden_state, expected, rtol=0, atol=0
        )
        torch.manual_seed(0)
        outputs = [model.train().model.vision_tower(tiles()).last_hidden_state for _ in range(8)]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) > 1


def test_checkpointed_gradients_are_those_of_the_same_branches():
    gradients = []
    for checkpointed in (False, True):
        model = model_with_drop_path().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.model.vision_tower(tiles(4)).last_hidden_state.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def parse(tmp_path, *flags):
    required = ["--model_name_or_path", "x", "--train_data", "x", "--output_dir", str(tmp_path), "--use_cpu"]
    return parse_arguments([*required, *flags], SETTINGS)


def test_the_setting_puts_it_on_and_another_tower_is_refused(tmp_path):
    model_arguments, _, lora, training, _ = parse(tmp_path, "--vision_drop_path_rate", "0.1")
    model = prepare_model(tiny_model(), model_arguments, lora, training)
    assert any(isinstance(hook, DropPath) for module in model.modules() for hook in module._forward_hooks.values())
    clip = tiny_model(vision_config={"model_type": "clip_vision_model"})
    with pytest.raises(
        ValueError, match=r"`vision_drop_path_rate` is 0\.1, .*'clip_vision_model': expected 'internvl_vision'"
    ):
        prepare_model(clip, model_arguments, lora, training)


@pytest.mark.parametrize("rate", ["-0.1", "1", "nan"])
def test_a_rate_out_of_range_is_refused(rate, tmp_path):
    with pytest.raises(ValueError, match=r"vision_drop_path_rate=.*, expected a rate in \[0, 1\)"):
        parse(tmp_path, "--vision_drop_path_rate", rate)
