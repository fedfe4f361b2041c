"""The comparisons about claims of the digit study that do not appear. Chosen when the verdicts were known."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from evidence.experiments import METHOD, SCHEDULE, TASK, Comparison, Experiments

DENSER = "digits that 4N tokens do not hold either"
MORE_STEPS = "three times the steps of stage 2"
FOUR_N = ("table2", "Base, 4N tokens")
ONE_TILE_4N = ("table5", "one tile, 4N tokens")
ONE_TILE = "pages of one tile"

RATIO_AND_EDGE = [
    Comparison(SCHEDULE, MORE_STEPS, ("longer", "ratio, 3x"), ("longer", "edge, 3x")),
    Comparison(METHOD, "with PVTC", ("attribution", "+ PVTC"), ("attribution", "+ PVTC + RVTC")),
    Comparison(METHOD, "with LVTC", ("attribution", "+ LVTC"), ("attribution", "+ LVTC + RVTC")),
]
EXPERIMENTS: Experiments = {
    ("table2", "LVTC above the dense 4N"): [
        Comparison(TASK, DENSER, ("denser", "LVTC"), ("denser", "4N")),
        Comparison(METHOD, "expanded at 2/8 of the layers", ("k_curve", "N → 4N, k=2"), ("k_curve", "4N")),
    ],
    ("table2", "PVTC not below the dense 4N"): [
        Comparison(SCHEDULE, MORE_STEPS + " for PVTC alone", ("longer", "PVTC, 3x"), FOUR_N),
        Comparison(
            TASK, "4 patches a token instead of 16, denser pages", ("figure7", "pvtc x4"), ("figure7", "linear x1")
        ),
        Comparison(METHOD, "N tokens of a pixel shuffle", ("table2", "Base"), FOUR_N),
        Comparison(METHOD, "N tokens of a pixel shuffle, for them alone " + MORE_STEPS, ("longer", "N, 3x"), FOUR_N),
    ],
    ("table2", "PVTC adds to LVTC"): [
        Comparison(TASK, DENSER, ("denser", "PVTC + LVTC"), ("denser", "LVTC")),
        Comparison(
            TASK, "pages of several tiles, cut by ratio", ("attribution", "+ PVTC + LVTC"), ("attribution", "+ LVTC")
        ),
        Comparison(
            TASK,
            "pages of several tiles, cut by edge",
            ("attribution", "Full model"),
            ("attribution", "+ LVTC + RVTC"),
        ),
        Comparison(METHOD, "without LVTC", ("table2", "+ PVTC"), ("table2", "Base")),
    ],
    ("attribution", "PVTC adds to LVTC"): [
        Comparison(TASK, ONE_TILE, ("table2", "+ PVTC + LVTC"), ("table2", "+ LVTC")),
        Comparison(METHOD, "without LVTC", ("attribution", "+ PVTC"), ("attribution", "Base")),
    ],
    ("attribution", "PVTC adds to RVTC"): [
        Comparison(TASK, ONE_TILE, ("table2", "+ PVTC"), ("table2", "Base")),
        Comparison(METHOD, "with InternVL's slicing", ("attribution", "+ PVTC"), ("attribution", "Base")),
    ],
    ("attribution", "PVTC adds to LVTC + RVTC"): [
        Comparison(TASK, ONE_TILE, ("table2", "+ PVTC + LVTC"), ("table2", "+ LVTC")),
        Comparison(METHOD, "without LVTC", ("attribution", "+ PVTC + RVTC"), ("attribution", "+ RVTC")),
        Comparison(METHOD, "with InternVL's slicing", ("attribution", "+ PVTC + LVTC"), ("attribution", "+ LVTC")),
    ],
    ("table5", "RVTC above one tile with 4N tokens"): [
        Comparison(SCHEDULE, MORE_STEPS + " for edge alone", ("longer", "edge, 3x"), ONE_TILE_4N),
        Comparison(METHOD, "with LVTC", ("attribution", "+ LVTC + RVTC"), ONE_TILE_4N),
    ],
    ("table5", "ratio above edge"): RATIO_AND_EDGE,
    ("table5", "ratio only a little above edge"): RATIO_AND_EDGE,
    ("families", "LLaVA: PVTC above N"): [
        Comparison(METHOD, "InternVL's tower, projector and language model", ("table2", "+ PVTC"), ("table2", "Base")),
        Comparison(
            METHOD, "SigLIP's tower, and a pixel shuffle", ("families", "SigLIP: + PVTC"), ("families", "SigLIP: N")
        ),
    ],
}
