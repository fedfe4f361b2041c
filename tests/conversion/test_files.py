"""A conversion is whole or not there: bad checkpoints, interrupts and full disks leave nothing behind."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forked
from conversion_helpers import GOLDEN, copy_of, edit_config, edit_tensors, golden_logits, load
from internvlx_hf import InternVLXProcessor
from internvlx_hf.checkpoints.shards import ShardWriter
from internvlx_hf.cli import main
from internvlx_hf.conversion import CheckpointError, ConversionOptions, convert_checkpoint, init_checkpoint

QWEN = "internvl2_qwen2"
SHARDED = "internvl2_internlm2"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def source(tmp_path):
    return copy_of(QWEN, tmp_path / "source")


def refused(source: Path, match: str, error=CheckpointError, **options) -> None:
    """The conversion raises, and leaves nothing where the result would be."""
    out = source.parent / "somewhere" / "out"
    with pytest.raises(error, match=match):
        convert_checkpoint(source, out, **options)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_missing_tensor_is_named(source):
    edit_tensors(source, lambda tensors: tensors.pop("mlp1.3.weight"))
    refused(source, r"missing: mlp1\.3\.weight")


def test_missing_fused_matrix_is_named_once_as_the_source_has_it(tmp_path):
    source = copy_of("internvl2_internlm2_ntk", tmp_path / "source")
    name = "language_model.model.layers.1.attention.wqkv.weight"
    edit_tensors(source, lambda tensors: tensors.pop(name))
    refused(source, rf"missing: {name}\.")


def test_missing_tensor_of_ours_is_named_as_ours(source, tmp_path):
    convert_checkpoint(source, tmp_path / "ours")
    edit_tensors(tmp_path / "ours", lambda tensors: tensors.pop("model.language_model.norm.weight"))
    refused(tmp_path / "ours", r"missing: model\.language_model\.norm\.weight\.")


@pytest.mark.parametrize("options", [{"projector": "pvtc"}, {"lvtc": True}, {"projector": "pvtc", "init": "paper"}])
def test_missing_tensor_is_named_when_an_upgrade_would_replace_it(source, options):
    edit_tensors(source, lambda tensors: tensors.pop("mlp1.3.weight"))
    refused(source, r"missing: mlp1\.3\.weight", **options)


@pytest.mark.parametrize("name", ["foreign.weight", "language_model.model.layers.7.mlp.up_proj.weight"])
def test_unexpected_tensor_is_named(source, name):
    edit_tensors(source, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(source, f"unexpected: {name}")


def test_misshapen_tensor_is_named_with_both_shapes(source):
    edit_tensors(source, lambda tensors: tensors.update({NORM: torch.ones(41)}))
    refused(source, rf"misshapen: {NORM} \(41,\), as model\.language_model\.norm\.weight \(41,\) instead of \(40,\)")


def test_matrix_that_cannot_be_split_is_named(tmp_path):
    source = copy_of("internvl2_internlm2_ntk", tmp_path / "source")
    name = "language_model.model.layers.1.attention.wqkv.weight"
    edit_tensors(source, lambda tensors: tensors.update({name: torch.ones(31, 16)}))
    refused(source, rf"{name} of shape \(31, 16\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NORM, "vision_model.encoder.layers.1.attn.qkv.weight", "mlp1.0.bias"])
def test_value_that_is_not_finite_is_found_in_every_part(source, name, value):
    edit_tensors(source, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    refused(source, rf"{name} \(as model\..*\) has values that are NaN or infinite")


def test_value_too_large_for_the_dtype_is_named(source):
    edit_tensors(source, lambda tensors: tensors[NORM].fill_(1e5))
    refused(
        source,
        r"norm\.weight \(as model\.language_model\.norm\.weight\) does not fit into torch\.float16.*1e\+05",
        dtype="float16",
    )


def test_missing_shard_is_named(tmp_path):
    source = copy_of(SHARDED, tmp_path / "source")
    (source / "model-00002-of-00003.safetensors").unlink()
    refused(source, r"lacks model-00002-of-00003\.safetensors")


def test_shard_that_was_cut_short_is_named(tmp_path):
    source = copy_of(SHARDED, tmp_path / "source")
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(source, r"model-00002-of-00003\.safetensors is damaged or truncated")


@pytest.mark.parametrize(
    ("edit", "match"), [("pop", "holds tensors that the index lacks"), ("add", "lacks tensors that")]
)
def test_index_that_contradicts_its_shards_is_refused(tmp_path, edit, match):
    source = copy_of(SHARDED, tmp_path / "source")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    if edit == "pop":
        index["weight_map"].pop(NORM)
    else:
        index["weight_map"]["one.more"] = "model-00001-of-00003.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(source, match)


def test_folder_without_weights_or_config_is_refused(source):
    (source / "model.safetensors").unlink()
    refused(source, "holds no weights")
    (source / "config.json").unlink()
    refused(source, "holds no weights")


def test_source_that_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "out")


def test_existing_folder_is_kept_unless_it_is_a_checkpoint_to_overwrite(source, tmp_path):
    out = tmp_path / "out"
    convert_checkpoint(source, out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="exists already"):
        convert_checkpoint(source, out)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    convert_checkpoint(source, out, overwrite=True, max_patches=3)
    assert json.loads((out / "processor_config.json").read_text())["image_processor"]["max_patches"] == 3


@pytest.mark.parametrize("place", [".", ".."])
def test_output_never_takes_the_place_of_its_source(source, place):
    (source.parent / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="contains the source"):
        convert_checkpoint(source, source / place, overwrite=True)
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("replaces", [False, True])
def test_interrupt_or_full_disk_in_the_middle_leaves_what_was_there(source, tmp_path, monkeypatch, error, replaces):
    out = tmp_path / "results" / "out"
    if replaces:
        convert_checkpoint(source, out, max_patches=5)
    written = []
    write = ShardWriter.write

    def fail_later(self, name, *tensor):
        written.append(name)
        if len(written) == 20:
            raise error
        write(self, name, *tensor)

    monkeypatch.setattr(ShardWriter, "write", fail_later)
    with pytest.raises(type(error)):
        convert_checkpoint(source, out, overwrite=replaces)
    assert len(written) == 20
    assert [path.name for path in tmp_path.glob("results/*")] == (["out"] if replaces else [])
    if replaces:
        assert json.loads((out / "conversion_report.json").read_text())["options"]["max_patches"] == 5


def test_too_small_a_disk_is_noticed_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(source, r"0\.0 GB free", error=OSError)


def test_bin_shards_are_converted_to_the_same_weights(source, tmp_path):
    convert_checkpoint(source, tmp_path / "expected")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    convert_checkpoint(source, tmp_path / "found")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


class Payload:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bin_file_with_code_in_it_is_refused_and_not_run(source, tmp_path):
    (source / "model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, source / "pytorch_model.bin")
    refused(source, "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_small_shards_hold_the_same_model(source, tmp_path):
    convert_checkpoint(source, tmp_path / "one")
    convert_checkpoint(source, tmp_path / "many", max_shard_gigabytes=1e-4)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 3
    assert all((tmp_path / "many" / name).stat().st_size < 1e5 + 2e4 for name in shards)
    assert torch.equal(*(golden_logits(load(tmp_path / name), QWEN) for name in ("one", "many")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_casts_every_tensor_and_is_what_auto_loads(source, tmp_path, dtype):
    convert_checkpoint(source, tmp_path / "out", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert load(tmp_path / "out").dtype == getattr(torch, dtype)


def test_mixed_dtypes_are_kept_and_aligned(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({NORM: tensors[NORM].bfloat16()}))
    convert_checkpoint(source, tmp_path / "out")
    stored = load_file(source / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["model.language_model.norm.weight"], stored[NORM])
    assert torch.equal(found["lm_head.weight"], stored["language_model.lm_head.weight"])
    assert found["lm_head.weight"].dtype == torch.float32


def test_tied_output_embeddings_are_dropped_with_a_reason_only_if_they_are_equal(source, tmp_path):
    edit_config(source, lambda raw: raw["llm_config"].update(tie_word_embeddings=True))
    report = convert_checkpoint(source, tmp_path / "untied")
    assert any("stored ones differ" in note for note in report.notes)
    assert not report.dropped_tensors
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    edit_tensors(source, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    report = convert_checkpoint(source, tmp_path / "tied")
    assert report.dropped_tensors == {head: f"equal to {embedding}, to which the config ties it"}
    edit_tensors(source, lambda tensors: tensors.pop(head))
    assert not convert_checkpoint(source, tmp_path / "absent").dropped_tensors
    expected = golden_logits(load(tmp_path / "tied"), QWEN)
    assert torch.equal(golden_logits(load(tmp_path / "absent"), QWEN), expected)
    edit_config(source, lambda raw: raw["llm_config"].update(tie_word_embeddings=False))
    refused(source, r"missing: language_model\.lm_head\.weight")


def test_recomputed_buffers_are_dropped_with_a_reason(source, tmp_path):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(source, lambda tensors: tensors.update({name: torch.ones(5)}))
    assert convert_checkpoint(source, tmp_path / "out").dropped_tensors == {name: "follows from rope_parameters"}


def test_number_of_threads_is_as_before(source, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        convert_checkpoint(source, tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_options_come_as_an_object_as_keywords_or_as_both(source, tmp_path):
    options = ConversionOptions(max_patches=3, dtype=torch.bfloat16)
    report = convert_checkpoint(source, tmp_path / "out", options, max_patches=4)
    assert (report.options["max_patches"], report.options["dtype"]) == (4, "bfloat16")
    assert convert_checkpoint(source, tmp_path / "again", max_patches=4, dtype="bfloat16").options == report.options
    with pytest.raises(TypeError, match="max_patchs"):
        convert_checkpoint(source, tmp_path / "third", max_patchs=4)


def test_interrupted_process_leaves_nothing_behind(tmp_path, monkeypatch):
    """Control-C while the weights are being written, for real."""
    close, errors = ShardWriter.close, tmp_path / "errors"
    monkeypatch.setattr(ShardWriter, "close", lambda self: (os.kill(os.getpid(), signal.SIGINT), close(self)))
    out = tmp_path / "results" / "out"
    assert forked.run(lambda: main(["convert", str(GOLDEN / SHARDED), str(out)]), errors) == 130, errors.read_text()
    assert "nothing was written" in errors.read_text()
    assert list(tmp_path.iterdir()) == [errors]


def test_a_budget_is_saved_and_kept_where_the_layout_has_one(tmp_path):
    first, again, native = tmp_path / "first", tmp_path / "again", tmp_path / "native"
    convert_checkpoint(GOLDEN / "internvl2_llama3", first, max_image_tokens=64)
    assert InternVLXProcessor.from_pretrained(first).max_image_tokens == 64
    convert_checkpoint(first, again, slicing="edge")
    assert InternVLXProcessor.from_pretrained(again).max_image_tokens == 64
    notes = convert_checkpoint(first, native, to="internvl").notes
    assert any("max_image_tokens=64 is left out" in note for note in notes)
    assert "max_image_tokens" not in (native / "processor_config.json").read_text()
    saved = json.loads((first / "processor_config.json").read_text())
    (first / "processor_config.json").write_text(json.dumps(saved | {"max_image_tokens": 0}))
    with pytest.raises(CheckpointError, match="max_image_tokens=0, expected a positive number"):
        convert_checkpoint(first, tmp_path / "none")
    with pytest.raises(ValueError, match="max_image_tokens=3 is too small: 1 image takes at least 4 visual tokens"):
        convert_checkpoint(native, tmp_path / "none", max_image_tokens=3)
    assert not (tmp_path / "none").exists()


def test_a_revision_of_a_folder_is_refused(source, tmp_path):
    for make, options in (
        (convert_checkpoint, {"source": source, "revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": source, "vision_revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": source, "language_revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": f"{source}/model.gguf", "language_revision": "v2"}),
    ):
        with pytest.raises(
            ValueError, match=r"revision='v2' is one of a repository on the Hub, but .*source is a folder"
        ):
            make(out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_tiles_that_are_asked_for_are_cut_from_a_checkpoint_without_tiles(tmp_path):
    source = copy_of("internvl2_llama3", tmp_path / "source", dynamic_image_size=False)
    for max_patches in (None, 1, 6):
        convert_checkpoint(source, tmp_path / str(max_patches), max_patches=max_patches)
        cut = InternVLXProcessor.from_pretrained(tmp_path / str(max_patches)).image_processor
        side = cut.size["height"]
        assert (cut.get_number_of_image_patches(side, 2 * side) > 1) == (max_patches == 6)


def test_slicing_of_one_tile_is_said_to_have_no_effect(tmp_path):
    source = copy_of("internvl2_llama3", tmp_path / "source", dynamic_image_size=False)
    report = convert_checkpoint(source, tmp_path / "out", slicing="edge")
    assert report.tokens["max_tiles"] == 1
    assert any("slicing='edge' has no effect" in note for note in report.notes)
    assert "An image becomes one tile." in (tmp_path / "out" / "README.md").read_text()
