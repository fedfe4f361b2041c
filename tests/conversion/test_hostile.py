# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that somebody else made: nothing is followed out of their folder, nothing in them keeps the machine busy."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion_helpers import GOLDEN, copy_of, edit_config
from internvlx_hf import cost
from internvlx_hf.chat import load_answerer
from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.checkpoints.folders import MAX_ADDED_TOKENS
from internvlx_hf.checkpoints.json_files import read_json
from internvlx_hf.checkpoints.names import FILES
from internvlx_hf.cli import main
from internvlx_hf.conversion import CheckpointError, convert_checkpoint

QWEN, SHARDED, PHI3 = "internvl2_qwen2", "internvl2_internlm2", "internvl2_phi3"
INDEX = "model.safetensors.index.json"
# what a made-up number may cost; each took a minute or all memory before
SECONDS = 10


@pytest.fixture
def source(tmp_path):
    return copy_of(QWEN, tmp_path / "source")


def refused(source: Path, match: str, error=CheckpointError, **options) -> None:
    out = source.parent / "somewhere" / "out"
    start = time.perf_counter()
    with pytest.raises(error, match=match):
        convert_checkpoint(source, out, **options)
    assert time.perf_counter() - start < SECONDS
    assert not out.parent.exists() or not list(out.parent.iterdir())


def moved_out(file: Path) -> None:
    """Replace a file by a link to where it now is, outside of its folder."""
    elsewhere = file.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere / file.name)


@pytest.mark.parametrize(
    "name", ["../elsewhere/w.safetensors", "{absolute}", "inner/w.safetensors", "..\\w.safetensors"]
)
def test_index_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    source = copy_of(SHARDED, tmp_path / "source")
    for folder in (tmp_path / "elsewhere", source / "inner"):
        folder.mkdir()
        shutil.copy(source / "model-00001-of-00003.safetensors", folder / "w.safetensors")
    name = name.format(absolute=tmp_path / "elsewhere" / "w.safetensors")
    index = json.loads((source / INDEX).read_text())
    first = "model-00001-of-00003.safetensors"
    index["weight_map"] = {key: name if file == first else file for key, file in index["weight_map"].items()}
    (source / INDEX).write_text(json.dumps(index))
    refused(
        source, r"model\.safetensors\.index\.json has the tensor .*, expected the bare name of a \.safetensors file"
    )


@pytest.mark.parametrize("file", ["model-00002-of-00003.safetensors", INDEX])
def test_shard_or_index_that_is_a_link_out_of_the_folder_is_refused(tmp_path, file):
    source = copy_of(SHARDED, tmp_path / "source")
    moved_out(source / file)
    refused(source, f"{file} leads to .*elsewhere", LinkError)


@pytest.mark.parametrize("file", ["model.safetensors", *FILES])
def test_file_that_is_a_link_out_of_the_folder_is_refused(source, file):
    if not (source / file).exists():
        (source / file).write_text("{}")
    moved_out(source / file)
    refused(source, f"{file} leads to .*elsewhere", LinkError)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "README.md"])
def test_link_to_nothing_is_named(source, file):
    (source / file).unlink(missing_ok=True)
    (source / file).symlink_to("nowhere")
    refused(source, f"{file} is a broken link", LinkError)


def test_cost_follows_no_link_either(source):
    moved_out(source / "config.json")
    with pytest.raises(LinkError, match=r"config\.json leads to"):
        cost.load_setup(source)


