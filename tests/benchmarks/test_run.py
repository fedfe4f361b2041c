"""The runner of the benchmarks: verdicts, the exit status, what is written, and scripts that fail."""

import json

import pytest

from benchmark_scripts import FOLDER, imported

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

SCRIPT = "import sys, pathlib; sys.path.insert(0, {folder!r}); from rows import Row, write_rows\n{body}"
WRITES = "write_rows([{rows}], pathlib.Path(sys.argv[sys.argv.index('--json') + 1]))"


@pytest.fixture
def run():
    with imported("run") as module:
        yield module


@pytest.mark.parametrize(
    ("value", "target", "direction", "verdict"),
    [
        (0.9, 0.9, "<=", "met"),
        (0.91, 0.9, "<=", "missed"),
        (3.5, 3.5, ">=", "met"),
        (3.4, 3.5, ">=", "missed"),
        (float("nan"), 1.0, "<=", "missed"),
        (None, 1.0, ">=", "missed"),
        (7.0, None, "<=", "no target"),
    ],
)
def test_verdict_of_a_row(run, value, target, direction, verdict):
    assert run.Row("ratio", value, target=target, direction=direction).verdict == verdict


def test_direction_that_is_none_is_named(run):
    with pytest.raises(ValueError, match="'<'"):
        run.Row("ratio", 1.0, target=1.0, direction="<")


def write_script(folder, name: str, body: str) -> None:
    text = SCRIPT.format(folder=str(FOLDER), body=body)
    (folder / f"bench_{name}.py").write_text(text, encoding="utf-8")


def test_scripts_that_fail_are_missed_rows_and_the_others_run(run, tmp_path, capfd):
    write_script(tmp_path, "crashes", "raise RuntimeError('no luck')")
    write_script(tmp_path, "hangs", "import time; time.sleep(60)")
    write_script(tmp_path, "meets", WRITES.format(rows="Row('ratio', 0.5, target=0.6), Row('s', 2.0, 's')"))
    write_script(tmp_path, "breaks_off", WRITES.format(rows="Row('ratio', 0.5, target=0.6)") + "; sys.exit(3)")
    write_script(tmp_path, "silent", "")
    out = tmp_path / "out"
    assert run.main(["--out", str(out), "--timeout", "0.05"], tmp_path) == 1
    written = json.loads((out / "all.json").read_text())
    verdicts = {name: [row["verdict"] for row in rows] for name, rows in written.items()}
    assert verdicts == {
        "breaks_off": ["missed", "met"],
        "crashes": ["missed"],
        "hangs": ["missed"],
        "meets": ["met", "no target"],
        "silent": ["missed"],
    }
    assert [written[name][0]["note"] for name in ("breaks_off", "crashes", "hangs", "silent")] == [
        "ended with status 3",
        "ended with status 1",
        "took more than 0.05 minutes",
        "wrote no results",
    ]
    assert capfd.readouterr().out.splitlines()[-1] == "1 no target, 2 met, 4 missed"


def test_exit_status_is_0_when_nothing_is_missed(run, tmp_path):
    write_script(tmp_path, "meets", WRITES.format(rows="Row('ratio', 4.0, target=3.0, direction='>=')"))
    write_script(tmp_path, "misses", WRITES.format(rows="Row('ratio', 2.0, target=3.0, direction='>=')"))
    chosen = ["--out", str(tmp_path / "out"), "--only"]
    assert run.main([*chosen, "meets"], tmp_path) == 0
    assert run.main([*chosen, "misses"], tmp_path) == 1


def test_every_benchmark_gives_rows_and_full_names_only_those_that_exist(run):
    known = run.scripts(FOLDER)
    assert set(run.FULL) <= set(known)
    for name, path in known.items():
        assert "run_script(__doc__, measure" in path.read_text(encoding="utf-8"), name
