# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Recognising a checkpoint from its config.json, and describing the same model as an `InternVLXConfig`.

Four layouts are known:
- `internvl_chat`: InternVL2, 2.5, 3 and 3.5 as OpenGVLab published them, with remote code (`mlp1.*`), and the
  InternVL-X release, whose config has the same names and whose weights have PVTC (`projector.*`) instead of `mlp1.*`;
- `internvl`: transformers' own, the `-hf` checkpoints;
- `internvl_x`: this package's;
- `llava`: LLaVA-1.5 and its kin as transformers saves them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, InternVLConfig, PretrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from ..checkpoints.errors import CheckpointError, blaming
from ..checkpoints.folders import check_links
from ..checkpoints.json_files import read_json
from ..checkpoints.names import LLAVA, PROCESSOR_FILES
from ..checkpoints.weights import TensorInfo, Weights
from ..modeling import InternVLXConfig, InternVLXProjectorConfig
from ..processing import InternVLXImageProcessor, InternVLXVideoProcessor
from ..processing.image_settings import IMAGE_PROCESSOR, PROCESSOR, ImageSettings
from .field_rules import CONFIG_RULES, PROCESSOR_RULES, VIDEO_RULES, check_token_ids, check_values
from .llava import UNSUPPORTED, llava_config, llava_pixels
from .templates import chat_template

LAYOUTS = ("internvl_chat", "internvl", "internvl_x", LLAVA)

# remote-code or native class -> equivalent model type
TEXT_ARCHITECTURES = {
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
# why a language model of InternVL 3.5 is not one of them
UNSUPPORTED_TEXT = {
    "GptOssForCausalLM": "Its attention has sinks, which transformers computes only with eager attention or kernels "
    "from the Hub.",
}
VISION_ARCHITECTURES = ("InternVisionModel",)
# required and optional settings of each kind of rope scaling
ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_OPTIONS = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "factor"),
}
ROPE_FIELDS = ("type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
# resizing position embeddings to more than this many times their side would hardly keep any of their information
MAX_GRID_GROWTH = 8

# settings without a safe default: a default would describe another model
REQUIRED_TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
REQUIRED_EXPERT_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
REQUIRED_VISION_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
# our name -> InternViT's
VISION_FIELDS = {
    **{name: name for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
    **{"patch_size": "patch_size", "norm_type": "norm_type"},
    **{"attention_bias": "qkv_bias", "use_qk_norm": "qk_normalization"},
}
OPTIONAL_VISION_FIELDS = {
    **{
        name: name
        for name in ("num_channels", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range")
    },
    "projection_dropout": "dropout",
}
OTHER_SETTINGS = (
    *("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_exif_transpose"),
    *("resample", "rescale_factor", "resize_backend", "alpha", "jpeg_draft"),
)


# settings of InternVL's own processor, and those of one tile per image
NATIVE_TILING = {"slicing": "ratio", "max_patches": 12, "min_patches": 1, "use_thumbnail": True}
ONE_TILE: dict[str, Any] = {"min_patches": 1, "max_patches": 1}


@dataclass
class Tiling:
    """How a checkpoint's images are tiled and normalised."""

    tile_size: int
    settings: ImageSettings = field(default_factory=ImageSettings)
    crop_to_patches: bool = True
    image_mean: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_MEAN))
    image_std: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_STD))
    # other saved settings of `InternVLXImageProcessor`
    others: dict = field(default_factory=dict)
    # settings of `InternVLXVideoProcessor` where they are not the image processor's
    video: dict = field(default_factory=dict)

    def __post_init__(self):
        self.change(**(NATIVE_TILING | self.settings.given))

    def change(self, **settings) -> None:
        """Change settings of images."""
        self.settings = replace(self.settings, **settings)

    @property
    def effective(self) -> ImageSettings:
        """The settings that an image is read with."""
        return self.settings if self.crop_to_patches else replace(self.settings, **ONE_TILE)


@dataclass
class Source:
    """A checkpoint that can be converted.

    Args:
        folder: the checkpoint's folder.
        layout: one of `LAYOUTS`.
        raw: its config.json.
        config: the same model as an `InternVLXConfig`; `image_token_id` is set later, from the tokenizer.
        tiling: how its images are tiled.
        architecture: class name of its language model.
        template: name of its conversation template; None if the checkpoint has a Jinja template.
        position_grid: side of its grid of position embeddings, which may differ from the tile's grid of patches.
        notes: what a user should know about how settings were read.
    """

    folder: Path
    layout: str
    raw: dict
    config: InternVLXConfig
    tiling: Tiling
    architecture: str
    template: str | None
    position_grid: int
    notes: list[str] = field(default_factory=list)


