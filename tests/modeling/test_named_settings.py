"""Settings whose value is not the default: each does what its name says, and no other takes its place."""

import pytest
import torch

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.modeling.pvtc import rms_norm
from internvlx_hf.modeling.tile_router import TileRouter
from tiny import tiny_config, tiny_model


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_pvtc_s_norms_divide_by_the_root_of_the_mean_square_and_eps(eps):
    norm = rms_norm(tiny_config(projector_config={"rms_norm_eps": eps}), 4)
    x = torch.tensor([1.0, -2.0, 3.0, 4.0])
    torch.testing.assert_close(norm(x), x / (7.5 + eps) ** 0.5)


@pytest.mark.parametrize("explicit", ["eager", "sdpa"])
@pytest.mark.parametrize("flash", [True, False])
def test_an_attention_that_is_named_is_used_whatever_use_flash_attn_says(explicit, flash, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    monkeypatch.setattr("internvlx_hf.modeling.modeling_internvlx.is_flash_attn_2_available", lambda: False)

    def loaded(**settings):
        model = InternVLXForConditionalGeneration.from_pretrained(tmp_path, **settings)
        return model.config.text_config._attn_implementation

    assert loaded(use_flash_attn=flash, attn_implementation=explicit) == explicit
    assert loaded(use_flash_attn=flash) == "sdpa"


@pytest.mark.parametrize(
    ("relative", "absolute", "chosen"),
    [
        (0.0, 0.0, [False, True, True, True, False]),  # all but the least of a sample's tiles
        (0.5, 0.0, [False, False, True, True, False]),  # above the sample's median of 0.45
        (0.0, 0.5, [False, False, True, True, False]),  # a probability of exactly the threshold suffices
        (0.0, 0.75, [False, False, False, True, False]),
    ],
)
def test_the_router_compresses_above_the_quantile_and_at_the_threshold(relative, absolute, chosen):
    settings = {"router_relative_threshold": relative, "router_absolute_threshold": absolute}
    router = TileRouter(tiny_config(projector_config={"projector_type": "pixel_shuffle"}, **settings))
    probabilities = torch.tensor([0.25, 0.4, 0.5, 0.75, 1.0])  # of one sample's four tiles, and of another's only one
    assert router.choose(probabilities, [4, 0, 1]).tolist() == chosen
