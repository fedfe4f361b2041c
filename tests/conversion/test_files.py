"""A conversion is whole or not there: bad checkpoints, interrupts and full disks leave nothing behind."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forked
from conversion_helpers import (
    GOLDEN,
    copy_of,
    edit_config,
    edit_tensors,
    golden_logits,
    load,
    not_converted,
)
from internvlx_hf import InternVLXProcessor
from internvlx_hf.checkpoints.shards import ShardWriter
from internvlx_hf.cli import main
from internvlx_hf.conversion import ConversionOptions, convert_checkpoint, init_checkpoint
from json_files import edit_json, json_of
from refusals import refused

QWEN = "internvl2_qwen2"
SHARDED = "internvl2_internlm2"
NORM, OUR_NORM = "language_model.model.norm.weight", "model.language_model.norm.weight"
NTK, FUSED = "internvl2_internlm2_ntk", "language_model.model.layers.1.attention.wqkv.weight"
LAYER_7 = "language_model.model.layers.7.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"


def without(name):
    return lambda tensors: tensors.pop(name)


def with_tensor(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("name", "edit", "said", "options"),
    [
        (QWEN, without("mlp1.3.weight"), "missing: mlp1.3.weight", {}),
        # also where an upgrade would replace it
        (QWEN, without("mlp1.3.weight"), "missing: mlp1.3.weight", {"projector": "pvtc"}),
        (QWEN, without("mlp1.3.weight"), "missing: mlp1.3.weight", {"lvtc": True}),
        (QWEN, without("mlp1.3.weight"), "missing: mlp1.3.weight", {"projector": "pvtc", "init": "paper"}),
        (NTK, without(FUSED), f"missing: {FUSED}.", {}),
        (NTK, with_tensor(FUSED, torch.ones(31, 16)), f"{FUSED} of shape (31, 16)", {}),
        (QWEN, with_tensor("foreign.weight", torch.zeros(2)), "unexpected: foreign.weight", {}),
        (QWEN, with_tensor(LAYER_7, torch.zeros(2)), f"unexpected: {LAYER_7}", {}),
        (
            QWEN,
            with_tensor(NORM, torch.ones(41)),
            f"misshapen: {NORM} (41,), as {OUR_NORM} (41,) instead of (40,)",
            {},
        ),
        (
            QWEN,
            lambda tensors: tensors[NORM].fill_(1e5),
            f"(as {OUR_NORM}) does not fit into torch.float16 … 1e+05",
            {"dtype": "float16"},
        ),
    ],
)
def test_tensor_that_does_not_fit_is_named_as_the_source_has_it(tmp_path, name, edit, said, options):
    source = copy_of(name, tmp_path / "source")
    edit_tensors(source, edit)
    not_converted(source, said, **options)


SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / SHARDS[1]).unlink(), f"lacks {SHARDS[1]}"),
        (lambda folder: os.truncate(folder / SHARDS[1], 500), f"{SHARDS[1]} is damaged or truncated"),
        (
            lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].pop(NORM)),
            "that the index lacks",
        ),
        (
            lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].update(more=SHARDS[0])),
            f"{SHARDS[0]} lacks tensors that",
        ),
    ],
)
def test_index_and_shards_that_do_not_fit_are_named(tmp_path, damage, said):
    source = copy_of(SHARDED, tmp_path / "source")
    damage(source)
    not_converted(source, said)


def test_missing_tensor_of_ours_is_named_as_ours(source, tmp_path):
    convert_checkpoint(source, tmp_path / "ours")
    edit_tensors(tmp_path / "ours", lambda tensors: tensors.pop("model.language_model.norm.weight"))
    not_converted(tmp_path / "ours", "missing: model.language_model.norm.weight.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NORM, "vision_model.encoder.layers.1.attn.qkv.weight", "mlp1.0.bias"])
def test_value_that_is_not_finite_is_found_in_every_part(source, name, value):
    edit_tensors(source, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    not_converted(source, f"{name} (as model. … ) has values that are NaN or infinite")


def test_folder_without_weights_or_config_is_refused(source):
    for name in ("model.safetensors", "config.json"):
        (source / name).unlink()
        not_converted(source, "holds no weights")
    not_converted(source / "nowhere", "nowhere is not a folder", FileNotFoundError)


@pytest.mark.parametrize("place", [".", ".."])
def test_output_never_takes_the_place_of_its_source(source, place):
    (source.parent / "config.json").write_text("{}")
    with refused("contains the source", by=FileExistsError):
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
        assert json_of(out / "conversion_report.json")["options"]["max_patches"] == 5


def test_too_small_a_disk_is_noticed_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    not_converted(source, "1.0 kB free", by=OSError)


class Payload:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bin_file_with_code_in_it_is_refused_and_not_run(source, tmp_path):
    (source / "model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, source / "pytorch_model.bin")
    not_converted(source, "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_mixed_dtypes_are_kept_and_aligned(source, out):
    edit_tensors(source, lambda tensors: tensors.update({NORM: tensors[NORM].bfloat16()}))
    convert_checkpoint(source, out)
    stored = load_file(source / "model.safetensors")
    found = load_file(out / "model.safetensors")
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
    not_converted(source, "missing: language_model.lm_head.weight")


def test_recomputed_buffers_are_dropped_with_a_reason(source, out):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(source, lambda tensors: tensors.update({name: torch.ones(5)}))
    assert convert_checkpoint(source, out).dropped_tensors == {name: "follows from rope_parameters"}


def test_number_of_threads_is_as_before(source, out):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        convert_checkpoint(source, out)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_options_come_as_an_object_as_keywords_or_as_both(source, tmp_path, out):
    options = ConversionOptions(max_patches=3, dtype=torch.bfloat16)
    report = convert_checkpoint(source, out, options, max_patches=4)
    assert (report.options["max_patches"], report.options["dtype"]) == (4, "bfloat16")
    assert convert_checkpoint(source, tmp_path / "again", max_patches=4, dtype="bfloat16").options == report.options
    with refused("max_patchs", by=TypeError):
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
    convert_checkpoint(first, again, slicing="edge")
    for folder in (first, again):
        assert InternVLXProcessor.from_pretrained(folder).max_image_tokens == 64
    notes = convert_checkpoint(first, native, to="internvl").notes
    assert any("max_image_tokens=64 is left out" in note for note in notes)
    assert "max_image_tokens" not in (native / "processor_config.json").read_text()
    edit_json(first / "processor_config.json", max_image_tokens=0)
    not_converted(first, "max_image_tokens=0 … a whole number of at least 1")
    not_converted(native, "max_image_tokens=3 is too small: 1 image takes at least 4", ValueError, max_image_tokens=3)


def test_a_revision_of_a_folder_is_refused(source, out):
    for make, options in (
        (convert_checkpoint, {"source": source, "revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": source, "vision_revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": source, "language_revision": "v2"}),
        (init_checkpoint, {"vision": source, "language": f"{source}/model.gguf", "language_revision": "v2"}),
    ):
        with refused("revision='v2' is one of a repository on the Hub, but", "source is a folder"):
            make(out=out, **options)
        assert not out.exists()


def test_tiles_that_are_asked_for_are_cut_from_a_checkpoint_without_tiles(tmp_path):
    source = copy_of("internvl2_llama3", tmp_path / "source", dynamic_image_size=False)
    for max_patches in (None, 1, 6):
        convert_checkpoint(source, tmp_path / str(max_patches), max_patches=max_patches)
        cut = InternVLXProcessor.from_pretrained(tmp_path / str(max_patches)).image_processor
        side = cut.size["height"]
        assert (cut.get_number_of_image_patches(side, 2 * side) > 1) == (max_patches == 6)


def test_slicing_of_one_tile_is_said_to_have_no_effect(tmp_path, out):
    source = copy_of("internvl2_llama3", tmp_path / "source", dynamic_image_size=False)
    report = convert_checkpoint(source, out, slicing="edge")
    assert report.tokens["max_tiles"] == 1
    assert any("slicing='edge' has no effect" in note for note in report.notes)
    assert "An image becomes one tile." in (out / "README.md").read_text()
