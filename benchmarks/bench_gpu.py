"""Benchmarks that need a GPU, at InternVL2-2B's geometry in bfloat16, with every available attention implementation.

InternVL2-HD: pixel shuffle, 5 tiles per sample (the paper's Table 5: 5.0 on average); each of the three methods alone; and
InternVL-X: all three, 2 tiles per sample (Table 5: 2.0). Sections:

    training   milliseconds per step, peak memory and MFU (FLOPs as torch counts them with sdpa, attention in full)
    batches    samples per second and peak memory at batch sizes that double until the memory is full
    prefill    milliseconds to the first token and peak memory
    decoding   milliseconds per token, eager with a dynamic cache and compiled with a static one
    packing    a training step of samples of different lengths, padded, and packed into one row (also with "varlen_sdpa")
    pvtc       PVTC's fast form against the plain one, in bfloat16 and under autocast, forward and training

A section that fails counts as a missed row, and the others still run.

    python benchmarks/bench_gpu.py [--sections training pvtc] [--results benchmarks/results]
    python benchmarks/bench_gpu.py --device cpu --preset tiny    # shows only that the script runs
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import transformers
from bench_pvtc import make_projector
from peak_memory import peak_bytes
from rows import HEADER, Row, run_script, write_rows
from timing import format_table, print_table, time_alternately
from torch.utils.flop_counter import FlopCounterMode
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration

TEXT = 64
HD_TILES, EDGE_TILES = 5, 2
SHUFFLE, PVTC = ({"projector_config": {"projector_type": kind}} for kind in ("pixel_shuffle", "pvtc"))
BASE, ALL = "InternVL2-HD", "InternVL-X"
WAYS = {
    BASE: (SHUFFLE, HD_TILES),
    "+ RVTC": (SHUFFLE, EDGE_TILES),
    "+ PVTC": (PVTC, HD_TILES),
    "+ LVTC": (SHUFFLE | {"lvtc_config": {}}, HD_TILES),
    ALL: (PVTC | {"lvtc_config": {}}, EDGE_TILES),
}
TARGET = 0.65  # of InternVL-X's training step, as a share of InternVL2-HD's
# dense bfloat16 TFLOP per second, by a part of the GPU's name
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
TINY = {
    "vision": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "text": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 1000,
    },
}
GIB = 2**30
PVTC_WIDTH = 1024  # width of the features that `make_projector` takes


def build(preset: str, attention: str, device: str, dtype: torch.dtype, **kwargs) -> InternVLXForConditionalGeneration:
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision |= {"image_size": 448, "patch_size": 14}
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
    if preset == "tiny":
        # tiles of 16 patches, so that it takes seconds
        vision |= TINY["vision"] | {"image_size": 64, "patch_size": 16}
        text |= TINY["text"]
    config = InternVLXConfig(vision_config=vision, text_config=text, image_token_id=5, **kwargs)
    torch.manual_seed(0)
    with torch.device(device):
        model = InternVLXForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=dtype)
    return model.eval()


def inputs_of(model: InternVLXForConditionalGeneration, samples: int, tiles: int) -> dict[str, torch.Tensor]:
    config, device = model.config, model.device
    image = torch.full((samples, tiles * config.image_seq_length), config.image_token_id)
    ids = torch.cat([image, torch.randint(10, config.text_config.vocab_size, (samples, TEXT))], dim=1).to(device)
    pixel_values = tiles_of(model, samples * tiles)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}


def tiles_of(model: InternVLXForConditionalGeneration, tiles: int) -> torch.Tensor:
    size = model.config.tile_size
    return torch.randn(tiles, 3, size, size, device=model.device, dtype=model.dtype)


def train(model: InternVLXForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward; the loss is on all but the image tokens and the padding."""
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(batch["input_ids"] == 0, -100)
    model.train()
    model(**batch, labels=labels, use_cache=False).loss.backward()
    model.zero_grad()
    model.eval()


