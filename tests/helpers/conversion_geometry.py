"""Published geometries of InternVL2 and of a mixture of experts, and checkpoints of any geometry: config.json, tensor names and shapes."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from conversion_helpers import GOLDEN
from internvlx_hf.checkpoints.weights import TensorInfo

# width, layers, heads, MLP width, RMS norm and norms of query and key in the place of LayerNorm and biases
VISION = {
    "300m": (1024, 24, 16, 4096, False),
    "6b": (3200, 45, 25, 12800, True),
}
# language model class, width, layers, heads, key/value heads, MLP width, vocabulary
PUBLISHED = {
    "InternVL2-1B": ("300m", "Qwen2ForCausalLM", 896, 24, 14, 2, 4864, 151655),
    "InternVL2-2B": ("300m", "InternLM2ForCausalLM", 2048, 24, 16, 8, 8192, 92553),
    "InternVL2-4B": ("300m", "Phi3ForCausalLM", 3072, 32, 32, 32, 8192, 32020),
    "InternVL2-8B": ("300m", "InternLM2ForCausalLM", 4096, 32, 32, 8, 14336, 92553),
    "InternVL2-26B": ("6b", "InternLM2ForCausalLM", 6144, 48, 48, 8, 16384, 92553),
    "InternVL2-40B": ("6b", "LlamaForCausalLM", 7168, 60, 56, 8, 20480, 64007),
    "InternVL2-76B": ("6b", "LlamaForCausalLM", 8192, 80, 64, 8, 28672, 128265),
    "InternVL3_5-30B-A3B": ("300m", "Qwen3MoeForCausalLM", 2048, 48, 32, 4, 6144, 151936),
}
EXPERTS = {
    "InternVL3_5-30B-A3B": {
        **{"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **{"norm_topk_prob": True, "mlp_only_layers": []},
    }
}
# the tokenizer and the template that go with a language model
TOKENIZERS = {
    "InternLM2ForCausalLM": "internvl2_internlm2",
    "LlamaForCausalLM": "internvl2_llama3",
    "MistralForCausalLM": "internvl2_llama3",
    "Phi3ForCausalLM": "internvl2_phi3",
    "Qwen2ForCausalLM": "internvl2_qwen2",
    "Qwen3ForCausalLM": "internvl2_qwen2",
    "Qwen3MoeForCausalLM": "internvl2_qwen2",
}
MODEL_TYPES = {"InternLM2ForCausalLM": "internlm2", "Qwen3MoeForCausalLM": "qwen3_moe"}


def raw_config(
    vision: tuple, architecture: str, width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int,
    tile: int = 448, dtype: str = "bfloat16", **text,
) -> dict:  # fmt: skip
    """The config.json of such a checkpoint in the published layout."""
    vision_width, vision_layers, vision_heads, vision_inner, is_6b = vision
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "llm_config": {
            "architectures": [architecture],
            "model_type": MODEL_TYPES.get(architecture, architecture.removesuffix("ForCausalLM").lower()),
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": inner,
            "vocab_size": vocabulary,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "pad_token_id": None,
            **({"bias": False} if architecture == "InternLM2ForCausalLM" else {}),
            **text,
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_size": vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "intermediate_size": vision_inner,
            "image_size": tile,
            "patch_size": 14,
            "qkv_bias": not is_6b,
            "qk_normalization": is_6b,
            "norm_type": "rms_norm" if is_6b else "layer_norm",
            "layer_norm_eps": 1e-6,
        },
        "force_image_size": tile,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "template": "internlm2-chat",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "torch_dtype": dtype,
    }


def published_config(name: str) -> dict:
    """The config.json of a published geometry."""
    vision, *text = PUBLISHED[name]
    return raw_config(VISION[vision], *text, **EXPERTS.get(name, {}))


def shapes(raw: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint in the published layout."""
    flash = _flash_shapes(raw) if "flash_mode" in raw else {}
    return {**_vision_shapes(raw), **flash, **_text_shapes(raw["llm_config"])}


def _flash_shapes(raw: dict) -> dict:
    """The router of InternVL3.5-Flash."""
    width, text = raw["vision_config"]["hidden_size"], raw["llm_config"]["hidden_size"]
    window = width * round(1 / raw["downsample_ratio"]) ** 4
    linears = {"mlp2.1": (2 * text, window), "mlp2.4": (2 * text, 2 * text), "mlp2.7": (text, 2 * text)}
    norms, found = {"mlp2.0": window, "gating.gate.0": width}, {"pooling_before_gating.query_token": (1, width)}
    for i in range(1, 5):
        linears |= {f"gating.block{i}.0": (4 * width, width), f"gating.block{i}.3": (width, 4 * width)}
        norms |= {f"gating.block{i}.5": width, f"pooling_before_gating.norm{i}": width}
        attention = f"pooling_before_gating.attn{i}"
        linears |= {f"{attention}.out_proj": (width, width)}
        found |= {f"{attention}.in_proj_weight": (3 * width, width), f"{attention}.in_proj_bias": (3 * width,)}
    linears["gating.gate.1"] = (2, width)
    for name, (rows, columns) in linears.items():
        found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return found | {f"{name}.{kind}": (size,) for name, size in norms.items() for kind in ("weight", "bias")}


