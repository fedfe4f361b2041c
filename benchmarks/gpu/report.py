"""gpu.md, from the records of one machine: every figure is a median of three turns."""

from pathlib import Path

from lines import LINES, PAPER, TURNS, Line, worded
from records import FINDING, Records, Row, is_finding

HEADER = ["case", "way", "what", "median", "of the base's time", "of its FLOPs", "time / FLOPs", "besides"]
SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def timed(seconds: float) -> str:
    scale, unit = next((each for each in SCALES if abs(seconds) >= each[0]), SCALES[-1])
    return f"{seconds / scale:.3g} {unit}"


def write_page(records: Records, path: Path, is_tiny: bool, absent: list[str]) -> None:
    lines = [line for line in LINES if any(each["line"] == line.name for each in records.own)]
    machine = records.stamp["machine"]
    head = [
        "# On a GPU",
        "Tiny models: nothing here is a result, it shows only that everything runs." * is_tiny,
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
        f"Medians of {TURNS} turns, which the ways take one after another, each in a process of its own; bfloat16, random "
        "weights, sdpa unless stated. FLOPs as torch counts them, attention in full. A way that takes more than "
        f"{FINDING} of what its FLOPs say is a finding. Not there: {', '.join(absent) or 'nothing'}.",
        "Commands: " + ", ".join(f"`{each}`" for each in dict.fromkeys(each["command"] for each in records.own)) + ".",
    ]
    parts = [*filter(None, head), *tests(records)]
    for line in lines:
        parts += section(line, records, line.tiny if is_tiny else line.cases)
    if targets := judged(records, is_tiny):
        parts += ["## Targets", table(["line", "what", "found", "target", ""], targets)]
    parts += findings(records)
    for fact in records.facts("vllm"):
        parts += ["## vLLM", f"```text\n{fact['text']}\n```"]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def tests(records: Records) -> list[str]:
    return [f"## Correct\n\n```text\n{fact['text']}\n```" for fact in records.facts("tests")[-1:]]


def section(line: Line, records: Records, cases: list[dict]) -> list[str]:
    rows, left = [], []
    for case in cases:
        base = records.row(line, line.base, case)
        for way in line.ways:
            row = records.row(line, way, case)
            if row is None:
                left.append(f"{worded(case)}, {way} ({len(records.turns(line, way, case))} of {TURNS} turns)")
            else:
                rows += cells(line, worded(case), way, row, base)
    parts = [f"## {line.name[0].upper()}{line.name[1:]}", f"Base: {line.base}."]
    parts += [table(HEADER, rows)] if rows else []
    if line.name in ("training", "decoding"):
        column = 0 if line.name == "training" else 1
        unit = "of InternVL2-HD's hours" if column == 0 else "ms a token"
        said = ", ".join(f"{way} {PAPER[way][column]:.3g}" for way in PAPER)
        parts.append(f"The paper's Table 2, {unit}: {said}.")
    parts += [f"No figure yet: {'; '.join(left)}."] if left else []
    problems = dict.fromkeys(
        f"{each['way']}, {worded(each['case'])}: {each['text']}" for each in records.facts("problem", line.name)
    )
    return parts + [f"Failed: {problem}" for problem in problems]


def cells(line: Line, case: str, way: str, row: Row, base: Row | None) -> list[list[str]]:
    others = ", ".join(f"{name} {value:.4g}" for name, value in row.others.items() if value is not None)
    found = []
    for name, seconds in row.seconds.items():
        shares = ["-", "-", "-"]
        if base is not None and way != line.base:
            share, flops = row.shares(base, name)
            shares = [f"{share:.2f}"] + ([f"{flops:.2f}", f"{share / flops:.2f}"] if flops else ["-", "-"])
            if is_finding(share, flops):
                shares[-1] += " finding"
        found.append([case, way, name, timed(seconds), *shares, others])
        others = ""
    return found


def judged(records: Records, is_tiny: bool) -> list[list[str]]:
    rows = []
    for line in LINES:
        for way, words, name, limit, base in line.targets:
            for case in line.tiny if is_tiny else line.cases:
                row = records.row(line, way, case)
                if row is None or not worded(case).startswith(words):
                    continue
                if base is None:
                    found, shown = row.seconds[name], timed
                elif (other := records.row(line, base, case)) is not None:
                    found, shown = row.seconds[name] / other.seconds[name], "{:.2f}".format
                else:
                    continue
                what = f"{way}, {worded(case)}, {name}" + f" / {base}" * bool(base)
                rows.append(
                    [line.name, what, shown(found), f"<= {shown(limit)}", "met" if found <= limit else "missed"]
                )
    return rows


def findings(records: Records) -> list[str]:
    parts = []
    for fact in records.facts("profile"):
        kernels = [
            [f"`{name[:90]}`".replace("|", "/"), f"{ms:.3g}", str(calls)] for name, ms, calls in fact["kernels"]
        ]
        parts.append(f"### {fact['line']}, {worded(fact['case'])}, {fact['way']}: idle {fact['idle']:.0%}")
        parts.append(table(["kernel", "ms", "calls"], kernels))
    return ["## The most costly kernels of findings, and of their base", *parts] if parts else []
