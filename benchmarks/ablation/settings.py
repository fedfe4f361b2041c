"""The settings of the runs: the configurations of the paper's Tables 2-5 and Figures 7 and 8, scaled down.

S = 8 patches per side, so a tile has 64 patches. The paper's 256 and 1024 tokens per tile (M = 2 and 1) become N = 4 and 4N = 16
(M = 4 and 2). Every group of rows is trained and tested on one kind of page (`KINDS`), except Figure 7, where each
compression ratio has pages that it can just read.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

LAYERS = 8  # of the language model
EXPAND_LAYER = 3 * LAYERS // 4 - 1  # k, the library's default for the paper's 3/4
PATCHES = 8  # S, patches per side of a tile
TILE = 64  # pixels
BASES = 3  # of each kind of page; seed s starts from base s mod 3
PROJECTORS = ("pixel_shuffle", "ldpv2", "token_packer", "pvtc", "average")
BASELINES = ("downsampled", "cls_pruning", "random_pruning")  # with as many tokens as the projectors


@dataclass(frozen=True)
class Pages:
    """A kind of page: its layouts (columns, rows) with their shares, from small to large, and the cell of a digit (W, H) and the
    digit in pixels."""

    layouts: dict[tuple[int, int], float]
    cell: tuple[int, int]
    digit: int
    tiled: bool = False  # whether pages fill more than one tile

    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


KINDS = {
    "few": Pages({(2, 2): 1.0}, cell=(32, 32), digit=16),
    "dense": Pages({(4, 4): 1.0}, cell=(16, 12), digit=12),
    "denser": Pages({(6, 4): 1.0}, cell=(10, 12), digit=9),
    # 64x48, 128x48, 64x96 and 128x96 pixels: text of one size, pages that grow with their content, each tile like a dense page
    "spread": Pages({(4, 4): 0.3, (8, 4): 0.25, (4, 8): 0.25, (8, 8): 0.2}, cell=(16, 12), digit=12, tiled=True),
}


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rates and batches, the same for every configuration."""

    base_steps: int = 1350  # of a base: tower and language model
    base_rate: float = 2e-3
    stage1_steps: int = 60  # projectors only
    stage1_rate: float = 3e-3
    stage2_steps: int = 300  # everything
    stage2_rate: float = 2e-3
    batch: int = 16
    test_pages: int = 256


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
CLS_LOSS = 0.1  # weight of the CLS token's loss in the training of a base
TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 1.0,
    "initializer_range": 0.06,
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
MAIN = "InternVL"  # the family of all tables but one


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        tower, language_model: arguments of their configurations, without image and vocabulary sizes.
        projector: type of the family's own projector, in its bases, in rows without PVTC, and in LVTC.
        vision_feature_layer: the tower's hidden state that is projected.
    """

    tower: dict
    language_model: dict
    projector: str = "pixel_shuffle"
    vision_feature_layer: int = -1

    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


WIDTHS = {name: TOWER[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
FAMILIES = {
    MAIN: Family(TOWER, LANGUAGE_MODEL),
    # LLaVA-1.5: CLIP's features before its last layer, hence one layer more
    "LLaVA": Family(
        WIDTHS | {"model_type": "clip_vision_model", "num_hidden_layers": 4, "initializer_range": 0.06},
        LANGUAGE_MODEL | {"model_type": "llama"},
        projector="linear",
        vision_feature_layer=-2,
    ),
    # a tower without CLS token, joined with a language model in the way of InternVL
    "SigLIP": Family(WIDTHS | {"model_type": "siglip_vision_model", "num_hidden_layers": 3}, LANGUAGE_MODEL),
}
QUICK = Schedule(base_steps=9, stage1_steps=3, stage2_steps=3, batch=4, test_pages=8)


def settings_of(row) -> dict:
    """All fields of a row. Only rows of another family than the main one name it."""
    return {name: value for name, value in asdict(row).items() if (name, value) != ("family", MAIN)}


@dataclass(frozen=True)
class Configuration:
    """The model of a run and its pages. `projector` and `lvtc` are arguments of the library's configurations."""

    pages: str = "dense"
    window: int = 4  # M₁: M₁ x M₁ patches become one token
    tile: int = TILE  # side of a tile in pixels; a smaller one is the downsampled image
    slicing: str = "whole"
    projector: dict = field(default_factory=lambda: {"projector_type": "pixel_shuffle"})
    lvtc: dict | None = None
    stage2_times: int = 1  # stage 2 takes this many times the schedule's steps
    family: str = MAIN

    def key(self, schedule: Schedule, seed: int) -> str:
        """A hash of all settings of a run. Equal configurations of two tables are one run."""
        family = FAMILIES[self.family]
        training = [asdict(schedule), OPTIMISER, DECAY, CURRICULUM, CLS_LOSS, family.tower, family.language_model]
        if self.family != MAIN:
            training.append(family.key())
        settings = json.dumps([settings_of(self), KINDS[self.pages].key(), seed, training], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def model_settings(self, **vocabulary) -> dict:
        """The arguments of `InternVLXConfig`. `vocabulary` are those of the language model that depend on the tokenizer."""
        family = FAMILIES[self.family]
        return {
            "vision_config": family.tower | {"image_size": self.tile, "patch_size": TILE // PATCHES},
            "text_config": family.language_model | vocabulary,
            "downsample_ratio": 1 / self.window,
            "vision_feature_layer": family.vision_feature_layer,
            "projector_config": self.projector,
            "lvtc_config": self.lvtc,
        }


def pvtc(**arguments) -> dict:
    """PVTC as its authors start it, with their drop path; its heads are as wide as those of the language model."""
    return {"projector_type": "pvtc", "num_heads": 4, "drop_path_rate": 0.1, **arguments}


def lvtc(window: int = 2, hr: bool = True, multi: bool = True, k: int = EXPAND_LAYER) -> dict:
    """LVTC that expands to windows of M₂ x M₂ patches at layer k, with or without HR projector and multi-projector."""
    arguments = {"downsample_ratio": 1 / window, "expand_layer": k}
    if not hr:
        arguments["hr_projector_type"] = None
    if not multi:
        arguments["num_lr_projectors"] = 1
    return arguments


def projector(kind: str) -> dict:
    if kind == "pvtc":
        return pvtc()
    if kind == "token_packer":  # its original form, which sees several layers of the tower
        return {"projector_type": kind, "token_packer_form": "original", "token_packer_layers": [1, 2, 3]}
    return {"projector_type": kind}


def at_ratio(kind: str, ratio: int, pages: str, times: int) -> Configuration:
    """A projector, or a baseline, with 64 / `ratio` tokens per tile."""
    window = round(ratio**0.5)
    if kind == "downsampled":
        return Configuration(pages, window // 2, tile=TILE // 2, stage2_times=times)
    return Configuration(pages, window, projector=projector(kind), stage2_times=times)


BASE = Configuration()
BASE_4N = Configuration(window=2)
PVTC = Configuration(projector=pvtc())
LVTC = Configuration(lvtc=lvtc())


def longer(rows: dict[str, Configuration], times: int = 2) -> dict[str, Configuration]:
    """The rows with a longer stage 2. Rows with N tokens in all layers still learn when those with 4N have learnt all."""
    return {name: replace(row, stage2_times=times) for name, row in rows.items()}


TABLE_2 = longer(
    {
        "Base": BASE,
        "Base, 4N tokens": BASE_4N,
        "+ PVTC": PVTC,
        "+ LVTC": LVTC,
        "+ PVTC + LVTC": Configuration(projector=pvtc(), lvtc=lvtc()),
    }
)
# where 16 tokens are not enough to read everything
DENSER = {
    "N": Configuration("denser"),
    "4N": at_ratio("pixel_shuffle", 4, "denser", 1),
    "PVTC": Configuration("denser", projector=pvtc()),
    "LVTC": Configuration("denser", lvtc=lvtc()),
    "PVTC + LVTC": Configuration("denser", projector=pvtc(), lvtc=lvtc()),
}
TABLE_3 = longer(
    {
        "Base": BASE,
        "global, no scale": Configuration(projector=pvtc(use_local=False, use_cls_scale=False)),
        "global": Configuration(projector=pvtc(use_local=False)),
        "local": Configuration(projector=pvtc(use_global=False)),
        "global + local": PVTC,
        "2 layers": Configuration(projector=pvtc(num_layers=2)),
        "3 layers": Configuration(projector=pvtc(num_layers=3)),
    }
)
TABLE_4 = {
    "Base N": BASE,
    "Base 4N": BASE_4N,
    "Base 4N → N": Configuration(window=2, lvtc=lvtc(window=4, hr=False, multi=False)),
    "LVTC N → 4N": Configuration(lvtc=lvtc(hr=False, multi=False)),
    "+ HR": Configuration(lvtc=lvtc(multi=False)),
    "+ multi": Configuration(lvtc=lvtc(hr=False)),
    "+ HR + multi": LVTC,
}
# the layer k at which fine tokens are merged, and at which coarse ones are expanded
K_CURVE = (
    {"N": BASE, "4N": BASE_4N}
    | {
        f"4N → N, k={k}": Configuration(window=2, lvtc=lvtc(window=4, hr=False, multi=False, k=k))
        for k in range(1, LAYERS)
    }
    | {f"N → 4N, k={k}": Configuration(lvtc=lvtc(k=k)) for k in range(1, LAYERS)}
)
FIGURE_7 = {
    f"{kind} x{ratio}": at_ratio(kind, ratio, pages, times)
    for ratio, pages, times in ((16, "dense", 2), (4, "denser", 1), (64, "few", 2))
    for kind in (*PROJECTORS, *BASELINES)
} | {"linear x1": Configuration("denser", window=1, projector={"projector_type": "linear"})}
FIGURE_8 = {f"M1=4 M2={window}": Configuration(lvtc=lvtc(window=window)) for window in (2, 4, 1, 8)} | {
    f"M1={window} M2=2": Configuration(window=window, lvtc=lvtc()) for window in (8, 2)
}
# M₂ = 1 against 2 with three times the steps
FIGURE_8 |= longer({f"M1=4 M2={window}, 3x steps": Configuration(lvtc=lvtc(window=window)) for window in (2, 1)}, 3)


def on_spread(slicing: str, **arguments) -> Configuration:
    return Configuration("spread", slicing=slicing, **arguments)


# each module alone and together: all eight combinations
ATTRIBUTION = {
    "Base": on_spread("ratio"),
    "+ PVTC": on_spread("ratio", projector=pvtc()),
    "+ LVTC": on_spread("ratio", lvtc=lvtc()),
    "+ PVTC + LVTC": on_spread("ratio", projector=pvtc(), lvtc=lvtc()),
    "+ RVTC": on_spread("edge"),
    "+ PVTC + RVTC": on_spread("edge", projector=pvtc()),
    "+ LVTC + RVTC": on_spread("edge", lvtc=lvtc()),
    "Full model": on_spread("edge", projector=pvtc(), lvtc=lvtc()),
}
TABLE_5 = {
    "ratio": on_spread("ratio"),
    "edge": on_spread("edge"),
    "area": on_spread("area"),
    "one tile": on_spread("whole"),
    "one tile, 4N tokens": on_spread("whole", window=2),
}
# rows with three times the steps of their own table, for orderings that do not appear
LONGER = (
    longer({"N, 3x": BASE, "PVTC, 3x": PVTC}, 6)
    | longer({"ratio, 3x": on_spread("ratio"), "edge, 3x": on_spread("edge")}, 3)
    | longer({f"denser pages: {name}, 3x": row for name, row in DENSER.items()}, 3)
)
# rows of Tables 2 and 5 that other families repeat
REPEATED = {
    "N": ("table2", "Base"),
    "4N": ("table2", "Base, 4N tokens"),
    "+ PVTC": ("table2", "+ PVTC"),
    "+ LVTC": ("table2", "+ LVTC"),
    "one tile": ("table5", "one tile"),
    "edge": ("table5", "edge"),
}
GAINS = {"4N": "N", "+ PVTC": "N", "+ LVTC": "N", "edge": "one tile"}  # what each is compared with


def row_of(family: str, name: str) -> tuple[str, str]:
    """The group and the name of a repeated row."""
    return REPEATED[name] if family == MAIN else ("families", f"{family}: {name}")


def in_family(row: Configuration, family: str) -> Configuration:
    """A row of the main family as one of another, whose own projector replaces the pixel shuffle, also in LVTC."""
    own = projector(FAMILIES[family].projector)
    expands = row.lvtc and row.lvtc | {f"{part}_projector_type": own["projector_type"] for part in ("hr", "lr")}
    return replace(
        row, projector=own if row.projector == BASE.projector else row.projector, lvtc=expands, family=family
    )


def base_row(family: str = MAIN) -> Configuration:
    """The model that bases are trained as."""
    return in_family(BASE_4N, family)


GROUPS = {
    "table2": TABLE_2,
    "denser": DENSER,
    "attribution": ATTRIBUTION,
    "figure7": FIGURE_7,
    "table3": TABLE_3,
    "table4": TABLE_4,
    "k_curve": K_CURVE,
    "figure8": FIGURE_8,
    "table5": TABLE_5,
    "longer": LONGER,
}
GROUPS["families"] = {
    row_of(family, name)[1]: in_family(GROUPS[group][row], family)
    for family in FAMILIES
    if family != MAIN
    for name, (group, row) in REPEATED.items()
}
