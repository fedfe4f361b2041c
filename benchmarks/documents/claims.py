"""The claims of the document study, fixed before its runs; evidence/RULES.md has their kinds and the rules of the verdicts.

A claim is about words right on paragraphs that no training saw. The paper's differences are those of its tables, where there are any.
No claim compares slicings: borders of tiles would cut letters in some slicings and none in one tile.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from evidence.claims import NOT_BELOW, Claim

SLIGHT = 0.1  # share of the yardstick that is a slight loss, see RULES.md
TOKENS = ("4N", "N")  # the gain of uncompressed tokens
SAME_TOKENS, HIDDEN = "N → N, with LVTC's projectors", "4N, hidden before layer k"

CLAIMS: list[Claim] = [
    Claim("more tokens are better: 4N above N", "4N", "N", paper="+2.15 (Tables 2, 4)"),
    Claim("PVTC above pixel shuffle", "PVTC", "N", paper="+2.25 (Tables 2, 3, Figure 7)"),
    Claim("LVTC above the base", "LVTC", "N", paper="+2.48 (Table 2)"),
    Claim(
        "LVTC not below the dense 4N", "LVTC", "4N", NOT_BELOW,
        "“maintains identical performance” (section 3.2)", SLIGHT, TOKENS,
    ),
    Claim("LVTC needs its extra tokens: above N → N", "LVTC", SAME_TOKENS),
    Claim("LVTC's projectors alone are better: N → N above N", SAME_TOKENS, "N"),
    Claim("LVTC needs its early layers: above tokens hidden there", "LVTC", HIDDEN),
    Claim("LVTC adds to PVTC", "PVTC + LVTC", "PVTC", paper="+0.87 (Table 2)"),
    Claim("PVTC adds to LVTC", "PVTC + LVTC", "LVTC", paper="+0.64 (Table 2)"),
    Claim("PVTC above the downsampled image, at equal tokens", "PVTC", "N, image downsampled"),
    Claim("pixel shuffle above the downsampled image, at equal tokens", "N", "N, image downsampled"),
]  # fmt: skip
