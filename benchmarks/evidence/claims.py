"""Claims about two rows of a study, and the verdicts on them. RULES.md states the rules; this file applies them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evidence.intervals import CONFIDENCE, Interval, Score, base_means, holm, interval, p_inside, paired_differences

ABOVE, ABOUT, NOT_BELOW = "above", "about", "not below"
APPEARS, DOES_NOT, OTHER_WAY, UNDECIDED = "appears", "does not", "the other way", "not told apart"
SMALLEST_DIFFERENCE = 1.0  # points; smaller ones are of no interest
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
        planned: the number of seeds without which there is no verdict.
        adjusted_p: Holm's, over all claims of the study.
    """

    claim: Claim
    differences: tuple[Score, ...]
    gain: float
    planned: int
    adjusted_p: float = 1.0

    @property
    def is_complete(self) -> bool:
        return len(self.differences) == self.planned

    @property
    def values(self) -> list[float]:
        return [difference.value for difference in self.differences]

    @property
    def interval(self) -> Interval | None:
        return interval(self.values) if self.differences else None

    @property
    def by_base(self) -> dict[int, float]:
        return base_means(self.differences)

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
        """One of the four verdicts; None while seeds are missing."""
        if not self.is_complete:
            return None
        supported = [verdict for verdict, p in self.p_values.items() if p < ALPHA]
        if not supported:
            return UNDECIDED
        low, high = self.claim.regions(self.bound)[supported[0]]
        return supported[0] if all(low < mean < high for mean in self.by_base.values()) else UNDECIDED

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


def judge(claims: Iterable[Claim], scores: Mapping[str, Sequence[Score]], seeds: int) -> list[Finding]:
    """The findings on claims, from the scores of each row. Only seeds 0 … `seeds` - 1 count. Not yet adjusted."""
    counted = {row: [score for score in found if 0 <= score.seed < seeds] for row, found in scores.items()}
    findings = []
    for claim in claims:
        differences = paired_differences(counted.get(claim.better, []), counted.get(claim.worse, []))
        gain = 0.0
        if claim.yardstick:
            larger, smaller = claim.yardstick
            gains = paired_differences(counted.get(larger, []), counted.get(smaller, []))
            common = {difference.seed for difference in differences} & {score.seed for score in gains}
            differences = [difference for difference in differences if difference.seed in common]
            gain = statistics.fmean(score.value for score in gains if score.seed in common) if common else 0.0
        findings.append(Finding(claim, tuple(differences), gain, seeds))
    return findings


def adjust(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a whole study with Holm's p-values. A claim without all of its seeds counts with p = 1."""
    adjusted = holm([finding.p for finding in findings])
    return [replace(finding, adjusted_p=p) for finding, p in zip(findings, adjusted, strict=True)]


def base_effect(findings: Iterable[Finding]) -> float | None:
    """The variance of differences between bases over that within bases, pooled over findings; 1 if bases do not matter."""
    between = within = 0.0
    for finding in findings:
        bases, count = finding.by_base, len(finding.values)
        if len(bases) < 2 or count <= len(bases):
            continue
        mean = statistics.fmean(finding.values)
        between += sum((bases[d.base] - mean) ** 2 for d in finding.differences) / (len(bases) - 1)
        within += sum((d.value - bases[d.base]) ** 2 for d in finding.differences) / (count - len(bases))
    return between / within if within else None


def seeds_of(row: str, claims: Iterable[Claim], with_claim: int, without: int) -> int:
    """How many seeds a row gets: `with_claim` if any claim is about it or takes it as a yardstick, else `without`."""
    return with_claim if any(row in claim.rows for claim in claims) else without