@dataclass
class Bench:
    """The models of all variants with one attention implementation, built on first use."""

    args: argparse.Namespace
    attention: str

    @cached_property
    def models(self) -> dict[str, InternVLXForConditionalGeneration]:
        args = self.args
        return {
            way: build(args.preset, self.attention, args.device, getattr(torch, args.dtype), **kwargs)
            for way, (kwargs, _) in WAYS.items()
        }

    def inputs(self, way: str, samples: int) -> dict[str, torch.Tensor]:
        return inputs_of(self.models[way], samples, WAYS[way][1])

    def compare(self, what: str, runs: dict[str, Callable[[], object]]) -> tuple[dict[str, float], list[Row]]:
        """Seconds of each way's run, and rows: milliseconds, their ratio to the base's, peak memory."""
        seconds = time_alternately(runs, self.args.repeats)
        rows = []
        for way, run in runs.items():
            rows.append(Row(f"{what}, {way}", 1e3 * seconds[way], "ms"))
            if way != BASE:
                is_judged = what.startswith("training") and way == ALL and self.args.preset == "2b"
                target = TARGET if is_judged else None
                rows.append(Row(f"{what}, {way} / {BASE}", seconds[way] / seconds[BASE], target=target))
            rows.append(in_gib(f"{what}, {way}, peak memory", peak_bytes(run, self.models[way])))
        return seconds, rows

    def training(self) -> list[Row]:
        batches = {way: self.inputs(way, self.args.samples) for way in WAYS}
        runs = {way: partial(train, self.models[way], batch) for way, batch in batches.items()}
        seconds, rows = self.compare(f"training step of {self.args.samples} samples", runs)
        if self.args.peak_tflops and self.attention == "sdpa":  # the counter does not support other kernels
            for way, run in runs.items():
                with FlopCounterMode(display=False) as counter:
                    run()
                rate = counter.get_total_flops() / seconds[way] / 1e12
                rows.append(Row(f"training step, {way}, MFU", rate / self.args.peak_tflops))
        return rows

    def batches(self) -> list[Row]:
        rows = []
        for way in (BASE, ALL):
            samples = 1
            while samples <= self.args.max_samples:
                try:
                    run = partial(train, self.models[way], self.inputs(way, samples))
                    seconds = time_alternately({way: run}, self.args.repeats)[way]
                    peak = peak_bytes(run, self.models[way])
                except torch.OutOfMemoryError:
                    self.models[way].zero_grad()
                    rows.append(Row(f"training, {way}, batch of {samples}", None, note="out of memory"))
                    break
                rows.append(Row(f"training, {way}, batch of {samples}", samples / seconds, "samples/s"))
                rows.append(in_gib(f"training, {way}, batch of {samples}, peak memory", peak))
                samples *= 2
        return rows

    def prefill(self) -> list[Row]:
        rows = []
        for samples in sorted({1, self.args.samples}):
            batches = {way: self.inputs(way, samples) for way in WAYS}
            runs = {
                way: partial(self.models[way].generate, **batch, do_sample=False, max_new_tokens=1, pad_token_id=0)
                for way, batch in batches.items()
            }
            rows += self.compare(f"first token, batch of {samples}", runs)[1]
        return rows

    def decoding(self) -> list[Row]:
        rows = []
        for name, compiled in (("eager, dynamic cache", False), ("compiled, static cache", True)):
            found = {
                way: milliseconds_a_token(model, WAYS[way][1], self.args.new_tokens, compiled)
                for way, model in self.models.items()
            }
            for way, milliseconds in found.items():
                rows.append(Row(f"a further token, {name}, {way}", milliseconds, "ms"))
            rows.append(Row(f"a further token, {name}, {ALL} / {BASE}", found[ALL] / found[BASE]))
        return rows

    def packing(self) -> list[Row]:
        """Samples with text in lengths 1:4:8:16, all but the first with one tile."""
        model = self.models[ALL]
        image = torch.full((model.config.image_seq_length,), model.config.image_token_id)
        vocabulary = model.config.text_config.vocab_size
        texts = [
            torch.randint(10, vocabulary, (n * TEXT // (16 if self.args.preset == "tiny" else 1),))
            for n in (1, 4, 8, 16)
        ]
        samples = [texts[0], *(torch.cat([image, text]) for text in texts[1:])]
        pixel_values = tiles_of(model, len(samples) - 1)
        lengths = torch.tensor([len(sample) for sample in samples])
        bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(model.device, torch.int32)
        longest = int(lengths.max())
        packed = {
            "input_ids": torch.cat(samples)[None].to(model.device),
            "position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(model.device),
            "pixel_values": pixel_values,
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        padded_ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=0)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        padded = {"input_ids": padded_ids.to(model.device), "attention_mask": mask.to(model.device)}

        def run(attention: str, batch: dict) -> None:
            model.set_attn_implementation({"text_config": attention})
            train(model, batch)

        runs = {"padded": partial(run, self.attention, padded | {"pixel_values": pixel_values})}
        for attention in dict.fromkeys([self.attention, "varlen_sdpa"]):
            runs[f"packed, {attention}"] = partial(run, attention, packed)
        try:
            seconds = time_alternately(runs, self.args.repeats)
            peaks = {name: peak_bytes(run, model) for name, run in runs.items()}
        finally:
            model.set_attn_implementation({"text_config": self.attention})
        rows = []
        for name in runs:
            rows.append(Row(f"training step of {ALL}, {name}", 1e3 * seconds[name], "ms"))
            rows.append(in_gib(f"training step of {ALL}, {name}, peak memory", peaks[name]))
            if name != "padded":
                # dense masks are what a packed row is not meant to have
                target = 1.0 if self.args.preset == "2b" and name != "packed, sdpa" else None
                rows.append(
                    Row(f"training step of {ALL}, {name} / padded", seconds[name] / seconds["padded"], target=target)
                )
        return rows

    def pvtc(self) -> list[Row]:
        rows = []
        for window in (2, 4):
            for kind in ("bfloat16", "autocast"):
                for is_training in (False, True):
                    rows += self.pvtc_forms(window, kind, is_training)
        return rows

    def pvtc_forms(self, window: int, kind: str, is_training: bool) -> list[Row]:
        device = self.args.device
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        features = torch.randn(self.args.pvtc_tiles, 1 + 32 * 32, PVTC_WIDTH, device=device, dtype=dtype)

        def run(projector):
            with (
                torch.set_grad_enabled(is_training),
                torch.autocast(device, torch.bfloat16, enabled=kind == "autocast"),
            ):
                tokens = projector(features)
            if is_training:
                tokens.float().sum().backward()
                projector.zero_grad()

        projectors = {name: make_projector(window, name == "plain", device).to(dtype) for name in ("plain", "fast")}
        runs = {name: partial(run, projector) for name, projector in projectors.items()}
        seconds = time_alternately(runs, self.args.repeats)
        what = f"PVTC M={window}, {kind}, {'training' if is_training else 'forward'} of {len(features)} tiles"
        rows = [Row(f"{what}, {name}", 1e3 * seconds[name], "ms") for name in runs]
        rows += [in_gib(f"{what}, {name}, peak memory", peak_bytes(runs[name], projectors[name])) for name in runs]
        return [*rows, Row(f"{what}, fast / plain", seconds["fast"] / seconds["plain"])]


def milliseconds_a_token(model: InternVLXForConditionalGeneration, tiles: int, new: int, compiled: bool) -> float:
    """Time per token: that of `new` tokens minus that of one (the prompt)."""
    kwargs = {"do_sample": False, "pad_token_id": 0, "disable_compile": not compiled}
    if compiled:
        # on a CPU, where this only has to run, the graphs are not compiled further
        compile_config = CompileConfig() if model.device.type == "cuda" else CompileConfig(backend="eager")
        compile_config._compile_all_devices = True
        kwargs |= {"cache_implementation": "static", "compile_config": compile_config}
    batch, seconds = inputs_of(model, 1, tiles), {}
    for count in (1, new, 1, new):  # the first round compiles, the second counts
        start = time.perf_counter()
        # the same cache size for both, so that nothing is recompiled
        model.generate(**batch, max_new_tokens=count, min_new_tokens=count, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[count] = time.perf_counter() - start
    return 1e3 * (seconds[new] - seconds[1]) / (new - 1)


def in_gib(name: str, peak: int | None) -> Row:
    return Row(name, None if peak is None else peak / GIB, "GiB")


SECTIONS = ("training", "batches", "prefill", "decoding", "packing", "pvtc")


def guarded(name: str, section: Callable[[], list[Row]]) -> list[Row]:
    """The section's rows; if it fails, one missed row with the error."""
    try:
        return section()
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        return [Row(f"{name} runs", None, target=0, note=f"{type(error).__name__}: {first_line}"[:120])]
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_results(rows: list[Row], args: argparse.Namespace, head: str) -> None:
    if args.json:
        write_rows(rows, args.json)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        write_rows(rows, args.results / "gpu.json")
        command = " ".join(["python benchmarks/bench_gpu.py", *sys.argv[1:]])
        table = format_table(HEADER, [row.cells() for row in rows])
        text = f"# On a GPU\n\n    {command}\n\n{head}\n\n{table}\n"
        (args.results / "gpu.md").write_text(text, encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--samples", type=int, default=4, help="of a training step and of the larger prefill")
    parser.add_argument("--max-samples", type=int, default=64, help="the largest batch that is tried")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--pvtc-tiles", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16, for MFU (default: by its name)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write gpu.json and gpu.md there")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here; --device cpu --preset tiny shows that the script runs.")
        return []
    device = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    if args.peak_tflops is None:
        args.peak_tflops = next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)
    attentions = ["sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() and args.device == "cuda" else [])]
    head = (
        f"{device}, {args.preset}, {args.dtype}, {', '.join(attentions)}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; medians of {args.repeats} runs that take turns"
    )
    print(head, flush=True)
    rows: list[Row] = []
    for attention in attentions:
        bench = Bench(args, attention)
        for name in args.sections:
            if name == "pvtc" and attention != attentions[0]:
                continue  # has no such choice
            for row in guarded(name, getattr(bench, name)):
                rows.append(Row(**{**vars(row), "name": f"{attention}: {row.name}"}))
            write_results(rows, args, head)
    print_table(HEADER, [row.cells() for row in rows])
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