def read_source(folder: Path, tensors: dict[str, TensorInfo] | None = None) -> Source:
    """Recognise a checkpoint by its config.json.

    Args:
        folder: the checkpoint.
        tensors: its tensors, if already known.

    Raises:
        CheckpointError: if its layout, architecture or a setting is not supported; the message names it.
        LinkError: if a file that describes the checkpoint is a link out of the folder.
    """
    path = folder / "config.json"
    check_links(folder)
    raw = read_json(path)
    if not raw:
        raise CheckpointError(f"{folder} has no config.json, expected a checkpoint's folder.")
    readers = {"internvl_chat": _read_chat, "internvl": _read_native, "internvl_x": _read_ours, LLAVA: _read_llava}
    with blaming(path):
        check_values(raw, CONFIG_RULES)
        layout = raw.get("model_type")
        if layout not in readers:
            reason = f" is not supported: {UNSUPPORTED[layout]}" if layout in UNSUPPORTED else ""
            raise CheckpointError(
                f"model_type={layout!r}, architectures={raw.get('architectures')}{reason}. Supported are the model "
                f"types {', '.join(LAYOUTS)}."
            )
        if tensors is None:
            tensors = Weights(folder).tensors
        source = readers[layout](folder, raw, tensors)
        check_parts(source.config)
    return source


def check_parts(config: InternVLXConfig) -> None:
    """Check that the settings of the language model and of the vision tower are consistent.

    Raises:
        CheckpointError: if they are not; the message gives the settings and what would be right.
    """
    text, vision = config.text_config, config.vision_config
    heads, kv_heads, width = text.num_attention_heads, text.num_key_value_heads, text.hidden_size
    size = getattr(text, "head_dim", None) or width // heads
    _require(
        heads % kv_heads == 0, f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}."
    )
    _require(
        size > 0 and size % 2 == 0,
        f"num_attention_heads={heads} and hidden_size={width} make heads of size {size}, expected an even size.",
    )
    experts, per_token = getattr(text, "num_experts", 1), getattr(text, "num_experts_per_tok", 1)
    _require(per_token <= experts, f"num_experts_per_tok={per_token} is more than num_experts={experts}.")
    rope = text.rope_parameters or {}
    check_rope(rope, int(size * rope.get("partial_rotary_factor", 1)))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        check_token_ids({name: getattr(text, name, None)}, text.vocab_size, "of the language model, ")
    heads, width = getattr(vision, "num_attention_heads", 1), vision.hidden_size
    _require(
        width % heads == 0, f"num_attention_heads={heads} of the vision tower does not divide its hidden_size={width}."
    )


