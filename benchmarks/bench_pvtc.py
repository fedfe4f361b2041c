"""PVTC's fast form against the plain one that forms K and V of every patch: C = 1024, D = 2048, 32×32 patches.

python benchmarks/bench_pvtc.py [--tiles 1] [--train]
"""

import argparse

import torch
import torch.nn.functional as F
from rows import Row, run_script
from timing import print_table, time_alternately, use_one_thread
from torch.utils.flop_counter import FlopCounterMode

from internvlx_hf import InternVLXConfig
from internvlx_hf.modeling.projectors import build_projector
from internvlx_hf.modeling.pvtc import PVTCAttention

TARGETS = {2: 0.88, 4: 0.56}


def plain_attention(attention: PVTCAttention, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    heads = attention.num_heads
    query = attention.query(query)[:, None].unflatten(-1, (heads, -1)).transpose(1, 2)
    key = F.linear(patches, attention.key).unflatten(-1, (heads, -1)).transpose(1, 2)
    value = F.linear(patches, attention.value).unflatten(-1, (heads, -1)).transpose(1, 2)
    return attention.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1))


def make_projector(window: int, plain: bool, device: str) -> torch.nn.Module:
    config = InternVLXConfig(
        vision_config={"hidden_size": 1024, "num_attention_heads": 16, "image_size": 448, "patch_size": 14},
        text_config={"model_type": "llama", "hidden_size": 2048, "vocab_size": 100},
        image_token_id=5,
        downsample_ratio=1 / window,
        projector_config={"drop_path_rate": 0.0},
    )
    torch.manual_seed(0)
    projector = build_projector(config, "pvtc", 1 / window).to(device)
    for module in projector.modules():
        if isinstance(module, PVTCAttention):
            torch.nn.init.normal_(module.key, std=0.02)
            torch.nn.init.normal_(module.value, std=0.02)
            if plain:
                module.forward = plain_attention.__get__(module)
    return projector


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    features = torch.randn(args.tiles, 1 + 32 * 32, 1024, device=args.device)
    table, rows = [], []
    for window, target in TARGETS.items():
        projectors = {name: make_projector(window, name == "plain", args.device) for name in ("plain", "fast")}

        def run(projector):
            with torch.set_grad_enabled(args.train):
                tokens = projector(features)
                if args.train:
                    tokens.sum().backward()
            return tokens.detach()

        flops = {}
        for name, projector in projectors.items():
            with FlopCounterMode(display=False) as counter:
                run(projector)
            flops[name] = counter.get_total_flops()
        torch.testing.assert_close(run(projectors["fast"]), run(projectors["plain"]), rtol=1e-3, atol=1e-3)
        seconds = time_alternately({name: lambda p=p: run(p) for name, p in projectors.items()})
        ratio, flop_ratio = seconds["fast"] / seconds["plain"], flops["fast"] / flops["plain"]
        table.append([f"M={window}", 1e3 * seconds["plain"], 1e3 * seconds["fast"], ratio, flop_ratio, f"<= {target}"])
        rows.append(Row(f"M={window}, fast / plain", ratio, target=target))
    print_table(["window", "plain ms", "fast ms", "time ratio", "FLOP ratio", "target"], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
