"""Markdown tables of findings and intervals, the same for all studies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from evidence.claims import ALPHA, APPEARS, DOES_NOT, OTHER_WAY, UNDECIDED, Finding
from evidence.intervals import Interval, interval

VERDICTS = (APPEARS, DOES_NOT, OTHER_WAY, UNDECIDED)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned to the left, and the others to the right."""
    marks = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def read_tables(text: str) -> Iterator[dict[str, str]]:
    """The rows of all Markdown tables in a text, each as its cells by column."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not header:
            header = cells
        elif not set("".join(cells)) <= set("-:"):
            yield dict(zip(header, cells, strict=False))


def of_planned(finished: int, planned: int) -> str:
    """A number of seeds, as "2 of 5" where some are missing."""
    return str(finished) if finished == planned else f"{finished} of {planned}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign. A zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def plus_minus(values: list[float], digits: int = 1) -> str:
    """The mean and the half width of its 95 % interval."""
    known = interval(values)
    return f"{known.mean:.{digits}f}" + (f" ± {known.half_width:.{digits}f}" if known.count > 1 else "")


def bracketed(known: Interval) -> str:
    """A difference with its interval."""
    return signed(known.mean) + (f" [{signed(known.low)}, {signed(known.high)}]" if known.count > 1 else "")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(finding: Finding) -> str:
    if finding.verdict is None:
        return f"{len(finding.values)} of {finding.planned} bases"
    return finding.verdict + (" (added after the runs)" if finding.claim.added else "")


def findings_table(findings: Iterable[Finding]) -> str:
    header = (
        "claim", "verdict", "the paper", "points here, 95 % interval", "of each base", "kind", "bound", "p", "Holm's p"
    )  # fmt: skip
    rows = []
    for finding in findings:
        known = finding.interval
        rows.append(
            (
                finding.claim.text,
                verdict(finding),
                finding.claim.paper,
                bracketed(known) if known else "",
                ", ".join(signed(mean) for mean in finding.by_base.values()),
                finding.claim.kind,
                f"{finding.bound:.1f}" if known else "",
                p_value(finding.p) if finding.is_complete else "",
                p_value(finding.adjusted_p) if finding.is_complete else "",
            )
        )
    return markdown(header, rows, left=3)


def summary(findings: Sequence[Finding]) -> str:
    """How many claims have which verdict, and how far to trust so many of them at once."""
    judged = [finding for finding in findings if finding.is_complete]
    counts = Counter(finding.verdict for finding in judged)
    lines = [
        f"{len(findings)} claims: "
        + ", ".join(f"{counts[name]} *{name}*" for name in VERDICTS)
        + (f", {len(findings) - len(judged)} without all of their bases" if len(judged) < len(findings) else "")
        + "."
    ]
    if judged:
        decided = sum(finding.is_decided for finding in judged)
        surviving = sum(finding.survives_holm for finding in judged)
        lines.append(
            f"Each verdict is that of its claim alone, so up to {ALPHA * len(judged):.1f} of the {len(judged)} are expected to "
            f"be false. {surviving} of the {decided} that decide something survive Holm's adjustment over all claims."
        )
    return " ".join(lines)
