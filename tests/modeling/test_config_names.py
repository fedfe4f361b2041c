"""Names of settings: a misspelt one raises, another tool's warns, transformers' own are silent."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig

import internvlx_hf
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration, InternVLXLVTCConfig
from internvlx_hf.modeling.configuration_internvlx import InternVLXProjectorConfig
from internvlx_hf.modeling.setting_names import MISSPELT, refuse_misspelt_names
from internvlx_hf.modeling.version import VERSION
from paths import ROOT
from tiny import LVTC, tiny_config, tiny_model

PARTS = {"projector_config": InternVLXProjectorConfig, "lvtc_config": InternVLXLVTCConfig}


@pytest.fixture
def warnings(caplog):
    """What is logged, once-only warnings anew for each test."""
    logging.getLogger("transformers").propagate = True
    from transformers.utils import logging as transformers_logging

    transformers_logging.warning_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("part", "name", "nearest"),
    [
        ("lvtc_config", "expand_layers", "expand_layer"),
        ("lvtc_config", "down_sample_ratio", "downsample_ratio"),
        ("lvtc_config", "hr_projector", "hr_projector_type"),
        ("projector_config", "num_head", "num_heads"),
        ("projector_config", "Num_Heads", "num_heads"),
        ("projector_config", "droppath_rate", "drop_path_rate"),
    ],
)
def test_unknown_name_in_a_part_raises_with_the_nearest(part, name, nearest, tmp_path):
    message = rf"{name}.* in `{part}`\. Did you mean `{nearest}"
    with pytest.raises(ValueError, match=message):
        tiny_config(**{part: {name: 1}})
    with pytest.raises(ValueError, match=message):
        PARTS[part](**{name: 1})
    with pytest.raises(ValueError, match=message):
        PARTS[part]().update({name: 1})
    config = tiny_config()
    config.save_pretrained(tmp_path)
    for config_class in (InternVLXConfig, AutoConfig):
        with pytest.raises(ValueError, match=message):
            config_class.from_pretrained(tmp_path, **{part: {name: 1}})
    with pytest.raises(ValueError, match=message):
        config.update({part: {name: 1}})
    setattr(config, part, {name: 1})
    with pytest.raises(ValueError, match=message):
        InternVLXForConditionalGeneration(config)


def test_unknown_name_like_no_other_lists_what_is_known():
    with pytest.raises(ValueError, match=r"'nope' in `lvtc_config`\. Known settings: expand_layer, .*upsample_mode"):
        InternVLXConfig(lvtc_config={"nope": 1})


MISSPELT_NAMES = {
    "down_sample_ratio": "downsample_ratio",
    "downsampling_ratio": "downsample_ratio",
    "downsample_rate": "downsample_ratio",
    "Downsample_Ratio": "downsample_ratio",
    "image_token_index": "image_token_id",
    "image_tokenid": "image_token_id",
    "lvct_config": "lvtc_config",
    "projecter_config": "projector_config",
    "projection_config": "projector_config",
    "tie_word_embedding": "tie_word_embeddings",
    "vision_feature_layers": "vision_feature_layer",
    "vison_config": "vision_config",
    "text_cfonig": "text_config",
    "text_conf": "text_config",
}


@pytest.mark.parametrize(("name", "nearest"), MISSPELT_NAMES.items())
def test_near_miss_at_the_top_level_raises(name, nearest, tmp_path):
    message = rf"{name}.* Did you mean `{nearest}`\?"
    with pytest.raises(ValueError, match=message):
        tiny_config(**{name: 1})
    config = tiny_config()
    with pytest.raises(ValueError, match=message):
        config.update({name: 1})
    config.save_pretrained(tmp_path)
    for config_class in (InternVLXConfig, AutoConfig):
        with pytest.raises(ValueError, match=message):
            config_class.from_pretrained(tmp_path, **{name: 1})
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {name: 1}))
    with pytest.raises(ValueError, match=message):
        InternVLXConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["image_seq_length", "expanded_image_seq_length", "tile_size"])
def test_what_follows_from_other_settings_cannot_be_set(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be set"):
        tiny_config(**{name: 1})
    with pytest.raises(ValueError, match="'insertion_layers' cannot be set"):
        InternVLXLVTCConfig(insertion_layers=[1])


def real_names() -> set[str]:
    """Every field of every configuration of transformers, and what tools and the Hub add to them."""
    names = {"unsloth_version", "unsloth_fixed", "transformers.js_config", "image_token", "text_config_dict"}
    names |= {"vision_config_dict", "model_max_length", "ps_version", "template", "select_layer", "force_image_size"}
    names |= {"dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "llm_config"}
    names |= {
        "mm_projector_type",
        "system_message",
        "use_backbone_lora",
        "use_llm_lora",
        "pad2square",
        "axolotl_config",
    }
    names |= set(GenerationConfig().to_dict())
    for config_class in CONFIG_MAPPING.values():
        names |= {*getattr(config_class, "__dataclass_fields__", ()), *config_class.attribute_map}
    return names


@pytest.mark.slow
def test_no_name_of_another_configuration_is_taken_for_a_misspelt_one():
    # `image_seq_length` is a field of others, and a property of ours
    names = real_names() - set(MISSPELT_NAMES) - {"image_seq_length"}
    assert len(names) > 1500
    refuse_misspelt_names(InternVLXConfig, names)
    assert MISSPELT <= 0.882  # or `downsampling_ratio` would pass


def test_names_of_transformers_are_silent(warnings, tmp_path):
    foreign = {
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": [1, 2],
        "tokenizer_class": "Qwen2Tokenizer",
        "torch_dtype": "bfloat16",
        "attn_implementation": "eager",
        "_attn_implementation_autoset": True,
        "architectures": ["InternVLXForConditionalGeneration"],
        "auto_map": {},
        "transformers_version": "5.18.0",
        "model_type": "internvl_x",
        "output_attentions": True,
        "num_labels": 2,
        "is_decoder": False,
        "max_new_tokens": 7,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    config = tiny_config(**foreign)
    assert config.quantization_config["load_in_4bit"]
    assert config.dtype == torch.bfloat16
    config.output_attentions = False
    config.save_pretrained(tmp_path)
    InternVLXConfig.from_pretrained(tmp_path, dtype="float16", trust_remote_code=False)
    assert warnings() == []


def test_other_tools_names_warn_once_and_are_kept(warnings, tmp_path):
    config = tiny_config(unsloth_version="2026.1", axolotl_config=3)
    assert config.unsloth_version == "2026.1"
    config.save_pretrained(tmp_path)
    loaded = InternVLXConfig.from_pretrained(tmp_path)
    assert (loaded.unsloth_version, loaded.axolotl_config) == ("2026.1", 3)
    assert len({*warnings()}) == len(warnings())
    assert "'unsloth_version', 'axolotl_config'" in warnings()[0]


@pytest.mark.parametrize("kwargs", [{}, LVTC], ids=["lvtc off", "lvtc on"])
def test_saved_model_loads_without_a_warning(kwargs, warnings, tmp_path):
    model = tiny_model(**kwargs)
    model.config.use_cache = False
    model.save_pretrained(tmp_path)
    warnings_before = warnings()
    InternVLXForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager", dtype="bfloat16")
    assert warnings() == warnings_before == []


def test_saved_configuration_names_the_version_that_saved_it(tmp_path):
    config = tiny_config(**LVTC)
    assert config.internvlx_version is None
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["internvlx_version"] == VERSION == internvlx_hf.__version__
    path.write_text(json.dumps(saved | {"internvlx_version": "0.0.7"}))
    loaded = InternVLXConfig.from_pretrained(tmp_path)
    assert loaded.internvlx_version == "0.0.7"
    loaded.save_pretrained(tmp_path)
    assert json.loads(path.read_text())["internvlx_version"] == VERSION


def test_package_has_the_version_of_the_code_that_travels():
    setup = (ROOT / "setup.cfg").read_text()
    assert re.search(r"^version = attr: (\S+)$", setup, re.M)[1] == "internvlx_hf.modeling.version.VERSION"
    # a build has no torch: the version must be readable from the source alone
    code = "from setuptools.config.setupcfg import read_configuration as read; print(read('setup.cfg')['metadata']['version'])"
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; " + code
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == VERSION, done.stderr


@pytest.mark.parametrize("version", [f"{VERSION}9", "0.10.0", "1.0.0rc1"])
def test_names_of_a_newer_version_only_warn(version, warnings, tmp_path):
    tiny_config(**LVTC).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text()) | {"internvlx_version": version, "downsample_ratios": [0.5]}
    saved["lvtc_config"]["expand_layers"] = [2, 3]
    saved["projector_config"]["num_head"] = 3
    path.write_text(json.dumps(saved))
    loaded = InternVLXConfig.from_pretrained(tmp_path)
    assert loaded.internvlx_version == version
    told = "\n".join(warnings())
    for name, place in (("expand_layers", "lvtc_config"), ("num_head", "projector_config"), ("downsample_ratios", "")):
        assert re.search(rf"{name}.*{place}.*Version {re.escape(version)} saved it", told)
    loaded.save_pretrained(tmp_path)
    assert "expand_layers" not in json.loads(path.read_text())["lvtc_config"]
    with pytest.raises(ValueError, match="Did you mean `expand_layer`"):
        InternVLXConfig.from_pretrained(tmp_path, lvtc_config={"expand_layers": 2})


@pytest.mark.parametrize("version", [None, "0.0.9", VERSION, f"{VERSION}.dev3"])
def test_names_of_this_or_an_older_version_raise(version):
    with pytest.raises(ValueError, match="Did you mean `expand_layer`"):
        tiny_config(lvtc_config={"expand_layers": 2}, internvlx_version=version)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"downsample_ratio": "half"}, r"`downsample_ratio` must be float \| int, got 'half'"),
        ({"lvtc_config": True}, r"`lvtc_config` must be .*dict .*None, got True"),
        ({"image_token_id": None}, "`image_token_id` must be int, got None"),
        ({"lvtc_config": {"expand_layer": "two"}}, r"`expand_layer` must be int \| None, got 'two'"),
        ({"projector_config": {"num_heads": 4.5}}, r"`num_heads` must be int \| None, got 4\.5"),
        ({"projector_config": {"rms_norm_eps": float("nan")}}, "`rms_norm_eps` must be positive, got nan"),
        ({"projector_config": {"mlp_ratio": float("inf")}}, "`mlp_ratio` must be positive, got inf"),
        (
            {"text_config": {"hidden_size": "wide"}},
            r"`text_config` is not a valid qwen2 configuration.*hidden_size.*'wide'",
        ),
        (
            {"text_config": {"layer_types": ["odd"], "num_hidden_layers": 1}},
            r"`text_config` is not a valid qwen2 .*'odd'",
        ),
        (
            {"vision_config": {"patch_size": None}},
            r"`vision_config` is not a valid internvl_vision configuration.*patch_size",
        ),
        ({"text_config": {"model_type": ["qwen2"]}}, r"Unknown model type \['qwen2'\] of `text_config`"),
        ({"projector_config": InternVLXLVTCConfig()}, "`projector_config` must be .*InternVLXProjectorConfig"),
        ({"dtype": "float99"}, "`dtype` of the configuration must be a torch dtype .*'float99'"),
        ({"torch_dtype": 3}, "`dtype` of the configuration must be a torch dtype .*got 3"),
        ({"text_config": {"dtype": [1]}}, r"`dtype` of text_config must be a torch dtype .*got \[1\]"),
        ({"lvtc_config": {"dtype": "x"}}, "`dtype` of lvtc_config must be a torch dtype .*got 'x'"),
        ({"lvtc_config": {"model_type": "qwen2"}}, "`lvtc_config.model_type` must be .*'internvl_x_lvtc'.*'qwen2'"),
        ({"vision_config": {"patch_size": 0}}, r"`vision_config\.patch_size`=\(0, 0\)"),
        ({"vision_config": {"patch_size": -1}}, r"`vision_config\.patch_size`=\(-1, -1\)"),
        ({"vision_config": {"image_size": 0}}, r"`vision_config\.image_size`=\(0, 0\)"),
        ({"output_attentions": True, "attn_implementation": "sdpa"}, "`output_attentions` attribute is not supported"),
    ],
)
def test_value_of_a_wrong_kind_is_a_value_error_with_field_and_value(kwargs, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        InternVLXConfig(**kwargs)


def test_value_of_a_wrong_kind_set_later_is_a_value_error_too():
    config = tiny_config(**LVTC)
    with pytest.raises(ValueError, match=r"`downsample_ratio` must be float \| int, got 'half'"):
        config.downsample_ratio = "half"
    with pytest.raises(ValueError, match="`upsample_mode` must be str, got 3"):
        config.lvtc_config.update({"upsample_mode": 3})


@pytest.mark.parametrize(("layers", "insertions"), [(24, [4, 8, 12]), (32, [5, 10, 15]), (4, [1])])
def test_insertions_that_are_not_set_are_spread_evenly_before_the_expansion(layers, insertions):
    config = tiny_config("llama", text_config={"num_hidden_layers": layers}, lvtc_config={})
    assert config.lvtc_config.insertion_layers == insertions


def test_an_update_that_raises_changes_nothing():
    config = tiny_config(**LVTC)
    before = config.to_dict()
    for change in (
        {"downsample_ratio": 0.5, "lvtc_config": {"expand_layers": 1}},
        {"image_token_id": 7, "lvtc_config": 3},
    ):
        with pytest.raises(ValueError, match="lvtc_config"):
            config.update(change)
        assert config.to_dict() == before
