"""The settings of the runs: pages, models, schedules, and the rows that are compared.

S = 8 patches per side, so a tile has 64 patches. The paper's 256 and 1024 tokens per tile (M = 2 and 1) become N = 4 and 4N = 16
(M = 4 and 2).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from digit_pages import MAX_TILES, TILE, Kind

from internvlx_hf.processing.rvtc import SLICING_STRATEGIES

LAYERS = 8  # of the language model
EXPAND_LAYER = 3 * LAYERS // 4 - 1  # k, the library's default for the paper's 3/4
PATCHES = 8  # S, patches per side of a tile
SEEDS = 8  # of every row; seed s starts from base s

KINDS = {
    "one": Kind(sides=(52, 76), digits=(13, 15), most=(3, 3)),
    "several": Kind(sides=(40, 160), digits=(14, 18), most=(4, 3), avoids_borders=True),
}
FILLED = {"dense": 1.0, "half empty": 0.5}  # the part of a page that has digits; a training has both


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rates and batches, the same for every configuration."""

    tower_steps: int = 3000  # of a base: the tower alone
    base_steps: int = 3000  # tower and language model
    base_rate: float = 2e-3
    stage1_steps: int = 60  # projectors only
    stage1_rate: float = 3e-3
    stage2_steps: int = 400  # everything
    stage2_rate: float = 2e-3
    batch: int = 16
    test_pages: int = 256  # of each kind


# arguments of transformers' TrainingArguments, of bases and runs
OPTIMISER = {
    "optim": "adamw_torch_fused",
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "warmup_stable_decay",  # warm-up, constant, and a cosine to zero
    "warmup_steps": 0.05,  # share of the steps
}
DECAY = 0.4  # share of the steps in which the learning rate falls
CURRICULUM = 0.75  # share of the steps in which pages go from easy to hard, see `task.make_samples`
CLS_LOSS, PATCH_LOSS, BLANK_WEIGHT = (
    0.1,
    1.0,
    0.2,
)  # weights of what the tower learns by itself in the training of a base
TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 1.0,
    "initializer_range": 0.06,
    "image_size": TILE,
    "patch_size": TILE // PATCHES,
}
LANGUAGE_MODEL = {
    "model_type": "qwen3",
    "hidden_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "intermediate_size": 192,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},  # prompts are short
    "initializer_range": 0.06,
}
QUICK = Schedule(tower_steps=2, base_steps=6, stage1_steps=2, stage2_steps=2, batch=4, test_pages=6)


