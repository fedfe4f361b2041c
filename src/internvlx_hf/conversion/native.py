# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting back: saving a model that kept InternVL2's projector in transformers' native `internvl` layout."""

import json
from pathlib import Path

from transformers import GotOcr2ImageProcessorPil, InternVLConfig, PreTrainedTokenizerFast
from transformers.utils import VIDEO_PROCESSOR_NAME

from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor, InternVLXVideoProcessor
from .target_settings import shared_settings

# module prefixes -> prefixes in the files
FILE_NAMES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
NATIVE_TOWER = "internvl_vision"
VIDEO_TOKEN = "<video>"


def require_native(config: InternVLXConfig) -> None:
    """Check that a model is an InternVL of transformers.

    Raises:
        ValueError: if native InternVL cannot represent the model.
    """
    projector, tower = config.projector_config.projector_type, config.vision_config.model_type
    if tower != NATIVE_TOWER:
        raise ValueError(
            f"Native InternVL supports only InternViT, but the model has the vision tower {tower!r}. Expected "
            f"{NATIVE_TOWER!r}."
        )
    if projector != "pixel_shuffle" or config.lvtc_config is not None:
        raise ValueError(
            f"Native InternVL supports only InternVL2's projector, but the model has the projector {projector!r}"
            f"{' and LVTC' if config.lvtc_config is not None else ''}. Expected 'pixel_shuffle' without LVTC."
        )


def native_names(name: str) -> str:
    """The name of one of our tensors in the files of transformers' InternVL and LLaVA."""
    prefix = next(prefix for prefix in FILE_NAMES if name.startswith(prefix))
    return FILE_NAMES[prefix] + name.removeprefix(prefix)


def save_native_sidecar(
    folder: Path,
    config: InternVLXConfig,
    tokenizer: PreTrainedTokenizerFast,
    image_processor: InternVLXImageProcessor,
    video_processor: InternVLXVideoProcessor,
) -> None:
    """Write the native configuration, tokenizer, image and video processor."""
    native = InternVLConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_id=config.image_token_id,
        image_seq_length=config.image_seq_length,
        downsample_ratio=config.downsample_ratio,
        projector_hidden_act=config.projector_config.hidden_act,
        vision_feature_layer=config.vision_feature_layer,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        dtype=config.dtype,
        architectures=["InternVLForConditionalGeneration"],
    )
    native.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # InternVLProcessor needs it; it is not in the vocabulary, since the processor replaces it
    saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "tokenizer_config.json", {**saved, "video_token": VIDEO_TOKEN})
    rule = image_processor.tiling_rule()
    GotOcr2ImageProcessorPil(
        crop_to_patches=rule.max_tiles > 1,
        min_patches=rule.min_tiles,
        max_patches=rule.max_tiles,
        **shared_settings(image_processor),
    ).save_pretrained(folder)
    # transformers can make a video processor only if torchvision is installed
    video = {"video_processor_type": "InternVLVideoProcessor", **shared_settings(video_processor)}
    # native InternVL follows num_frames where both are set
    fps = video_processor.fps
    video |= {"num_frames": video_processor.num_frames if fps is None else None, "fps": fps}
    if video_processor.do_sample_frames:
        video["do_sample_frames"] = True
    _write(folder / VIDEO_PROCESSOR_NAME, video)
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": config.image_seq_length}
    _write(folder / "processor_config.json", processor)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
