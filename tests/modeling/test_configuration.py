"""`InternVLXConfig` and its parts: defaults, round trips, token counts, and what each impossible combination says."""

import json

import pytest
import transformers
from transformers import AutoConfig

from backbones import on_each_backbone
from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXLVTCConfig,
    InternVLXProjectorConfig,
)
from tiny import LVTC, TEXT_MODELS, tiny_config


def lvtc(**changes):
    return {**LVTC, "lvtc_config": {**LVTC["lvtc_config"], **changes}}


def test_default_configuration_is_internvit_with_pvtc_and_qwen2():
    config = InternVLXConfig()
    assert (config.vision_config.model_type, config.text_config.model_type) == ("internvl_vision", "qwen2")
    assert (config.tile_size, config.patch_grid, config.image_seq_length) == (448, 32, 256)
    assert config.expanded_image_seq_length == 256
    assert (config.downsample_ratio, config.vision_feature_layer, config.lvtc_config) == (0.5, -1, None)
    projector = config.projector_config
    assert (projector.projector_type, projector.num_layers, projector.num_heads) == ("pvtc", 1, 16)
    assert (projector.use_local, projector.use_global, projector.use_cls_scale) == (True, True, True)
    assert (projector.query_mlp, projector.mlp_ratio, projector.drop_path_rate) == ("released", 4, 0.1)


@pytest.mark.parametrize("kwargs", [{}, {"lvtc_config": {}}], ids=["lvtc off", "lvtc on"])
def test_making_a_configuration_logs_nothing(kwargs, caplog):
    transformers.logging.get_logger("transformers.configuration_utils").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]
    caplog.clear()
    InternVLXConfig(**kwargs)
    assert not caplog.records


@on_each_backbone(TEXT_MODELS, kwargs=({}, LVTC, {"projector_config": {"query_mlp": "internvl2", "num_layers": 3}}))
def test_saved_configuration_loads_as_it_was(text, kwargs, tmp_path):
    config = tiny_config(text, **kwargs)
    config.save_pretrained(tmp_path)
    for loaded in (InternVLXConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is InternVLXConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert type(loaded.projector_config) is InternVLXProjectorConfig
        assert type(loaded.lvtc_config) is type(config.lvtc_config)
    assert InternVLXConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_sub_configurations_may_be_objects():
    config = tiny_config(**LVTC)
    again = InternVLXConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        projector_config=config.projector_config,
        lvtc_config=config.lvtc_config,
        image_token_id=config.image_token_id,
        downsample_ratio=config.downsample_ratio,
    )
    assert again.to_dict() == config.to_dict()


def test_partial_sub_configurations_at_load_keep_the_rest(tmp_path):
    config = tiny_config("llama", **LVTC)
    config.save_pretrained(tmp_path)
    loaded = InternVLXConfig.from_pretrained(
        tmp_path,
        text_config={"num_hidden_layers": 3},
        projector_config={"num_heads": 2},
        lvtc_config={"upsample_mode": "bilinear"},
        vision_config={"num_hidden_layers": 1},
    )
    assert (loaded.text_config.model_type, loaded.text_config.num_hidden_layers) == ("llama", 3)
    assert loaded.text_config.hidden_size == config.text_config.hidden_size
    assert (loaded.projector_config.num_heads, loaded.projector_config.projector_type) == (2, "pvtc")
    assert (loaded.lvtc_config.upsample_mode, loaded.lvtc_config.expand_layer) == ("bilinear", 2)
    assert (loaded.vision_config.num_hidden_layers, loaded.vision_config.hidden_size) == (1, 32)
    InternVLXForConditionalGeneration(loaded)


def test_lvtc_can_be_switched_on_and_off_at_load(tmp_path):
    tiny_config().save_pretrained(tmp_path / "off")
    switched_on = InternVLXConfig.from_pretrained(tmp_path / "off", lvtc_config={})
    assert type(switched_on.lvtc_config) is InternVLXLVTCConfig
    assert switched_on.lvtc_config.expand_layer == 2
    tiny_config(**LVTC).save_pretrained(tmp_path / "on")
    assert InternVLXConfig.from_pretrained(tmp_path / "on", lvtc_config=None).lvtc_config is None


def test_input_and_output_embeddings_are_tied_as_the_text_model_s_are():
    assert tiny_config(text_config={"tie_word_embeddings": True}).tie_word_embeddings is True
    assert tiny_config(text_config={"tie_word_embeddings": False}).tie_word_embeddings is False
    assert (
        tiny_config(text_config={"tie_word_embeddings": True}, tie_word_embeddings=False).tie_word_embeddings is False
    )


