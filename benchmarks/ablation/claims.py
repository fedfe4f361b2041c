"""The claims of the digit study, each a question of a user or a reviewer: what the paper says, and what the controls are to decide.

Fixed before the runs; evidence/RULES.md has the kinds of claims, the rules of the verdicts and where the bounds come from.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from evidence.claims import ABOUT, NOT_BELOW, Claim

SLIGHT = 0.1  # share of the yardstick where the paper gives no number of its own
TOKENS = ("4N", "N")  # the gain of uncompressed tokens
TILES = ("ratio", "one tile")  # the gain of all tiles
SKIPPED, WIDE = "PVTC, attention skipped", "N, as many parameters as PVTC"
SAME_TOKENS, HIDDEN = "N → N, with LVTC's projectors", "4N, hidden before layer k"

CLAIMS: dict[str, list[Claim]] = {
    "projectors": [
        Claim("more tokens are better: 4N above N", "4N", "N", paper="+2.15 (Tables 2, 4)"),
        Claim("PVTC above pixel shuffle", "PVTC", "N", paper="+2.25 (Tables 2, 3, Figure 7)"),
        Claim("PVTC above a pixel shuffle with as many parameters", "PVTC", WIDE),
        Claim("PVTC needs its attention: above PVTC without it", "PVTC", SKIPPED),
        Claim("PVTC not below the dense 4N", "PVTC", "4N", NOT_BELOW, "+0.10 (Table 2)", SLIGHT, TOKENS),
    ],
    "steps": [
        Claim("PVTC above pixel shuffle after 4x the steps", "PVTC, 4x steps", "N, 4x steps"),
        Claim("PVTC needs its attention after 4x the steps", "PVTC, 4x steps", f"{SKIPPED}, 4x steps"),
        Claim("PVTC above a pixel shuffle with twice its steps", "PVTC", "N, 2x steps"),
    ],
    "layers": [
        Claim("LVTC above N", "LVTC", "N", paper="+2.48 (Table 2)"),
        Claim(
            "LVTC not below the dense 4N", "LVTC", "4N", NOT_BELOW,
            "“maintains identical performance” (section 3.2)", SLIGHT, TOKENS,
        ),
        Claim("LVTC needs its extra tokens: above N → N", "LVTC", SAME_TOKENS),
        Claim("LVTC's projectors alone are better: N → N above N", SAME_TOKENS, "N"),
        Claim("LVTC needs its early layers: above tokens hidden there", "LVTC", HIDDEN),
        Claim("PVTC adds to LVTC", "PVTC + LVTC", "LVTC", paper="+0.64 (Table 2)"),
        Claim("PVTC as the HR projector adds to LVTC", "PVTC + LVTC, HR projector PVTC", "LVTC"),
        Claim("LVTC adds to PVTC", "PVTC + LVTC", "PVTC", paper="+0.87 (Table 2)"),
        Claim("the default M₂ = 1 above 2", "LVTC, M₂ = 1", "LVTC"),
        Claim("M₂ = 1 needs more late layers: k = 2 above k = 5", "LVTC, M₂ = 1, k = 2", "LVTC, M₂ = 1"),
    ],
    "slicing": [
        Claim("all tiles above one", "ratio", "one tile", paper="+10.99 (Table 2)"),
        Claim("RVTC by edge above one tile", "edge", "one tile", paper="+10.43 (Table 2)"),
        Claim("ratio above edge", "ratio", "edge", paper="+0.56 (Table 5)"),
        Claim("ratio only a little above edge", "ratio", "edge", ABOUT, "+0.56 (Table 5)", 0.1, TILES),
        Claim("edge above area", "edge", "area", paper="+0.75 (Table 5)"),
        Claim("edge with 4N tokens above ratio with N", "edge, 4N", "ratio"),
        Claim("ratio above edge, with 4N tokens", "ratio, 4N", "edge, 4N"),
    ],
}  # fmt: skip
