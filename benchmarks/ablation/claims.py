"""The claims of the digit study: what the paper's Tables 2-5 and Figures 7 and 8 say, and what else the runs are to decide.

Fixed before the runs; evidence/RULES.md has the kinds of claims, the rules of the verdicts and where the bounds come from.
"""

import sys
from pathlib import Path

from settings import BASES, FAMILIES, GAINS, GROUPS, MAIN, Configuration

sys.path.append(str(Path(__file__).parents[1]))
from evidence.claims import ABOUT, NOT_BELOW, Claim

SEEDS, SEEDS_WITHOUT_CLAIM = 8, 3
SLIGHT = 0.1  # share of the yardstick where the paper gives no number of its own
TOKENS = {
    "table2": ("Base, 4N tokens", "Base"),
    "denser": ("4N", "N"),
    "table4": ("Base 4N", "Base N"),
    "k_curve": ("4N", "N"),
    "figure7": ("linear x1", "pixel_shuffle x4"),
}  # the gain of uncompressed tokens
TILES = ("ratio", "one tile")  # the gain of all tiles

CLAIMS: dict[str, list[Claim]] = {
    "table2": [
        Claim("more tokens are better: 4N above N", "Base, 4N tokens", "Base", paper="+2.15 (Tables 2, 4)"),
        Claim("PVTC above pixel shuffle", "+ PVTC", "Base", paper="+2.25 (Tables 2, 3, Figure 7)"),
        Claim("LVTC above the base", "+ LVTC", "Base", paper="+2.48 (Table 2)"),
        Claim("LVTC above the dense 4N", "+ LVTC", "Base, 4N tokens", paper="+0.33 (Table 2), +0.30 (Table 4)"),
        Claim(
            "LVTC not below the dense 4N", "+ LVTC", "Base, 4N tokens", NOT_BELOW,
            "“maintains identical performance” (section 3.2)", SLIGHT, TOKENS["table2"],
        ),
        Claim(
            "PVTC not below the dense 4N", "+ PVTC", "Base, 4N tokens", NOT_BELOW,
            "+0.10 (Table 2)", SLIGHT, TOKENS["table2"],
        ),
        Claim("LVTC above PVTC", "+ LVTC", "+ PVTC", paper="+0.23 (Table 2)"),
        Claim("PVTC and LVTC together above the base", "+ PVTC + LVTC", "Base", paper="+3.12 (Table 2), +2.85 (Table 1)"),
        Claim("LVTC adds to PVTC", "+ PVTC + LVTC", "+ PVTC", paper="+0.87 (Table 2)"),
        Claim("PVTC adds to LVTC", "+ PVTC + LVTC", "+ LVTC", paper="+0.64 (Table 2)"),
    ],
    "denser": [
        Claim("PVTC above pixel shuffle", "PVTC", "N"),
        Claim("LVTC above N tokens", "LVTC", "N"),
        Claim("LVTC above the dense 4N", "LVTC", "4N"),
        Claim("LVTC not below the dense 4N", "LVTC", "4N", NOT_BELOW, "", SLIGHT, TOKENS["denser"]),
        Claim("LVTC adds to PVTC", "PVTC + LVTC", "PVTC"),
        Claim("PVTC adds to LVTC", "PVTC + LVTC", "LVTC"),
    ],
    "attribution": [
        Claim("PVTC above the base", "+ PVTC", "Base"),
        Claim("LVTC above the base", "+ LVTC", "Base"),
        Claim("LVTC adds to PVTC", "+ PVTC + LVTC", "+ PVTC"),
        Claim("PVTC adds to LVTC", "+ PVTC + LVTC", "+ LVTC"),
        Claim("PVTC adds to RVTC", "+ PVTC + RVTC", "+ RVTC", paper="+2.64 (Table 2)"),
        Claim("PVTC + RVTC above all tiles", "+ PVTC + RVTC", "Base", paper="+2.08 (Table 2)"),
        Claim("LVTC adds to RVTC", "+ LVTC + RVTC", "+ RVTC"),
        Claim("LVTC adds to PVTC + RVTC", "Full model", "+ PVTC + RVTC", paper="+0.71 (Table 2)"),
        Claim("PVTC adds to LVTC + RVTC", "Full model", "+ LVTC + RVTC"),
        Claim("the full model above all tiles", "Full model", "Base", paper="+2.79 (Table 2), +2.37 (Table 1)"),
    ],
    "figure7": [
        Claim(f"PVTC above {label} at {ratio}x", f"pvtc x{ratio}", f"{kind} x{ratio}", paper=paper)
        for ratio in (4, 16, 64)
        for kind, label, paper in (
            ("pixel_shuffle", "pixel shuffle", "+2.25 at 4x"),
            ("ldpv2", "LDPv2", "+1.71 at 4x"),
            ("token_packer", "TokenPacker", "+1.01 at 4x"),
        )
        if (kind, ratio) != ("pixel_shuffle", 16)  # Table 2's claim about PVTC
    ]
    + [
        Claim("TokenPacker above LDPv2 at 4x", "token_packer x4", "ldpv2 x4", paper="+0.70"),
        Claim("LDPv2 above pixel shuffle at 4x", "ldpv2 x4", "pixel_shuffle x4", paper="+0.54"),
        Claim(
            "PVTC at 4x not below the uncompressed linear projector", "pvtc x4", "linear x1", NOT_BELOW,
            "“comparable” (section 4.3)", SLIGHT, TOKENS["figure7"],
        ),
        Claim("PVTC above the downsampled image, at equal tokens", "pvtc x16", "downsampled x16"),
        Claim("PVTC above average pooling, at equal tokens", "pvtc x16", "average x16"),
        Claim("PVTC above pruning by CLS attention, at equal tokens", "pvtc x16", "cls_pruning x16"),
        Claim("PVTC above pruning at random, at equal tokens", "pvtc x16", "random_pruning x16"),
        Claim("pixel shuffle above the downsampled image, at equal tokens", "pixel_shuffle x16", "downsampled x16"),
    ],
    "table3": [
        Claim("the global query alone, without scale, below the base", "Base", "global, no scale", paper="+0.59"),
        Claim("the CLS scale helps", "global", "global, no scale", paper="+1.15"),
        Claim("the global query above the base", "global", "Base", paper="+0.56"),
        Claim("the local query above the base", "local", "Base", paper="+1.54"),
        Claim("the local query above the global one", "local", "global", paper="+0.98"),
        Claim("both above the local query", "global + local", "local", paper="+0.71"),
        Claim(
            "2 layers only a little above 1", "2 layers", "global + local", ABOUT,
            "+0.27", 0.24, ("global + local", "Base"),
        ),
        Claim("2 layers above 3", "2 layers", "3 layers", paper="+0.63"),
    ],
    "table4": [
        Claim("4N → N only a little above N", "Base 4N → N", "Base N", ABOUT, "+0.27", 0.25, TOKENS["table4"]),
        Claim("4N above 4N → N", "Base 4N", "Base 4N → N", paper="+1.88"),
        Claim("expanding late above compressing late", "+ HR + multi", "Base 4N → N", paper="+2.18"),
        Claim(
            "upsampling alone only a little above N", "LVTC N → 4N", "Base N", ABOUT, "+0.13", 0.12, TOKENS["table4"]
        ),
        Claim("the HR projector helps", "+ HR", "LVTC N → 4N", paper="+1.87"),
        Claim("the multi-projector helps", "+ multi", "LVTC N → 4N", paper="+0.98"),
        Claim("the HR projector helps more than the multi-projector", "+ HR", "+ multi", paper="+0.89"),
        Claim("both above the HR projector alone", "+ HR + multi", "+ HR", paper="+0.45"),
        Claim("both above the multi-projector alone", "+ HR + multi", "+ multi", paper="+1.34"),
    ],
    "k_curve": [
        Claim("expanding at k = 7/8 above never", "N → 4N, k=7", "N", paper="“almost linear” (Figure 8)"),
        Claim("at 6/8 above 7/8", "N → 4N, k=6", "N → 4N, k=7", paper="“almost linear” (Figure 8)"),
        Claim(
            "at 5/8 only a little above 6/8", "N → 4N, k=5", "N → 4N, k=6", ABOUT,
            "“slightly increase” (Figure 8)", SLIGHT, TOKENS["k_curve"],
        ),
        Claim(
            "at 4/8 as good as at 5/8", "N → 4N, k=4", "N → 4N, k=5", ABOUT,
            "“saturated” (Figure 8)", SLIGHT, TOKENS["k_curve"],
        ),
        Claim(
            "at 2/8 as good as at 4/8", "N → 4N, k=2", "N → 4N, k=4", ABOUT,
            "“saturated” (Figure 8)", SLIGHT, TOKENS["k_curve"],
        ),
        Claim("4N → N merged at k = 1 only a little above N", "4N → N, k=1", "N", ABOUT, "", 0.25, TOKENS["k_curve"]),
    ]
    + [
        Claim(f"expanding at {k}/8 above compressing there", f"N → 4N, k={k}", f"4N → N, k={k}")
        for k in (1, 2, 3, 4, 6, 7)  # 5/8 is Table 4's
    ],
    "figure8": [
        Claim("M₂ 4 above 8", "M1=4 M2=4", "M1=4 M2=8", paper="no number"),
        Claim("M₂ 2 above 4", "M1=4 M2=2", "M1=4 M2=4", paper="no number"),
        Claim("M₂ 1 above 2", "M1=4 M2=1", "M1=4 M2=2", paper="no number"),
        Claim("M₂ 1 above 2 with three times the steps", "M1=4 M2=1, 3x steps", "M1=4 M2=2, 3x steps", paper="no number"),
        Claim("M₁ 4 above 8", "M1=4 M2=2", "M1=8 M2=2", paper="no number"),
        Claim("M₁ 2 above 4", "M1=2 M2=2", "M1=4 M2=2", paper="no number"),
    ],
    "table5": [
        Claim("all tiles above one", "ratio", "one tile", paper="+10.99 (Table 2)"),
        Claim("RVTC above one tile", "edge", "one tile", paper="+10.43 (Table 2)"),
        Claim("RVTC above one tile with 4N tokens", "edge", "one tile, 4N tokens"),
        Claim("ratio above edge", "ratio", "edge", paper="+0.56"),
        Claim("ratio only a little above edge", "ratio", "edge", ABOUT, "+0.56", 0.1, TILES),
        Claim("edge above area", "edge", "area", paper="+0.75"),
    ],
    "families": [
        Claim(f"{family}: {text}", f"{family}: {row}", f"{family}: {GAINS[row]}")
        for family in FAMILIES
        if family != MAIN
        for text, row in (("PVTC above N", "+ PVTC"), ("LVTC above N", "+ LVTC"), ("RVTC above one tile", "edge"))
    ],
}  # fmt: skip


def base_of(seed: int) -> int:
    return seed % BASES


def rows_with_claims() -> list[Configuration]:
    return [GROUPS[group][row] for group, claims in CLAIMS.items() for claim in claims for row in claim.rows]


def seeds_of(configuration: Configuration) -> int:
    """The number of seeds of a row: more if a claim, of any table that has this configuration, is about it."""
    return SEEDS if configuration in rows_with_claims() else SEEDS_WITHOUT_CLAIM