@dataclass(frozen=True)
class Configuration:
    """The model of a run and its pages.

    Args:
        pages: the kind of page, a key of `KINDS`.
        slicing: how a page is cut into tiles; "whole" is one tile.
        window: M₁: M₁ x M₁ patches become one token.
        projector, lvtc: arguments of the library's configurations.
        control: a change that no configuration has, a key of `controls.CONTROLS`.
        stage2_times: stage 2 takes this many times the schedule's steps.
    """

    pages: str = "one"
    slicing: str = "whole"
    window: int = 4
    projector: dict = field(default_factory=lambda: {"projector_type": "pixel_shuffle"})
    lvtc: dict | None = None
    control: str | None = None
    stage2_times: int = 1

    def key(self, schedule: Schedule, seed: int) -> str:
        """A hash of all settings of a run. Equal configurations of two tables are one run."""
        training = [
            asdict(schedule),
            OPTIMISER,
            DECAY,
            CURRICULUM,
            CLS_LOSS,
            PATCH_LOSS,
            TOWER,
            LANGUAGE_MODEL,
            FILLED,
        ]
        settings = json.dumps([asdict(self), pages_key(self.pages), seed, training], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def model_settings(self, **vocabulary) -> dict:
        """The arguments of `InternVLXConfig`. `vocabulary` are those of the language model that depend on the tokenizer."""
        return {
            "vision_config": TOWER,
            "text_config": LANGUAGE_MODEL | vocabulary,
            "downsample_ratio": 1 / self.window,
            "projector_config": self.projector,
            "lvtc_config": self.lvtc,
        }


def pages_key(pages: str) -> str:
    return hashlib.sha256(repr(KINDS[pages]).encode()).hexdigest()[:8]


def base_folder(pages: str, number: int, schedule: Schedule, cache: Path) -> Path:
    training = f"{schedule.tower_steps}-{schedule.base_steps}-{schedule.base_rate}-{schedule.batch}"
    return cache / f"base-{pages}-{pages_key(pages)}-{number}-{training}"


def pvtc(**arguments) -> dict:
    """PVTC as its authors start it, with their drop path; its heads are as wide as those of the language model."""
    return {"projector_type": "pvtc", "num_heads": 4, "drop_path_rate": 0.1, **arguments}


def lvtc(window: int = 2, **arguments) -> dict:
    """LVTC that expands to windows of M₂ x M₂ patches."""
    return {"downsample_ratio": 1 / window, "expand_layer": EXPAND_LAYER, **arguments}


BASE = Configuration()
BASE_4N = Configuration(window=2)  # also the model that bases are trained as
PVTC = Configuration(projector=pvtc())
NO_ATTENTION = replace(PVTC, control="no attention")
LVTC = Configuration(lvtc=lvtc())

PROJECTORS = {
    "N": BASE,
    "4N": BASE_4N,
    "N, as many parameters as PVTC": replace(BASE, control="wide"),
    "PVTC": PVTC,
    "PVTC, attention skipped": NO_ATTENTION,
}
STEPS = {
    f"{name}, {times}x steps": replace(row, stage2_times=times)
    for name, row in (("N", BASE), ("PVTC", PVTC), ("PVTC, attention skipped", NO_ATTENTION))
    for times in (2, 4)
}
LAYERWISE = {
    "LVTC": LVTC,
    "N → N, with LVTC's projectors": Configuration(lvtc=lvtc(4)),
    "4N, hidden before layer k": replace(BASE_4N, control="hidden"),
    "PVTC + LVTC": Configuration(projector=pvtc(), lvtc=lvtc()),
    "PVTC + LVTC, HR projector PVTC": Configuration(projector=pvtc(), lvtc=lvtc(hr_projector_type="pvtc")),
    "LVTC, M₂ = 1": Configuration(lvtc=lvtc(1)),
    "LVTC, M₂ = 1, k = 2": Configuration(lvtc=lvtc(1, expand_layer=2)),
}


def sliced(slicing: str, window: int = 4) -> Configuration:
    """With twice the steps: with as many as the others, no row reads 90 % of these pages."""
    return Configuration("several", slicing, window, stage2_times=2)


SLICINGS = {
    "one tile": sliced("whole"),
    "edge": sliced("edge"),
    "area": sliced("area"),
    "ratio": sliced("ratio"),
    "edge, 4N": sliced("edge", 2),
    "ratio, 4N": sliced("ratio", 2),
}
GROUPS = {"projectors": PROJECTORS, "steps": STEPS, "layers": LAYERWISE, "slicing": SLICINGS}
# beside the rows of `PROJECTORS` that a curve goes through
CURVES = {
    name: [name, *(f"{name}, {times}x steps" for times in (2, 4))] for name in ("N", "PVTC", "PVTC, attention skipped")
}

# What is asked of the finished models of some rows, without training: attention to the image knocked out from a layer on, …
WAYS: dict[str, dict[str, int | tuple[str, int]]] = {
    name: {f"no image from layer {k}": k for k in range(LAYERS)}
    for name in ("N", "4N", "PVTC", "LVTC", "4N, hidden before layer k", "LVTC, M₂ = 1")
}
# … and other tiles than those of its training: a slicing, and the most tiles of a page
WAYS |= {
    name: {slicing: (slicing, MAX_TILES) for slicing in SLICING_STRATEGIES}
    | {f"{row.slicing}, at most {count} tile{'s' * (count > 1)}": (row.slicing, count) for count in (4, 2, 1)}
    for name, row in SLICINGS.items()
    if row.slicing in ("ratio", "edge")
}