@pytest.mark.parametrize(("ratio", "tokens"), [(1, 64), (1.0, 64), (0.5, 16), (0.25, 4), (0.125, 1)])
def test_tokens_a_tile_follow_from_the_window(ratio, tokens):
    config = tiny_config(downsample_ratio=ratio)
    assert config.patch_grid == 8
    assert config.image_seq_length == config.token_grid**2 == tokens
    assert config.expanded_image_seq_length == tokens


@pytest.mark.parametrize(
    ("before", "after", "tokens"), [(0.25, 1, (4, 64)), (0.5, 0.5, (16, 16)), (1, 0.125, (64, 1))]
)
def test_tokens_a_tile_before_and_after_the_expansion(before, after, tokens):
    config = tiny_config(downsample_ratio=before, lvtc_config={"downsample_ratio": after})
    assert (config.image_seq_length, config.expanded_image_seq_length) == tokens


@pytest.mark.parametrize("size", [448, [448, 448], (448, 448)])
def test_sizes_may_be_numbers_or_pairs(size):
    assert tiny_config(vision_config={"image_size": size, "patch_size": [14, 14]}).patch_grid == 32


@pytest.mark.parametrize(
    ("layers", "expand_layer"), [(24, 17), (32, 23), (36, 26), (28, 20), (12, 8), (8, 5), (4, 2), (3, 1), (2, 1)]
)
def test_lvtc_defaults_are_resolved_into_the_saved_configuration(layers, expand_layer, tmp_path):
    tiny_config("llama", text_config={"num_hidden_layers": layers}, lvtc_config={}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["lvtc_config"]
    assert saved["expand_layer"] == expand_layer
    resolved = InternVLXConfig.from_pretrained(tmp_path).lvtc_config
    assert (resolved.downsample_ratio, resolved.upsample_mode) == (1.0, "nearest")
    assert (resolved.hr_projector_type, resolved.lr_projector_type) == ("pixel_shuffle", "pixel_shuffle")
    assert resolved.num_lr_projectors == min(4, expand_layer)


@pytest.mark.parametrize("kwargs", [{}, {"lvtc_config": None}])
def test_lvtc_is_off_unless_asked_for(kwargs):
    assert tiny_config(**kwargs).lvtc_config is None


# what is given -> what the message must say: the value, and what would be right
IMPOSSIBLE = {
    "window is no whole number": ({"downsample_ratio": 0.3}, r"`downsample_ratio` must be 1 / M .*0\.3"),
    "ratio above one": ({"downsample_ratio": 2}, r"`downsample_ratio` must be 1 / M .* got 2"),
    "ratio zero": ({"downsample_ratio": 0}, r"`downsample_ratio` must be 1 / M .* got 0"),
    "window does not divide the grid": (
        {"vision_config": {"image_size": 36}, "downsample_ratio": 0.5},
        r"`downsample_ratio`=0\.5 .* 2x2 patches.* do not divide the 9x9 grid",
    ),
    "window larger than the grid": (
        {"downsample_ratio": 1 / 16},
        r"`downsample_ratio`=0\.0625 .* 16x16 patches.* do not divide the 8x8 grid",
    ),
    "heads do not divide PVTC's width": (
        {"projector_config": {"num_heads": 3}},
        r"num_heads`=3 .* width 64 of 'pvtc'",
    ),
    "heads do not divide TokenPacker's width": (
        {"projector_config": {"projector_type": "token_packer", "num_heads": 64}},
        r"num_heads`=64 .* width 32 of 'token_packer'",
    ),
    "heads do not divide the width of LVTC's projector": (
        {**lvtc(hr_projector_type="pvtc"), "projector_config": {"projector_type": "pixel_shuffle", "num_heads": 3}},
        r"num_heads`=3 .* width 64 of 'pvtc'",
    ),
    "unknown projector": (
        {"projector_config": {"projector_type": "qformer"}},
        r"`projector_type` must be one of 'pvtc', 'pixel_shuffle', 'linear', 'token_packer', 'ldpv2', got 'qformer'",
    ),
    "unknown query": (
        {"projector_config": {"query_mlp": "x"}},
        r"`query_mlp` must be one of 'released', 'internvl2', 'llava', got 'x'",
    ),
    "PVTC without a branch": (
        {"projector_config": {"use_local": False, "use_global": False}},
        r"`use_local` and `use_global` are both False.* Switch one on",
    ),
    "a query for a branch that is off": (
        {"projector_config": {"use_local": False, "query_mlp": "internvl2"}},
        r"`query_mlp='internvl2'` .* `use_local` is False",
    ),
    "no layers": ({"projector_config": {"num_layers": 0}}, r"`num_layers` must be at least 1, got 0"),
    "no heads": ({"projector_config": {"num_heads": 0}}, r"`num_heads` must be at least 1, got 0"),
    "no MLP": ({"projector_config": {"mlp_ratio": 0}}, r"`mlp_ratio` must be positive, got 0"),
    "everything dropped": (
        {"projector_config": {"drop_path_rate": 1.0}},
        r"`drop_path_rate` must be in \[0, 1\), got 1",
    ),
    "unsupported text model": (
        {"text_config": {"model_type": "gpt2"}},
        r"`text_config.model_type` must be one of 'llama', 'qwen2', 'qwen3', 'qwen3_moe', 'phi3', 'mistral', got 'gpt2'",
    ),
    "unknown text model": ({"text_config": {"model_type": "nonesuch"}}, r"Unknown model type 'nonesuch'"),
    "unknown vision tower": ({"vision_config": {"model_type": "nonesuch"}}, r"Unknown model type 'nonesuch'"),
    "layer after the tower's last": (
        {"vision_feature_layer": 3},
        r"`vision_feature_layer` must be in -3\.\.\.2 .* got 3",
    ),
    "layer before the tower's first": (
        {"vision_feature_layer": -4},
        r"`vision_feature_layer` must be in -3\.\.\.2 .*got -4",
    ),
    "tile that is not square": (
        {"vision_config": {"image_size": [32, 64]}},
        r"Tiles must be square, got `vision_config.image_size`=\(32, 64\)",
    ),
    "patch that is not square": (
        {"vision_config": {"patch_size": [4, 8]}},
        r"`vision_config.patch_size`=\(4, 8\) must be square and at most the tile size 32",
    ),
    "patch larger than the tile": (
        {"vision_config": {"patch_size": 33}},
        r"`vision_config.patch_size`=\(33, 33\) must be square and at most the tile size 32",
    ),
    "expansion before the first layer": (
        lvtc(expand_layer=0),
        r"`expand_layer` must be in 1\.\.\.3 .*4 layers, got 0",
    ),
    "expansion after the last layer": (lvtc(expand_layer=4), r"`expand_layer` must be in 1\.\.\.3 .*4 layers, got 4"),
    "expansion of a single layer": (
        {"text_config": {"num_hidden_layers": 1}, "lvtc_config": {}},
        r"`expand_layer` must be in 1\.\.\.0 for a language model of 1 layers",
    ),
    "insertion at the expansion": (
        lvtc(insert_start=2),
        r"`insert_start`=2, .* before layer 2, .* come before `expand_layer`=2",
    ),
    "second insertion too late": (
        lvtc(num_lr_projectors=3, insert_start=1, insert_interval=1),
        r"`num_lr_projectors`=3 put an insertion before layer 2, .* before `expand_layer`=2",
    ),
    "insertion before the first layer": (lvtc(insert_start=-1), r"`insert_start` must not be negative, got -1"),
    "insertions at one layer": (lvtc(insert_interval=0), r"`insert_interval` must be at least 1, got 0"),
    "no LR projector": (lvtc(num_lr_projectors=0), r"`num_lr_projectors` must be at least 1, got 0"),
    "LVTC's window does not divide the grid": (
        lvtc(downsample_ratio=1 / 3),
        r"`lvtc_config.downsample_ratio`=0\.333.* 3x3 patches.* do not divide the 8x8 grid",
    ),
    "LVTC's ratio above one": (lvtc(downsample_ratio=2), r"`lvtc_config.downsample_ratio` must be 1 / M .* got 2"),
    "grids of which neither divides the other": (
        {
            "vision_config": {"image_size": 24},
            "downsample_ratio": 0.5,
            "lvtc_config": {"downsample_ratio": 1 / 3},
        },
        r"token grids of which one divides the other, got 2 and 3 tokens per side",
    ),
    "unknown HR projector": (lvtc(hr_projector_type="x"), r"`hr_projector_type` must be one of .* None, got 'x'"),
    "unknown LR projector": (lvtc(lr_projector_type="x"), r"`lr_projector_type` must be one of .*'ldpv2', got 'x'"),
    "unknown upsampling": (
        lvtc(upsample_mode="cubic"),
        r"`upsample_mode` must be one of 'nearest', 'bilinear', got 'cubic'",
    ),
}


@pytest.mark.parametrize(("kwargs", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_combination_raises_with_the_value_and_what_is_right(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**kwargs)


@pytest.mark.parametrize("token", [-1, 320, 10**6])
def test_image_token_outside_the_vocabulary_raises(token):
    config = tiny_config().to_dict()
    with pytest.raises(ValueError, match=rf"`image_token_id`={token} is outside the vocabulary of 320 tokens"):
        InternVLXConfig(**{**config, "image_token_id": token})


def test_model_checks_a_configuration_that_was_edited_after_it_was_made():
    config = tiny_config()
    config.projector_config.num_heads = 7
    with pytest.raises(ValueError, match=r"num_heads`=7 does not divide the width 64"):
        InternVLXForConditionalGeneration(config)
    config = tiny_config()
    config.image_token_id = 320
    with pytest.raises(ValueError, match="outside the vocabulary"):
        InternVLXForConditionalGeneration(config)
