"""Recognising checkpoints: by their own config, with everything it says, and a clear no to what is not supported."""

import pytest
import torch
from transformers import AutoProcessor, GenerationConfig

from conversion_geometry import raw_config, write_checkpoint
from conversion_helpers import GOLDEN, copy_of, edit_config, not_converted
from internvlx_hf import InternVLXConfig
from internvlx_hf.conversion import convert_checkpoint, tensor_tables
from internvlx_hf.conversion.sources import rope_parameters
from json_files import json_of, write_json

QWEN = "internvl2_qwen2"
SMALL_300M, SMALL_6B = (32, 2, 4, 64, False), (40, 2, 5, 80, True)
# architecture, width, layers, heads, key/value heads, MLP width, vocabulary; then what else its config says
TEXTS = {
    "qwen3": (("Qwen3ForCausalLM", 48, 3, 4, 2, 64, 572), {"head_dim": 16}),
    "qwen3_tied": (("Qwen3ForCausalLM", 48, 2, 4, 2, 64, 572), {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": (
        ("Qwen3MoeForCausalLM", 48, 3, 4, 2, 64, 572),
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "qwen2_5": (("Qwen2ForCausalLM", 48, 3, 4, 1, 64, 572), {"use_sliding_window": False, "sliding_window": 32768}),
    "mistral": (("MistralForCausalLM", 48, 2, 4, 2, 64, 536), {"sliding_window": None}),
    "internlm2_linear": (
        ("InternLM2ForCausalLM", 48, 2, 6, 2, 64, 2009),
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "internlm2_ntk": (
        ("InternLM2ForCausalLM", 48, 2, 6, 3, 64, 2009),
        {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 30},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("vision", [SMALL_300M, SMALL_6B], ids=["300m", "6b"])
def test_language_models_without_golden_files_agree_with_the_slow_reference(tmp_path, out, text, vision):
    architecture, more = TEXTS[text]
    raw = raw_config(vision, *architecture, tile=56, dtype="float32", **more)
    report = convert_checkpoint(write_checkpoint(tmp_path / "source", raw), out, verify=True)
    assert report.checks["reference"].startswith("matches the source computed independently")


def test_slow_reference_notices_a_wrong_conversion(tmp_path, monkeypatch):
    """Queries of InternLM2's groups taken in another order: all shapes are right, the answers are not."""
    split = tensor_tables.split_query_groups

    def wrong(query_heads, kv_heads):
        return lambda tensor: tuple(part.roll(8, 0) for part in split(query_heads, kv_heads)(tensor))

    monkeypatch.setattr(tensor_tables, "split_query_groups", wrong)
    not_converted(copy_of("internvl2_internlm2", tmp_path / "source"), "differs from the source", verify=True)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e6}),
        ({"rope_scaling": None, "rope_theta": 5e6}, {"rope_type": "default", "rope_theta": 5e6}),
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}},
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "rope_theta": 10000.0},
        ),
        (
            {
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
            },
            {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "factor": 32.0,
                "rope_theta": 10000.0,
            },
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "type": "yarn", "factor": 4.0}, "rope_theta": 1e6},
            {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
        ),
    ],
)
def test_rope_scaling_of_every_age_comes_along(raw, expected):
    assert rope_parameters(raw) == expected


def test_settings_come_along(tmp_path, out):
    tiling = {"max_dynamic_patch": 9, "min_dynamic_patch": 2, "use_thumbnail": False, "select_layer": -2}
    convert_checkpoint(copy_of(QWEN, tmp_path / "source", **tiling), out)
    config = InternVLXConfig.from_pretrained(out)
    image_token = json_of(GOLDEN / f"{QWEN}.golden.json")["info"]["img_context_token_id"]
    assert (config.vision_feature_layer, config.dtype, config.image_token_id) == (-2, torch.float32, image_token)
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    processor = AutoProcessor.from_pretrained(out)
    images = processor.image_processor
    assert (images.max_patches, images.min_patches, images.use_thumbnail, images.slicing) == (9, 2, False, "ratio")
    assert (images.size.height, processor.image_seq_length) == (56, 4)
    assert tuple(images.image_mean) == (0.485, 0.456, 0.406)
    assert processor.chat_template == processor.tokenizer.chat_template


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (QWEN, {}, ("ratio", 12)),
        (QWEN, {"slicing": "area", "max_patches": 6}, ("area", 6)),
        ("internvlx_internlm2", {}, ("edge", 6)),
        ("internvlx_internlm2", {"slicing": "ratio"}, ("ratio", 6)),
    ],
)
def test_pictures_are_cut_as_the_checkpoint_was_made_for_unless_one_asks(converted, name, options, expected):
    images = AutoProcessor.from_pretrained(converted(name, **options)).image_processor
    assert (images.slicing, images.max_patches) == expected


def test_generation_stops_where_the_source_s_does_and_at_the_template_s_end(tmp_path, source, converted):
    given = GenerationConfig.from_pretrained(converted())
    assert (given.eos_token_id, given.pad_token_id) == ([561, 562, 560], 560)
    write_json(source / "generation_config.json", {"eos_token_id": 560, "do_sample": True, "top_k": 20})
    convert_checkpoint(source, tmp_path / "joined")
    joined = GenerationConfig.from_pretrained(tmp_path / "joined")
    end = AutoProcessor.from_pretrained(tmp_path / "joined").tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (joined.eos_token_id, joined.do_sample, joined.top_k) == ([560, end], True, 20)
    (source / "generation_config.json").unlink()
    convert_checkpoint(source, tmp_path / "alone")
    assert end in GenerationConfig.from_pretrained(tmp_path / "alone").eos_token_id


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda raw: raw.update(model_type="llama"),
            "model_type='llama' … internvl_chat, internvl, internvl_x, llava",
        ),
        (
            lambda raw: raw["llm_config"].update(architectures=["GptOssForCausalLM"]),
            "GptOssForCausalLM … InternLM2ForCausalLM … Qwen3ForCausalLM … Its attention has sinks",
        ),
        (
            lambda raw: raw["llm_config"].update(architectures=None, model_type="mixtral"),
            "language model 'mixtral' is not supported",
        ),
        (
            lambda raw: raw["vision_config"].update(architectures=["SiglipVisionModel"]),
            "SiglipVisionModel … InternVisionModel",
        ),
        (lambda raw: raw.update(ps_version="v1"), "ps_version='v1' … Only 'v2'"),
        (lambda raw: raw.pop("ps_version"), "ps_version='v1'"),
        (lambda raw: raw["llm_config"].pop("num_key_value_heads"), "lacks num_key_value_heads"),
        (lambda raw: raw["vision_config"].pop("qkv_bias"), "lacks qkv_bias"),
        (lambda raw: raw["llm_config"].update(vocab_size=500), "outside the model's vocabulary of 500"),
        (lambda raw: raw.update(template="vicuna"), "vicuna"),
        (lambda raw: raw.update(downsample_ratio=0.3), "downsample_ratio"),
        (lambda raw: raw.update(select_layer=-9), "vision_feature_layer"),
    ],
)
def test_what_is_not_supported_is_named_before_anything_is_written(source, edit, said):
    edit_config(source, edit)
    not_converted(source, said, ValueError)


def test_settings_that_cannot_come_along_are_noted(tmp_path, out):
    source = copy_of(QWEN, tmp_path / "source", pad2square=True)
    edit_config(source, lambda raw: raw["vision_config"].update(drop_path_rate=0.1))
    report = convert_checkpoint(source, out)
    assert any("pad2square" in note for note in report.notes)
    assert any("drop_path_rate=0.1" in note for note in report.notes)
