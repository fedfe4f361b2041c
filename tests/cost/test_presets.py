"""Presets are the published models by size, and settings are read from them, from folders, and varied."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from conversion_geometry import PUBLISHED, published_config, raw_config, write_checkpoint
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration, InternVLXImageProcessor, cost
from internvlx_hf.conversion.sources import chat_text_config, chat_vision_config
from internvlx_hf.cost.measure import measure
from internvlx_hf.cost.setups import native, side_by_side
from internvlx_hf.cost.sizes import preset_sizes
from internvlx_hf.cost.variants import VARIANTS, vary
from internvlx_hf.processing.rvtc import TilingRule
from paths import ROOT
from refusals import refused
from tiny import LVTC, tiny_config

# billions of parameters, as the models' pages and papers say
BILLIONS = {
    "internvl2-1b": 0.94,
    "internvl2-2b": 2.21,
    "internvl2-4b": 4.15,
    "internvl2-8b": 8.08,
    "internvl2-26b": 25.5,
    "internvl2-40b": 40.1,
    "internvl2-llama3-76b": 76.3,
    "internvl2.5-1b": 0.93819,
    "internvl2.5-2b": 2.21,
    "internvl2.5-4b": 3.71,
    "internvl2.5-8b": 8.08,
    "internvl2.5-26b": 25.51,
    "internvl2.5-38b": 38.39,
    "internvl2.5-78b": 78.41,
    "internvl3-1b": 0.94,
    "internvl3-2b": 2.09,
    "internvl3-8b": 7.94,
    "internvl3-14b": 15.1,
    "internvl3-38b": 38.4,
    "internvl3-78b": 78.4,
    "internvl3.5-1b": 1.06,
    "internvl3.5-2b": 2.35,
    "internvl3.5-4b": 4.73,
    "internvl3.5-8b": 8.53,
    "internvl3.5-14b": 15.1,
    "internvl3.5-30b-a3b": 30.8,
    "internvl3.5-38b": 38.4,
    "internvl3.5-241b-a28b": 240.7,
    "llava-1.5-7b": 7.06,
    "llava-1.5-13b": 13.4,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_a_preset_has_as_many_parameters_as_published(name):
    parameters = cost.load_setup(name).sizes.parameters
    digits = len(str(BILLIONS[name]).partition(".")[2])
    assert parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.75 * 10**-digits)


@pytest.mark.parametrize(("name", "total", "active"), [("30b-a3b", 30.5, 3.3), ("241b-a28b", 235, 22)])
def test_a_mixture_of_experts_has_as_many_active_parameters_as_qwen3_s_pages_say(name, total, active):
    sizes = cost.load_setup(f"internvl3.5-{name}").sizes
    vision = sizes.parameters - total * 1e9
    assert (sizes.active_parameters - vision) / 1e9 == pytest.approx(active, abs=0.3)


# one of each class of language model and each vision tower, and both kinds of projectors
MEASURED = (
    "internvl-x-2b",
    "internvl2-4b",
    "internvl2-26b",
    "internvl2.5-1b",
    "internvl3.5-8b",
    "internvl3.5-30b-a3b",
    "llava-1.5-7b",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_the_sizes_that_are_shipped_are_those_that_are_measured(name):
    """Else write them anew: `python -m internvlx_hf.cost.measure`."""
    for variant in VARIANTS:
        assert preset_sizes(name, variant) == measure(vary(cost.preset(name), variant))


@pytest.mark.parametrize("name", cost.PRESETS)
def test_every_preset_s_language_model_is_shipped_as_it_is(name):
    config, sizes = cost.preset(name), preset_sizes(name, "own")
    for field in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert getattr(sizes.text_config, field) == getattr(config.text_config, field)
    assert sizes.position_limit == config.position_limit
    assert set(sizes.tile_flops) >= {"vision_tower", "multi_modal_projector"}


def test_a_preset_s_cost_needs_neither_torch_nor_transformers():
    script = f"""
