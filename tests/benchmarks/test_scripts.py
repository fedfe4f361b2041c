"""The benchmarks that take too long for every day run at a tiny size, on a CPU."""

import argparse
import json

import pytest
import torch

from benchmark_scripts import imported

pytestmark = [pytest.mark.slow, pytest.mark.any_transformers]


@pytest.fixture
def gpu(monkeypatch):
    with imported("bench_gpu") as module:
        # PVTC has no tiny size there; what is left is how it is timed and measured
        monkeypatch.setattr(module, "PVTC_WIDTH", 8)
        monkeypatch.setattr(module, "make_projector", lambda *args: torch.nn.Linear(8, 8))
        monkeypatch.setattr(module, "WAYS", {way: module.WAYS[way] for way in (module.BASE, module.ALL)})
        yield module


def arguments(script, *words: str) -> argparse.Namespace:
    parser = script.make_parser()
    parser.add_argument("--json", default=None)
    return parser.parse_args(words)


TINY = ("--device", "cpu", "--preset", "tiny", "--repeats", "1", "--samples", "1", "--max-samples", "2")


def test_every_section_of_the_gpu_benchmark_runs_on_a_cpu(gpu, tmp_path):
    args = arguments(gpu, *TINY, "--new-tokens", "3", "--pvtc-tiles", "1", "--peak-tflops", "1")
    args.results = tmp_path / "results"
    rows = gpu.measure(args)
    assert not [row for row in rows if row.verdict == "missed"]
    for words in (
        "MFU",
        "batch of 2",
        "first token",
        "compiled",
        "packed, varlen_sdpa / padded",
        "autocast",
        "InternVL-X",
        "peak memory",
    ):
        assert [row for row in rows if words in row.name], words
    assert len(json.loads((tmp_path / "results/gpu.json").read_text())) == len(rows)
    assert "| sdpa: training step" in (tmp_path / "results/gpu.md").read_text()


def test_section_that_fails_does_not_lose_the_others(gpu, monkeypatch):
    def fail(self):
        raise RuntimeError("no kernel\nmore lines")

    monkeypatch.setattr(gpu.Bench, "prefill", fail)
    rows = gpu.measure(arguments(gpu, *TINY, "--pvtc-tiles", "1", "--sections", "prefill", "pvtc"))
    assert (rows[0].verdict, rows[0].note) == ("missed", "RuntimeError: no kernel")
    assert {row.verdict for row in rows[1:]} == {"no target"}


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
