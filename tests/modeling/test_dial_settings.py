"""`tokens_per_tile` and `merge_layer` of a configuration, and what a request for sizes must not have."""

import json

import pytest
import torch

from dial_cases import SIZES, dial, dial_batch, dial_model
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from lvtc_cases import lvtc
from refusals import refused
from tiny import LVTC, tiny_batch, tiny_config, tiny_model

TWO_STAGES = {"tokens_per_tile": ["16", "16:4"], "merge_layer": 2}


def test_the_sizes_of_a_configuration_are_parsed():
    config = tiny_config(**dial(3, 1))
    assert config.tokens_per_tile == [str(size) for size in config.sizes] == SIZES
    assert [(size.before, size.after) for size in config.sizes] == [
        (16, 16),
        (4, 4),
        (4, 16),
        (16, 4),
        (16, 0),
        (16, 1),
    ]
    assert [size.boundary for size in config.sizes] == [None, None, 3, 1, 1, 1]
    assert config.boundaries == [1, 3]
    assert [size.in_stages([1, 3]) for size in config.sizes[2:4]] == [[4, 4, 16], [16, 4, 4]]
    assert (config.image_seq_length, config.expanded_image_seq_length, config.tile_positions) == (16, 16, 16)
    assert tiny_config(tokens_per_tile=[16, "4:4"]).tokens_per_tile == ["16", "4"]


def test_without_a_list_there_is_the_one_size_of_today():
    for kwargs in ({}, LVTC, lvtc(4, 2)):
        config = tiny_config(**kwargs)
        assert [str(size) for size in config.sizes] == {2: ["4:16"], 4: ["16"], 1: ["16:4"]}[
            1 if "lvtc_config" in kwargs and config.token_grid == 4 else config.token_grid
        ]
        assert not {"tokens_per_tile", "merge_layer"} & config.to_dict().keys()


def test_an_8b_model_may_offer_the_sizes_of_the_issue():
    config = InternVLXConfig(
        tokens_per_tile=["256", "64:256", "256:64"], merge_layer=16, lvtc_config={"downsample_ratio": 0.5}
    )
    assert [str(size) for size in config.sizes] == ["256", "64:256", "256:64"]
    assert config.other_sides("multi_modal_projector") == [4]
    assert config.projectors["lvtc.lr_projectors.0"][1] == 4


def test_a_model_with_sizes_is_saved_and_loaded(tmp_path):
    model = dial_model(**dial(3, 1))
    batch = dial_batch(model.config, [[2, "16:4", 1, "4:16", 1, "16:0", "4", 2]])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tokens_per_tile"] == SIZES
    loaded = InternVLXForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_the_default_size_has_the_weights_and_logits_of_a_model_without_a_list():
    plain = tiny_model("llama")
    model = dial_model(**dial(3, 1))
    loaded = model.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert {name.split(".")[1] for name in loaded.missing_keys} == {"lvtc", "multi_modal_projector"}
    batch = tiny_batch(plain.config, [[3, "tile", 2, "tile", 4], [2, "tile", 5, "tile", 2]])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_pvtc_shares_all_but_the_local_query_and_the_cls_scales():
    model = dial_model(tokens_per_tile=["16", "4"])
    own = {name for name, _ in model.named_parameters() if ".sizes." in name}
    prefix = "model.multi_modal_projector.sizes.4."
    assert own == {f"{prefix}cls_scale", f"{prefix}local_query.norm.weight", f"{prefix}local_query.linear.weight"}


