"""Tiny random LLaVAs, saved by transformers' own classes."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import processors
from transformers import (
    AddedToken,
    AutoConfig,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    SiglipImageProcessorPil,
)

from part_sources import text_tokenizer
from tiny import TEXT_SIZES

TILE, PATCH, VOCABULARY = 32, 4, 320
# images first, then texts, as llava-hf's templates do; a content that is a string is not written
TEMPLATE = (
    "{%- for message in messages -%}{{- message['role'].upper() + ': ' -}}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{- '<image>\\n' -}}{%- endfor -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{- part['text'] + ' ' -}}{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
# every language model with every tower, layers counted from both ends, and both activations
CASES = {
    "llama_clip": {"text": "llama", "tower": "clip", "vision_feature_layer": -2},
    "mistral_clip": {"text": "mistral", "tower": "clip", "vision_feature_layer": -1, "projector_hidden_act": "relu"},
    "qwen2_clip": {"text": "qwen2", "tower": "clip", "vision_feature_layer": [-2]},
    "llama_siglip": {"text": "llama", "tower": "siglip", "vision_feature_layer": -1},
    "mistral_siglip": {"text": "mistral", "tower": "siglip", "vision_feature_layer": 1},
    "qwen2_siglip": {
        "text": "qwen2",
        "tower": "siglip",
        "vision_feature_layer": -2,
        "projector_hidden_act": "gelu_pytorch_tanh",
        "vision_config": {"vision_use_head": False},
        "text_config": {"tie_word_embeddings": True},
    },
}
IMAGE = Image.effect_mandelbrot((TILE, TILE), (-2, -1.5, 1, 1.5), 40).convert("RGB")
QUESTION = [{"type": "image"}, {"type": "text", "text": "What is on the image?"}]
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
STRATEGIES = {"clip": "default", "siglip": "full"}


def llava_config(text: str = "llama", tower: str = "clip", *, text_config=(), vision_config=(), **settings):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
        # large enough weights that answers differ visibly from one input to the next
        **({"initializer_factor": 5.0} if tower == "clip" else {}),
    }
    language = TEXT_SIZES | {"bos_token_id": 0}
    token = llava_tokenizer().convert_tokens_to_ids("<image>")
    settings = {"vision_feature_select_strategy": STRATEGIES[tower]} | settings
    return LlavaConfig(
        vision_config=AutoConfig.for_model(TOWERS[tower], **vision | dict(vision_config)),
        text_config=AutoConfig.for_model(text, **language | dict(text_config)),
        image_token_index=token,
        **settings,
    )


def llava_tokenizer():
    """Byte-level BPE with BOS in front, and `<image>` after the vocabulary."""
    tokenizer = text_tokenizer(None)
    bos = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, 0)]
    )
    tokenizer.bos_token = bos
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


def llava_processor(tower: str = "clip", template: str | None = TEMPLATE, **image_settings) -> LlavaProcessor:
    crop = {"height": TILE, "width": TILE}
    image_processor = (
        CLIPImageProcessorPil(**{"size": {"shortest_edge": TILE}, "crop_size": crop} | image_settings)
        if tower == "clip"
        else SiglipImageProcessorPil(**{"size": crop} | image_settings)
    )
    return LlavaProcessor(
        image_processor,
        llava_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy=STRATEGIES[tower],
        chat_template=template,
        num_additional_image_tokens=int(tower == "clip"),
    )


def save_llava(
    folder: Path, text: str = "llama", tower: str = "clip", *, image_settings=(), template=TEMPLATE, **settings
) -> LlavaForConditionalGeneration:
    """Save a LLaVA and its processor, and return the model."""
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(llava_config(text, tower, **settings)).eval()
    model.generation_config.update(eos_token_id=2, pad_token_id=0, bos_token_id=0)
    model.save_pretrained(folder)
    llava_processor(tower, template, **dict(image_settings)).save_pretrained(folder)
    return model


def conversation(image=IMAGE, question=QUESTION) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, *question[1:]]}]


def prompt(processor, messages, **kwargs) -> dict[str, torch.Tensor]:
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **kwargs
    )
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}


@torch.no_grad()
def answers(model: PreTrainedModel, processor: LlavaProcessor) -> dict[str, torch.Tensor]:
    """What a model answers to a LLaVA's prompts, under the names of the golden files."""
    inputs = prompt(processor, conversation())
    text = {name: torch.full((1, 9), 7 if name == "input_ids" else 1) for name in ("input_ids", "attention_mask")}

    def generated(inputs):
        return model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]

    return {
        **inputs,
        "vision_features": torch.stack(list(model.get_image_features(inputs["pixel_values"]).pooler_output)),
        "logits_positions": torch.arange(inputs["input_ids"].shape[1]),
        "logits": model(**inputs).logits,
        "generated_ids": generated(inputs),
        **{f"text.{name}": value for name, value in text.items()},
        "text.logits_last2": model(**text).logits[:, -2:],
        "text.generated_ids": generated(text),
    }
