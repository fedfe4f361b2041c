# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Allowed values of the settings in a checkpoint's JSON files, by name, for every layout.

Settings that are not listed are not read here. The bounds are far beyond every published model: they keep a bogus
number from costing minutes or gigabytes before the tensors contradict it.
"""

import re
from dataclasses import fields

from transformers.activations import ACT2FN

from ..checkpoints.errors import CheckpointError
from ..checkpoints.names import DTYPES
from ..processing.image_settings import IMAGE_PROCESSOR, ImageSettings
from ..processing.rules import FLAG, OBJECT, TEXT, FieldRule, choice, either, is_number, list_of, number, whole
from ..processing.rvtc import MAX_TILES
from ..processing.size_choices import SIZES_RULE

SECTIONS = (
    *("llm_config", "text_config", "vision_config", "projector_config", "lvtc_config"),
    *("rope_scaling", "rope_parameters"),
)
MAX_SIZE, MAX_LAYERS, MAX_PIXELS, MAX_EXPERTS = 10**8, 1000, 10**5, 10**4
ROPE_TYPES = ("default", "linear", "dynamic", "longrope", "su", "yarn", "llama3")

SIZE, LAYERS = whole(1, MAX_SIZE), whole(1, MAX_LAYERS)
FRACTION = FieldRule("a number from 0 to less than 1", lambda value: is_number(value) and 0 <= value < 1)
EPSILON = number(0, 0.1, above=True)
PIXELS = either(
    whole(1, MAX_PIXELS),
    FieldRule(
        "a list of two equal ones",
        lambda value: isinstance(value, list) and len(value) == 2 and value[0] == value[1] and _is_pixels(value[0]),
    ),
)
LAYER = whole(-MAX_LAYERS, MAX_LAYERS)
TOKEN_ID = whole(0, MAX_SIZE)
NAMES = list_of(TEXT)
FACTORS = list_of(number(0, 1e6, above=True))
ACTIVATION = choice(sorted(ACT2FN))


def _is_pixels(value) -> bool:
    return type(value) is int and 1 <= value <= MAX_PIXELS


CONFIG_RULES = {
    **dict.fromkeys(("architectures", "layer_types"), NAMES.or_null()),
    **dict.fromkeys(("llm_config", "text_config", "vision_config"), OBJECT),
    **dict.fromkeys(("projector_config", "lvtc_config", "rope_scaling", "rope_parameters"), OBJECT.or_null()),
    **dict.fromkeys(("dtype", "torch_dtype"), choice((*DTYPES, "float64")).or_null()),
    **dict.fromkeys(
        (
            *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads"),
            *("max_position_embeddings", "num_channels", "image_seq_length", "num_heads"),
        ),
        SIZE,
    ),
    **dict.fromkeys(("head_dim", "original_max_position_embeddings", "sliding_window"), SIZE.or_null()),
    **dict.fromkeys(("num_hidden_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("expand_layer", "num_lr_projectors", "insert_interval"), LAYERS.or_null()),
    **dict.fromkeys(("insert_start",), whole(0, MAX_LAYERS).or_null()),
    **dict.fromkeys(("max_window_layers",), whole(0, MAX_SIZE)),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), whole(1, MAX_EXPERTS)),
    **dict.fromkeys(("moe_intermediate_size", "decoder_sparse_step"), SIZE),
    "tokens_per_tile": SIZES_RULE.or_null(),
    "merge_layer": LAYERS.or_null(),
    "mlp_only_layers": list_of(whole(0, MAX_LAYERS)).or_null(),
    "router_aux_loss_coef": number(0, 1e6),
    **dict.fromkeys(("flash_relative_threshold", "flash_absolute_threshold"), number(0, 1)),
    **dict.fromkeys(("router_relative_threshold", "router_absolute_threshold"), number(0, 1).or_null()),
    "select_layer": LAYER,
    "vision_feature_layer": either(LAYER, list_of(LAYER)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), EPSILON),
    **dict.fromkeys(("attention_dropout", "dropout", "projection_dropout", "hidden_dropout_prob"), FRACTION),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "drop_path_rate"), FRACTION),
    **dict.fromkeys(("initializer_range", "layer_scale_init_value", "initializer_factor"), number(0, 10)),
    **dict.fromkeys(
        (
            *("use_thumbnail", "dynamic_image_size", "pad2square", "tie_word_embeddings", "use_sliding_window"),
            *("qkv_bias", "qk_normalization", "attention_bias", "mlp_bias", "bias", "use_qk_norm"),
            *("use_local", "use_global", "use_cls_scale", "use_mask_token", "use_mean_pooling"),
            *("flash_mode", "use_absolute_position_embeddings", "use_cache", "norm_topk_prob", "output_router_logits"),
            *("multimodal_projector_bias", "vision_use_head"),
        ),
        FLAG,
    ),
    **dict.fromkeys(("hidden_act", "projector_hidden_act"), ACTIVATION),
    **dict.fromkeys(("image_size", "patch_size"), PIXELS),
    **dict.fromkeys(("min_dynamic_patch", "max_dynamic_patch"), whole(1, MAX_TILES)),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN_ID.or_null()),
    **dict.fromkeys(("eos_token_id",), either(TOKEN_ID, list_of(TOKEN_ID)).or_null()),
    **dict.fromkeys(("model_type", "template", "ps_version", "vision_feature_select_strategy"), TEXT),
    **dict.fromkeys(("projector_type", "lr_projector_type", "query_mlp", "upsample_mode", "expanded_positions"), TEXT),
    "hr_projector_type": TEXT.or_null(),
    "force_image_size": whole(1, MAX_PIXELS).or_null(),
    **dict.fromkeys(("image_token_id", "image_token_index"), TOKEN_ID),
    "downsample_ratio": number(1e-3, 1),
    "mlp_ratio": number(0, 1000, above=True),
    "norm_type": choice(("layer_norm", "rms_norm")),
    "rope_theta": number(1, 1e15),
    "partial_rotary_factor": number(0, 1, above=True),
    "pretraining_tp": whole(1, MAX_SIZE),
    # of rope_scaling
    **dict.fromkeys(("type", "rope_type"), choice(ROPE_TYPES)),
    **dict.fromkeys(("short_factor", "long_factor"), FACTORS),
    **dict.fromkeys(("factor",), number(1, 1e6)),
    **dict.fromkeys(
        ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "attention_factor"),
        number(0, 1e6, above=True),
    ),
}
PROCESSOR_RULES = {
    **{
        each.name: each.metadata["rule"] for each in fields(ImageSettings) if each.metadata["owner"] == IMAGE_PROCESSOR
    },
    "crop_to_patches": FLAG.or_null(),
    **dict.fromkeys(
        ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_exif_transpose", "jpeg_draft"),
        FLAG.or_null(),
    ),
    "resample": whole(0, 5).or_null(),
    "rescale_factor": number(0, 1e3, above=True).or_null(),
    "resize_backend": choice(("torch", "pillow")).or_null(),
    "image_mean": list_of(number(-1e3, 1e3), 3),
    "image_std": list_of(number(1e-6, 1e3), 3),
    "size": FieldRule(
        "an object of height and width",
        lambda value: (
            isinstance(value, dict) and value.keys() == {"height", "width"} and all(map(_is_pixels, value.values()))
        ),
    ),
}
_SIDES = FieldRule(
    "a number of pixels, or an object of height and width, or of shortest_edge",
    lambda value: (
        _is_pixels(value)
        or (
            isinstance(value, dict)
            and value.keys() in ({"height", "width"}, {"shortest_edge"})
            and all(map(_is_pixels, value.values()))
        )
    ),
)
LLAVA_IMAGE_RULES = {
    **dict.fromkeys(("do_center_crop", "do_pad"), FLAG.or_null()),
    **dict.fromkeys(("crop_size", "size"), _SIDES.or_null()),
}
_FRAMES = whole(1, 10**6)
VIDEO_RULES = {
    **{name: PROCESSOR_RULES[name] for name in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")},
    **{name: PROCESSOR_RULES[name] for name in ("resample", "rescale_factor", "resize_backend", "size")},
    **{name: PROCESSOR_RULES[name].or_null() for name in ("image_mean", "image_std")},
    **dict.fromkeys(("num_frames", "min_frames", "max_frames"), _FRAMES.or_null()),
    "fps": number(0, 1e3, above=True).or_null(),
    "do_sample_frames": FLAG.or_null(),
    "frame_label": FieldRule("a text with one {}", lambda value: isinstance(value, str) and value.count("{}") == 1),
    # frames are the middles of segments here
    "initial_shift": FieldRule("true", lambda value: value is True).or_null(),
}
TOKEN = FieldRule(
    "text, or an object with content",
    lambda value: isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str)),
)
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TOKENIZER_RULES = {
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), TOKEN.or_null()),
    **dict.fromkeys(("add_bos_token", "add_eos_token"), FLAG),
    "legacy": FLAG.or_null(),
    "tokenizer_class": TEXT.or_null(),
    "chat_template": TEXT.or_null(),
    "model_max_length": FieldRule("a positive number", lambda value: is_number(value) and value >= 1).or_null(),
    "additional_special_tokens": list_of(TOKEN).or_null(),
    "added_tokens_decoder": FieldRule(
        "an object of tokens by id",
        lambda value: (
            isinstance(value, dict)
            and all(re.fullmatch(r"\d{1,9}", index) and _is_added(token) for index, token in value.items())
        ),
    ),
}
GENERATION_RULES = {
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN_ID.or_null()),
    "eos_token_id": either(TOKEN_ID, list_of(TOKEN_ID)).or_null(),
    **dict.fromkeys(("do_sample", "use_cache"), FLAG.or_null()),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_beams"), whole(1, MAX_SIZE).or_null()),
    "top_k": whole(0, MAX_SIZE).or_null(),
    "top_p": number(0, 1, above=True).or_null(),
    **dict.fromkeys(("temperature", "repetition_penalty"), number(0, 1e3, above=True).or_null()),
}


def _is_added(token) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and token["content"] != ""
        and all(isinstance(token.get(flag, False), bool) for flag in _TOKEN_FLAGS)
    )


def check_values(raw: dict, rules: dict[str, FieldRule], section: str = "") -> None:
    """Check the settings of a JSON object and of its sections against `rules`.

    Raises:
        ValueError: if a value is wrong; the message gives the setting, its value and what would be right.
    """
    for name, value in raw.items():
        if name in rules:
            rules[name].check(f"{section}{name}", value)
        if name in SECTIONS and value:
            check_values(value, rules, f"{section}{name}.")


def check_token_ids(raw: dict, vocab_size: int, section: str = "") -> None:
    """Check that the ids of special tokens are in the vocabulary."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = raw.get(name)
        for index in ids if isinstance(ids, list) else [ids]:
            if index is not None and index >= vocab_size:
                raise CheckpointError(f"{section}{name}={ids} is outside the model's vocabulary of {vocab_size}.")
