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
FEWER_DIGITS = "fewer digits, and twice the steps of stage 2"
SAME_MORE_STEPS = MORE_STEPS + ", on the same pages"
LAST_LAYERS = "these windows in the last layers instead of the first"
AT_16X, AT_64X = "16 patches a token, on dense pages", "64 patches a token, on pages of few digits"


def with_more_steps(better: str, worse: str) -> Comparison:
    """Two rows of the denser pages, both trained for longer."""
    return Comparison(
        SCHEDULE,
        SAME_MORE_STEPS,
        *(("longer", f"denser pages: {row}, 3x") for row in (better, worse)),
    )


def both_at(k: int) -> Comparison:
    """Tokens expanded and tokens merged at layer `k` of 8."""
    return Comparison(
        METHOD, f"both at {k}/8 of the layers", *(("k_curve", f"{way}, k={k}") for way in ("N → 4N", "4N → N"))
    )


def at_other_ratios(better: str, worse: str) -> list[Comparison]:
    return [
        Comparison(TASK, change, ("figure7", f"{better} x{ratio}"), ("figure7", f"{worse} x{ratio}"))
        for change, ratio in ((AT_16X, 16), (AT_64X, 64))
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
    ("denser", "PVTC above pixel shuffle"): [
        with_more_steps("PVTC", "N"),
        Comparison(TASK, FEWER_DIGITS, ("table2", "+ PVTC"), ("table2", "Base")),
        Comparison(METHOD, "with LVTC", ("denser", "PVTC + LVTC"), ("denser", "LVTC")),
        Comparison(METHOD, "4 patches a token instead of 16", ("figure7", "pvtc x4"), ("figure7", "pixel_shuffle x4")),
    ],
    ("denser", "LVTC above the dense 4N"): [
        with_more_steps("LVTC", "4N"),
        Comparison(TASK, FEWER_DIGITS, ("table2", "+ LVTC"), FOUR_N),
        Comparison(METHOD, "with PVTC", ("denser", "PVTC + LVTC"), ("denser", "4N")),
    ],
    ("denser", "PVTC adds to LVTC"): [
        with_more_steps("PVTC + LVTC", "LVTC"),
        Comparison(TASK, FEWER_DIGITS, ("table2", "+ PVTC + LVTC"), ("table2", "+ LVTC")),
        Comparison(METHOD, "without LVTC", ("denser", "PVTC"), ("denser", "N")),
    ],
    ("figure7", "PVTC above pixel shuffle at 4x"): [
        *at_other_ratios("pvtc", "pixel_shuffle"),
        Comparison(METHOD, "16 patches a token, on the same pages", ("denser", "PVTC"), ("denser", "N")),
    ],
    ("figure7", "TokenPacker above LDPv2 at 4x"): at_other_ratios("token_packer", "ldpv2"),
    ("figure7", "LDPv2 above pixel shuffle at 4x"): at_other_ratios("ldpv2", "pixel_shuffle"),
    ("figure7", "PVTC at 4x not below the uncompressed linear projector"): [
        Comparison(
            METHOD, "a pixel shuffle instead of PVTC", ("figure7", "pixel_shuffle x4"), ("figure7", "linear x1")
        ),
        Comparison(METHOD, "average pooling instead of PVTC", ("figure7", "average x4"), ("figure7", "linear x1")),
    ],
    ("figure7", "pixel shuffle above the downsampled image, at equal tokens"): [
        Comparison(
            TASK,
            "4 patches a token, on denser pages",
            ("figure7", "pixel_shuffle x4"),
            ("figure7", "downsampled x4"),
        ),
        Comparison(TASK, AT_64X, ("figure7", "pixel_shuffle x64"), ("figure7", "downsampled x64")),
    ],
    ("table3", "the global query above the base"): [
        Comparison(METHOD, "with the local query", ("table3", "global + local"), ("table3", "Base")),
        Comparison(METHOD, "average pooling instead of the base", ("table3", "global"), ("figure7", "average x16")),
    ],
    ("table3", "2 layers only a little above 1"): [
        Comparison(METHOD, "3 layers", ("table3", "3 layers"), ("table3", "global + local")),
    ],
    ("table4", "4N → N only a little above N"): [
        Comparison(METHOD, "merged at 1/8 of the layers", ("k_curve", "4N → N, k=1"), ("k_curve", "N")),
    ],
    ("table4", "4N above 4N → N"): [
        Comparison(METHOD, "merged at 1/8 of the layers", ("k_curve", "4N"), ("k_curve", "4N → N, k=1")),
    ],
    ("table4", "expanding late above compressing late"): [
        both_at(1),
        both_at(7),
    ],
    ("table4", "the multi-projector helps"): [
        Comparison(METHOD, "with the HR projector", ("table4", "+ HR + multi"), ("table4", "+ HR")),
    ],
    ("table4", "both above the HR projector alone"): [
        Comparison(METHOD, "without the HR projector", ("table4", "+ multi"), ("table4", "LVTC N → 4N")),
    ],
    ("k_curve", "at 6/8 above 7/8"): [
        Comparison(METHOD, "both a layer earlier", ("k_curve", "N → 4N, k=5"), ("k_curve", "N → 4N, k=6")),
        Comparison(METHOD, "merged instead of expanded", ("k_curve", "4N → N, k=6"), ("k_curve", "4N → N, k=7")),
    ],
    ("k_curve", "4N → N merged at k = 1 only a little above N"): [
        Comparison(METHOD, "merged at 2/8 of the layers", ("k_curve", "4N → N, k=2"), ("k_curve", "N")),
    ],
    ("k_curve", "expanding at 2/8 above compressing there"): [both_at(1), both_at(3)],
    ("k_curve", "expanding at 4/8 above compressing there"): [both_at(3), both_at(5)],
    ("k_curve", "expanding at 6/8 above compressing there"): [both_at(5), both_at(7)],
    ("k_curve", "expanding at 7/8 above compressing there"): [both_at(5), both_at(6)],
    ("figure8", "M₂ 1 above 2"): [
        Comparison(SCHEDULE, SAME_MORE_STEPS, ("figure8", "M1=4 M2=1, 3x steps"), ("figure8", "M1=4 M2=2, 3x steps")),
    ],
    ("figure8", "M₂ 1 above 2 with three times the steps"): [
        Comparison(SCHEDULE, "a third of the steps", ("figure8", "M1=4 M2=1"), ("figure8", "M1=4 M2=2")),
    ],
    ("figure8", "M₁ 4 above 8"): [
        Comparison(METHOD, LAST_LAYERS, ("figure8", "M1=4 M2=4"), ("figure8", "M1=4 M2=8")),
    ],
    ("figure8", "M₁ 2 above 4"): [
        Comparison(METHOD, LAST_LAYERS, ("figure8", "M1=4 M2=2"), ("figure8", "M1=4 M2=4")),
        Comparison(METHOD, "without LVTC", ("k_curve", "4N"), ("k_curve", "N")),
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