import sys, types
package = types.ModuleType("internvlx_hf")
package.__path__ = [{str(ROOT / "src/internvlx_hf")!r}]
sys.modules["internvlx_hf"] = package
from internvlx_hf.commands import cost
cost.main(["--size", "640x480", "--slicing", "area"])
assert not {{"torch", "transformers", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_a_preset_s_setting_builds_its_configuration_when_it_is_asked_for():
    setting = cost.load_setup("internvl2-8b")
    assert "config" not in vars(setting)
    changed = replace(setting, tiling=replace(setting.tiling, max_tiles=3))
    assert changed.config.to_dict() == cost.preset("internvl2-8b").to_dict()
    lvtc = setting.varied("LVTC on", "changed", setting.tiling)
    assert lvtc.config.lvtc_config.expand_layer == 23
    assert not lvtc.varied("native", "back", setting.tiling).has_lvtc
    with refused("no attribute 'confg'", by=AttributeError):
        _ = setting.confg


def test_an_edit_of_a_preset_s_configuration_changes_its_cost():
    setting = cost.load_setup("internvl2-1b")
    before = cost.CostModel(setting).of_tiles(1)
    setting.config.downsample_ratio = 1.0
    assert cost.CostModel(setting).of_tiles(1).stage_one_tokens == 4 * before.stage_one_tokens


def test_every_preset_is_checked_against_a_published_count_or_is_built_on_one_that_is():
    assert set(cost.PRESETS) == {*BILLIONS, "internvl-x-2b", "internvl-x-8b"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_its_conversion_gives(name):
    raw = published_config(name)
    config = cost.preset(name)
    converted = InternVLXConfig(
        vision_config=chat_vision_config(raw["vision_config"], 448),
        text_config=chat_text_config(raw["llm_config"]),
        image_token_id=0,
        projector_config={"projector_type": "pixel_shuffle"},
    )
    assert measure(config).parameters == measure(converted).parameters
    for part in ("vision_config", "text_config"):
        ours, theirs = getattr(config, part), getattr(converted, part)
        assert ours.model_type == theirs.model_type
        for size in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            assert getattr(ours, size) == getattr(theirs, size)


@pytest.mark.parametrize(("name", "expand_layer"), [("internvl-x-2b", 17), ("internvl-x-8b", 23)])
def test_internvl_x_is_the_paper_s(name, expand_layer):
    config, tiling = cost.preset(name), cost.preset_tiling(name)
    assert config.projector_config.projector_type == "pvtc"
    assert config.lvtc_config.expand_layer == expand_layer
    assert (config.image_seq_length, config.expanded_image_seq_length) == (256, 1024)
    assert tiling == TilingRule(448, 448, max_tiles=6, slicing="edge")


def test_a_preset_is_a_model_s_configuration():
    config = cost.preset("internvl2-1b")
    with torch.device("meta"):
        model = InternVLXForConditionalGeneration(config)
    assert model.num_parameters() == measure(config).parameters
    assert config.image_token_id == 151648


def test_names_of_the_hub_are_understood():
    same = ("OpenGVLab/InternVL2_5-8B", "InternVL2_5-8B", "internvl2.5-8b")
    assert len({cost.preset(name).to_json_string() for name in same}) == 1
    assert cost.load_setup("InternVL2-76B").name == "internvl2-llama3-76b"
    assert cost.load_setup("llava-hf/llava-1.5-7b-hf").name == "llava-1.5-7b"


@pytest.mark.parametrize(("name", "nearest"), [("internvl2-3b", "internvl2-"), ("internvlx-2b", "internvl-x-2b")])
def test_an_unknown_preset_is_told_the_nearest(name, nearest):
    for ask in (cost.preset, cost.preset_tiling, cost.load_setup):
        with refused(f"'{name}'", f"Did you mean '{nearest}"):
            ask(name)


def test_a_folder_of_ours_is_read_without_weights(tmp_path):
    tiny_config(**LVTC).save_pretrained(tmp_path)
    setting = cost.load_setup(tmp_path)
    assert setting.config.image_seq_length == 4
    assert setting.tiling == TilingRule(32, 32, max_tiles=6, slicing="edge")
    InternVLXImageProcessor(
        size={"height": 32, "width": 32}, slicing="area", max_patches=9, use_thumbnail=False
    ).save_pretrained(tmp_path)
    assert cost.load_setup(tmp_path).tiling == TilingRule(32, 32, max_tiles=9, slicing="area", use_thumbnail=False)


def test_a_processor_that_does_not_cut_makes_one_tile(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    InternVLXImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False).save_pretrained(tmp_path)
    assert cost.CostModel(cost.load_setup(tmp_path)).of_size(500, 100).tiles == 1


def test_a_checkpoint_need_not_be_converted_to_know_its_cost(tmp_path):
    raw = raw_config((64, 2, 4, 128, False), "Qwen2ForCausalLM", 64, 2, 4, 2, 96, 151655)
    folder = write_checkpoint(tmp_path / "source", raw)
    with_weights = cost.load_setup(folder)
    (folder / "model.safetensors").unlink()
    for setting in (with_weights, cost.load_setup(folder)):
        assert setting.projector == "pixel_shuffle"
        assert setting.tiling == TilingRule(448, 448, max_tiles=12, slicing="ratio")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no config.json"),
        ("{", "config.json is not valid JSON"),
        ('{"model_type": "bert"}', "bert"),
        ('{"model_type": "internvl_chat", "ps_version": "v2"}', "config.json: lacks 'vision_config'"),
        ("[]", "holds a list"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with refused(said):
        cost.load_setup(tmp_path)


def test_shared_embeddings_weigh_once():
    apart, shared = (tiny_config(text_config={"tie_word_embeddings": tied}) for tied in (False, True))
    assert measure(apart).parameters - measure(shared).parameters == 320 * 64


def test_an_image_costs_as_many_tiles_as_the_processor_makes(tmp_path):
    processor = InternVLXImageProcessor(size={"height": 32, "width": 32}, max_patches=6)
    processor.save_pretrained(tmp_path)
    config = tiny_config(**LVTC)
    config.save_pretrained(tmp_path)
    model = cost.CostModel(cost.load_setup(tmp_path))
    for size in ((10, 10), (100, 64), (33, 200), (400, 20)):
        tiles = processor(Image.new("RGB", size), return_tensors="pt")["num_patches"].item()
        found = model.of_size(*size)
        assert (found.tiles, found.stage_one_tokens, found.stage_two_tokens) == (tiles, 4 * tiles, 16 * tiles)


def test_side_by_side_has_every_setup_once():
    setting = cost.load_setup("internvl-x-2b")
    settings, notes = side_by_side(setting)
    assert settings[0] is setting
    assert not notes
    ways = {(s.tiling.slicing, s.tiling.max_tiles, s.projector, s.has_lvtc) for s in settings}
    assert len(ways) == len(settings) == 8
    expected = {(s, 6, "pvtc", lvtc) for s in ("ratio", "area", "edge") for lvtc in (False, True)}
    assert ways == expected | {("ratio", 6, "pixel_shuffle", False), ("ratio", 12, "pixel_shuffle", False)}
    # a native model is one of its own native settings
    own = cost.load_setup("internvl2-8b")
    settings, _ = side_by_side(own)
    assert len(settings) == 7
    assert settings[0].is_native
    # and with other slicing, the model without LVTC is one of them
    settings, _ = side_by_side(replace(own, tiling=replace(own.tiling, slicing="edge")))
    assert [s.name for s in settings if s.is_native] == ["native InternVL, max 6", "native InternVL, max 12"]


def test_side_by_side_does_not_repeat_a_model_of_one_tile():
    settings, _ = side_by_side(cost.load_setup("llava-1.5-7b"))
    assert [(s.tiling.slicing, s.has_lvtc) for s in settings] == [("edge", False), ("edge", True)]


def test_side_by_side_has_the_model_s_own_lvtc():
    config = tiny_config(**LVTC)
    setting = cost.ModelSetup("tiny", config, TilingRule(32, 32))
    others, _ = side_by_side(setting)
    assert all(s.config.lvtc_config.expand_layer == 2 for s in others if s.has_lvtc)


def test_what_does_not_fit_a_model_is_left_out_and_said():
    config = tiny_config(text_config={"num_hidden_layers": 1})  # no layer left for stage two
    settings, notes = side_by_side(cost.ModelSetup("tiny", config, TilingRule(32, 32)))
    assert not any(s.has_lvtc for s in settings)
    assert len(notes) == 1
    assert "expand_layer" in notes[0]
    odd = tiny_config(vision_config={"image_size": 28}, downsample_ratio=1.0)  # 7 patches a side
    settings, notes = side_by_side(cost.ModelSetup("tiny", odd, TilingRule(28, 28)))
    assert not any(s.is_native for s in settings)
    assert "do not divide the 7x7 grid" in notes[-1]


def test_varying_a_setting_leaves_it_as_it_was():
    setting = cost.load_setup("internvl-x-2b")
    before = setting.config.to_json_string()
    side_by_side(setting)
    native(setting, 6)
    assert setting.config.to_json_string() == before
