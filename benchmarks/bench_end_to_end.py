"""The cost of a question about a photograph, from the JPEG file to the answer: transformers' InternVL, and each idea.

InternVL: transformers' own model and image processor. RVTC: its projector, tiles by "area" or "edge". PVTC, and PVTC with
LVTC: by "edge". With `--cases factorial`, each method alone, in pairs and all three; by "ratio" where RVTC is not among
them. At most 12 tiles of 448x448 pixels and a thumbnail, 14-pixel patches; all cases share random weights.
First token: reading the file, the processor, the prefill ("vision": up to the language model). Memory: weights, and the most held beside them. The answer has
always as many tokens, no end token; questions a minute, one at a time, follow from the two times.

On a CPU times are those that one thread computes; with `--threads`, the wall's clock. Each finished answer is kept in
`--samples FILE`: the same command goes on where it was stopped.

    python benchmarks/bench_end_to_end.py [--preset internvl2-1b] [--dtype bfloat16] [--device cuda] [--figure FILE.png]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peak_memory import peak_bytes
from PIL import Image
from rows import Row, run_script
from timing import print_table
from transformers import (
    GotOcr2ImageProcessor,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer
from transformers.initialization import no_init_weights
from transformers.utils import is_torchvision_available

from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXProcessor,
)
from internvlx_hf.cost import PRESETS, CostModel, ModelSetup, preset
from internvlx_hf.processing.rvtc import TilingRule

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from tiny import IMAGE_TOKEN, tiny_tokenizer

SIZES = ((640, 480), (1280, 720), (1920, 1080))
TILE, MAX_TILES = 448, 12
QUESTION = "What can be seen in this photograph? Answer in a few sentences."
SLACK = 1.15  # of the ratio of FLOPs


@dataclass(frozen=True)
class Case:
    slicing: str = "edge"
    projector: str = "pixel_shuffle"
    has_lvtc: bool = False

    def config(self, args: argparse.Namespace) -> InternVLXConfig:
        kwargs = {"projector_config": {"projector_type": self.projector}} | (
            {"lvtc_config": {}} if self.has_lvtc else {}
        )
        if args.preset in PRESETS:
            base = preset(args.preset)
            vision, text = base.vision_config.to_dict(), base.text_config.to_dict()
        else:
            vision, text = SMALL[args.preset]
        return InternVLXConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, **kwargs)


NATIVE = "InternVL"
SETS = {
    "steps": {
        NATIVE: Case("ratio"),
        "RVTC area": Case("area"),
        "RVTC edge": Case("edge"),
        "PVTC": Case(projector="pvtc"),
        "PVTC + LVTC": Case(projector="pvtc", has_lvtc=True),
    },
    "factorial": {
        NATIVE: Case("ratio"),
        "PVTC": Case("ratio", "pvtc"),
        "LVTC": Case("ratio", has_lvtc=True),
        "RVTC": Case("edge"),
        "PVTC + LVTC": Case("ratio", "pvtc", has_lvtc=True),
        "PVTC + RVTC": Case("edge", "pvtc"),
        "LVTC + RVTC": Case("edge", has_lvtc=True),
        "PVTC + LVTC + RVTC": Case("edge", "pvtc", has_lvtc=True),
    },
}
COLOURS = ("#8c959f", "#54aeff", "#0969da", "#1a7f37", "#d9730d", "#8250df", "#bf3989", "#9a6700")


def _small(width: int, layers: int, tile: int = TILE, patch: int = 14) -> tuple[dict, dict]:
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": width // 64, "image_size": tile, "patch_size": patch}
    text = {"model_type": "qwen2", "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256), "vocab_size": 8192}
    text |= {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return vision, text


SMALL = {"small": _small(256, 8), "tiny": _small(64, 4), "mini": _small(64, 4, 64, 8)}


class Clock:
    """Seconds of CPU time of one thread, or of wall-clock time on a GPU and with several threads."""

    def __init__(self, args: argparse.Namespace):
        self.device = args.device
        self.read = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter

    def __call__(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return self.read()


class Stamps(BaseStreamer):
    """Records when `generate` returns each token."""

    def __init__(self, clock: Clock):
        self.clock, self.times = clock, []

    def put(self, value):
        self.times.append(self.clock())

    def end(self):
        pass


@torch.no_grad()
def fill(parameters: dict[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def build(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """A model for each case. Cases without PVTC use the same model, and all models share their common weights."""
    torch.manual_seed(0)
    models, shared = {}, {}
    by_config: dict[tuple, torch.nn.Module] = {}
    for name, case in args.cases.items():
        kind = (name == NATIVE, case.projector, case.has_lvtc)
        if kind not in by_config:
            config, model_class = case.config(args), InternVLXForConditionalGeneration
            if name == NATIVE:
                config, model_class = native_config(config), InternVLForConditionalGeneration
            with no_init_weights(), torch.device(args.device):
                model = model_class._from_config(config, dtype=args.dtype).eval()
            model.load_state_dict(
                {k: v for k, v in shared.items() if k in model.state_dict()}, strict=False, assign=True
            )
            fill({k: v for k, v in model.named_parameters() if k not in shared})
            shared = model.state_dict() | shared
            by_config[kind] = model
        models[name] = by_config[kind]
    return models


def native_config(config: InternVLXConfig) -> InternVLConfig:
    return InternVLConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_id=config.image_token_id,
        downsample_ratio=config.downsample_ratio,
        tie_word_embeddings=False,
    )


def make_processor(name: str, case: Case, config: InternVLXConfig) -> InternVLXProcessor:
    settings = {"size": {"height": config.tile_size, "width": config.tile_size}, "max_patches": MAX_TILES}
    if name == NATIVE:  # with our tokenizer and template; native InternVL's own processor needs torchvision
        image_processor = GotOcr2ImageProcessor if is_torchvision_available() else GotOcr2ImageProcessorPil
        images = image_processor(crop_to_patches=True, **settings)
    else:
        images = InternVLXImageProcessor(slicing=case.slicing, **settings)
    return InternVLXProcessor(images, tiny_tokenizer(), image_seq_length=config.image_seq_length)


def save_photograph(width: int, height: int, path: Path) -> None:
    """Save smooth noise, whose JPEG file is as large as a photograph's."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def answer(
    model: torch.nn.Module,
    processor: InternVLXProcessor,
    photograph: Path,
    tokens: int,
    clock: Clock,
    samples: int = 1,
) -> dict:
    """Ask about a photograph in a batch of `samples`, and return the seconds to the first token and for each later one."""
    content = [{"type": "image", "path": str(photograph)}, {"type": "text", "text": QUESTION}]
    stamps = Stamps(clock)
    start = clock()
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * samples,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    ).to(model.device, dtype=model.dtype)
    model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
        streamer=stamps,
    )
    prompt, first, *_, last = [*stamps.times, stamps.times[-1]]
    return {
        "tiles": len(inputs["pixel_values"]),
        "tokens": int((inputs["input_ids"] == IMAGE_TOKEN).sum()),
        "vision": prompt - start,  # `generate` runs the vision tower before it hands over the prompt
        "first": first - start,
        "further": (last - first) / max(1, tokens - 1),
    }


