"""A disk that takes a part of each write, shards at their limit, and changes anywhere in a file."""

import pytest
import torch
from safetensors.torch import load_file

from internvlx_hf.checkpoints.atomic_folder import refuse_existing
from internvlx_hf.checkpoints.folders import copy_companions
from internvlx_hf.checkpoints.manifest import foreign_files, write_manifest
from internvlx_hf.checkpoints.shards import ShardWriter, plan_shards
from internvlx_hf.checkpoints.weights import TensorInfo


class Partial:
    """A file of which each write takes at most 1000 bytes, as a pipe or a network disk may."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        return self.file.write(data[:1000])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_what_a_write_did_not_take_is_written_next(tmp_path):
    tensors = {"a": torch.randn(40, 30), "b": torch.arange(70).half(), "c": torch.randn(3, 500)}
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    writer = ShardWriter(tmp_path / "model.safetensors", infos)
    writer.file = Partial(writer.file)
    for name in ("c", "a", "b"):  # not in the file's order
        writer.write(name, tensors[name])
    writer.close()
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_shard_holds_what_fits_and_not_a_byte_more():
    group = {"x": TensorInfo((25,), torch.float32)}  # 100 bytes
    groups = [{f"x{number}": group["x"]} for number in range(5)]
    assert [len(shard) for shard in plan_shards(groups, 200)] == [2, 2, 1]
    assert [len(shard) for shard in plan_shards(groups, 199)] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("size", [100, 10_000, 2_000_000])
@pytest.mark.parametrize("place", [0.0, 0.6, 0.9])
def test_a_change_of_many_values_is_noticed_wherever_it_is(size, place, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(size))
    write_manifest(tmp_path, "run")
    assert foreign_files(tmp_path) == []
    content = bytearray(size)
    content[int(place * size) :] = b"\1" * (size - int(place * size))
    (tmp_path / "weights.bin").write_bytes(content)
    assert foreign_files(tmp_path) == ["weights.bin (changed since)"]


@pytest.mark.parametrize("kind", ["filled", "a file"])
def test_a_refusal_names_the_folder_or_what_is_shown_for_it(kind, tmp_path):
    out = tmp_path / "out"
    if kind == "filled":
        out.mkdir()
        (out / "notes.txt").write_text("")
    else:
        out.write_text("")
    for shown, name in ((None, out), (tmp_path / "asked", tmp_path / "asked")):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError) as caught:
                refuse_existing(out, overwrite, shown)
            assert str(caught.value).startswith(f"{name} ")


def test_a_companion_in_a_folder_is_copied_into_that_folder(tmp_path):
    (tmp_path / "LICENSE").write_text("MIT")
    copy_companions({"legal/LICENSE": tmp_path / "LICENSE"}, tmp_path / "out")
    assert (tmp_path / "out/legal/LICENSE").read_text() == "MIT"