def test_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path):
    repository = tmp_path / "models--OpenGVLab--InternVL2-1B"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    copy_of(QWEN, snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    convert_checkpoint(snapshot, tmp_path / "out")
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda raw: raw.update(max_dynamic_patch=100_000), r"max_dynamic_patch=100000, expected a whole number from 1 to 10000"),
        (lambda raw: raw.update(max_dynamic_patch=10**12), "max_dynamic_patch=10{12}"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=10_000), r"llm_config\.num_hidden_layers=10000"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=900), "num_hidden_layers=900 .* holds only 26 tensors"),
        (lambda raw: raw["vision_config"].update(num_hidden_layers=900), "num_hidden_layers=900 .* holds only 40 tensors"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=10**12), r"llm_config\.num_hidden_layers=10{12}"),
        (lambda raw: raw["llm_config"].update(vocab_size=10**12), r"llm_config\.vocab_size=10{12}"),
        (lambda raw: raw["llm_config"].update(vocab_size=10**8), r"vocab_size=10{8}"),
        (lambda raw: raw["llm_config"].update(hidden_size=10**8), r"hidden_size=10{8}"),
        (lambda raw: raw.update(force_image_size=98_000), "force_image_size=98000, expected at most 8 times"),
        (lambda raw: raw["vision_config"].update(image_size=98_000), r"vision_config\.image_size=98000"),
        (lambda raw: raw["vision_config"].update(patch_size=0), r"vision_config\.patch_size=0"),
        (lambda raw: raw.update(downsample_ratio=1e-300), "downsample_ratio=1e-300"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"type": "dynamic"}), "rope_(scaling|parameters).*factor"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"factor": 2.0}), "rope_scaling .* has unknown settings factor"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"type": "linear", "factor": "2"}), r"rope_scaling\.factor='2'"),
        (lambda raw: raw["llm_config"].update(architectures="Qwen2ForCausalLM"), r"llm_config\.architectures='Qwen2"),
        (lambda raw: raw.update(model_type=["internvl_chat"]), r"model_type=\['internvl_chat'\]"),
    ],
)  # fmt: skip
def test_made_up_number_is_refused_at_once_by_its_name(source, edit, match):
    edit_config(source, edit)
    refused(source, rf"config\.json.*{match}")


def test_rope_factors_of_another_length_are_refused(tmp_path):
    source = copy_of(PHI3, tmp_path / "source")
    edit_config(source, lambda raw: raw["llm_config"]["rope_scaling"].update(long_factor=[1.0] * 3))
    refused(source, r"long_factor .*(3 values, expected 4|length 4, got 3)")


def test_rope_scaling_without_its_type_is_not_dropped(tmp_path):
    source = copy_of(PHI3, tmp_path / "source")
    edit_config(source, lambda raw: raw["llm_config"]["rope_scaling"].pop("type"))
    refused(source, r"rope_scaling .* has unknown settings long_factor, short_factor")