def check_rope(rope: dict, size: int) -> None:
    """Check that rotary embedding settings are complete and known, for `size` rotated dimensions per head.

    Raises:
        CheckpointError: if a setting is missing, unknown or of the wrong length; the message names it.
    """
    kind = rope.get("rope_type", "default")
    _require(kind in ROPE_NEEDS, f"rope_type={kind!r}, expected one of {', '.join(ROPE_NEEDS)}.")
    needed, known = ROPE_NEEDS[kind], {*ROPE_FIELDS, *ROPE_NEEDS[kind], *ROPE_OPTIONS.get(kind, ())}
    if missing := [name for name in needed if rope.get(name) is None]:
        raise CheckpointError(
            f"rope_scaling (rope_parameters) of the type {kind!r} lacks {', '.join(missing)}: {rope}."
        )
    if unknown := sorted(name for name in rope.keys() - known if rope[name] is not None):
        raise CheckpointError(
            f"rope_scaling (rope_parameters) of the type {kind!r} has unknown settings {', '.join(unknown)}: {rope}."
        )
    for name in ("short_factor", "long_factor"):
        found = rope.get(name)
        _require(
            found is None or len(found) == size // 2,
            f"{name} has {len(found or ())} values, expected {size // 2}, half the size of a head: {found}.",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(message)


def _read_chat(folder: Path, raw: dict, tensors: dict[str, TensorInfo]) -> Source:
    released = any(name.startswith("projector.") for name in tensors)
    if not released and raw.get("ps_version", "v1") != "v2":
        raise CheckpointError(
            f"ps_version={raw.get('ps_version', 'v1')!r} (InternVL 1.x): its pixel shuffle swaps the axes of the "
            "token grid. Only 'v2', InternVL2's and later, is supported."
        )
    for name in ("vision_config", "llm_config", "template"):
        _require(raw.get(name) is not None, f"lacks {name!r}, which the layout internvl_chat requires.")
    chat_template(raw["template"])
    vision = _chat_vision(raw["vision_config"])
    select, layers = raw.get("select_layer", -1), vision["num_hidden_layers"]
    _require(
        -layers - 1 <= select <= layers,
        f"select_layer={select} (vision_feature_layer), expected {-layers - 1}...{layers} for a tower of {layers} "
        "layers.",
    )
    tile_size = raw.get("force_image_size") or vision["image_size"]
    position_grid = _position_grid(vision, tensors)
    _require(
        tile_size <= MAX_GRID_GROWTH * position_grid * vision["patch_size"],
        f"force_image_size={tile_size}, expected at most {MAX_GRID_GROWTH} times vision_config.image_size="
        f"{vision['image_size']}, for which position embeddings are stored.",
    )
    config = InternVLXConfig(
        vision_config=chat_vision_config(vision, tile_size),
        text_config=chat_text_config(raw["llm_config"]),
        image_token_id=0,
        downsample_ratio=raw.get("downsample_ratio", 0.5),
        vision_feature_layer=select,
        projector_config=InternVLXProjectorConfig(projector_type="pvtc" if released else "pixel_shuffle"),
        dtype=raw.get("torch_dtype") or raw.get("dtype") or raw["llm_config"].get("torch_dtype"),
    )
    if raw.get("flash_mode"):
        for name in ("relative_threshold", "absolute_threshold"):
            _require(raw.get(f"flash_{name}") is not None, f"lacks 'flash_{name}', which flash_mode requires.")
            setattr(config, f"router_{name}", raw[f"flash_{name}"])
        config.check_geometry()
    source = Source(
        folder=folder,
        layout="internvl_chat",
        raw=raw,
        config=config,
        tiling=Tiling(
            tile_size=tile_size,
            settings=ImageSettings(
                slicing="edge" if released else "ratio",
                min_patches=raw.get("min_dynamic_patch", 1),
                max_patches=raw.get("max_dynamic_patch", 6),
                use_thumbnail=raw.get("use_thumbnail", False),
            ),
            crop_to_patches=raw.get("dynamic_image_size", False),
        ),
        architecture=text_architecture(raw["llm_config"]),
        template=raw.get("template"),
        position_grid=position_grid,
    )
    if raw.get("pad2square"):
        source.notes.append("pad2square is set; the image processor stretches images to the tile grid instead.")
    if vision.get("drop_path_rate"):
        source.notes.append(
            f"The vision tower's drop_path_rate={vision['drop_path_rate']} (training only) is not carried over: "
            "transformers' tower has no stochastic depth."
        )
    return source


def _chat_vision(raw: dict) -> dict:
    """The `vision_config`, checked for required settings and with sizes as one number."""
    names = raw.get("architectures") or []
    if not set(names) & set(VISION_ARCHITECTURES):
        raise CheckpointError(
            f"The vision tower {names[0] if names else raw.get('model_type')!r} (vision_config.architectures) is not "
            f"supported, expected {', '.join(VISION_ARCHITECTURES)}."
        )
    if missing := [theirs for theirs in (*VISION_FIELDS.values(), "image_size") if theirs not in raw]:
        raise CheckpointError(f"vision_config of {names[0]} lacks {', '.join(missing)}.")
    sizes = {name: raw[name] for name in ("image_size", "patch_size")}
    return raw | {name: size[0] if isinstance(size, list) else size for name, size in sizes.items()}


def _position_grid(vision: dict, tensors: dict[str, TensorInfo]) -> int:
    """Side of the grid of position embeddings, checked against the stored ones if they are known."""
    grid = vision["image_size"] // vision["patch_size"]
    stored = tensors.get("vision_model.embeddings.position_embedding")
    if stored is not None and len(stored.shape) == 3 and stored.shape[1] != 1 + grid**2:
        raise CheckpointError(
            f"vision_config.image_size={vision['image_size']} and patch_size={vision['patch_size']} make "
            f"{grid}x{grid} patches, but vision_model.embeddings.position_embedding is {stored.shape}, expected (1, "
            f"{1 + grid**2}, C)."
        )
    return grid


def text_architecture(raw: dict) -> str:
    """Class name of a language model from its config."""
    names = raw.get("architectures") or [""]
    name = names[0]
    if name not in TEXT_ARCHITECTURES:
        raise CheckpointError(
            f"The language model {name or raw.get('model_type')!r} is not supported, expected "
            f"llm_config.architectures one of {', '.join(TEXT_ARCHITECTURES)}. "
            f"{UNSUPPORTED_TEXT.get(name, '')}".rstrip()
        )
    return name


def chat_text_config(raw: dict) -> PretrainedConfig:
    """Native configuration of the language model in an `internvl_chat` checkpoint (its `llm_config`)."""
    architecture = text_architecture(raw)
    required = REQUIRED_TEXT_FIELDS + (REQUIRED_EXPERT_FIELDS if architecture == "Qwen3MoeForCausalLM" else ())
    if missing := [name for name in required if raw.get(name) is None]:
        raise CheckpointError(f"llm_config of {architecture} lacks {', '.join(missing)}.")
    config_class = CONFIG_MAPPING[TEXT_ARCHITECTURES[architecture]]
    known = set(config_class.__annotations__) - {"model_type", "rope_parameters"}
    kwargs = {name: raw[name] for name in known if name in raw}
    if raw.get("head_dim") is not None:  # Qwen3-MoE's class does not declare it, but its layers read it
        kwargs["head_dim"] = raw["head_dim"]
    if architecture == "InternLM2ForCausalLM":
        kwargs["attention_bias"] = raw.get("bias", True)
    return AutoConfig.for_model(config_class.model_type, rope_parameters=rope_parameters(raw), **kwargs)


def rope_parameters(raw: dict) -> dict:
    """Rotary embedding settings with the names of transformers 5.

    In an old config, `rope_scaling` may be {"type": "dynamic", "factor": 2.0} (NTK), "linear", "su" (longrope's first
    name), or already have the new form.
    """
    scaling = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    rope_type = scaling.pop("type", None)
    rope_type = scaling.pop("rope_type", rope_type) or "default"
    rope_type = "longrope" if rope_type == "su" else rope_type
    original = raw.get("original_max_position_embeddings")
    if rope_type == "longrope" and original:
        scaling.setdefault("factor", raw["max_position_embeddings"] / original)
    return {"rope_theta": raw.get("rope_theta", 10000.0), **scaling, "rope_type": rope_type}


def chat_vision_config(raw: dict, tile_size: int) -> PretrainedConfig:
    """Native configuration of InternViT (`vision_config`) for tiles of `tile_size` pixels per side."""
    raw = _chat_vision(raw)
    kwargs = {ours: raw[theirs] for ours, theirs in VISION_FIELDS.items()}
    kwargs |= {ours: raw[theirs] for ours, theirs in OPTIONAL_VISION_FIELDS.items() if theirs in raw}
    return AutoConfig.for_model("internvl_vision", image_size=tile_size, **kwargs)


def _require_sizes(raw: dict) -> None:
    """Check that a native configuration states its sizes: a default would describe another model."""
    for section, names in (("text_config", REQUIRED_TEXT_FIELDS), ("vision_config", REQUIRED_VISION_FIELDS)):
        if missing := [name for name in names if (raw.get(section) or {}).get(name) is None]:
            raise CheckpointError(f"{section} lacks {', '.join(missing)}.")


def _read_native(folder: Path, raw: dict, tensors: dict[str, TensorInfo]) -> Source:
    _require_sizes(raw)
    native = InternVLConfig.from_dict(raw)
    if native.vision_feature_select_strategy != "default" or not isinstance(native.vision_feature_layer, int):
        raise CheckpointError(
            f"vision_feature_select_strategy={native.vision_feature_select_strategy!r} and "
            f"vision_feature_layer={native.vision_feature_layer} are not supported, expected 'default' and one layer."
        )
    config = InternVLXConfig(
        vision_config=native.vision_config,
        text_config=native.text_config,
        image_token_id=native.image_token_id,
        downsample_ratio=native.downsample_ratio,
        vision_feature_layer=native.vision_feature_layer,
        projector_config=InternVLXProjectorConfig(
            projector_type="pixel_shuffle", hidden_act=native.projector_hidden_act
        ),
        tie_word_embeddings=native.tie_word_embeddings,
        dtype=native.dtype,
    )
    return _native_source(folder, "internvl", raw, config, tensors)


def _read_ours(folder: Path, raw: dict, tensors: dict[str, TensorInfo]) -> Source:
    _require_sizes(raw)
    return _native_source(folder, "internvl_x", raw, InternVLXConfig.from_dict(raw), tensors)


def _read_llava(folder: Path, raw: dict, tensors: dict[str, TensorInfo]) -> Source:
    config = llava_config(raw)
    pixels, notes = llava_pixels(folder, config)
    return Source(
        folder=folder,
        layout=LLAVA,
        raw=raw,
        config=config,
        tiling=Tiling(
            tile_size=config.tile_size,
            settings=ImageSettings(slicing="edge", **ONE_TILE),
            image_mean=pixels.pop("image_mean"),
            image_std=pixels.pop("image_std"),
            others=pixels,
        ),
        architecture=f"{config.text_config.model_type} of transformers",
        template=None,
        position_grid=config.patch_grid,
        notes=notes,
    )


def _native_source(folder: Path, layout: str, raw: dict, config: InternVLXConfig, tensors) -> Source:
    return Source(
        folder=folder,
        layout=layout,
        raw=raw,
        config=config,
        tiling=_saved_tiling(folder, layout, config.tile_size),
        architecture=f"{config.text_config.model_type} of transformers",
        template=None,
        position_grid=config.patch_grid,
    )


def _saved_tiling(folder: Path, layout: str, tile_size: int) -> Tiling:
    saved: dict = {}
    file, tile = folder / "config.json", {"height": tile_size, "width": tile_size}
    for name in reversed(PROCESSOR_FILES):
        if not (found := read_json(folder / name)):
            continue
        file = folder / name
        with blaming(file):
            settings = found.get("image_processor", found)
            _require(isinstance(settings, dict), f"image_processor={settings!r:.200}, expected an object.")
            check_values(settings, PROCESSOR_RULES)
            size = settings.get("size", tile)
            _require(
                size == tile, f"size={size}, but vision_config.image_size makes tiles of {tile_size}x{tile_size}."
            )
        saved |= settings
    names = ["image_mean", "image_std"]
    settings = {name: saved.get(name) for name in ImageSettings.names(IMAGE_PROCESSOR)}
    if layout == "internvl_x":  # in the native layout, InternVLProcessor sets it
        names.append("crop_to_patches")
        defaults = ImageSettings.own()
        settings = {name: defaults[name] if value is None else value for name, value in settings.items()}
    known = {name: saved[name] for name in names if saved.get(name) is not None}
    others = {name: saved[name] for name in OTHER_SETTINGS if saved.get(name) is not None}
    with blaming(file):
        InternVLXImageProcessor(size=tile, **others)
    file = folder / PROCESSOR_NAME
    own = read_json(file) if layout == "internvl_x" else {}
    with blaming(file):
        read = ImageSettings(**settings, **{name: own.get(name) for name in ImageSettings.names(PROCESSOR)})
    return Tiling(
        tile_size=tile_size,
        settings=read,
        **known,
        others=others,
        video=_saved_video(folder, layout, tile),
    )


def _saved_video(folder: Path, layout: str, tile: dict) -> dict:
    """What a checkpoint says about videos."""
    file = folder / PROCESSOR_FILES[0]
    saved = (read_json(file) or {}).get("video_processor")
    if saved is None:
        file = folder / VIDEO_PROCESSOR_NAME
        saved = read_json(file)
    if not saved:
        return {}
    with blaming(file):
        _require(isinstance(saved, dict), f"video_processor={saved!r:.200}, expected an object.")
        check_values(saved, VIDEO_RULES)
        size = saved.get("size", tile)
        _require(size == tile, f"size={size} of frames, but vision_config.image_size makes tiles of {tile}.")
        names = InternVLXVideoProcessor.valid_kwargs.__annotations__
        settings = {name: saved[name] for name in names if saved.get(name) is not None and name != "size"}
        if layout == "internvl":
            # what InternVLVideoProcessor has where the file says nothing
            settings = {"image_mean": list(OPENAI_CLIP_MEAN), "image_std": list(OPENAI_CLIP_STD)} | settings
            if not settings.get("do_sample_frames"):  # there it is the default, by which a file gives all its frames
                settings.pop("do_sample_frames", None)
            if "num_frames" in settings:  # it wins there, fps here
                settings.pop("fps", None)
        InternVLXVideoProcessor(size=tile, **settings)
    return settings