def _vision_shapes(raw: dict) -> dict:
    vision, width = raw["vision_config"], raw["vision_config"]["hidden_size"]
    patches, inner = (vision["image_size"] // vision["patch_size"]) ** 2, vision["intermediate_size"]
    window, text = 4 * width, raw["llm_config"]["hidden_size"]
    found = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, 1 + patches, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (window,),
        "mlp1.0.bias": (window,),
        "mlp1.1.weight": (text, window),
        "mlp1.1.bias": (text,),
        "mlp1.3.weight": (text, text),
        "mlp1.3.bias": (text,),
    }
    layer = {
        **dict.fromkeys(("ls1", "ls2", "norm1.weight", "norm2.weight", "attn.proj.bias", "mlp.fc2.bias"), (width,)),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
    }
    if vision["qk_normalization"]:
        layer |= {"attn.q_norm.weight": (width,), "attn.k_norm.weight": (width,)}
    else:
        layer |= {"attn.qkv.bias": (3 * width,), "norm1.bias": (width,), "norm2.bias": (width,)}
    for i in range(vision["num_hidden_layers"]):
        found |= {f"vision_model.encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def _text_shapes(text: dict) -> dict:
    kind, width, inner = text["architectures"][0], text["hidden_size"], text["intermediate_size"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    size = text.get("head_dim", width // heads)
    query, key = heads * size, kv_heads * size
    if kind == "InternLM2ForCausalLM":
        outer = {
            "model.tok_embeddings.weight": (text["vocab_size"], width),
            "output.weight": (text["vocab_size"], width),
        }
        layer = {
            "attention.wqkv.weight": (query + 2 * key, width),
            "attention.wo.weight": (width, query),
            "feed_forward.w1.weight": (inner, width),
            "feed_forward.w3.weight": (inner, width),
            "feed_forward.w2.weight": (width, inner),
            "attention_norm.weight": (width,),
            "ffn_norm.weight": (width,),
        }
    else:
        outer = {
            "model.embed_tokens.weight": (text["vocab_size"], width),
            "lm_head.weight": (text["vocab_size"], width),
        }
        layer = {
            "self_attn.o_proj.weight": (width, query),
            "mlp.down_proj.weight": (width, inner),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        if kind == "Phi3ForCausalLM":
            layer |= {"self_attn.qkv_proj.weight": (query + 2 * key, width)}
            layer |= {"mlp.gate_up_proj.weight": (2 * inner, width)}
        else:
            layer |= {f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
            rows = {"q": query, "k": key, "v": key}
            layer |= {f"self_attn.{name}_proj.weight": (count, width) for name, count in rows.items()}
            if kind == "Qwen2ForCausalLM":
                layer |= {f"self_attn.{name}_proj.bias": (count,) for name, count in rows.items()}
            if kind in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"):
                layer |= {f"self_attn.{name}_norm.weight": (size,) for name in "qk"}
    if text.get("tie_word_embeddings"):
        outer = {name: shape for name, shape in outer.items() if name not in ("lm_head.weight", "output.weight")}
    found = {**outer, "model.norm.weight": (width,)}
    for i in range(text["num_hidden_layers"]):
        of_layer = layer
        if kind == "Qwen3MoeForCausalLM" and i not in text["mlp_only_layers"]:
            of_layer = {name: shape for name, shape in layer.items() if not name.startswith("mlp.")}
            of_layer |= _expert_shapes(text)
        found |= {f"model.layers.{i}.{name}": shape for name, shape in of_layer.items()}
    return {f"language_model.{name}": shape for name, shape in found.items()}


def _expert_shapes(text: dict) -> dict:
    width, inner, count = text["hidden_size"], text["moe_intermediate_size"], text["num_experts"]
    shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    experts = {f"mlp.experts.{i}.{name}.weight": shape for i in range(count) for name, shape in shapes.items()}
    return {"mlp.gate.weight": (count, width), **experts}


def tensors_of(raw: dict) -> dict[str, TensorInfo]:
    return {name: TensorInfo(shape, torch.bfloat16) for name, shape in shapes(raw).items()}


def write_checkpoint(folder: Path, raw: dict, shards: int = 1, seed: int = 0, value: float | None = None) -> Path:
    """A checkpoint of random weights, or of one `value` everywhere, with the tokenizer of a golden one."""
    tokenizer = GOLDEN / TOKENIZERS[raw["llm_config"]["architectures"][0]]
    skip = shutil.ignore_patterns("*.safetensors*", "config.json", "generation_config.json")
    shutil.copytree(tokenizer, folder, ignore=skip)
    (folder / "config.json").write_text(json.dumps(raw))
    dtype, generator = getattr(torch, raw["torch_dtype"]), torch.Generator().manual_seed(seed)
    names, weight_map = list(shapes(raw).items()), {}
    for shard in range(shards):
        part = dict(names[len(names) * shard // shards : len(names) * (shard + 1) // shards])
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(
            {name: _weights(name, shape, dtype, generator, value) for name, shape in part.items()}, folder / file
        )
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _weights(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, value: float | None):
    if value is not None:
        return torch.full(shape, value, dtype=dtype)
    mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    scale = 0.2 if len(shape) < 2 else 1.5 / shape[-1] ** 0.5
    return torch.empty(shape, dtype=dtype).normal_(mean, scale, generator=generator)