class Samples:
    """The measurements of all finished answers, by size and case, stored in a file if one is given."""

    def __init__(self, path: Path | None, settings: dict):
        self.path = path
        self.found: dict = {"settings": settings, "answers": {}}
        if path is not None and path.exists():
            self.found = json.loads(path.read_text(encoding="utf-8"))
            if self.found["settings"] != settings:
                raise SystemExit(
                    f"{path} has answers of other settings, {self.found['settings']}; these are {settings}. "
                    "Name another file, or remove it."
                )

    def of(self, size: tuple[int, int], name: str) -> list[dict]:
        return self.found["answers"].setdefault(f"{size[0]}x{size[1]}", {}).setdefault(name, [])

    def keep(self) -> None:
        if self.path is not None:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            os.replace(part, self.path)

    def median(self, size: tuple[int, int], name: str, key: str) -> float | None:
        values = [sample[key] for sample in self.of(size, name)]
        return None if not values or None in values else statistics.median(values)


def take_turns(samples: Samples, args: argparse.Namespace, folder: Path) -> None:
    """In every round, every case answers about every size."""
    missing = [
        (repeat, size, name)
        for repeat in range(args.repeats)
        for size in args.sizes
        for name in args.cases
        if len(samples.of(size, name)) <= repeat
    ]
    if not missing:
        return
    models, clock = build(args), Clock(args)
    processors = {name: make_processor(name, case, case.config(args)) for name, case in args.cases.items()}
    small = folder / "small.jpg"
    save_photograph(TILE, TILE, small)
    for name, model in models.items():
        if name != NATIVE:  # skipped to save time: it runs the same code as the others
            answer(model, processors[name], small, 2, clock)
    for _, size, name in missing:
        photograph = folder / f"{size[0]}x{size[1]}.jpg"
        if not photograph.exists():
            save_photograph(*size, photograph)
        found: dict = {}
        question = (models[name], processors[name], photograph, args.new_tokens, clock)
        peak = peak_bytes(lambda found=found, question=question: found.update(answer(*question)), models[name])
        samples.of(size, name).append(found | {"peak": peak})
        samples.keep()
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def flop_ratio(args: argparse.Namespace, size: tuple[int, int], name: str) -> float:
    """FLOPs of a case's prefill, as a share of InternVL's."""
    flops = []
    for case in (args.cases[name], args.cases[NATIVE]):
        tiling = TilingRule(TILE, TILE, max_tiles=MAX_TILES, slicing=case.slicing)
        flops.append(CostModel(ModelSetup(name, case.config(args), tiling)).of_size(*size).prefill_flops)
    return flops[0] / flops[1]


