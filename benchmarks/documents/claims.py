"""The claims of the document study, fixed before its runs; evidence/RULES.md has their kinds and the rules of the verdicts.

A claim is about words right on paragraphs that no training saw. The paper's differences are those of its tables, where there are any.
"""

import sys
from pathlib import Path

from settings import SEEDS, SEEDS_FROM_THE_START, SEEDS_WITHOUT_CLAIM

sys.path.append(str(Path(__file__).parents[1]))
from evidence import claims
from evidence.claims import ABOUT, NOT_BELOW, Claim
from evidence.experiments import METHOD, SCHEDULE, Comparison, Experiments

SLIGHT = 0.1  # share of the yardstick that is a slight loss, see RULES.md
TOKENS = ("4N", "N")  # the gain of uncompressed tokens
TILES = ("ratio", "one tile")  # the gain of all tiles

CLAIMS: dict[str, list[Claim]] = {
    "one_tile": [
        Claim("more tokens are better: 4N above N", "4N", "N", paper="+2.15 (Tables 2, 4)"),
        Claim("PVTC above pixel shuffle", "PVTC", "N", paper="+2.25 (Tables 2, 3, Figure 7)"),
        Claim("LVTC above the base", "LVTC", "N", paper="+2.48 (Table 2)"),
        Claim("LVTC above the dense 4N", "LVTC", "4N", paper="+0.33 (Table 2), +0.30 (Table 4)"),
        Claim(
            "LVTC not below the dense 4N", "LVTC", "4N", NOT_BELOW,
            "“maintains identical performance” (section 3.2)", SLIGHT, TOKENS,
        ),
        Claim("LVTC adds to PVTC", "PVTC + LVTC", "PVTC", paper="+0.87 (Table 2)"),
        Claim("PVTC adds to LVTC", "PVTC + LVTC", "LVTC", paper="+0.64 (Table 2)"),
        Claim("PVTC above the downsampled image, at equal tokens", "PVTC", "N, image downsampled"),
        Claim("pixel shuffle above the downsampled image, at equal tokens", "N", "N, image downsampled"),
    ],
    "several_tiles": [
        Claim("all tiles above one tile", "ratio", "one tile", paper="+10.99 (Table 2)"),
        Claim("RVTC by edge above one tile", "edge", "one tile", paper="+10.43 (Table 2)"),
        Claim(
            "RVTC by edge only a little below all tiles", "ratio", "edge", ABOUT, "+0.56 (Tables 2, 5)", SLIGHT, TILES,
        ),
        Claim("RVTC by edge above RVTC by area", "edge", "area", paper="+0.75 (Table 5)"),
        Claim("PVTC + LVTC add to RVTC by edge", "PVTC + LVTC + edge", "edge", paper="+3.35 (Table 2)"),
        Claim("all three above all tiles", "PVTC + LVTC + edge", "ratio", paper="+2.79 (Table 2)"),
    ],
}  # fmt: skip

# chosen after LVTC's first runs had been seen; those of pages of several tiles when the verdicts were known
LONGER_OR_EARLIER = [
    Comparison(
        SCHEDULE, "three times the steps for LVTC alone", ("experiments", "LVTC, 3x steps"), ("one_tile", "4N")
    ),
    Comparison(
        METHOD, "expanded at half of the layers", ("experiments", "LVTC at 1/2 of the layers"), ("one_tile", "4N")
    ),
]
WITH_BOTH, ALL_THREE = "with PVTC and LVTC", ("several_tiles", "PVTC + LVTC + edge")
EXPERIMENTS: Experiments = {
    ("one_tile", "LVTC above the dense 4N"): LONGER_OR_EARLIER,
    ("one_tile", "LVTC not below the dense 4N"): LONGER_OR_EARLIER,
    ("one_tile", "PVTC adds to LVTC"): [Comparison(METHOD, "without LVTC", ("one_tile", "PVTC"), ("one_tile", "N"))],
    ("several_tiles", "RVTC by edge only a little below all tiles"): [
        Comparison(METHOD, WITH_BOTH, ("experiments", "PVTC + LVTC + ratio"), ALL_THREE)
    ],
    ("several_tiles", "RVTC by edge above RVTC by area"): [
        Comparison(METHOD, WITH_BOTH, ALL_THREE, ("experiments", "PVTC + LVTC + area"))
    ],
}


def seeds_of(group: str, row: str) -> int:
    """The number of seeds of a row: more if a claim is about it."""
    if group == "from_the_start":
        return SEEDS_FROM_THE_START
    return claims.seeds_of(row, CLAIMS.get(group, ()), SEEDS, SEEDS_WITHOUT_CLAIM)
