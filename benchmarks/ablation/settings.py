"""The settings of the runs: the configurations of the paper's Tables 2-5 and Figures 7 and 8, scaled down.

S = 8 patches per side, so a tile has 64 patches. The paper's 256 and 1024 tokens per tile (M = 2 and 1) become N = 4 and 4N = 16
(M = 4 and 2): at 4N, each of 16 digits has a token; at N, four digits share one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field

LAYERS = 8  # of the language model
EXPAND_LAYER = 3 * LAYERS // 4 - 1  # k, the library's default for the paper's 3/4
PATCHES = 8  # S, patches per side of a tile
PROJECTORS = ("pixel_shuffle", "ldpv2", "token_packer", "pvtc", "average")


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rates and batches, the same for every configuration."""

    base_steps: int = 900  # of the common base: tower and language model
    base_tiled_steps: int = 450  # further steps of the base, in which two of three pages are sliced into tiles
    base_rate: float = 2e-3
    stage1_steps: int = 60  # projectors only
    stage1_rate: float = 3e-3
    stage2_steps: int = 300  # everything
    stage2_rate: float = 2e-3
    batch: int = 16
    test_pages: int = 256

    @property
    def pages(self) -> int:
        return (self.stage1_steps + self.stage2_steps) * self.batch


QUICK = Schedule(base_steps=6, base_tiled_steps=6, stage1_steps=3, stage2_steps=3, batch=4, test_pages=8)


@dataclass(frozen=True)
class Configuration:
    """The model of a run. `projector` and `lvtc` are arguments of the library's configurations."""

    window: int = 4  # M₁: M₁ x M₁ patches become one token
    slicing: str = "whole"
    projector: dict = field(default_factory=lambda: {"projector_type": "pixel_shuffle"})
    lvtc: dict | None = None

    def key(self, schedule: Schedule, seed: int) -> str:
        """A hash of all settings of a run. Equal configurations of two tables are one run."""
        settings = json.dumps([asdict(self), asdict(schedule), seed, LAYERS], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


def pvtc(**arguments) -> dict:
    return {"projector_type": "pvtc", "num_heads": 4, "drop_path_rate": 0.0, **arguments}


def lvtc(window: int = 2, hr: bool = True, multi: bool = True, k: int = EXPAND_LAYER) -> dict:
    """LVTC that expands to windows of M₂ x M₂ patches at layer k, with or without HR projector and multi-projector."""
    arguments = {"downsample_ratio": 1 / window, "expand_layer": k}
    if not hr:
        arguments["hr_projector_type"] = None
    if not multi:
        arguments["num_lr_projectors"] = 1
    return arguments


BASE = Configuration()
BASE_4N = Configuration(window=2)
PVTC = Configuration(projector=pvtc())
LVTC = Configuration(lvtc=lvtc())
RATIO = Configuration(slicing="ratio")
EDGE = Configuration(slicing="edge")

TABLE_2 = {
    "Base": BASE,
    "Base, 4N tokens": BASE_4N,
    "+ PVTC": PVTC,
    "+ LVTC": LVTC,
    "+ PVTC + LVTC": Configuration(projector=pvtc(), lvtc=lvtc()),
    "Base-HD": RATIO,
    "+ RVTC": EDGE,
    "+ PVTC + RVTC": Configuration(slicing="edge", projector=pvtc()),
    "Full model": Configuration(slicing="edge", projector=pvtc(), lvtc=lvtc()),
}
TABLE_3 = {
    "Base": BASE,
    "global, no scale": Configuration(projector=pvtc(use_local=False, use_cls_scale=False)),
    "global": Configuration(projector=pvtc(use_local=False)),
    "local": Configuration(projector=pvtc(use_global=False)),
    "global + local": PVTC,
    "2 layers": Configuration(projector=pvtc(num_layers=2)),
    "3 layers": Configuration(projector=pvtc(num_layers=3)),
}
TABLE_4 = {
    "Base N": BASE,
    "Base 4N": BASE_4N,
    "Base 4N → N": Configuration(window=2, lvtc=lvtc(window=4, hr=False, multi=False)),
    "LVTC N → 4N": Configuration(lvtc=lvtc(hr=False, multi=False)),
    "+ HR": Configuration(lvtc=lvtc(multi=False)),
    "+ multi": Configuration(lvtc=lvtc(hr=False)),
    "+ HR + multi": LVTC,
}
TABLE_5 = {"ratio": RATIO, "area": Configuration(slicing="area"), "edge": EDGE}
FIGURE_7 = {"linear x1": Configuration(window=1, projector={"projector_type": "linear"})} | {
    f"{kind} x{window**2}": Configuration(
        window=window,
        projector=pvtc()
        if kind == "pvtc"
        else {"projector_type": kind, **({"num_heads": 4} if kind == "token_packer" else {})},
    )
    for window in (8, 4, 2)
    for kind in PROJECTORS
}
FIGURE_8 = (
    {"never": BASE}
    | {f"k={k}": Configuration(lvtc=lvtc(k=k)) for k in (5, 2, 7, 4, 6, 3)}
    | {f"M1=4 M2={window}": Configuration(lvtc=lvtc(window=window)) for window in (2, 4, 1, 8)}
    | {f"M1={window} M2=2": Configuration(window=window, lvtc=lvtc()) for window in (8, 2)}
)
# in the order of the runs
GROUPS = {
    "table2": TABLE_2,
    "figure7": FIGURE_7,
    "table4": TABLE_4,
    "table3": TABLE_3,
    "figure8": FIGURE_8,
    "table5": TABLE_5,
}