BAD = {
    "malformed": ({"tokens_per_tile": ["16", "4:"]}, "'4:'", "which is no size"),
    "zero": ({"tokens_per_tile": ["16", "0"]}, "'0'", "which is no size"),
    "three": ({"tokens_per_tile": ["16:4:1"]}, "'16:4:1'", "'256:64'"),
    "a boolean": ({"tokens_per_tile": ["16", True]}, "True", "which is no size"),
    "empty": ({"tokens_per_tile": []}, "is empty", "at least one size"),
    "twice": ({"tokens_per_tile": ["16", 16]}, "a size twice", "'16', '16'"),
    "no square": ({"tokens_per_tile": ["16", "8"]}, "'8'", "Expected one of 1, 4, 16, 64"),
    "no divisor of the grid": ({"tokens_per_tile": ["16", "9"]}, "'9'", "Expected one of 1, 4, 16, 64"),
    "no blocks": ({"tokens_per_tile": ["16", "16:9"], "merge_layer": 2}, "'16:9'", "Expected one of 4, 1, or 0"),
    "no square of blocks": (
        {"tokens_per_tile": ["16", "16:3"], "merge_layer": 2},
        "'16:3'",
        "Expected one of 4, 1, or 0",
    ),
    "no merge layer": ({"tokens_per_tile": ["16", "16:4"]}, "`merge_layer` must be in 1...3", "None with 16:4"),
    "merge layer 0": ({**TWO_STAGES, "merge_layer": 0}, "`merge_layer` must be in 1...3", "got 0"),
    "merge layer 4": ({**TWO_STAGES, "merge_layer": 4}, "`merge_layer` must be in 1...3", "got 4"),
    "nothing to merge": ({"tokens_per_tile": ["16", "4"], "merge_layer": 2}, "`merge_layer`", "got 2 with none"),
    "merge layer without sizes": ({"merge_layer": 2}, "`merge_layer`=2", "`tokens_per_tile`"),
    "no LVTC": ({"tokens_per_tile": ["16", "4:16"]}, "'4:16'", "needs an HR projector of 16 tokens"),
    "no HR projector": (dial(hr_projector_type=None), "'4:16'", "`hr_projector_type`"),
    "another HR projector": (dial(downsample_ratio=1.0), "'4:16'", "got one of 64 tokens"),
    "nothing grows": ({"tokens_per_tile": ["16", "4"], "lvtc_config": {}}, "`lvtc_config`", "no size grows"),
    "another default": ({"tokens_per_tile": ["4", "16"]}, "the default '4'", "gives 16 tokens"),
    "a router": (
        {"tokens_per_tile": ["16", "1"], "router_relative_threshold": 0.5, "router_absolute_threshold": 0.5},
        "A tile router chooses between ['16', '4']",
        "got `tokens_per_tile`=['16', '1']",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(name):
    kwargs, value, remedy = BAD[name]
    with refused(value, remedy):
        tiny_config(**kwargs)


@pytest.mark.parametrize(
    ("sizes", "value"),
    [([0], "[0]"), ([0, 6], "[0, 6]"), ([0, -1], "[0, -1]"), ([[0, 1]], "[[0, 1]]"), ([0.0, 1.0], "[0.0, 1.0]")],
)
def test_sizes_that_do_not_fit_the_tiles_are_refused(sizes, value):
    model = dial_model(**dial())
    batch = tiny_batch(model.config, [[2, "tile", 1, "tile"]])
    with refused(value, "`tile_sizes` must be (2,)", "16, 4, 4:16, 16:4, 16:0, 16:1"):
        model(**batch, tile_sizes=torch.tensor(sizes))


def test_placeholders_of_another_size_than_the_tiles_are_refused():
    model = dial_model(**dial())
    batch = dial_batch(model.config, [[2, "16", 1, "4"], [3, "4", 4]])
    with refused("3 tiles of 16 or 4 tokens need 36 image placeholders", "have [20, 4]"):
        model(**{**batch, "tile_sizes": torch.tensor([0, 0, 1])})
    with refused("3 tiles of 4 or 16 tokens", "those of whole tiles in every row"):
        model(**{**batch, "tile_sizes": torch.tensor([1, 1, 0])})


def test_an_unknown_rule_is_refused():
    model = dial_model(**dial())
    with refused("`merge_rule` must be one of", "'mean', 'one', 'random', 'knock_out', 'fastv', 'tome', got 'median'"):
        model(**dial_batch(model.config, [[2, "16:4"]]), merge_rule="median")


def test_a_chunked_prompt_of_several_sizes_is_refused():
    model = dial_model(tokens_per_tile=["16", "4"])
    with refused("`prefill_chunk_size`=8", "Leave it unset"):
        model.generate(**dial_batch(model.config, [[2, "16", "4"]]), prefill_chunk_size=8, max_new_tokens=1)
