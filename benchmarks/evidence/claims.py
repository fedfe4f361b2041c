"""Claims about two rows of a study, and the verdicts on them. RULES.md states the rules; this file applies them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evidence.intervals import CONFIDENCE, Interval, Score, base_means, holm, interval, p_inside, paired_differences

ABOVE, ABOUT, NOT_BELOW = "above", "about", "not below"
APPEARS, DOES_NOT, OTHER_WAY, UNDECIDED = "appears", "does not", "the other way", "not told apart"
SMALLEST_DIFFERENCE = 1.0  # points; smaller ones are of no interest
LARGEST_CUT = 5.0  # points by which the shares of cut symbols of two compared rows may differ
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Claim:
    """A claim about the difference `better` - `worse`.

    Args:
        text: the claim as the tables show it.
        better, worse: names of rows.
        kind: `ABOVE`, `ABOUT` (equal, or only a little above) or `NOT_BELOW`.
        paper: the paper's own difference and where it stands; empty if the paper does not make the claim.
        share: of `ABOUT` and `NOT_BELOW`, the bound as a share of the yardstick's gain.
        yardstick: two rows, the larger first, whose difference is the gain that `share` refers to.
        added: whether the claim was added after runs of its rows had been seen.
    """

    text: str
    better: str
    worse: str
    kind: str = ABOVE
    paper: str = ""
    share: float | None = None
    yardstick: tuple[str, str] | None = None
    added: bool = False

    def __post_init__(self):
        if self.kind not in (ABOVE, ABOUT, NOT_BELOW):
            raise ValueError(
                f"kind of {self.text!r} should be {ABOVE!r}, {ABOUT!r} or {NOT_BELOW!r}, got {self.kind!r}."
            )
        if self.kind == ABOVE and (self.share is not None or self.yardstick is not None):
            raise ValueError(f"{self.text!r} is of kind {ABOVE!r}, which takes neither share nor yardstick.")
        if self.kind != ABOVE and not (self.yardstick and self.share and 0 < self.share < 1):
            raise ValueError(
                f"{self.text!r} is of kind {self.kind!r}, which needs a yardstick and a share between 0 and 1, "
                f"got {self.yardstick} and {self.share}."
            )

    @property
    def rows(self) -> tuple[str, ...]:
        return (self.better, self.worse, *(self.yardstick or ()))

    def regions(self, bound: float) -> dict[str, tuple[float, float]]:
        """The open interval of differences that each verdict stands for, in the order in which they are tried."""
        if self.kind == ABOVE:
            return {DOES_NOT: (-bound, bound), APPEARS: (0, math.inf), OTHER_WAY: (-math.inf, 0)}
        if self.kind == ABOUT:
            return {APPEARS: (-bound, bound), DOES_NOT: (bound, math.inf), OTHER_WAY: (-math.inf, -bound)}
        return {APPEARS: (-bound, math.inf), OTHER_WAY: (-math.inf, -bound)}


@dataclass(frozen=True)
class Finding:
    """What the runs say about a claim.

    Args:
        differences: `better` - `worse` of each seed that has all of the claim's rows.
        gain: the yardstick's mean difference over the same seeds.
        planned: the number of bases without which there is no verdict.
        adjusted_p: Holm's, over all claims of the study.
    """

    claim: Claim
    differences: tuple[Score, ...]
    gain: float
    planned: int
    adjusted_p: float = 1.0

    @property
    def by_base(self) -> dict[int, float]:
        return base_means(self.differences)

    @property
    def values(self) -> list[float]:
        """The means of the bases, which are the units of the interval: seeds of one base are not independent."""
        return list(self.by_base.values())

    @property
    def is_complete(self) -> bool:
        return len(self.values) == self.planned

    @property
    def interval(self) -> Interval | None:
        return interval(self.values) if self.differences else None

    @property
    def bound(self) -> float:
        """In points. The smallest difference of interest is the least that any bound can be."""
        return max(SMALLEST_DIFFERENCE, (self.claim.share or 0) * self.gain)

    @property
    def p_values(self) -> dict[str, float]:
        """For each verdict; below 5 % exactly if the interval lies in the verdict's region."""
        return {verdict: p_inside(self.values, *region) for verdict, region in self.claim.regions(self.bound).items()}

    @property
    def verdict(self) -> str | None:
        """One of the four verdicts; None while bases are missing."""
        if not self.is_complete:
            return None
        return next((verdict for verdict, p in self.p_values.items() if p < ALPHA), UNDECIDED)

    @property
    def p(self) -> float:
        """The p-value of the verdict; without a decision, of the verdict that is nearest to one."""
        if not self.is_complete:
            return 1.0
        return self.p_values.get(str(self.verdict), min(self.p_values.values()))

    @property
    def is_decided(self) -> bool:
        return self.verdict not in (None, UNDECIDED)

    @property
    def survives_holm(self) -> bool:
        return self.is_decided and self.adjusted_p < ALPHA


def judge(
    claims: Iterable[Claim], scores: Mapping[str, Sequence[Score]], bases: int, cut: Mapping[str, float] | None = None
) -> list[Finding]:
    """The findings on claims, from the scores of each row. Only bases 0 … `bases` - 1 count. Not yet adjusted.

    Args:
        cut: of each row, the share in percent of the symbols that borders of tiles cut.

    Raises:
        ValueError: if a claim compares rows whose shares differ by more than `LARGEST_CUT` points.
    """
    counted = {row: [score for score in found if 0 <= score.base < bases] for row, found in scores.items()}
    findings = []
    for claim in claims:
        shares = [(cut or {}).get(row, 0.0) for row in (claim.better, claim.worse)]
        if abs(shares[0] - shares[1]) > LARGEST_CUT:
            raise ValueError(
                f"{claim.text!r} compares rows of which borders of tiles cut {shares[0]:.1f} and {shares[1]:.1f} % of the "
                f"symbols, expected at most {LARGEST_CUT:g} points between them: the pages favour one of the two."
            )
        differences = paired_differences(counted.get(claim.better, []), counted.get(claim.worse, []))
        gain = 0.0
        if claim.yardstick:
            larger, smaller = claim.yardstick
            gains = paired_differences(counted.get(larger, []), counted.get(smaller, []))
            common = {difference.seed for difference in differences} & {score.seed for score in gains}
            differences = [difference for difference in differences if difference.seed in common]
            gain = statistics.fmean(score.value for score in gains if score.seed in common) if common else 0.0
        findings.append(Finding(claim, tuple(differences), gain, bases))
    return findings


def adjust(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a whole study with Holm's p-values. A claim without all of its bases counts with p = 1."""
    adjusted = holm([finding.p for finding in findings])
    return [replace(finding, adjusted_p=p) for finding, p in zip(findings, adjusted, strict=True)]
