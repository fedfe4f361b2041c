"""What only a GPU can show, at InternVL2-2B's geometry in bfloat16: the full model's training step, compiled decoding.

Training: InternVL2-HD (pixel shuffle, ratio slicing: 5 tiles a sample, the paper's Table 5 says 5.0 on average) against
PVTC + LVTC + RVTC-edge (2 tiles a sample, 2.0 on average). Decoding: milliseconds a token, eager on a dynamic cache and
compiled on a static one. Every attention implementation that can be imported is run, and named.

    python benchmarks/bench_gpu.py [--samples 4] [--new-tokens 64]
    python benchmarks/bench_gpu.py --smoke    # a tiny geometry on a CPU, to see that the script runs
"""

import argparse
import time

import torch
from timing import print_table, time_alternately
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration

TEXT = 64
HD_TILES, EDGE_TILES = 5, 2
WAYS = {
    "InternVL2-HD": ({"projector_config": {"projector_type": "pixel_shuffle"}}, HD_TILES),
    "InternVL-X": ({"projector_config": {"projector_type": "pvtc"}, "lvtc_config": {}}, EDGE_TILES),
}


def build(smoke: bool, attention: str, device: str, dtype: torch.dtype, **kwargs) -> InternVLXForConditionalGeneration:
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    text = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 92_553,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "max_position_embeddings": 32_768,
    }
    if smoke:
        vision |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text |= {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
        text |= {"intermediate_size": 64, "vocab_size": 1000}
    config = InternVLXConfig(
        vision_config={**vision, "image_size": 448, "patch_size": 14}, text_config=text, image_token_id=5, **kwargs
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = InternVLXForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=dtype)
    return model.eval()


def inputs_of(model: InternVLXForConditionalGeneration, samples: int, tiles: int) -> dict[str, torch.Tensor]:
    config, device = model.config, model.device
    image = torch.full((samples, tiles * config.image_seq_length), config.image_token_id)
    ids = torch.cat([image, torch.randint(10, config.text_config.vocab_size, (samples, TEXT))], dim=1).to(device)
    pixel_values = torch.randn(samples * tiles, 3, 448, 448, device=device, dtype=model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}


def training_steps(models: dict, samples: int, repeats: int) -> dict[str, float]:
    steps = {}
    for way, model in models.items():
        batch = inputs_of(model, samples, WAYS[way][1])
        labels = batch["input_ids"].where(batch["input_ids"] != model.config.image_token_id, -100)

        def step(model=model, batch=batch, labels=labels):
            model.train()
            model(**batch, labels=labels).loss.backward()
            model.zero_grad()
            model.eval()

        steps[way] = step
    return time_alternately(steps, repeats)


def milliseconds_a_token(model: InternVLXForConditionalGeneration, tiles: int, new: int, compiled: bool) -> float:
    """Time of `new` tokens less that of one (the prompt), a token."""
    kwargs = {"do_sample": False, "pad_token_id": 0, "disable_compile": not compiled}
    if compiled:
        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # also in the smoke run
        kwargs |= {"cache_implementation": "static", "compile_config": compile_config}
    batch, seconds = inputs_of(model, 1, tiles), {}
    for count in (1, new, 1, new):  # the second time counts: the first one compiles
        start = time.perf_counter()
        # the cache has one size for both, so that nothing is compiled again
        model.generate(**batch, max_new_tokens=count, min_new_tokens=count, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[count] = time.perf_counter() - start
    return 1e3 * (seconds[new] - seconds[1]) / (new - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.smoke:
        print("bench_gpu.py: no GPU here; --smoke runs a tiny geometry on the CPU.")
        return
    device, dtype = ("cpu", torch.float32) if args.smoke else ("cuda", torch.bfloat16)
    if args.smoke:
        args.samples, args.new_tokens, args.repeats = 1, 4, 1
    attentions = ["sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() and device == "cuda" else [])]
    for attention in attentions:
        print(f"{attention}, {dtype}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}", flush=True)
        models = {way: build(args.smoke, attention, device, dtype, **kwargs) for way, (kwargs, _) in WAYS.items()}
        seconds = training_steps(models, args.samples, args.repeats)
        ratio = seconds["InternVL-X"] / seconds["InternVL2-HD"]
        rows = [[f"training step, {args.samples} samples", *(1e3 * s for s in seconds.values()), ratio, "<= 0.65"]]
        decoding = {}
        for compiled in (False, True):
            for way, model in models.items():
                decoding[way] = milliseconds_a_token(model, WAYS[way][1], args.new_tokens, compiled)
            name = "a token, compiled static" if compiled else "a token, eager dynamic"
            rows.append([name, *decoding.values(), decoding["InternVL-X"] / decoding["InternVL2-HD"], "-"])
        print_table(["milliseconds", *WAYS, "ratio", "target"], rows)


if __name__ == "__main__":
    main()
