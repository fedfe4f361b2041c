"""Settings whose value is not the default: each does what its name says, and no other takes its place."""

import pytest
import torch

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.modeling.outputs import CACHE
from internvlx_hf.modeling.pvtc import PVTCMLP, rms_norm
from internvlx_hf.modeling.tile_router import TileRouter, route_prompt
from tiny import LVTC, tiny_batch, tiny_config, tiny_model


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


def test_the_head_starts_at_the_width_that_the_configuration_names():
    for width in (0.2, 0.01):
        head = tiny_model(text_config={"initializer_range": width}).lm_head.weight
        assert head.std().item() == pytest.approx(width, rel=0.05)


def test_a_compressed_tile_is_read_as_the_router_s_own_tokens():
    settings = {"router_relative_threshold": 0.0, "router_absolute_threshold": 0.0}
    model = tiny_model(projector_config={"projector_type": "pixel_shuffle"}, **settings)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    embeddings = route_prompt(model.model, **batch)["inputs_embeds"][0]
    images = model.get_image_features(batch["pixel_values"], return_dict=True)
    own = model.model.tile_router.projector(images.last_hidden_state)  # [2, 4, D], beside 16 of each
    both = [(own[0], images.pooler_output[1]), (images.pooler_output[0], own[1])]
    assert any(torch.allclose(embeddings[3:-2], torch.cat(tokens), atol=1e-4) for tokens in both)


def test_a_static_cache_of_stage_two_does_not_shrink_with_the_next_prompt():
    model = tiny_model(**LVTC)
    settings = {
        "cache_implementation": "static",
        "max_new_tokens": 4,
        "return_dict_in_generate": True,
        "disable_compile": True,
    }
    lengths = []
    for layout in ([3, "tile", "tile", 2], [3, "tile", 6]):
        cache = model.generate(**tiny_batch(model.config, [layout]), **settings)[CACHE]
        lengths.append(cache.layers[-1].max_cache_len)
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("ratio", [1, 2.5])
def test_pvtc_s_mlp_is_as_wide_as_mlp_ratio_says(ratio):
    config = tiny_config(projector_config={"mlp_ratio": ratio})
    assert PVTCMLP(config).up.out_features == ratio * config.text_config.hidden_size


@pytest.mark.parametrize("lvtc", [LVTC, {}], ids=["LVTC", "no LVTC"])
def test_text_reads_the_same_in_a_training_of_the_projectors_alone(lvtc):
    """Where an empty tile gives the loss a gradient."""
    model = tiny_model(**lvtc).requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    ids = torch.tensor([[5, 6, 7]])
    expected = model.eval()(ids).logits
    found = model.train()(ids).logits
    assert found.requires_grad
    torch.testing.assert_close(found, expected)


def test_positions_alone_keep_packed_samples_apart_in_training():
    model = tiny_model().train()
    logits = model(torch.tensor([[5, 6, 7, 5, 6, 7]]), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])).logits
    torch.testing.assert_close(logits[:, 3:], logits[:, :3])
