"""The claims of the dial's study, fixed before its runs; ../evidence/RULES.md has the rules of the verdicts.

Rows are named MODEL at SIZE. "elastic" draws 4 and 16 tokens 1 : 1 in twice the steps of a specialist (equal steps at each size),
"elastic 3:1" three small ones for each large one, in as many (about the cost of both specialists together).
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from evidence.claims import NOT_BELOW, Claim

SLIGHT = 0.1  # share of the gain of 16 tokens over 4
TOKENS = ("specialist at 16", "specialist at 4")

CLAIMS = [
    Claim("at 4, equal steps: not below the specialist", "elastic at 4", "specialist at 4", NOT_BELOW, "", SLIGHT, TOKENS),
    Claim("at 16, equal steps: not below the specialist", "elastic at 16", "specialist at 16", NOT_BELOW, "", SLIGHT, TOKENS),
    Claim("at 4, equal cost: above the specialist", "elastic 3:1 at 4", "specialist at 4"),
    Claim("at 16, equal cost: not below the specialist", "elastic 3:1 at 16", "specialist at 16", NOT_BELOW, "", SLIGHT, TOKENS),
    Claim("a small size is worth training: above pooling at test time", "elastic 3:1 at 4", "specialist pooled to 4"),
    *(
        Claim(f"merged at {k}: the mean above zeros", f"mean at {k}", f"knock_out at {k}")
        for k in (2, 4, 6)
    ),
    *(
        Claim(f"merged at {k}: {rule} above the mean", f"{rule} at {k}", f"mean at {k}")
        for k in (2, 4, 6)
        for rule in ("one", "random", "fastv", "tome")
    ),
]  # fmt: skip
