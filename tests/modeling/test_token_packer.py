"""TokenPacker: built as published, its numbers, and features of several layers."""

import pytest
import torch

from internvlx_hf.modeling.projectors import build_projector
from projector_cases import tiny_features, tiny_projector
from tiny import LVTC, tiny_config, tiny_model


def test_token_packer_is_built_as_published():
    """One linear layer without bias for the query, LayerNorm's epsilon 1e-6, heads of 128 channels."""
    config = tiny_config(
        vision_config={"hidden_size": 256}, projector_config={"projector_type": "token_packer", "num_heads": None}
    )
    projector = build_projector(config, "token_packer", 0.5)
    assert projector.num_heads == 2
    assert projector.query_linear.bias is None
    assert not hasattr(projector, "query_mlp")
    assert {norm.eps for norm in (projector.query_norm, projector.key_norm, projector.value_norm)} == {1e-6}


def test_token_packer_has_the_numbers_of_torch_s_attention():
    projector = tiny_projector("token_packer", 2)
    features = tiny_features()
    grid = features[:, 1:].unflatten(1, (8, 8))
    windows = grid.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
    attention = torch.nn.MultiheadAttention(windows.shape[-1], projector.num_heads, batch_first=True)
    with torch.no_grad():
        in_layers = (projector.query, projector.key, projector.value)
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in in_layers]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in in_layers]))
        attention.out_proj.load_state_dict(projector.output.state_dict())
        query = projector.query_norm(projector.query_linear(windows.mean(1, keepdim=True)))
        key = projector.key_norm(projector.key_mlp(windows))
        value = projector.value_norm(projector.value_mlp(windows))
        expected = projector.mlp(attention(query, key, value)[0]).view(len(features), 16, -1)
        torch.testing.assert_close(projector(features), expected, atol=1e-5, rtol=1e-4)


def test_a_form_that_was_never_published_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"`token_packer_form` must be one of 'original', got 'mlp_query'"):
        tiny_config(projector_config={"projector_type": "token_packer", "token_packer_form": "mlp_query"})


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
def test_token_packer_s_keys_and_values_can_be_of_several_layers(lvtc, tmp_path):
    """Side by side, as it was published; the query stays that of `vision_feature_layer`."""
    settings = {"projector_type": "token_packer", "token_packer_layers": [0, 2, -2]}
    model = tiny_model(projector_config=settings, **lvtc)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.model.vision_tower(pixels, output_hidden_states=True)
        projector, layers = model.model.multi_modal_projector, [outputs.hidden_states[i][:, 1:] for i in (0, 2, -2)]
        expected = projector(outputs.last_hidden_state, layers)
        images = model.model.get_image_features(pixels, return_dict=True)
        one_layer_less = projector(outputs.last_hidden_state, [*layers[:2], layers[2] * 0])
    torch.testing.assert_close(images.pooler_output, expected)
    assert not torch.allclose(one_layer_less, expected)
    assert projector.key_mlp.linear_1.in_features == projector.value_mlp.linear_1.in_features == 3 * 32
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.projector_config.token_packer_layers == [0, 2, -2]
    with torch.no_grad():
        torch.testing.assert_close(again.model.get_image_features(pixels, return_dict=True).pooler_output, expected)


def test_a_layer_that_the_tower_lacks_is_refused():
    with pytest.raises(ValueError, match=r"`projector_config\.token_packer_layers` must be in -3\.\.\.2 .* got 3"):
        tiny_config(projector_config={"projector_type": "token_packer", "token_packer_layers": [1, 3]})
