# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LLaVA (arXiv 2310.03744) as transformers saves it: what its configuration and its image processor mean here, and
back.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast

from ..checkpoints.errors import CheckpointError, blaming
from ..checkpoints.json_files import read_json
from ..checkpoints.names import PROCESSOR_FILES
from ..modeling import InternVLXConfig, InternVLXProjectorConfig
from ..modeling.setting_checks import pair
from ..modeling.towers import check_tower
from ..processing.literals import IMAGE_MARK, IMG_CONTEXT_TOKEN
from ..processing.resizing import TORCH_MODES
from .field_rules import LLAVA_IMAGE_RULES, check_values
from .pixels import pixel_settings

# vision tower -> the `vision_feature_select_strategy` that leaves its patches only: CLIP has a CLS token, SigLIP has
# none
STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}
# towers whose `last_hidden_state` is their last layer's output, without the final norm
UNNORMED_TOWERS = ("clip_vision_model",)
SIZE_SETTINGS = ("do_center_crop", "do_pad", "crop_size", "size")
# model types that are not supported, and why
UNSUPPORTED = {
    **dict.fromkeys(
        ("llava_next", "llava_next_video", "llava_onevision"),
        "it joins an image's tiles into one grid with newline tokens and cuts off the padding",
    ),
    "video_llava": "it has a second vision tower, for videos",
    "vipllava": "it projects the joined features of several layers after a norm",
    **dict.fromkeys(
        ("blip", "blip-2", "blip_2", "instructblip", "instructblipvideo", "minigpt4", "mini_gpt4", "minigpt_4"),
        "its Q-Former's queries have no place in the image, so there is no grid of tokens to compress or to expand",
    ),
    **dict.fromkeys(
        ("llava_llama", "llava_mistral", "llava_qwen"),
        "this is the layout of LLaVA's own code; its checkpoints for transformers have the model type 'llava', such "
        "as llava-hf/llava-1.5-7b-hf",
    ),
}


# ---- reading


def llava_config(raw: dict) -> InternVLXConfig:
    """The same model as an `InternVLXConfig`.

    Raises:
        ValueError: if it cannot be computed exactly; the message names the setting and what would be right.
    """
    if not (isinstance(raw.get("vision_config"), dict) and isinstance(raw.get("text_config"), dict)):
        raise CheckpointError(f"lacks vision_config or text_config: {UNSUPPORTED['llava_llama']}.")
    layers = raw.get("vision_feature_layer", LlavaConfig.vision_feature_layer)
    layers = layers if isinstance(layers, list) else [layers]
    if len(layers) != 1:
        raise CheckpointError(
            f"vision_feature_layer={layers} joins the features of {len(layers)} layers, expected a single layer, such "
            "as -2."
        )
    llava: Any = LlavaConfig.from_dict(raw | {"vision_feature_layer": layers[0]})
    if not llava.multimodal_projector_bias:
        raise CheckpointError("multimodal_projector_bias=False is not supported, expected a projector with biases.")
    _check_strategy(llava.vision_config, llava.vision_feature_select_strategy)
    return InternVLXConfig(
        vision_config=llava.vision_config,
        text_config=llava.text_config,
        image_token_id=llava.image_token_id,
        downsample_ratio=1.0,
        # LLaVA reads the last layer before the tower's final norm, `vision_feature_layer=-1` here after it
        vision_feature_layer=llava.vision_config.num_hidden_layers if layers[0] == -1 else layers[0],
        projector_config=InternVLXProjectorConfig(projector_type="linear", hidden_act=llava.projector_hidden_act),
        tie_word_embeddings=llava.tie_word_embeddings,
        dtype=llava.dtype,
    )


def _check_strategy(vision: Any, strategy: str) -> None:
    kind = vision.model_type
    if kind not in STRATEGIES:
        raise CheckpointError(
            f"The vision tower {kind!r} (vision_config.model_type) of a LLaVA is not supported, expected "
            f"{' or '.join(STRATEGIES)}."
        )
    if strategy != STRATEGIES[kind]:
        grid = pair(vision.image_size)[0] // pair(vision.patch_size)[0]
        tokens = grid**2 + (1 if strategy == "full" else -1)
        raise CheckpointError(
            f"vision_feature_select_strategy={strategy!r} of {kind} makes {tokens} tokens per image, which is not the "
            f"grid of {grid}x{grid} patches. Expected {STRATEGIES[kind]!r}."
        )


def llava_pixels(folder: Path, config: InternVLXConfig) -> tuple[dict[str, Any], list[str]]:
    """A LLaVA's image settings, as those of `InternVLXImageProcessor`, and notes on how its pixels differ.

    Raises:
        CheckpointError: if a setting is invalid, or the image processor makes images of another size than the tower's.
    """
    settings, note = pixel_settings(folder, config.vision_config.model_type)
    if settings.get("resample") is not None and settings["resample"] not in TORCH_MODES:
        settings["resize_backend"] = "pillow"
    return settings, [found for found in (note, _resizing_note(folder, config.tile_size)) if found]


