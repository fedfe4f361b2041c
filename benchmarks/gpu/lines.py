"""What `make gpu` measures, in order of worth: lines, each of some ways and cases, in chunks that are started alone."""

from dataclasses import dataclass, field

NATIVE, BASE, ALL = "InternVL in transformers", "InternVL2-HD", "InternVL-X"
# the paper's Table 2: hours of training as a share of InternVL2-HD's (18.7 of 13.5), milliseconds per token
PAPER = {BASE: (1.0, 46.7), "+ RVTC": (8.6 / 13.5, 43.3), ALL: (18.7 / 13.5, 45.2)}
TURNS = 3
SIZES = ("640x480", "1280x720", "1240x1754", "3000x2000")


@dataclass(frozen=True)
class Line:
    """One comparison.

    Args:
        work: a class of work.py, which does what is timed.
        ways: what is compared; a process of its own for each.
        base: the way that the others are compared with.
        cases: settings, each measured with every way.
        tiny: the cases of `--preset tiny`.
        stays: whether the processes live until the end of the line. Otherwise each turn has its own, for a memory that would
            not hold all of them.
        targets: (way, words of a case, time, limit): seconds, or with the name of a way a share of its time.
    """

    name: str
    chunk: int
    work: str
    ways: tuple[str, ...]
    base: str
    cases: list[dict]
    tiny: list[dict]
    stays: bool = True
    targets: list[tuple] = field(default_factory=list)


def _answers(geometry: str, chunk: int) -> Line:
    cases = [{"preset": geometry, "image": size, "samples": n, "tokens": 64} for n in (1, 16) for size in SIZES]
    tiny = [{"preset": "mini", "image": "320x160", "samples": n, "tokens": 2} for n in (1, 2)]
    return Line(f"from JPEG to answer, {geometry}", chunk, "Answers", (NATIVE, ALL), NATIVE, cases, tiny)


IDEAS = (BASE, ALL, "+ RVTC", "+ PVTC", "+ LVTC", NATIVE)
PADDED = "padded, sdpa"
LINES = [
    Line(
        *("training", 1, "Training", IDEAS, BASE),
        cases=[{"preset": "internvl2-2b", "samples": 4, "steps": 8}],
        tiny=[{"preset": "mini", "samples": 1, "steps": 1}],
        stays=False,
        targets=[(ALL, "", "step", 0.65, BASE)],
    ),
    Line(
        *("decoding", 2, "Decoding", IDEAS, BASE),
        cases=[{"preset": "internvl2-2b", "compiled": compiled, "tokens": 64} for compiled in (True, False)],
        tiny=[{"preset": "mini", "compiled": compiled, "tokens": 3} for compiled in (True, False)],
        targets=[(ALL, "compiled", "token", 2e-3, None)],
    ),
    _answers("internvl2-2b", 2),
    Line(
        *("packing", 3, "Packing", (PADDED, "packed, sdpa", "packed, varlen_sdpa"), PADDED),
        cases=[{"preset": "internvl2-2b", "text": 64, "steps": 8}],
        tiny=[{"preset": "mini", "text": 4, "steps": 1}],
        stays=False,
        targets=[("packed, varlen_sdpa", "", "step", 1.0, PADDED)],
    ),
    _answers("internvl2-1b", 3),
    _answers("internvl2-8b", 3),
]
CHUNKS = sorted({line.chunk for line in LINES})


def worded(case: dict) -> str:
    return ", ".join(
        name if value is True else f"not {name}" if value is False else f"{name} {value}"
        for name, value in case.items()
        if name not in ("preset", "steps", "tokens")
    )
