"""A conversion holds a tensor at a time: its memory does not grow with the model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from conversion_geometry import VISION, raw_config, write_checkpoint
from internvlx_hf.checkpoints import shards as module
from internvlx_hf.conversion import convert_checkpoint

GIGABYTE = 2**30
# what a process that imported everything takes, before and after converting; Linux counts ru_maxrss in KiB
SCRIPT = """
import resource, sys
from internvlx_hf.conversion import convert_checkpoint
import transformers.models.internvl.modeling_internvl
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert_checkpoint(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize(
    ("layers", "gigabytes", "options"),
    [(14, 2.4, {}), (2, 0.9, {"projector": "pvtc", "lvtc": True, "dtype": "float16"})],
    ids=["keep", "upgrade"],
)
def test_memory_stays_within_the_largest_shard_and_a_gigabyte(tmp_path, layers, gigabytes, options):
    text = ("InternLM2ForCausalLM", 2048, layers, 16, 8, 8192, 92553)
    raw = raw_config(VISION["300m"], *text, tile=56, max_position_embeddings=64)
    source = write_checkpoint(tmp_path / "source", raw, shards=12, value=0.01)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    assert sum(sizes) > gigabytes * 1e9
    try:
        before, after = peak_memory(source, tmp_path / "out", options)
        written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    finally:
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
    assert written >= sum(sizes) - 2e6
    assert after <= max(sizes) + GIGABYTE
    # beyond what importing takes: the shard that is being read, and a little
    assert after - before <= max(sizes) + 0.3 * GIGABYTE


def peak_memory(source, out, options: dict) -> tuple[int, int]:
    """Largest memory in bytes of a process before and after it converts."""
    command = [sys.executable, "-c", SCRIPT, source, out, repr(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(int, done.stdout.split()[-2:])
    return before, after


def test_output_is_written_once_and_in_the_order_of_the_source(tmp_path, monkeypatch):
    raw = raw_config((64, 2, 4, 128, False), "InternLM2ForCausalLM", 64, 3, 4, 2, 96, 2009, tile=56)
    source = write_checkpoint(tmp_path / "source", raw, shards=4)
    written = []
    write = module.ShardWriter.write
    monkeypatch.setattr(
        module.ShardWriter, "write", lambda self, name, *tensor: (written.append(name), write(self, name, *tensor))
    )
    convert_checkpoint(source, tmp_path / "out", max_shard_gigabytes=2e-4)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(written) == sorted(index["weight_map"])
    shards = [index["weight_map"][name] for name in written]
    assert shards == sorted(shards)
    assert len(set(shards)) > 2


def test_index_counts_what_the_shards_hold(tmp_path):
    raw = raw_config((64, 2, 4, 128, True), "LlamaForCausalLM", 64, 3, 4, 2, 96, 600, tile=56)
    source = write_checkpoint(tmp_path / "source", raw)
    report = convert_checkpoint(source, tmp_path / "out", max_shard_gigabytes=1e-4)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = 0
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / file, "pt") as shard:
            assert set(shard.keys()) == {name for name, place in index["weight_map"].items() if place == file}
            total += sum(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118
            assert {shard.get_tensor(name).dtype for name in shard.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert index["metadata"] == {"total_parameters": report.parameters, "total_size": total}