@pytest.mark.parametrize("layout", ["internvl", "internvl_x"])
def test_made_up_depth_in_the_other_layouts_is_refused_at_once(source, tmp_path, layout):
    convert_checkpoint(source, tmp_path / "other", to=layout)
    for part in ("text_config", "vision_config"):
        raw = json.loads((tmp_path / "other" / "config.json").read_text())
        for layers in (900, 10_000, 10**12):
            changed = raw | {part: raw[part] | {"num_hidden_layers": layers}}
            (tmp_path / "other" / "config.json").write_text(json.dumps(changed))
            refused(tmp_path / "other", rf"num_hidden_layers.*{layers}")
        (tmp_path / "other" / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[]", r"config\.json holds a list, expected an object"),
        (b"null", r"config\.json holds a NoneType"),
        (b"3", r"config\.json holds a int"),
        (b'{"model_type": ', r"config\.json is not valid JSON"),
        (b'{"model_type": "\xff"}', r"config\.json is not valid JSON"),
        (b"[" * 100_000, r"config\.json is not valid JSON: maximum recursion"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", r"config\.json is not valid JSON"),
        (b'{"a": {"b": 1, "b": 2}}', r"config\.json is not valid JSON: 'b' appears twice"),
        (b"{}", r"has no config\.json"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_config_that_is_no_object_is_named(source, content, match):
    (source / "config.json").write_bytes(content)
    refused(source, match, ValueError)


def test_same_value_twice_is_not_ambiguous(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert read_json(tmp_path / "y.json") == {}


@pytest.mark.parametrize(
    "file",
    ["config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"],
)
@pytest.mark.parametrize("content", ["[]", '{"a": '])
def test_every_file_that_is_read_is_named_where_it_is_broken(source, capsys, file, content):
    (source / file).write_text(content)
    assert main(["convert", str(source), str(source.parent / "out")]) == 1
    error = capsys.readouterr().err
    assert f"/{file} " in error
    assert "Traceback" not in error


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_pipe_in_a_file_s_place_is_named_and_not_waited_for(source, file):
    (source / file).unlink()
    os.mkfifo(source / file)
    refused(source, f"{file} is not a regular file", LinkError)
    with pytest.raises(OSError, match=f"{file} is not a regular file"):
        read_json(source / file)


def test_device_in_a_file_s_place_is_named_and_not_read(source):
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"config\.json is not a regular file"):
        read_json(source / "config.json")


@pytest.mark.parametrize("name", ["additional_chat_templates", "chat_template.jinja", "model.safetensors"])
def test_chat_follows_no_link_either(source, name):
    (source / name).touch()
    moved_out(source / name)
    with pytest.raises(LinkError, match=f"{name} leads to .*elsewhere"):
        load_answerer(str(source))


def many(kind):
    return {f"<a{i}>": i for i in range(MAX_ADDED_TOKENS + 1)} if kind is dict else ["<a>"] * (MAX_ADDED_TOKENS + 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", {"added_tokens": many(list)}),
        ("tokenizer_config.json", {"added_tokens_decoder": many(dict)}),
        ("tokenizer_config.json", {"extra_special_tokens": many(list)}),
        ("special_tokens_map.json", {"additional_special_tokens": many(list)}),
        ("added_tokens.json", many(dict)),
    ],
)
def test_too_many_added_tokens_are_refused_by_their_number(source, file, content):
    (source / file).write_text(json.dumps(content))
    refused(source, rf"{file} adds 50001 tokens, expected at most 50000")
    with pytest.raises(CheckpointError, match="adds 50001 tokens"):
        load_answerer(str(source))


def test_chat_template_that_never_ends_is_refused_by_its_number_of_steps(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for path in (tmp_path / "native").glob("chat_template.*"):
        path.unlink()
    (tmp_path / "native" / "chat_template.jinja").write_text(loop)
    refused(tmp_path / "native", "takes more than 2000000 steps", ValueError)


def test_folder_in_a_file_s_place_is_named(source):
    (source / "config.json").unlink()
    (source / "config.json").mkdir()
    refused(source, r"Is a directory: .*config\.json", OSError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_named(source):
    (source / "config.json").chmod(0)
    refused(source, r"Permission denied: .*config\.json", OSError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_weights_that_are_no_floating_point_numbers_are_refused(source, dtype):
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(dtype)}, source / "model.safetensors")
    refused(source, rf"Not all weights are floating-point numbers of at least 16 bits: {name} \({dtype}\)")


def test_generation_settings_are_judged_before_the_weights(source):
    (source / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    refused(source, r"generation_config\.json: eos_token_id=\['</s>'\]")
    (source / "generation_config.json").write_text('{"eos_token_id": 572}')
    refused(source, r"generation_config\.json: eos_token_id=572 is outside the model's vocabulary of 572")


def test_token_that_is_not_in_the_vocabulary_is_refused(source):
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<new>"}))
    refused(source, r"tokenizer_config\.json has pad_token='<new>', which is not in the vocabulary", ValueError)


def test_image_processor_s_settings_survive_another_conversion(source, tmp_path):
    convert_checkpoint(source, tmp_path / "ours")
    path = tmp_path / "ours" / "processor_config.json"
    saved = json.loads(path.read_text())
    changes = {"resize_backend": "pillow", "do_exif_transpose": False, "crop_to_patches": False, "resample": 2}
    path.write_text(json.dumps(saved | {"image_processor": saved["image_processor"] | changes}))
    # Several tiles are cut only where they are asked for.
    for max_patches, crop_to_patches in ((1, False), (3, True)):
        again = tmp_path / f"again-{max_patches}"
        convert_checkpoint(tmp_path / "ours", again, max_patches=max_patches)
        image_processor = json.loads((again / "processor_config.json").read_text())["image_processor"]
        expected = changes | {"max_patches": max_patches, "crop_to_patches": crop_to_patches}
        assert image_processor == saved["image_processor"] | expected


def test_tiles_of_another_size_than_the_model_s_are_refused(source, tmp_path):
    convert_checkpoint(source, tmp_path / "native", to="internvl")
    path = tmp_path / "native" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": 28, "width": 28}}))
    refused(tmp_path / "native", r"preprocessor_config\.json: size=.*28.* makes tiles of 56x56")
