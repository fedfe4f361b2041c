"""PVTC's fast form against the plain one that forms K and V of every patch: C = 1024, D = 2048, 32×32 patches.

Time, and memory per tile that training keeps for the backward pass.

python benchmarks/bench_pvtc.py [--tiles 1] [--train] [--only time|memory]
"""

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import Row, run_script
from timing import print_table, time_alternately, use_one_thread
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from internvlx_hf import InternVLXConfig
from internvlx_hf.modeling.projector import project
from internvlx_hf.modeling.projectors import build_projector
from internvlx_hf.modeling.pvtc import PVTCAttention

sys.path.append(str(Path(__file__).parents[1] / "tests/helpers"))
from live_bytes import LiveBytes

TARGETS = {2: 0.88, 4: 0.56}
MEMORY_TARGETS = {False: 135, True: 35}  # MiB by tile under autocast, by gradient checkpointing
MEMORY_FORMS = {"fast": ("pvtc", False), "plain": ("pvtc", True), "pixel shuffle": ("pixel_shuffle", False)}


def plain_attention(attention: PVTCAttention, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    heads = attention.num_heads
    query = attention.query(query)[:, None].unflatten(-1, (heads, -1)).transpose(1, 2)
    key = F.linear(patches, attention.key).unflatten(-1, (heads, -1)).transpose(1, 2)
    value = F.linear(patches, attention.value).unflatten(-1, (heads, -1)).transpose(1, 2)
    return attention.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1))


def make_projector(window: int, plain: bool, device: str, kind: str = "pvtc") -> torch.nn.Module:
    config = InternVLXConfig(
        vision_config={"hidden_size": 1024, "num_attention_heads": 16, "image_size": 448, "patch_size": 14},
        text_config={"model_type": "llama", "hidden_size": 2048, "vocab_size": 100},
        image_token_id=5,
        downsample_ratio=1 / window,
        projector_config={"drop_path_rate": 0.0},
    )
    torch.manual_seed(0)
    projector = build_projector(config, kind, 1 / window).to(device)
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
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    rows = []
    if args.only != "memory":
        rows += compare_times(args.tiles, args.train, args.device)
    if args.only != "time":
        rows += compare_memory(args.device)
    return rows


def compare_times(tiles: int, train: bool, device: str) -> list[Row]:
    features = torch.randn(tiles, 1 + 32 * 32, 1024, device=device)
    table, rows = [], []
    for window, target in TARGETS.items():
        projectors = {name: make_projector(window, name == "plain", device) for name in ("plain", "fast")}

        def run(projector):
            with torch.set_grad_enabled(train):
                tokens = projector(features)
                if train:
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


def compare_memory(device: str) -> list[Row]:
    table, rows = [], []
    for name, (kind, plain) in MEMORY_FORMS.items():
        cells: list[object] = [name]
        for dtype in (torch.float32, torch.bfloat16):
            projector = make_projector(2, plain, device, kind).train().to(dtype)
            for checkpointing in (False, True):
                for module in projector.modules():
                    if hasattr(module, "gradient_checkpointing"):
                        module.gradient_checkpointing = checkpointing
                        module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
                mebibytes = (kept_bytes(projector, 3) - kept_bytes(projector, 2)) / 2**20
                cells.append(mebibytes)
                if name == "fast" and dtype == torch.float32:
                    what = "autocast, checkpointed" if checkpointing else "autocast"
                    rows.append(
                        Row(f"M=2, a tile kept, {what}", mebibytes, "MiB", target=MEMORY_TARGETS[checkpointing])
                    )
        table.append(cells)
    targets = [f"<= {target}" for target in MEMORY_TARGETS.values()]
    table.append(["target, fast", *targets, "", ""])
    forms = [f"{dtype}{kind}" for dtype in ("autocast", "bf16") for kind in ("", ", checkpointed")]
    print_table(["MiB a tile, M=2", *forms], table)
    return rows


def kept_bytes(projector: torch.nn.Module, tiles: int) -> int:
    """Bytes that a forward keeps for its backward pass, with bfloat16 autocast and float32 weights."""
    weight = next(projector.parameters())
    features = torch.randn(tiles, 1 + 32 * 32, 1024, device=weight.device, dtype=weight.dtype, requires_grad=True)
    autocast = torch.autocast(weight.device.type, torch.bfloat16)
    with LiveBytes(projector) as live, autocast if weight.dtype == torch.float32 else contextlib.nullcontext():
        tokens = project(projector, features, ())
        return live.live - tokens.nbytes


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
