"""Tiny vision towers and language models as others publish them, to make a model of."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.internvl import InternVLVisionConfig

from conversion_helpers import GOLDEN, load_all
from json_files import json_of, write_json
from tiny import TEXT_SIZES, TINY_TEXT, byte_level_bpe

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
}
TOWERS = ("internvit", "internvit_native", "internvl2", "clip", "clip_vision", "dinov2", "siglip", "registers")
LANGUAGES = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mistral", "internlm2", "internvl2")
# of the language models; the tokenizer has 300 tokens
VOCABULARY = 300


def save_tower(kind: str, folder: Path) -> Path:
    """A tower, or a model that holds one."""
    torch.manual_seed(1)
    if kind == "internvl2":
        shutil.copytree(GOLDEN / "internvl2_qwen2", folder)
    elif kind == "internvit":
        _save_internvit(folder)
    else:
        _native_tower(kind).save_pretrained(folder)
    if kind == "clip":
        processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3, "size": 32}
        write_json(folder / "preprocessor_config.json", processor)
        (folder / "LICENSE").write_text("of the tower")
    return folder


def _native_tower(kind: str):
    if kind == "clip":
        text = {**SIZES, "vocab_size": 40}
        return CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=16))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(vision_config=SIZES, text_config={**SIZES, "vocab_size": 40}))
    configs = {
        "clip_vision": CLIPVisionConfig,
        "dinov2": Dinov2Config,
        "registers": Dinov2WithRegistersConfig,
        "internvit_native": InternVLVisionConfig,
    }
    sizes = {name: size for name, size in SIZES.items() if kind not in ("dinov2", "registers") or "inter" not in name}
    return AutoModel.from_config(configs[kind](**sizes))


def _save_internvit(folder: Path) -> None:
    """The tower of an InternVL2 in its own folder, as OpenGVLab publishes InternViT."""
    source = GOLDEN / "internvl2_qwen2"
    folder.mkdir()
    raw = json_of(source / "config.json")["vision_config"]
    write_json(folder / "config.json", raw | {"model_type": "intern_vit_6b"})
    tensors = load_all(source)
    prefix = "vision_model."
    save_file(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)},
        folder / "model.safetensors",
    )


def save_language(kind: str, folder: Path, template: str | None = CHATML, **settings) -> Path:
    """A language model with its tokenizer."""
    torch.manual_seed(2)
    if kind == "internvl2":
        shutil.copytree(GOLDEN / "internvl2_llama3", folder)
        return folder
    if kind == "internlm2":
        _save_internlm2(folder)
        return folder
    config = AutoModelForCausalLM.from_config(_text_config(kind, **settings))
    config.save_pretrained(folder)
    text_tokenizer(template).save_pretrained(folder)
    (folder / "LICENSE").write_text("of the language model")
    return folder


def _text_config(kind: str, **settings):
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "max_position_embeddings": 512, "bos_token_id": 0}
    return AutoConfig.for_model(kind, **TEXT_SIZES | sizes | TINY_TEXT.get(kind, {}) | settings)


def _save_internlm2(folder: Path) -> None:
    """The language model of an InternVL2 in its own folder, without what InternVL added."""
    source = GOLDEN / "internvl2_internlm2"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    raw = json_of(source / "config.json")["llm_config"]
    write_json(folder / "config.json", {"model_type": "internlm2", **raw})
    prefix = "language_model."
    tensors = {name: tensor for name, tensor in load_all(source).items() if name.startswith(prefix)}
    save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = json_of(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": CHATML})


def text_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's tokens, and none for images."""
    specials, texts = (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["What is on the image? Read the digits and say so."],
    )
    core, names = (
        byte_level_bpe(VOCABULARY, specials, texts),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **names)
