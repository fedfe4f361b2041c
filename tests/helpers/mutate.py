"""`make mutate`: plant each fault of the catalogue in a copy of the repository, and see whether a test notices.

    python tests/helpers/mutate.py [--area AREA ...] [--fault WORDS] [--jobs 2] [--write] [--no-runs]

Each run of tests is a fork of a process that has imported torch, transformers and pytest, but not the package. First, every
test file runs once without a fault, to see which functions each test enters and how long it takes. Of a fault, the test that
noticed it last time runs first, then the quickest of those that enter its function, then the others. Of faults that none of
these notices, the files that name it run at the end, with their slow tests.
What was found is kept in `build/mutate`: a stopped run goes on, and a changed file of tests or of the package is run again.
Limits are in seconds of a CPU, so that a busy machine makes no fault look noticed.
"""

import argparse
import ast
import compileall
import contextlib
import datetime
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import forked
from faults import PACKAGE, Fault, read_catalogue
from paths import ROOT

FOLDER = ROOT / "build/mutate"
README = ROOT / "tests/mutation/README.md"
HELPERS = {path.stem for path in (ROOT / "tests/helpers").glob("*.py")}
FIRST, FIRST_FILES = 12, 2  # tests in the first round, and files that they are from
LONGEST = 60  # seconds that the tests of the second may take together
RESULT = "## Last result\n"
MOST_FILES = 5  # of those that name it
LIMIT = 300  # seconds of a CPU until a run counts as hanging
BUSY = 10  # times as many seconds of a clock


class Watch:
    """A pytest plug-in: each test's seconds, the package's functions that it entered, and which failed."""

    def __init__(self, package: Path, trace: bool):
        self.package, self.trace = f"{package}/", trace
        self.tests: dict[str, dict] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        entered: set[str] = set()

        def tracer(frame, _event, _argument):
            if frame.f_code.co_filename.startswith(self.package):
                entered.add(f"{frame.f_code.co_filename.removeprefix(self.package)}:{frame.f_code.co_name}")

        started = time.process_time()
        if self.trace:
            sys.settrace(tracer)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = {"seconds": round(time.process_time() - started, 3), "entered": sorted(entered)}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