def _resizing_note(folder: Path, tile: int) -> str | None:
    """A note if LLaVA's image processor does otherwise than resize an image to the tile."""
    saved: dict[str, Any] = {}
    for name in reversed(PROCESSOR_FILES):
        found = read_json(folder / name)
        found = found.get("image_processor", found)
        if isinstance(found, dict) and (sizes := {key: found[key] for key in SIZE_SETTINGS if key in found}):
            with blaming(folder / name):
                check_values(sizes, LLAVA_IMAGE_RULES)
                saved |= sizes
                _check_size(saved, tile)
    steps = [f"pads an image to a square, where do_pad={saved['do_pad']}"] if saved.get("do_pad") else []
    if not saved or "shortest_edge" in str(saved.get("size")) or saved.get("do_center_crop"):
        steps.append("resizes an image's shorter side to the tile and cuts off what is left of the longer one")
    if not steps:
        return None
    return (
        f"LLaVA's image processor {' and '.join(steps)}. Here an image is resized to the whole tile of {tile}x{tile} "
        "pixels: square images look the same, others are stretched and nothing is cut off."
    )


def _check_size(saved: dict[str, Any], tile: int) -> None:
    cropped = saved.get("do_center_crop") is not False and saved.get("crop_size") is not None
    name = "crop_size" if cropped else "size"
    size = saved.get(name)
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if size is not None and sides != {tile}:
        raise CheckpointError(f"{name}={size}, but vision_config.image_size makes tiles of {tile}x{tile}.")


def renamed_token(core: Tokenizer, index: int, name: str) -> tuple[Tokenizer, str]:
    """A tokenizer whose added token `index` has another name, and its old name.

    Raises:
        ValueError: if there is no such added token, or another token has this name.
    """
    old = core.get_added_tokens_decoder().get(index)
    if old is None:
        raise ValueError(
            f"image_token_index={index} is not an added token of the tokenizer, expected the id of <image>."
        )
    if core.token_to_id(name) not in (None, index):
        raise ValueError(f"The tokenizer's {name} has id {core.token_to_id(name)}, but the image token is {index}.")
    content = json.loads(core.to_str())
    for token in content["added_tokens"]:
        if token["id"] == index:
            token |= {"content": name, "special": True, "normalized": False}
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict) and old.content in vocabulary:
        content["model"]["vocab"] = {name if text == old.content else text: i for text, i in vocabulary.items()}
    elif isinstance(vocabulary, list) and index < len(vocabulary):
        vocabulary[index][0] = name
    return Tokenizer.from_str(json.dumps(content)), old.content


# ---- writing


def require_llava(config: InternVLXConfig) -> None:
    """Check that a model is a LLaVA.

    Raises:
        ValueError: if LLaVA cannot represent it; the message names what differs.
    """
    projector, has_lvtc = config.projector_config.projector_type, config.lvtc_config is not None
    if projector != "linear" or config.downsample_ratio != 1 or has_lvtc:
        raise ValueError(
            f"LLaVA supports only its own projector, but the model has the projector {projector!r} with "
            f"downsample_ratio={config.downsample_ratio}{' and LVTC' if has_lvtc else ''}. Expected 'linear' with 1, "
            "without LVTC."
        )
    tower = check_tower(config)
    if tower.extra_tokens > 1:
        raise ValueError(
            f"LLaVA drops at most one token before the patches, but the vision tower {tower.class_name} has "
            f"{tower.extra_tokens}."
        )
    _llava_layer(config)


def _llava_layer(config: InternVLXConfig) -> int:
    vision, layer = config.vision_config, config.vision_feature_layer
    if layer == -1 and vision.model_type not in UNNORMED_TOWERS:
        raise ValueError(
            f"vision_feature_layer=-1 is the output of {vision.model_type} after its final norm, which LLaVA leaves "
            f"out. Expected another layer; {vision.num_hidden_layers} is the last layer's output before the norm."
        )
    return -1 if layer == vision.num_hidden_layers else layer


def save_llava_sidecar(
    folder: Path, config: InternVLXConfig, tokenizer: PreTrainedTokenizerFast, pixels: dict[str, Any]
) -> None:
    """Write LLaVA's configuration and processor.

    Args:
        tokenizer: `<IMG_CONTEXT>` becomes `<image>`; tokens around it go into the chat template.
        pixels: settings of the image processor, with the tile's size.
    """
    vision, text = config.vision_config, config.text_config
    extra_tokens = check_tower(config).extra_tokens
    strategy: Any = "default" if extra_tokens else "full"
    LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=config.image_token_id,
        image_seq_length=config.image_seq_length,
        projector_hidden_act=config.projector_config.hidden_act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=_llava_layer(config),
        tie_word_embeddings=bool(config.tie_word_embeddings),
        dtype=config.dtype,
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(folder)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(crop_size=pixels["size"], do_center_crop=False, **pixels),
        tokenizer=_llava_tokenizer(tokenizer, config.image_token_id),
        patch_size=pair(vision.patch_size)[0],
        vision_feature_select_strategy=strategy,
        chat_template=_llava_template(tokenizer),
        num_additional_image_tokens=extra_tokens,
    )
    processor.save_pretrained(folder)


def _llava_tokenizer(tokenizer: PreTrainedTokenizerFast, image_token_id: int) -> PreTrainedTokenizerFast:
    core, _ = renamed_token(tokenizer.backend_tokenizer, image_token_id, IMAGE_MARK)
    named = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and not name.endswith("_image_token")
    }
    special = [token.content for token in core.get_added_tokens_decoder().values() if token.special]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **named,
        extra_special_tokens=[text for text in special if text not in named.values()],
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side="left",
    )


def _llava_template(tokenizer: PreTrainedTokenizerFast) -> str:
    start, end = (getattr(tokenizer, f"{side}_image_token", None) or "" for side in ("start", "end"))
    return tokenizer.chat_template.replace(IMG_CONTEXT_TOKEN, f"{start}{IMAGE_MARK}{end}")
