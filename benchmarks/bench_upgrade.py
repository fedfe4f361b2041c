"""What training an upgraded model with its source as the teacher would take on one GPU, from the FLOPs.

python benchmarks/bench_upgrade.py

A step's FLOPs are those of the student's forward (counted by `internvlx_hf.cost`), again for gradient checkpointing, and twice for the
backward, plus the teacher's forward. LoRA has no gradients of frozen weights and none in the vision tower. Attention is counted
in full, although causal kernels skip half. Time assumes a share of the GPU's peak in bfloat16, UTILISATION: nothing is measured here.
"""

import argparse
import copy
import statistics
from dataclasses import dataclass, replace

from rows import Row, run_script
from timing import print_table

from internvlx_hf import cost
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.modeling import InternVLXConfig

UTILISATION = 0.4
PEAKS = {"H100": 989e12, "A100": 312e12}  # bfloat16, dense, of the SXM cards
HOURS = 5  # an afternoon
SIZES = ((640, 480), (1024, 768))  # half of the images each
PROMPT_TOKENS, ANSWER_TOKENS = 64, 128
PVTC = {"downsample_ratio": 1 / 4, "projector_config": {"projector_type": "pvtc"}}
LVTC = {"downsample_ratio": 1 / 4, "lvtc_config": {"downsample_ratio": 1 / 2}}
UPGRADES = {  # changes of the configuration, and the slicing
    "PVTC 16x": (PVTC, "ratio"),
    "LVTC 64 → 256": (LVTC, "ratio"),
    "edge": ({}, "edge"),
    "PVTC 16x, edge": (PVTC, "edge"),
}
TRAININGS = {"internvl2-2b": ("full",), "internvl2-8b": ("LoRA",)}  # full training of 8B does not fit on one GPU


@dataclass(frozen=True)
class Forward:
    """FLOPs of one sample's forward, with the head on the answer's tokens."""

    vision: float
    language: float

    @property
    def total(self) -> float:
        return self.vision + self.language


def forward(setup: ModelSetup) -> Forward:
    """The mean over images of `SIZES`."""
    found = cost.CostModel(setup, text_tokens=PROMPT_TOKENS + ANSWER_TOKENS).of_sizes(SIZES)
    vision = statistics.fmean(one.vision_flops for one in found)
    language = statistics.fmean(one.prefill_flops - one.vision_flops for one in found)
    return Forward(vision, language + (ANSWER_TOKENS - 1) * found[0].flops["lm_head"])


def student_flops(one: Forward, training: str) -> float:
    """FLOPs of one sample's forward, recomputation and backward."""
    return 4 * one.total if training == "full" else one.vision + 3 * one.language


def upgraded(source: ModelSetup, changes: dict, slicing: str) -> ModelSetup:
    config = InternVLXConfig(**copy.deepcopy(source.config.to_dict()) | changes)
    return ModelSetup("upgraded", config, replace(source.tiling, slicing=slicing))


def measure(args: argparse.Namespace) -> list[Row]:
    table, rows = [], []
    for preset, trainings in TRAININGS.items():
        source = cost.load_setup(preset)
        source = ModelSetup(preset, source.config, replace(source.tiling, slicing="ratio", max_tiles=args.max_patches))
        teacher = forward(source).total
        for (name, (changes, slicing)), training in ((item, each) for item in UPGRADES.items() for each in trainings):
            student = student_flops(forward(upgraded(source, changes, slicing)), training)
            seconds = {gpu: (student + teacher) / (peak * UTILISATION) for gpu, peak in PEAKS.items()}
            samples = [HOURS * 3600 / each for each in seconds.values()]
            table.append(
                [preset, training, name, student / 1e12, teacher / 1e12]
                + [10_000 * each / 3600 for each in seconds.values()]
                + [f"{number / 1000:,.0f}k" for number in samples]
            )
            rows.append(Row(f"{preset}, {training}, {name}", (student + teacher) / 1e12, "TFLOPs"))
    header = ["model", "training", "upgrade", "student, TFLOPs", "teacher, TFLOPs"]
    header += [f"hours per 10k samples, {gpu}" for gpu in PEAKS]
    header += [f"samples in {HOURS} h, {gpu}" for gpu in PEAKS]
    print_table(header, table)
    return rows


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-patches", type=int, default=6, help="maximum tiles per image (default: 6)")
    return parser


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
