"""Tiny models, processors and batches that the tests share: 32-pixel tiles, patches of 4, so S = 8 patches a side."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXProcessor,
)

TILE = 32
VOCABULARY = 320
PAD, IMAGE_TOKEN = 0, 5
TEXT_MODELS = ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mistral")
TEXT_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
    # large enough weights that the model's answers differ visibly from one input to the next
    "initializer_range": 0.2,
}
# settings without which a type's default sizes would not be tiny
TINY_TEXT: dict[str, dict] = {
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {
        **{"head_dim": 16, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
        **{"norm_topk_prob": True, "mlp_only_layers": [3]},
    },
}

# 2x2 tokens a tile in layers 0 and 1, 4x4 in layers 2 and 3, one LR insertion before layer 1
LVTC = {
    "downsample_ratio": 0.25,
    "lvtc_config": {
        "expand_layer": 2,
        "downsample_ratio": 0.5,
        "num_lr_projectors": 2,
        "insert_start": 1,
        "insert_interval": 1,
    },
}


def tiny_config(text: str = "qwen2", *, text_config=(), vision_config=(), projector_config=(), **kwargs):
    """N₁ = 4 tokens a side without further arguments; `**LVTC` makes it 2 and then 4."""
    return InternVLXConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": TILE,
            "patch_size": 4,
            **dict(vision_config),
        },
        text_config={
            **TEXT_SIZES,
            "model_type": text,
            "tie_word_embeddings": False,
            **TINY_TEXT.get(text, {}),
            **dict(text_config),
        },
        projector_config={"projector_type": "pvtc", "num_heads": 4, **dict(projector_config)},
        image_token_id=IMAGE_TOKEN,
        **kwargs,
    )


def tiny_model(text: str = "qwen2", *, seed: int = 0, **kwargs) -> InternVLXForConditionalGeneration:
    torch.manual_seed(seed)
    return InternVLXForConditionalGeneration(tiny_config(text, **kwargs)).eval()


def tiny_batch(config, layouts, *, padding_side: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    """A padded batch. A layout is a list of text lengths (int) and tiles ("tile"), a sample each.

    Returns:
        `input_ids`, `attention_mask` (B, L), and `pixel_values` (tiles, 3, H, W) if there are tiles.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for layout in layouts:
        row = []
        for part in layout:
            if part == "tile":
                row += [config.image_token_id] * config.image_seq_length
            else:
                row += torch.randint(10, config.text_config.vocab_size, (part,), generator=generator).tolist()
        rows.append(row)
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), PAD)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if padding_side == "left" else slice(0, len(row))
        input_ids[i, place] = torch.tensor(row)
        attention_mask[i, place] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    tiles = sum(layout.count("tile") for layout in layouts)
    if tiles:
        size = config.tile_size
        batch["pixel_values"] = torch.randn(tiles, 3, size, size, generator=generator)
    return batch


def split_batch(batch: dict[str, torch.Tensor], config) -> list[dict[str, torch.Tensor]]:
    """The samples of a padded batch one by one, without their padding."""
    samples, used = [], 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        sample = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        tiles = int((ids == config.image_token_id).sum()) // config.image_seq_length
        if tiles:
            sample["pixel_values"] = batch["pixel_values"][used : used + tiles]
            used += tiles
        samples.append(sample)
    return samples


def byte_level_bpe(size: int, specials: list[str], texts: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
    core.train_from_iterator(texts * 4, trainers.BpeTrainer(vocab_size=size, **settings))
    return core


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's and InternVL's special tokens; `<IMG_CONTEXT>` has id `IMAGE_TOKEN`."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    texts = ["system user assistant", "What is on the picture? Read the digits."]
    images = {
        f"{name}_image_token": token for name, token in zip(("start", "end", "context"), specials[3:], strict=True)
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(VOCABULARY, specials, texts),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens=images,
    )


def tiny_processor(config, **image_processor_kwargs) -> InternVLXProcessor:
    """A processor that fits a tiny model."""
    kwargs = {"size": {"height": config.tile_size, "width": config.tile_size}, "crop_to_patches": True}
    kwargs |= image_processor_kwargs
    return InternVLXProcessor(
        image_processor=InternVLXImageProcessor(**kwargs),
        tokenizer=tiny_tokenizer(),
        image_seq_length=config.image_seq_length,
        offered_sizes=config.tokens_per_tile,
    )


def save_tiny(folder, text: str = "qwen2", *, image_settings=(), max_shard_size="50GB", **kwargs):
    """A checkpoint of a tiny model with its processor, in `folder`, which is returned."""
    model = tiny_model(text, **kwargs)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_processor(model.config, **dict(image_settings)).save_pretrained(folder)
    return folder
