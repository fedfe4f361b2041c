"""`make gpu` without a GPU: tiny models, the same records and the same page."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest

import forked
from benchmark_scripts import FOLDER, importable
from paths import HELPERS, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

SCRIPT = FOLDER / "gpu/run.py"
STAMP = {"machine": dict.fromkeys(("gpu", "driver", "torch", "transformers", "internvlx_hf", "python"), "1")}
STAMP |= {"command": "make gpu"}


@pytest.fixture
def gpu():
    """The modules of benchmarks/gpu, by name."""
    with importable(FOLDER / "gpu"):
        yield {name: import_module(name) for name in ("lines", "records", "run", "report", "machine")}


def run(folder, *words, status=0) -> str:
    command = (SCRIPT, "--device", "cpu", "--preset", "tiny", "--results", folder, *words)
    # without a compiler: what it makes for a CPU is not what a GPU runs, and test_lvtc_caches.py has its graphs
    done = forked.python(*command, env=os.environ | {"TORCHDYNAMO_DISABLE": "1"}, cwd=ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_line_runs_on_a_cpu_and_goes_on_where_it_was_cut(gpu, tmp_path):
    lines = list({line.work: line for line in gpu["lines"].LINES}.values())  # one of those that do the same work
    words = ["--only", *(line.name for line in lines)]
    run(tmp_path, *words)
    file = tmp_path / "gpu.jsonl"
    whole = file.read_text()
    turns = [record for record in map(json.loads, whole.splitlines()) if record["kind"] == "turn"]
    assert len(turns) == sum(3 * len(line.ways) * len(line.tiny) for line in lines)
    page = (tmp_path / "gpu.md").read_text()
    for line in lines:
        assert f"## {line.name[0].upper()}{line.name[1:]}\n" in page
    assert "No figure yet" not in page
    assert "Failed:" not in page
    assert "## The most costly kernels" in page
    assert "| training | InternVL-X, samples 1, step / InternVL2-HD |" in page

    answers = [i for i, record in enumerate(whole.splitlines()) if "8b" in record and '"kind": "turn"' in record]
    cut = "\n".join(whole.splitlines()[: answers[-1]]) + '\n{"kind": "tu'
    file.write_text(cut)
    assert run(tmp_path, *words).count("; turn ") == 1
    assert run(tmp_path, *words).count("; turn ") == 0


@pytest.mark.slow
def test_the_cuda_tests_pass_without_a_gpu_and_their_report_is_kept(tmp_path):
    run(tmp_path, "--only", "tests", "--chunk", "1")
    (record,) = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert record["status"] == 0, (tmp_path / "gpu_tests.txt").read_text()
    assert record["text"] in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_cuda_tests_are_collected_without_what_a_machine_with_a_gpu_lacks():
    lacks = {"datasets", "fastapi", "gradio", "openai", "trl", "uvicorn"}
    code = f"from hiding import hide; hide({lacks}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HELPERS)!r}); {code}"]
    command += ["-q", "--collect-only", "-m", "cuda", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "tests/test_cuda.py::" in done.stdout


@pytest.mark.slow
def test_a_chunk_whose_time_is_over_says_so_and_what_has_no_figure(tmp_path):
    assert "stopped after 0 minutes; the same command goes on" in run(
        tmp_path, "--only", "training", "--chunk", "1", "--minutes", "0", status=3
    )


def test_what_is_missing_is_said_before_torch_is_imported():
    names = str([str(SCRIPT.parent)])
    code = f"import sys; sys.path[:0] = {names}; sys.argv = ['run.py', '--check']; import run; print(run.main())"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        env={"PATH": ""},  # without nvidia-smi
        check=True,
    )
    assert "MISSING a GPU: nvidia-smi finds none" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["2", "False"]


@pytest.mark.parametrize("gone", [*STAMP["machine"], "command"])
def test_a_record_without_machine_versions_or_command_is_refused(gone, gpu, tmp_path):
    machine = {name: value for name, value in STAMP["machine"].items() if name != gone}
    stamp = {"machine": machine, "command": "" if gone == "command" else "make gpu"}
    with pytest.raises(ValueError, match="expected a command and a machine with"):
        gpu["records"].Records(tmp_path / "gpu.jsonl", stamp)


def test_a_figure_needs_three_turns_of_this_machine(gpu, tmp_path):
    line, path = gpu["lines"].LINES[0], tmp_path / "gpu.jsonl"
    case, way = line.cases[0], line.base
    another = gpu["records"].Records(path, STAMP | {"machine": STAMP["machine"] | {"gpu": "another"}})
    another.add(kind="turn", line=line.name, way=way, case=case, times={"step": [9.0, 1]}, others={})
    records = gpu["records"].Records(path, STAMP)
    for seconds in (3.0, 1.0):
        records.add(kind="turn", line=line.name, way=way, case=case, times={"step": [seconds, 1]}, others={})
    assert records.row(line, way, case) is None
    gpu["report"].write_page(records, tmp_path / "gpu.md", False, [])
    assert f"No figure yet: samples 4, {way} (2 of 3 turns)" in (tmp_path / "gpu.md").read_text()
    records.add(kind="turn", line=line.name, way=way, case=case, times={"step": [2.0, 1]}, others={})
    assert gpu["records"].Records(path, STAMP).row(line, way, case).seconds == {"step": 2.0}
    records.forget([line.name])
    assert len(gpu["records"].Records(path, STAMP).all) == 1


def test_what_takes_longer_than_its_flops_say_is_a_finding(gpu):
    Row = gpu["records"].Row
    base, way = Row({"step": 2.0}, {"step": 100}, {}), Row({"step": 1.0}, {"step": 40}, {})
    assert way.shares(base, "step") == (0.5, 0.4)
    assert gpu["records"].is_finding(*way.shares(base, "step"))
    assert not gpu["records"].is_finding(0.5, 0.45)
    assert not gpu["records"].is_finding(0.5, None)
