#!/usr/bin/env python3
"""Run transformers' own shared test mixins against this project's classes (or, with --native, against InternVL).

    python run_hf_suite.py --path <project>/src               # the project
    python run_hf_suite.py --native                           # the anchor, same code path
    python run_hf_suite.py --path src --baseline native.json  # also: what the anchor passes and the project skips

The last lines printed are `HFSUITE_RESULT {json}`, counts per mixin and the failing tests, and the counts' sums.
Exit status: 0 nothing failed, 1 something failed or is skipped though the baseline passes it, 2 the suite could not be run.
See README.md for what the groups mean and which environment variables there are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import assemble  # noqa: E402
from skips import MARK, explained  # noqa: E402

CASES = {
    "model": "test_modeling_tiny.py",
    "processor": "test_processing_tiny.py",
    "image": "test_image_processing_tiny.py",
    "remote": "test_remote_code.py",
}
CASE_OF_VARIANT = {"off": "TestModelLvtcOff", "on": "TestModelLvtcOn", "dial": "TestModelDial"}


def parse():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--native", action="store_true", help="run against native InternVL instead of the project")
    p.add_argument("--path", action="append", default=[], help="folder to put on sys.path (the project's src)")
    p.add_argument("--parts", default="model,processor,image", help="comma-separated: model, processor, image, remote")
    p.add_argument("--variant", choices=[*CASE_OF_VARIANT, "all"], default="all", help="LVTC off or on, or the dial")
    p.add_argument("-k", default=None, help="pytest -k expression")
    p.add_argument("-n", type=int, default=0, help="pytest-xdist workers, if pytest-xdist is installed")
    p.add_argument("--no-skips", action="store_true", help="do not take the harness's own skips")
    p.add_argument("--slow", action="store_true", help="also the tests marked slow (RUN_SLOW=1)")
    p.add_argument("--timeout", type=int, default=0, help="seconds for the whole run, 0 for none")
    p.add_argument("--json", default=None, help="write every outcome to this file")
    p.add_argument("--baseline", default=None, help="outcomes of an earlier --native run, to compare with")
    p.add_argument("--verbose", action="store_true", help="show pytest's output")
    p.add_argument("--show", type=int, default=60, help="how many failing tests to print with their reason")
    return p.parse_args()


def run_part(part, args, suite, site, env):
    out = Path(tempfile.mkstemp(prefix="hfsuite-", suffix=".json")[1])
    ini = Path(tempfile.mkstemp(prefix="hfsuite-", suffix=".ini")[1])
    ini.write_text("[pytest]\n", encoding="utf-8")
    paths = [str(suite), str(HERE), *(str(Path(x).resolve()) for x in args.path), *([site] if site else [])]
    env = {
        **env,
        "HFSUITE_RESULTS": str(out),
        "HFSUITE_PATH": os.pathsep.join(str(Path(x).resolve()) for x in args.path),
        "HFSUITE_TARGET": "native" if args.native else "project",
        "HFSUITE_NO_SKIPS": "1" if args.no_skips else "0",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])]),
    }
    cmd = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(ini),
        "--rootdir",
        str(suite),
        "--import-mode=importlib",
        "--noconftest",
    ]
    cmd += ["-p", "hf_suite_plugin", "-p", "no:cacheprovider", "-p", "no:warnings", "--tb=short"]
    if args.n:
        cmd += ["-n", str(args.n)]
    terms = [args.k] if args.k else []
    if part == "model" and not args.native and args.variant != "all":
        terms.append(CASE_OF_VARIANT[args.variant])
    if terms:
        cmd += ["-k", " and ".join(f"({t})" for t in terms)]
    cmd.append(str(HERE / "cases" / CASES[part]))
    try:
        done = subprocess.run(
            cmd,
            env=env,
            cwd=suite,
            text=True,
            stdout=None if args.verbose else subprocess.PIPE,
            stderr=None if args.verbose else subprocess.STDOUT,
            timeout=args.timeout or None,
        )
        code, text = done.returncode, done.stdout or ""
    except subprocess.TimeoutExpired as stop:
        raw = stop.stdout or ""
        code, text = 124, raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    finally:
        ini.unlink(missing_ok=True)
    tests = json.loads(out.read_text(encoding="utf-8")) if out.stat().st_size else []
    out.unlink(missing_ok=True)
    for test in tests:
        test["part"] = part
    # 0 passed, 1 failures, 5 nothing selected; anything else means that the run itself broke
    broken = None if code in (0, 1, 5) and (tests or code == 5) else f"pytest ended with {code}:\n{text[-3000:]}"
    return tests, broken, text


def counts(tests):
    table = defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0, "harness_skipped": 0})
    for test in tests:
        row = table[(test["case"], test["group"])]
        if test["outcome"] == "skipped" and test["why"].startswith(MARK):
            row["harness_skipped"] += 1
        else:
            row[test["outcome"]] += 1
    return table


def compare(tests, baseline):
    """Tests that the baseline passes and that are skipped here without a reason of the harness."""
    passed = {(t["part"], t["test"]) for t in baseline if t["outcome"] == "passed"}
    lost = defaultdict(list)
    for t in tests:
        if (t["part"], t["test"]) not in passed or t["outcome"] != "skipped" or t["why"].startswith(MARK):
            continue
        if not explained(t["test"]):
            lost[t["case"]].append(f"{t['test']}: {t['why'][:160]}")
    return lost


def main():
    args = parse()
    env = dict(os.environ)
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny; more threads make it slower
    if args.slow:
        env["RUN_SLOW"] = "1"
    started = time.time()
    try:
        suite = assemble.assemble()
        site = assemble.ensure_parameterized()
    except assemble.AssembleError as error:
        print(error)
        print("HFSUITE_RESULT " + json.dumps({"error": str(error)[:500]}))
        return 2
    origin = json.loads((suite / "origin.json").read_text(encoding="utf-8"))["files"]
    real_generation = origin.get("tests/generation/test_utils.py") != "stub"
    if not real_generation:
        print(
            "note: no tests/generation/test_utils.py at hand (HFSUITE_EXTRA); GenerationTesterMixin is an empty stub"
        )

    tests, broken = [], {}
    for part in [p.strip() for p in args.parts.split(",") if p.strip()]:
        got, error, _ = run_part(part, args, suite, site, env)
        tests += got
        if error:
            broken[part] = error

    table = counts(tests)
    print(f"\n{'case':22}{'mixin':30}{'pass':>6}{'fail':>6}{'skip':>6}{'harness-skip':>14}")
    for (case, group), row in sorted(table.items()):
        print(f"{case:22}{group:30}{row['passed']:6}{row['failed']:6}{row['skipped']:6}{row['harness_skipped']:14}")
    failing = [t for t in tests if t["outcome"] == "failed"]
    if failing:
        print(f"\n{len(failing)} failing:")
        for t in failing[: args.show]:
            print(f"  {t['case']}::{t['test']} [{t['group']}] {t['why'][:220]}")
    taken = defaultdict(set)
    for t in tests:
        if t["outcome"] == "skipped" and t["why"].startswith(MARK):
            taken[t["why"].removeprefix(MARK)].add(f"{t['case']}::{t['test']}")
    for why, names in taken.items():
        print(f"\nskipped by the harness, because {why}:")
        for name in sorted(names):
            print(f"  {name}")
    lost = {}
    if args.baseline:
        lost = compare(tests, json.loads(Path(args.baseline).read_text(encoding="utf-8")))
        for case, names in sorted(lost.items()):
            print(f"\n{case}: {len(names)} tests pass in the baseline and are skipped here:")
            for name in names:
                print(f"  {name}")
    for part, error in broken.items():
        print(f"\nthe part {part!r} did not run to its end: {error}")
    if args.json:
        Path(args.json).write_text(json.dumps(tests, indent=0), encoding="utf-8")

    result = {
        "target": "native" if args.native else "project",
        "transformers": assemble.installed_version(),
        "generation_mixin": "real" if real_generation else "stub",
        "seconds": round(time.time() - started),
        "counts": {f"{c}/{g}": row for (c, g), row in sorted(table.items())},
        "failing": [f"{t['case']}::{t['test']}" for t in failing],
        "skipped_though_baseline_passes": {c: len(v) for c, v in lost.items()},
        "broken": {p: next((x for x in e.splitlines() if x.startswith("E  ")), e)[:300] for p, e in broken.items()},
    }
    print("HFSUITE_RESULT " + json.dumps(result))
    totals = {
        kind: sum(row[kind] for row in table.values()) for kind in ("passed", "failed", "skipped", "harness_skipped")
    }
    print(f"{', '.join(f'{count} {kind}' for kind, count in totals.items())} in {result['seconds']} s")
    return 2 if broken else 1 if failing or lost else 0


if __name__ == "__main__":
    sys.exit(main())
