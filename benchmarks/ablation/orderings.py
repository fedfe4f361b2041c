"""The paper's orderings of configurations in each group, better before worse, and whether the runs show them."""

from dataclasses import dataclass

from estimates import Estimate, difference

PAPER = {
    "table2": [
        ("more tokens are better: 4N above N", "Base, 4N tokens", "Base"),
        ("PVTC above the base", "+ PVTC", "Base"),
        ("LVTC above the base", "+ LVTC", "Base"),
        ("LVTC above the dense 4N", "+ LVTC", "Base, 4N tokens"),
        ("LVTC adds to PVTC", "+ PVTC + LVTC", "+ PVTC"),
        ("PVTC adds to LVTC", "+ PVTC + LVTC", "+ LVTC"),
        ("several tiles above one", "Base-HD", "Base"),
        ("all tiles above RVTC (the paper: by a little)", "Base-HD", "+ RVTC"),
        ("PVTC adds to RVTC", "+ PVTC + RVTC", "+ RVTC"),
        ("PVTC + RVTC above all tiles", "+ PVTC + RVTC", "Base-HD"),
        ("LVTC adds to PVTC + RVTC", "Full model", "+ PVTC + RVTC"),
    ],
    "table3": [
        ("the global query alone, without scale, below the base", "Base", "global, no scale"),
        ("the CLS scale helps", "global", "global, no scale"),
        ("the global query above the base", "global", "Base"),
        ("the local query above the global one", "local", "global"),
        ("both above the local query", "global + local", "local"),
        ("2 layers above 1 (the paper: by a little)", "2 layers", "global + local"),
        ("3 layers below 2", "2 layers", "3 layers"),
    ],
    "table4": [
        ("4N → N above N (the paper: by a little)", "Base 4N → N", "Base N"),
        ("4N → N below 4N", "Base 4N", "Base 4N → N"),
        ("expanding late above compressing late", "+ HR + multi", "Base 4N → N"),
        ("upsampling alone above N (the paper: by next to nothing)", "LVTC N → 4N", "Base N"),
        ("the HR projector helps", "+ HR", "LVTC N → 4N"),
        ("the multi-projector helps", "+ multi", "LVTC N → 4N"),
        ("the HR projector helps more", "+ HR", "+ multi"),
        ("both above the HR projector alone", "+ HR + multi", "+ HR"),
        ("both above the dense 4N", "+ HR + multi", "Base 4N"),
    ],
    "table5": [
        ("ratio above edge", "ratio", "edge"),
        ("edge above area", "edge", "area"),
    ],
    "figure7": [
        (f"PVTC above {label} at {ratio}x", f"pvtc x{ratio}", f"{kind} x{ratio}")
        for ratio in (4, 16, 64)
        for kind, label in (("pixel_shuffle", "pixel shuffle"), ("ldpv2", "LDPv2"), ("token_packer", "TokenPacker"))
    ]
    + [("PVTC at 4x not below the uncompressed linear projector", "pvtc x4", "linear x1")],
    "figure8": [
        ("M₂ 4 above 8", "M1=4 M2=4", "M1=4 M2=8"),
        ("M₂ 2 above 4", "M1=4 M2=2", "M1=4 M2=4"),
        ("M₂ 1 above 2", "M1=4 M2=1", "M1=4 M2=2"),
        ("M₁ 4 above 8", "M1=4 M2=2", "M1=8 M2=2"),
        ("M₁ 2 above 4", "M1=2 M2=2", "M1=4 M2=2"),
        ("expanding at k = 7/8 above never", "k=7", "never"),
        ("at 6/8 above 7/8", "k=6", "k=7"),
        ("at 5/8 above 6/8", "k=5", "k=6"),
        ("at 4/8 above 5/8 (the paper: by a little)", "k=4", "k=5"),
    ],
}


@dataclass
class Finding:
    claim: str
    gain: Estimate

    @property
    def verdict(self) -> str:
        """Judged by two standard errors, a rule of thumb for few seeds. Less than half a point never counts as a difference."""
        if self.gain.error is None:
            return "one seed"
        if abs(self.gain.mean) <= 2 * self.gain.error or abs(self.gain.mean) < 0.5:
            return "not told apart"
        return "appears" if self.gain.mean > 0 else "the other way round"


def findings(group: str, runs: dict[str, list[dict]]) -> list[Finding]:
    """The findings on the paper's orderings of a group."""
    found = []
    for claim, better, worse in PAPER[group]:
        gain = difference(runs[better], runs[worse]) if better in runs and worse in runs else None
        if gain is not None:
            found.append(Finding(claim, gain))
    return found


def orderings_table(group: str, runs: dict[str, list[dict]]) -> str:
    rows = [("the paper's ordering", "points here", "verdict"), ("---", "---:", "---")]
    rows += [(finding.claim, finding.gain.signed(), finding.verdict) for finding in findings(group, runs)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
