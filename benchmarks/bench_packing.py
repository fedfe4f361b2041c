"""A training step on a packed row: "varlen_sdpa", which needs no mask, against the dense masks of "sdpa".

Forward and backward of a model with LVTC, in turn, on the same row of samples with one tile and text. Losses are compared
first.
"""

import argparse

import torch
from rows import AT_LEAST, Row, run_script
from timing import print_table, time_alternately, use_one_thread

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.training.attention import dense_mask_bytes

TEXT = 64  # text tokens per sample
WAYS = ("sdpa", "varlen_sdpa")


def build(device: str, dtype: torch.dtype) -> InternVLXForConditionalGeneration:
    """Tiles of 64 tokens that LVTC expands to 256 in the last quarter of eight layers; 6 query heads, 2 of keys."""
    config = InternVLXConfig(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "image_size": 224,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 1024,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        image_token_id=5,
        projector_config={"num_heads": 6, "drop_path_rate": 0.0},
        lvtc_config={"expand_layer": 6},
    )
    torch.manual_seed(0)
    return InternVLXForConditionalGeneration(config).to(device, dtype).train()


def packed_row(config: InternVLXConfig, samples: int) -> dict[str, torch.Tensor]:
    """Samples of one tile and text, one after another, as the collator packs them."""
    text = torch.randint(10, config.text_config.vocab_size, (samples, TEXT))
    image = torch.full((samples, config.image_seq_length), config.image_token_id)
    length = config.image_seq_length + TEXT
    bounds = torch.arange(0, samples * length + 1, length, dtype=torch.int32)
    return {
        "input_ids": torch.cat([image, text], 1).view(1, -1),
        "labels": torch.cat([torch.full_like(image, -100), text], 1).view(1, -1),
        "position_ids": torch.arange(length).repeat(samples)[None],
        "pixel_values": torch.randn(samples, 3, config.tile_size, config.tile_size),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8], help="samples per row (default: 2 4 8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    dtype = getattr(torch, args.dtype)
    model = build(args.device, dtype)
    config, length = model.config, model.config.image_seq_length + TEXT

    def step(way: str, row: dict[str, torch.Tensor]) -> float:
        model.set_attn_implementation({"text_config": way})
        model.zero_grad()
        loss = model(**row, max_length_q=length, max_length_k=length, use_cache=False).loss
        loss.backward()
        return loss.detach()

    table, rows = [], []
    for samples in args.samples:
        row = {name: tensor.to(args.device) for name, tensor in packed_row(config, samples).items()}
        row["pixel_values"] = row["pixel_values"].to(dtype)
        torch.testing.assert_close(step("varlen_sdpa", row), step("sdpa", row), rtol=1e-2, atol=1e-2)
        seconds = time_alternately({way: lambda way=way, row=row: step(way, row) for way in WAYS}, args.repeats)
        lengths = samples * length, samples * (length + config.expanded_image_seq_length - config.image_seq_length)
        ratio = seconds["sdpa"] / seconds["varlen_sdpa"]
        mebibytes = dense_mask_bytes(config, *lengths) / 2**20
        table.append([samples, *lengths, mebibytes, *(seconds[way] for way in WAYS), ratio])
        rows.append(Row(f"packed step of {samples} samples, sdpa / varlen_sdpa", ratio, "", 1.0, AT_LEAST))
    print_table(["samples", "L", "L₂", "masks, MiB", *(f"{way}, s" for way in WAYS), "ratio"], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
