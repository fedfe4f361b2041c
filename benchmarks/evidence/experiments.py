"""Claims that do not appear, beside comparisons that tell whether the task, the schedule or the method is the reason."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evidence.claims import APPEARS, Finding
from evidence.intervals import Interval
from evidence.tables import bracketed, markdown, verdict

TASK, SCHEDULE, METHOD = "task", "schedule", "method"
Row = tuple[str, str]  # group and name


@dataclass(frozen=True)
class Comparison:
    """The difference `better` - `worse` where one thing is not as in the rows of a claim.

    Args:
        kind: what that is: `TASK`, `SCHEDULE` or `METHOD`.
        change: the change in words.
    """

    kind: str
    change: str
    better: Row
    worse: Row


# the comparisons about a claim, which is named by its group and its text
Experiments = Mapping[tuple[str, str], Sequence[Comparison]]


def not_appearing(findings: Mapping[str, Sequence[Finding]]) -> list[tuple[str, Finding]]:
    """The judged claims that have another verdict than "appears", with their groups."""
    return [
        (group, finding)
        for group, found in findings.items()
        for finding in found
        if finding.is_complete and finding.verdict != APPEARS
    ]


def experiments_table(
    findings: Mapping[str, Sequence[Finding]],
    experiments: Experiments,
    difference: Callable[[Row, Row], Interval | None],
    titles: Mapping[str, str],
) -> str:
    """Each claim that does not appear, and below it its comparisons.

    Args:
        difference: that of two rows; None without runs.
        titles: of the groups. A claim that several groups make is named with its own.
    """
    texts = Counter(finding.claim.text for found in findings.values() for finding in found)
    lines = []
    for group, finding in not_appearing(findings):
        text = finding.claim.text
        name = text if texts[text] == 1 else f"{text} ({titles[group]})"
        lines.append([name, "", bracketed(finding.interval), str(len(finding.values)), verdict(finding)])
        for comparison in experiments.get((group, finding.claim.text), ()):
            if found := difference(comparison.better, comparison.worse):
                lines.append(["", f"{comparison.kind}: {comparison.change}", bracketed(found), str(found.count), ""])
    return markdown(["claim", "what is changed", "points, 95 % interval", "seeds", "verdict"], lines, left=2)


TEXT = """\
Below each claim that has another verdict stand differences of the same kind in which one thing is changed: the task, the schedule or
the method. What makes a claim appear was the reason why it did not. These lines have no verdict of their own."""
