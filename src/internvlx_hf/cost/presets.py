# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Presets: configurations of the published InternVL 2, 2.5, 3 and 3.5 models, of InternVL-X and of LLaVA-1.5, without
weights.

They have the right sizes but not all details (rotary embeddings are plain), so use them for costs only. To run a
model, convert its checkpoint. InternLM2 appears as llama, as in the conversion.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..processing.rules import nearest
from ..processing.rvtc import TilingRule

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

TILE, LLAVA_TILE, PATCH = 448, 336, 14
# maximum tiles of InternVL's own image processor, and of the paper's high-resolution models (section 4.3, Table 5)
NATIVE_TILES, INTERNVL_X_TILES = 12, 6

VISION: dict[str, dict[str, Any]] = {
    "InternViT-300M": {
        "image_size": TILE,
        "patch_size": PATCH,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "attention_bias": True,
    },
    "InternViT-6B": {
        "image_size": TILE,
        "patch_size": PATCH,
        "hidden_size": 3200,
        "num_hidden_layers": 45,
        "num_attention_heads": 25,
        "intermediate_size": 12800,
        "attention_bias": False,
        "use_qk_norm": True,
        "norm_type": "rms_norm",
    },
    "CLIP-ViT-L-336": {
        "model_type": "clip_vision_model",
        "image_size": LLAVA_TILE,
        "patch_size": PATCH,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


# of the published language models: InternLM2, Qwen2.5, Phi-3-mini-128k, Qwen3
POSITIONS = {"llama": 32768, "qwen2": 32768, "phi3": 131072, "qwen3": 40960, "qwen3_moe": 40960}


@dataclass(frozen=True)
class Geometry:
    """The vision tower's name, and the language model's type and sizes."""

    vision: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int | None = None
    # experts per layer, experts per token and the width of an expert
    experts: tuple[int, int, int] | None = None
    max_position_embeddings: int | None = None  # those of `POSITIONS` by default

    def config(self, **kwargs) -> "InternVLXConfig":
        from transformers import CONFIG_MAPPING

        from ..modeling.configuration_internvlx import InternVLXConfig

        sizes: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if name not in ("vision", "model_type", "experts") and value is not None
        }
        sizes.setdefault("max_position_embeddings", POSITIONS[self.model_type])
        if self.experts is not None:
            names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
            sizes |= dict(zip(names, self.experts, strict=True))
        # some classes have default special tokens beyond another model's vocabulary
        sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        sizes["tie_word_embeddings"] = False
        text = CONFIG_MAPPING[self.model_type](**sizes)
        vision_type = VISION[self.vision].get("model_type", "internvl_vision")
        vision = CONFIG_MAPPING[vision_type](
            **{name: value for name, value in VISION[self.vision].items() if name != "model_type"}
        )
        # InternVL appends nine tokens to a vocabulary, the context token third; Qwen3's vocabulary continues after
        # them
        end = 151678 if self.model_type in ("qwen3", "qwen3_moe") else self.vocab_size
        return InternVLXConfig(
            vision_config=vision, text_config=text, image_token_id=end - 7, dtype="bfloat16", **kwargs
        )


_SMALL, _LARGE, _CLIP = VISION
# vision tower; type, width, layers, heads, key/value heads, MLP width, vocabulary, head width, experts of the language
# model
GEOMETRIES = {
    "internvl2-1b": Geometry(_SMALL, "qwen2", 896, 24, 14, 2, 4864, 151655),
    "internvl2-2b": Geometry(_SMALL, "llama", 2048, 24, 16, 8, 8192, 92553),
    "internvl2-4b": Geometry(_SMALL, "phi3", 3072, 32, 32, 32, 8192, 32020),
    "internvl2-8b": Geometry(_SMALL, "llama", 4096, 32, 32, 8, 14336, 92553),
    "internvl2-26b": Geometry(_LARGE, "llama", 6144, 48, 48, 8, 16384, 92553),
    "internvl2-40b": Geometry(_LARGE, "llama", 7168, 60, 56, 8, 20480, 64007, max_position_embeddings=4096),
    "internvl2-llama3-76b": Geometry(_LARGE, "llama", 8192, 80, 64, 8, 28672, 128265, max_position_embeddings=8192),
    "internvl2.5-1b": Geometry(_SMALL, "qwen2", 896, 24, 14, 2, 4864, 151674),
    "internvl2.5-2b": Geometry(_SMALL, "llama", 2048, 24, 16, 8, 8192, 92553),
    "internvl2.5-4b": Geometry(_SMALL, "qwen2", 2048, 36, 16, 2, 11008, 151674),
    "internvl2.5-8b": Geometry(_SMALL, "llama", 4096, 32, 32, 8, 14336, 92553),
    "internvl2.5-26b": Geometry(_LARGE, "llama", 6144, 48, 48, 8, 16384, 92553),
    "internvl2.5-38b": Geometry(_LARGE, "qwen2", 5120, 64, 40, 8, 27648, 151674),
    "internvl2.5-78b": Geometry(_LARGE, "qwen2", 8192, 80, 64, 8, 29568, 151674),
    "internvl3-1b": Geometry(_SMALL, "qwen2", 896, 24, 14, 2, 4864, 151674),
    "internvl3-2b": Geometry(_SMALL, "qwen2", 1536, 28, 12, 2, 8960, 151674),
    "internvl3-8b": Geometry(_SMALL, "qwen2", 3584, 28, 28, 4, 18944, 151674),
    "internvl3-14b": Geometry(_SMALL, "qwen2", 5120, 48, 40, 8, 13824, 151674),
    "internvl3-38b": Geometry(_LARGE, "qwen2", 5120, 64, 40, 8, 27648, 151674),
    "internvl3-78b": Geometry(_LARGE, "qwen2", 8192, 80, 64, 8, 29568, 151674),
    "internvl3.5-1b": Geometry(_SMALL, "qwen3", 1024, 28, 16, 8, 3072, 151936, 128),
    "internvl3.5-2b": Geometry(_SMALL, "qwen3", 2048, 28, 16, 8, 6144, 151936, 128),
    "internvl3.5-4b": Geometry(_SMALL, "qwen3", 2560, 36, 32, 8, 9728, 151936, 128),
    "internvl3.5-8b": Geometry(_SMALL, "qwen3", 4096, 36, 32, 8, 12288, 151936, 128),
    "internvl3.5-14b": Geometry(_SMALL, "qwen3", 5120, 40, 40, 8, 17408, 151936, 128),
    "internvl3.5-30b-a3b": Geometry(_SMALL, "qwen3_moe", 2048, 48, 32, 4, 6144, 151936, 128, (128, 8, 768)),
    "internvl3.5-38b": Geometry(_LARGE, "qwen3", 5120, 64, 64, 8, 25600, 151936, 128),
    "internvl3.5-241b-a28b": Geometry(_LARGE, "qwen3_moe", 4096, 94, 64, 4, 12288, 151936, 128, (128, 8, 1536)),
}
# the paper's models: PVTC, and LVTC with k = 17 and 23 (our defaults for what it does not state), slicing "edge"
INTERNVL_X = {"internvl-x-2b": "internvl2-2b", "internvl-x-8b": "internvl2-8b"}
LLAVA = {
    "llava-1.5-7b": Geometry(_CLIP, "llama", 4096, 32, 32, 32, 11008, 32064, max_position_embeddings=4096),
    "llava-1.5-13b": Geometry(_CLIP, "llama", 5120, 40, 40, 40, 13824, 32064, max_position_embeddings=4096),
}
PRESETS = (*INTERNVL_X, *GEOMETRIES, *LLAVA)
"""Names of all presets."""

ALIASES = {
    "internvl2-76b": "internvl2-llama3-76b",
    **{f"{owner}{name}-hf": name for name in LLAVA for owner in ("", "llava-hf/")},
}


def preset_name(name: str) -> str | None:
    """The preset for a name from `PRESETS` or from the Hub (`OpenGVLab/InternVL2_5-8B`, `llava-hf/llava-1.5-7b-hf`),
    or None.
    """
    name = name.lower().removeprefix("opengvlab/").replace("_", ".")
    name = ALIASES.get(name, name)
    return name if name in PRESETS else None


def nearest_preset(name: str) -> str:
    """The preset whose name is most similar to `name`."""
    return nearest(name.replace("_", "."), PRESETS, cutoff=0)  # type: ignore[return-value]


def _known(name: str) -> str:
    known = preset_name(name)
    if known is None:
        raise ValueError(f"There is no preset {name!r}. Did you mean {nearest_preset(name)!r}?")
    return known


def preset(name: str) -> "InternVLXConfig":
    """Configuration of a published model, for its sizes.

    Args:
        name: one of `PRESETS`, in upper or lower case, or a model's name on the Hub.

    Raises:
        ValueError: if there is no such preset; the message suggests the nearest.
    """
    name = _known(name)
    if name in INTERNVL_X:
        return GEOMETRIES[INTERNVL_X[name]].config(lvtc_config={})
    if name in LLAVA:
        return LLAVA[name].config(
            projector_config={"projector_type": "linear"}, downsample_ratio=1.0, vision_feature_layer=-2
        )
    return GEOMETRIES[name].config(projector_config={"projector_type": "pixel_shuffle"})


def preset_tiling(name: str) -> TilingRule:
    """Tiling of a preset: "ratio" with at most 12 tiles, for InternVL-X "edge" with at most 6, for LLaVA one tile.

    Raises:
        ValueError: if there is no such preset; the message suggests the nearest.
    """
    name = _known(name)
    if name in INTERNVL_X:
        return TilingRule(TILE, TILE, max_tiles=INTERNVL_X_TILES, slicing="edge")
    if name in LLAVA:
        return TilingRule(LLAVA_TILE, LLAVA_TILE, max_tiles=1, slicing="edge")
    return TilingRule(TILE, TILE, max_tiles=NATIVE_TILES, slicing="ratio")
