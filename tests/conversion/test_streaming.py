"""A conversion holds a tensor at a time: its memory does not grow with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conversion_geometry import raw_config, write_checkpoint
from internvlx_hf.checkpoints import shards as module
from internvlx_hf.conversion import convert_checkpoint
from json_files import json_of
from paths import HELPERS
from process_memory import IS_MEASURABLE

GIGABYTE = 2**30
CONVERT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import transformers.models.internvl.modeling_internvl
from internvlx_hf.conversion import convert_checkpoint
from process_memory import peak_of
found = [peak_of(lambda: convert_checkpoint(sys.argv[2], out, **options)) for out, options in json.load(sys.stdin)]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not IS_MEASURABLE, reason="reads the peak memory from Linux's /proc")
def test_memory_stays_within_the_largest_shard_and_a_gigabyte(tmp_path):
    """Also where a tensor is copied into another dtype and new ones are made."""
    raw = raw_config((512, 12, 8, 2048, False), "InternLM2ForCausalLM", 1024, 9, 16, 8, 4096, 9999, tile=56)
    source = write_checkpoint(tmp_path / "source", raw, shards=24, value=0.01)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    assert sum(sizes) > 0.35 * GIGABYTE
    upgrade = {"projector": "pvtc", "lvtc": True, "dtype": "float16"}
    runs = [(str(tmp_path / "kept"), {}), (str(tmp_path / "upgraded"), upgrade)]
    try:
        command = [sys.executable, "-c", CONVERT, HELPERS, source]
        done = subprocess.run(command, input=json.dumps(runs), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        written = [sum(path.stat().st_size for path in Path(out).glob("*.safetensors")) for out, _ in runs]
    finally:
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
    assert min(written) >= sum(sizes) - 2e6
    for before, peak in json.loads(done.stdout.splitlines()[-1]):
        assert peak <= max(sizes) + GIGABYTE
        # beyond what importing takes: the shard that is being read, and a little
        assert peak - before <= max(sizes) + 0.1 * GIGABYTE


def test_output_is_written_once_and_in_the_order_of_the_source(tmp_path, out, monkeypatch):
    raw = raw_config((64, 2, 4, 128, False), "InternLM2ForCausalLM", 64, 3, 4, 2, 96, 2009, tile=56)
    source = write_checkpoint(tmp_path / "source", raw, shards=4)
    written = []
    write = module.ShardWriter.write
    monkeypatch.setattr(
        module.ShardWriter, "write", lambda self, name, *tensor: (written.append(name), write(self, name, *tensor))
    )
    convert_checkpoint(source, out, max_shard_gigabytes=2e-4)
    index = json_of(out / "model.safetensors.index.json")
    assert sorted(written) == sorted(index["weight_map"])
    shards = [index["weight_map"][name] for name in written]
    assert shards == sorted(shards)
    assert len(set(shards)) > 2


def test_index_counts_what_the_shards_hold(tmp_path, out):
    raw = raw_config((64, 2, 4, 128, True), "LlamaForCausalLM", 64, 3, 4, 2, 96, 600, tile=56)
    source = write_checkpoint(tmp_path / "source", raw)
    report = convert_checkpoint(source, out, max_shard_gigabytes=1e-4)
    index = json_of(out / "model.safetensors.index.json")
    total = 0
    for file in set(index["weight_map"].values()):
        with safe_open(out / file, "pt") as shard:
            assert set(shard.keys()) == {name for name, place in index["weight_map"].items() if place == file}
            total += sum(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118
            assert {shard.get_tensor(name).dtype for name in shard.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert index["metadata"] == {"total_parameters": report.parameters, "total_size": total}
