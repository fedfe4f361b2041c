"""An hour on a GPU, in chunks of at most nine minutes: `make gpu`, or one chunk at a time, `make gpu CHUNK=1`.

    1  the CUDA tests; a whole training step of InternVL2-HD, each idea, all three, native InternVL, at 2B's geometry
    2  milliseconds per token, compiled and eager; from JPEG to first token and answer beside native InternVL, 2B
    3  packed rows, from JPEG to answer with 1B and 8B, vLLM if it is there

Every turn is written to gpu.jsonl as soon as it is measured, so the same command goes on where it was stopped. gpu.md is made
from it: medians of three turns, each way's time beside its FLOPs, and the kernels of what takes longer than its FLOPs say.

    python benchmarks/gpu/run.py --device cpu --preset tiny    # shows only that everything runs
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from lines import CHUNKS, LINES, TURNS, Line, worded
from machine import ROOT, code, look
from processes import Process, TimeUp, prepare
from records import Records, is_finding

TESTS, TESTS_MINUTES = "tests", 5


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk", type=int, choices=CHUNKS, help="default: all, one after another")
    parser.add_argument("--only", nargs="+", choices=[TESTS, *(line.name for line in LINES)], metavar="LINE")
    parser.add_argument("--again", action="store_true", help="with --only: measure these lines anew")
    parser.add_argument("--minutes", type=float, default=9.0, help="of a chunk, after which it stops (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", choices=("full", "tiny"), default="full")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results, with tiny models out/gpu")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    return parser


def measure(line: Line, records: Records, args: argparse.Namespace, deadline: float) -> None:
    """The turns of a line that are missing, and the profiles of its findings. Raises TimeUp."""
    processes: dict[str, Process] = {}
    try:
        for case in line.tiny if args.preset == "tiny" else line.cases:
            due = [way for way in line.ways if records.row(line, way, case) is None]
            failed = warm(line, case, due, processes, records, args, deadline) if line.stays else set()
            for turn, way in itertools.product(range(TURNS), due):
                if way in failed or len(records.turns(line, way, case)) > turn:
                    continue
                if not line.stays:
                    failed |= warm(line, case, [way], processes, records, args, deadline)
                if way not in failed:
                    failed |= take_turn(line, way, case, processes[way], records, deadline)
                if not line.stays:
                    processes.pop(way).end()
            profile_findings(line, case, processes, records, args, deadline)
    finally:
        for process in processes.values():
            process.end()


def warm(line, case, ways, processes, records, args, deadline) -> set[str]:
    """Start the processes that are missing and have all of them prepare the case at once. The ways that fail."""
    for way in ways:
        if way not in processes:
            processes[way] = Process(line, way, args.device)
        processes[way].send("warm", case)
    return {way for way in ways if not is_well(line, way, case, processes[way].receive(deadline), records)}


def take_turn(line, way, case, process, records, deadline) -> set[str]:
    found = process.ask("turn", case, deadline)
    if not is_well(line, way, case, found, records):
        return {way}
    number = len(records.turns(line, way, case)) + 1
    records.add(kind="turn", line=line.name, way=way, case=case, turn=number, **found)
    times = ", ".join(f"{name} {1e3 * seconds:.4g} ms" for name, (seconds, _) in found["times"].items())
    print(f"{line.name}; {worded(case)}; {way}; turn {number}: {times}", flush=True)
    return set()


def is_well(line, way, case, found: dict, records) -> bool:
    if "problem" in found:
        records.add(kind="problem", line=line.name, way=way, case=case, text=found["problem"])
        print(f"{line.name}; {worded(case)}; {way}: {found['problem']}", flush=True)
    return "problem" not in found


def profile_findings(line, case, processes, records, args, deadline) -> None:
    """Of each way that takes longer than its FLOPs say, in the first case where it does, and of the base beside it."""
    base = records.row(line, line.base, case)
    slow = []
    known = {each["way"] for each in records.facts("profile", line.name)}
    for way in line.ways:
        row = records.row(line, way, case)
        if base and row and way not in known and any(is_finding(*row.shares(base, name)) for name in row.seconds):
            slow.append(way)
    for way in [line.base, *slow] if slow else []:
        if way not in processes and warm(line, case, [way], processes, records, args, deadline):
            continue
        found = processes[way].ask("profile", case, deadline)
        if is_well(line, way, case, found, records):
            records.add(kind="profile", line=line.name, way=way, case=case, **found)
        if not line.stays:
            processes.pop(way).end()


def run_tests(records: Records, args: argparse.Namespace, folder: Path, deadline: float) -> None:
    """The CUDA tests, once, in a part of the chunk's time."""
    if records.facts("tests"):
        return
    if args.device == "cpu":
        os.environ["CUDA_TESTS_ON"] = "cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "gpu_tests.txt", "w", encoding="utf-8") as output:
        try:
            limit = min(60 * TESTS_MINUTES, max(1.0, deadline - time.monotonic()))
            status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = None
    lines = (folder / "gpu_tests.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    shown = [line for line in lines if re.match(r"SKIPPED|FAILED|ERROR|=* ?\d+ (passed|failed|skipped)", line)]
    shown += [f"stopped after {limit:.0f} seconds"] * (status is None)
    records.add(kind="tests", line=TESTS, status=status, text="\n".join(shown))
    print("\n".join(shown), flush=True)


def run_vllm(records: Records, absent: list[str], deadline: float) -> None:
    if "vllm" in absent or records.facts("vllm"):
        return
    remaining = max(1.0, deadline - time.monotonic())
    command = [sys.executable, str(ROOT / "benchmarks/vllm_throughput.py")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=remaining)
    except subprocess.TimeoutExpired:
        raise TimeUp from None
    if done.returncode == 0:
        records.add(kind="vllm", line="vLLM", text=done.stdout.strip())


def run_chunk(chunk: int, records: Records, args: argparse.Namespace, folder: Path, absent: list[str]) -> bool:
    """Whether all of the chunk is done."""
    deadline = time.monotonic() + 60 * args.minutes
    try:
        if chunk == 1 and (not args.only or TESTS in args.only):
            run_tests(records, args, folder, deadline)
        for line in LINES:
            if line.chunk == chunk and (not args.only or line.name in args.only):
                measure(line, records, args, deadline)
        if chunk == CHUNKS[-1] and not args.only:
            run_vllm(records, absent, deadline)
    except TimeUp:
        print(f"chunk {chunk}: stopped after {args.minutes:g} minutes; the same command goes on.", flush=True)
        return False
    return True


def main() -> int:
    args = make_parser().parse_args()
    machine, missing, absent = look(args.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value))
    print("not there, and left out:", ", ".join(absent) or "nothing", flush=True)
    if missing:
        print("\n".join(f"MISSING {each}" for each in missing))
        return 2
    if args.check:
        return 0
    folder = args.results or ROOT / ("out/gpu" if args.preset == "tiny" else "benchmarks/results")
    command = " ".join(["python benchmarks/gpu/run.py", *sys.argv[1:]])
    records = Records(folder / "gpu.jsonl", {"machine": machine, "command": command, "code": code()})
    prepare()
    if args.again:
        records.forget(args.only or [])
    done = []
    for chunk in [args.chunk] if args.chunk else CHUNKS:
        done.append(run_chunk(chunk, records, args, folder, absent))
        from report import write_page

        write_page(records, folder / "gpu.md", args.preset == "tiny", absent)
    return 0 if all(done) else 3


if __name__ == "__main__":
    sys.exit(main())