def files_of(root: Path) -> list[str]:
    """The repository's files, without what git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (root / name).is_file()]


class Tree:
    """A copy of the repository's files, in which one fault at a time is planted."""

    def __init__(self, path: Path, root: Path = ROOT):
        self.path, self.planted_so_far = path, 0
        shutil.rmtree(path, ignore_errors=True)
        for name in files_of(root):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, path / name)
        (path / "build").symlink_to(ROOT / "build")
        compileall.compile_dir(path / "src", quiet=1)

    def run(self, *arguments: str, trace: bool = False, limit: float = LIMIT) -> dict:
        """What pytest saw: its status, "failed" tests, and "tests"; status -1 if it took more than `limit` seconds of a CPU."""
        result = self.path.with_suffix(".json")

        def act() -> int:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
            os.chdir(self.path)
            os.environ["PYTHONPATH"] = str(self.path / "src")
            sys.path[:] = [
                str(self.path / "src"),
                *(part for part in sys.path if Path(part) != ROOT / "tests/helpers"),
            ]
            for name in list(sys.modules):
                if name in HELPERS or name.partition(".")[0] == "internvlx_hf":
                    del sys.modules[name]
            output = os.open(self.path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            watch = Watch(self.path / PACKAGE, trace)
            status = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *arguments], [watch])
            result.write_text(json.dumps({"status": int(status), "failed": watch.failed, "tests": watch.tests}))
            return 0

        result.unlink(missing_ok=True)
        process, end = forked.start(act), time.monotonic() + BUSY * limit
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(process, signal.SIGKILL)
                ended = os.waitpid(process, 0)
                break
            time.sleep(0.05)
        if result.exists():
            return json.loads(result.read_text())
        hung = os.WIFSIGNALED(ended[1]) and os.WTERMSIG(ended[1]) in (signal.SIGXCPU, signal.SIGKILL)
        return {"status": -1 if hung else -2, "failed": [], "tests": {}}  # a fault may end the process

    @contextlib.contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        path = self.path / PACKAGE / fault.file
        before, times = path.read_text(), path.stat()
        self.planted_so_far += 1
        path.write_text(fault.planted(before))
        os.utime(path, (self.planted_so_far, self.planted_so_far))  # by which Python knows which byte code is whose
        try:
            yield
        finally:
            path.write_text(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def import_once(tree: Tree) -> None:
    """Import what the package imports from elsewhere."""
    found = FOLDER / "modules.json"

    def act() -> int:
        sys.path[:0] = [str(tree.path / "src"), str(tree.path / "tests/helpers")]
        for path in sorted((tree.path / PACKAGE).rglob("*.py")):
            if path.stem != "__main__":
                with contextlib.suppress(Exception):  # of a package that only some use
                    importlib.import_module(".".join(path.relative_to(tree.path / "src").with_suffix("").parts))
        importlib.import_module("tiny").tiny_model("qwen2")
        found.write_text(
            json.dumps([name for name in sys.modules if name.split(".")[0] not in ("internvlx_hf", "tiny")])
        )
        return 0

    if forked.run(act):
        raise SystemExit("the package cannot be imported without a fault")
    for name in json.loads(found.read_text()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:20]


def kept(kind: str, key: str) -> Path:
    path = FOLDER / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def known(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def record_of(fault: Fault) -> Path:
    return kept("faults", f"{fault.title}{fault.old}{fault.new}")


def share(items: list, jobs: int, act: Callable[[Tree, list], None]) -> None:
    """Let `jobs` forks of this process do every `jobs`-th item each, in a copy of its own."""

    def part(index: int) -> None:
        try:
            act(Tree(FOLDER / f"tree{index}"), items[index::jobs])
        except Exception:
            traceback.print_exc()
            raise

    processes = [forked.start(partial(part, index)) for index in range(jobs)]
    try:
        statuses = [forked.wait(process) for process in processes]
        if any(statuses):
            raise SystemExit("a worker failed")
    except KeyboardInterrupt:
        for process in processes:
            os.kill(process, signal.SIGINT)
        raise


def test_files() -> list[Path]:
    left_out = ("hf_suite", "engines", "site", "mutation", "golden")
    paths = (ROOT / "tests").rglob("test_*.py")
    return sorted(path for path in paths if path.relative_to(ROOT / "tests").parts[0] not in left_out)


def measure(tree: Tree, paths: list[Path]) -> None:
    """Run test files without a fault, unless that was done."""
    for path in paths:
        name, own = str(path.relative_to(ROOT)), digest(path)
        if known(kept("tests", name)).get("digest") != own:
            found = tree.run(name, "-m", "not slow", trace=True)
            kept("tests", name).write_text(json.dumps({"file": name, "digest": own, **found}))
            print(f"{name}: {len(found['tests'])} tests, {len(found['failed'])} fail", flush=True)


def room(name: str) -> str:
    """The folder under `tests` or in the package."""
    parts = name.split("::")[0].removeprefix("tests/").split("/")
    return parts[0] if len(parts) > 1 else ""


def enclosing_function(source: str, offset: int) -> str | None:
    line = source.count("\n", 0, offset) + 1
    found = None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            found = node.name  # the innermost comes last
    return found


def tests_of(fault: Fault, tests: dict[str, dict]) -> list[str]:
    """The tests that enter the fault's function, or its file if none does: its room's first, the quickest first."""
    source = (ROOT / PACKAGE / fault.file).read_text()
    function = enclosing_function(source, source.index(fault.old))
    entered = f"{fault.file}:{function}"
    chosen = [name for name, test in tests.items() if entered in test["entered"]]
    chosen = chosen or [name for name, test in tests.items() if any(e.startswith(fault.file) for e in test["entered"])]

    def cost(name: str) -> float:
        focus = len(tests[name]["entered"]) / 50
        return (tests[name]["seconds"] + 0.05) * (1 + focus) * (1 if room(name) == room(fault.file) else 4)

    return sorted(chosen, key=cost)


def judge(tree: Tree, faults: list[Fault]) -> None:
    records = list(filter(None, (known(kept("tests", str(path.relative_to(ROOT)))) for path in test_files())))
    tests = {name: test for record in records for name, test in record["tests"].items()}
    failing = {name for record in records for name in record["failed"]}
    for name in failing & tests.keys():
        del tests[name]
    state = digest(*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py")))
    missed = []
    for fault in faults:
        before = known(record_of(fault))
        if before.get("state") == state:
            missed += [] if before["is_final"] else [fault]
            continue
        with tree.planted(fault):
            found = notice(tree, tests_of(fault, tests), tests, before.get("noticed", ""))
        record(fault, state, found, is_final=bool(found))
        missed += [] if found else [fault]
    for fault in missed:
        with tree.planted(fault):
            failed = tree.run("-x", *naming(fault), *(f"--deselect={name}" for name in failing))["failed"]
        record(fault, state, failed[0] if failed else "", is_final=True)


def record(fault: Fault, state: str, found: str, *, is_final: bool) -> None:
    content = {"title": fault.title, "state": state, "noticed": found, "is_final": is_final}
    record_of(fault).write_text(json.dumps(content | {"day": datetime.date.today().isoformat()}))
    print(f"{fault.title}: {found or ('SURVIVED' if is_final else 'missed so far')}", flush=True)


def notice(tree: Tree, chosen: list[str], tests: dict[str, dict], last: str) -> str:
    """The first test that fails with the fault, or an empty string."""
    rounds: list[list[str]] = [[last]] if last in tests else []
    files = list(dict.fromkeys(name.partition("::")[0] for name in chosen))[:FIRST_FILES]
    first = [name for name in chosen if name.partition("::")[0] in files][:FIRST]
    rounds.append(first)
    second, total = [], 0.0
    for name in chosen:
        total += tests[name]["seconds"]
        if name not in first and total < LONGEST:
            second.append(name)
    rounds.append(second)
    for names in filter(None, rounds):
        expected = sum(tests[name]["seconds"] for name in names)
        found = tree.run("-x", *names, limit=60 + 8 * expected)
        if found["status"] not in (0, 5):
            return (found["failed"] or [f"the process ended or hung: {names[0]}"])[0]
    return ""


def naming(fault: Fault) -> list[str]:
    """The test files that name the fault's function or module most often, its room's first; if none does, its room's."""
    source = (ROOT / PACKAGE / fault.file).read_text()
    words = {Path(fault.file).stem, enclosing_function(source, source.index(fault.old)) or Path(fault.file).stem}
    counts = {}
    for path in test_files():
        text, name = path.read_text(), str(path.relative_to(ROOT))
        counts[name] = sum(map(text.count, words)) * (5 if room(name) == room(fault.file) else 1)
    found = sorted(filter(counts.get, counts), key=counts.get, reverse=True)[:MOST_FILES]  # type: ignore[arg-type]
    return found or [name for name in counts if room(name) == room(fault.file)] or list(counts)[:MOST_FILES]


def report(faults: list[Fault]) -> str:
    """By area: how many of its faults were judged, and how many of these a test noticed; and which none did."""
    areas: dict[str, list[dict]] = {"all": []}
    for fault in faults:
        found = known(record_of(fault))
        for area in (fault.area, "all"):
            areas.setdefault(area, []).append(found | {"name": fault.name} if found else {})
    areas["all"] = areas.pop("all")  # at the end
    lines, survivors = ["| area | faults | judged | noticed | rate |", "|---|---|---|---|---|"], []
    for area, records in areas.items():
        judged = list(filter(None, records))
        missed = [
            each["name"] + " (so far: not all of its tests have run)" * (not each["is_final"])
            for each in judged
            if not each["noticed"]
        ]
        rate = f"{1 - len(missed) / len(judged):.1%}" if judged else ""
        lines.append(f"| {area} | {len(records)} | {len(judged)} | {len(judged) - len(missed)} | {rate} |")
        survivors += [f"- {area}: {name}" for name in missed if area != "all"]
    days = sorted({each["day"] for each in areas["all"] if each})
    return "\n".join(
        [*lines, "", f"Judged on {' to '.join(days[:1] + days[1:][-1:])}. Survivors:", "", *(survivors or ["none"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--area", action="append", default=[])
    parser.add_argument("--fault", default="", help="words of the names of the faults to plant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--write",
        action="store_true",
        help="all that is kept, of this run and of others, into tests/mutation/README.md",
    )
    parser.add_argument("--no-runs", action="store_true", help="only report what is kept")
    options = parser.parse_args()
    catalogue = [fault for fault in read_catalogue() if not fault.equivalent]
    faults = [
        fault
        for fault in catalogue
        if options.fault in fault.title and (not options.area or fault.area in options.area)
    ]
    if not faults:
        raise SystemExit(f"no fault of the catalogue is in {options.area or 'any area'} and named {options.fault!r}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not options.no_runs:
        import_once(Tree(FOLDER / "tree0"))
        share(test_files(), options.jobs, measure)
        share(faults, options.jobs, judge)
    print(report(faults))
    if options.write:
        head = README.read_text().split(RESULT)[0]
        README.write_text(f"{head}{RESULT}\n{report(catalogue)}\n")


if __name__ == "__main__":
    main()
