"""The benchmarks that take too long for every day run at a tiny size, on a CPU."""

import argparse

import pytest

from benchmark_scripts import imported

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.any_transformers]


def arguments(script, *words: str) -> argparse.Namespace:
    parser = script.make_parser()
    parser.add_argument("--json", default=None)
    return parser.parse_args(words)


def test_end_to_end_benchmark_goes_on_from_its_samples(tmp_path, capsys):
    words = ["--preset", "tiny", "--sizes", "640x480", "--new-tokens", "2", "--repeats", "1", "--device", "cpu"]
    words += ["--dtype", "float32", "--samples", str(tmp_path / "samples.json")]
    with imported("bench_end_to_end") as script:
        rows = script.measure(arguments(script, *words))
        names = [row.name for row in rows]
        assert "640x480, first token, PVTC + LVTC / InternVL" in names
        table = capsys.readouterr().out
        assert all(f"| {name} " in table for name in script.SETS["steps"])

        script.build = None  # nothing is run again
        figure = ["--figure", str(tmp_path / "figure.png")]
        assert script.measure(arguments(script, *words, *figure)) == rows
        assert (tmp_path / "figure.png").exists()
        with pytest.raises(SystemExit, match="other settings"):
            script.measure(arguments(script, *words, "--threads", "2"))


def test_lvtc_starts_nearer_to_its_source_than_with_counted_positions(capsys):
    with imported("bench_lvtc_start") as module:
        (row,) = module.golden_distances(["internvl2_qwen2"])
        assert row.verdict == "met"
        lines = capsys.readouterr().out.splitlines()
    found = dict(zip(module.STARTS, lines[-len(module.STARTS) :], strict=True))
    assert "0.000 / " in found["N→4N: children weigh a quarter (bound)"]
    assert "0.000 / " in found["N→N: warm"]