def report(samples: Samples, args: argparse.Namespace) -> list[Row]:
    table, rows = [], []
    for size in args.sizes:
        for name in args.cases:
            keys = ("first", "vision", "further", "peak")
            first, vision, further, peak = (samples.median(size, name, key) for key in keys)
            ratio = first / samples.median(size, NATIVE, "first")
            an_answer = first + (args.new_tokens - 1) * further
            one, place = samples.of(size, name)[0], f"{size[0]}x{size[1]}"
            memory = "-" if peak is None else f"{peak / 2**30:.2f}"
            cost = 1.0 if name == NATIVE else flop_ratio(args, size, name)
            times = [f"{first:.2f}", f"{vision:.2f}", f"{1e3 * further:.1f}"]
            table.append(
                [place, name, one["tiles"], one["tokens"], *times, memory, f"{60 / an_answer:.2f}", ratio, cost]
            )
            rows += [
                Row(f"{place}, {name}, first token", first, "s"),
                Row(f"{place}, {name}, a further token", 1e3 * further, "ms"),
                Row(f"{place}, {name}, peak memory", None if peak is None else peak / 2**30, "GiB"),
                Row(f"{place}, {name}, questions a minute", 60 / an_answer),
            ]
            if name != NATIVE:
                rows.append(Row(f"{place}, first token, {name} / {NATIVE}", ratio, target=SLACK * cost))
    header = ["image", "case", "tiles", "tokens", "first token s", "of it vision", "ms a further token", "peak GiB"]
    print_table([*header, "questions a minute", "first token, of InternVL's", "FLOPs, of InternVL's"], table)
    return rows


def draw(samples: Samples, args: argparse.Namespace, path: Path) -> None:
    """Draw bars of the seconds to the first token, in a group for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(args.cases, COLOURS, strict=False))
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8.4, 4.4))
        width = 0.8 / len(args.cases)
        for i, name in enumerate(args.cases):
            places = [group + (i - (len(args.cases) - 1) / 2) * width for group in range(len(args.sizes))]
            seconds = [samples.median(size, name, "first") for size in args.sizes]
            bars = axes.bar(places, seconds, 0.92 * width, color=colours[name], label=name)
            axes.bar_label(bars, [f"{s:.0f}" if s >= 10 else f"{s:.1f}" for s in seconds], padding=2, fontsize=8.5)
        axes.set_xticks(range(len(args.sizes)), [f"{w}×{h}" for w, h in args.sizes])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("seconds to the first token")
        axes.set_title(title(args), loc="left", fontweight="bold", fontsize=11)
        axes.legend(ncols=min(5, len(args.cases)), loc="upper center", bbox_to_anchor=(0.5, -0.09), columnspacing=1.4)
        figure.savefig(path, bbox_inches="tight", dpi=130)
        plt.close(figure)


def title(args: argparse.Namespace) -> str:
    if args.device != "cpu":
        where = torch.cuda.get_device_name()
    else:
        where = "one CPU thread" if args.threads == 1 else f"{args.threads} CPU threads"
    return f"{args.preset}, {str(args.dtype).removeprefix('torch.')}, {where}"


def parse_size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="small", choices=[*SMALL, *PRESETS], metavar="NAME")
    parser.add_argument(
        "--cases",
        default="steps",
        choices=SETS,
        help="steps: slicing, then PVTC, then LVTC; factorial: each method alone, in pairs and all (default: steps)",
    )
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=list(SIZES), metavar="WIDTHxHEIGHT")
    parser.add_argument("--new-tokens", type=int, default=32, help="length of every answer")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="keep each answer's figures here, and go on from them"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the first token's seconds")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(args.threads)
    names = ("preset", "cases", "new_tokens", "threads", "device", "dtype")
    samples = Samples(args.samples, {name: getattr(args, name) for name in names})
    args.dtype, args.cases = getattr(torch, args.dtype), SETS[args.cases]
    with tempfile.TemporaryDirectory() as folder:
        take_turns(samples, args, Path(folder))
    print(f"{title(args)}; answers of {args.new_tokens} tokens, median of {args.repeats}")
    rows = report(samples, args)
    if args.figure:
        draw(samples, args, args.figure)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
