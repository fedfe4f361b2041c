"""Throughput of conversions, including the check for finite values, against a plain copy; and where PVTC starts.

The golden checkpoints are tiny and random, so the second table compares only starting points, not trained models. LVTC's are
compared by `bench_lvtc_start.py`.

python benchmarks/bench_conversion.py [--gigabytes 2]
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rows import Row, run_script
from safetensors.torch import load_file, save_file
from timing import print_table

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.conversion import convert_checkpoint

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "checkpoints"
SOURCE = GOLDEN / "internvl2_internlm2"
UPGRADES = {
    "nothing": {},
    "PVTC, warm": {"projector": "pvtc"},
    "PVTC, paper": {"projector": "pvtc", "init": "paper"},
}
WIDTH, INNER, HEADS, KV_HEADS = 2048, 8192, 16, 8
REPEATS = 3


def make_source(folder: Path, gigabytes: float) -> None:
    """The golden checkpoint with a wider and deeper language model in bfloat16, one shard per layer."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    raw = json.loads((SOURCE / "config.json").read_text())
    layer = {
        "attention.wqkv": (WIDTH + 2 * KV_HEADS * WIDTH // HEADS, WIDTH),
        "attention.wo": (WIDTH, WIDTH),
        "feed_forward.w1": (INNER, WIDTH),
        "feed_forward.w3": (INNER, WIDTH),
        "feed_forward.w2": (WIDTH, INNER),
        "attention_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    layers = max(1, round(gigabytes * 1e9 / sum(2 * torch.Size(shape).numel() for shape in layer.values())))
    raw["llm_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    vocabulary = (raw["llm_config"]["vocab_size"], WIDTH)
    text = {"model.tok_embeddings": vocabulary, "output": vocabulary, "model.norm": (WIDTH,)}
    shards = [{f"language_model.{name}.weight": shape for name, shape in text.items()} | vision_shapes(raw)]
    for i in range(layers):
        shards.append({f"language_model.model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}, folder / file
        )
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def vision_shapes(raw: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the golden tower's tensors and of the projector's for the wider language model."""
    golden = json.loads(SOURCE.with_name(f"{SOURCE.name}.golden.json").read_text())["weights"]
    tower = {name: tuple(shape) for name, shape in golden.items() if name.startswith(("vision_model.", "mlp1.0."))}
    window = tower["mlp1.0.weight"][0]
    linear = {"mlp1.1.weight": (WIDTH, window), "mlp1.3.weight": (WIDTH, WIDTH)}
    return tower | linear | {"mlp1.1.bias": (WIDTH,), "mlp1.3.bias": (WIDTH,)}


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, out / file.name)


def wall_seconds(run, source: Path, out: Path) -> float:
    """Wall-clock seconds, since both sides wait for the disk."""
    start = time.perf_counter()
    run(source, out)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def throughput(gigabytes: float) -> list[Row]:
    runs = {
        "plain copy": copy,
        "convert": convert_checkpoint,
        "convert to float16": lambda source, out: convert_checkpoint(source, out, dtype="float16"),
        "convert with PVTC": lambda source, out: convert_checkpoint(source, out, projector="pvtc"),
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        make_source(source, gigabytes)
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        seconds = {name: [] for name in runs}
        for _ in range(REPEATS + 1):  # the first round warms up
            for name, run in runs.items():
                seconds[name].append(wall_seconds(run, source, Path(folder) / "out"))
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    shares = {name: medians["plain copy"] / s for name, s in medians.items()}
    table = [[name, f"{size / s / 1e9:.2f}", f"{shares[name]:.2f}"] for name, s in medians.items()]
    print(f"{size / 1e9:.2f} GB of bfloat16")
    print_table(["", "GB/s of the source", "of a plain copy"], table)
    del shares["plain copy"]
    return [Row(f"throughput, {name} / a plain copy", share) for name, share in shares.items()]


@torch.no_grad()
def distances() -> None:
    """Root mean square difference between an upgraded model's logits and the original's before training, and their spread."""
    names = sorted(path.name for path in GOLDEN.glob("internvl2_*") if path.is_dir())
    golden = {name: load_file(GOLDEN / f"{name}.golden.safetensors") for name in names}
    rows = [["(spread of the logits)", *(golden[name]["logits"].std().item() for name in names)]]
    for upgrade, options in UPGRADES.items():
        rows.append([upgrade])
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                convert_checkpoint(GOLDEN / name, Path(folder) / "out", **options)
                model = InternVLXForConditionalGeneration.from_pretrained(Path(folder) / "out").eval()
            inputs = {key: golden[name][key] for key in ("input_ids", "attention_mask", "pixel_values")}
            logits = model(**inputs).logits[:, golden[name]["logits_positions"]]
            rows[-1].append((logits - golden[name]["logits"]).pow(2).mean().sqrt().item())
    print_table(["upgrade", *(name.removeprefix("internvl2_") for name in names)], rows)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint to convert (default: 2)")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    rows = throughput(args.gigabytes)
    distances()
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
