# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that somebody else made: nothing is followed out of their folder, nothing in them keeps the machine busy."""

import os
import shutil
from pathlib import Path

import pytest

from commands import internvlx
from conversion_helpers import GOLDEN, copy_of, edit_config, not_converted, require_same_tensors
from internvlx_hf import cost
from internvlx_hf.chat import load_answerer
from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.checkpoints.folders import MAX_ADDED_TOKENS
from internvlx_hf.checkpoints.json_files import read_json
from internvlx_hf.checkpoints.names import FILES
from internvlx_hf.conversion import CheckpointError, convert_checkpoint
from internvlx_hf.processing import template_limits
from json_files import edit_json, json_of, write_json
from refusals import refused

QWEN, SHARDED, PHI3 = "internvl2_qwen2", "internvl2_internlm2", "internvl2_phi3"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00003.safetensors"


def moved_out(file: Path) -> None:
    """Replace a file by a link to where it now is, outside of its folder."""
    elsewhere = file.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere / file.name)


@pytest.mark.parametrize(
    ("name", "file"),
    [(QWEN, file) for file in ("model.safetensors", *FILES)] + [(SHARDED, SHARD), (SHARDED, INDEX)],
)
def test_file_that_is_a_link_out_of_the_folder_is_refused(tmp_path, name, file):
    source = copy_of(name, tmp_path / "source")
    if not (source / file).exists():
        (source / file).write_text("{}")
    moved_out(source / file)
    not_converted(source, f"{file} leads to … elsewhere", LinkError)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "README.md"])
def test_link_to_nothing_is_named(source, file):
    (source / file).unlink(missing_ok=True)
    (source / file).symlink_to("nowhere")
    not_converted(source, f"{file} is a broken link", LinkError)


def test_cost_follows_no_link_either(source):
    moved_out(source / "config.json")
    with refused("config.json leads to", by=LinkError):
        cost.load_setup(source)


def test_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path, out, converted):
    repository = tmp_path / "models--OpenGVLab--InternVL2-1B"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    copy_of(QWEN, snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    convert_checkpoint(snapshot, out)
    require_same_tensors(out, converted())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw.update(max_dynamic_patch=100_000), "max_dynamic_patch=100000 … a whole number from 1 to 10000"),
        (lambda raw: raw.update(max_dynamic_patch=10**12), "max_dynamic_patch=1000000000000"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=10_000), "llm_config.num_hidden_layers=10000"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=900), "num_hidden_layers=900 … holds only 26 tensors"),
        (lambda raw: raw["vision_config"].update(num_hidden_layers=900), "num_hidden_layers=900 … holds only 40 tensors"),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=10**12), "llm_config.num_hidden_layers=1000000000000"),
        (lambda raw: raw["llm_config"].update(vocab_size=10**12), "llm_config.vocab_size=1000000000000"),
        (lambda raw: raw["llm_config"].update(vocab_size=10**8), "vocab_size=100000000"),
        (lambda raw: raw["llm_config"].update(hidden_size=10**8), "hidden_size=100000000"),
        (lambda raw: raw.update(force_image_size=98_000), "force_image_size=98000 … at most 8 times"),
        (lambda raw: raw["vision_config"].update(image_size=98_000), "vision_config.image_size=98000"),
        (lambda raw: raw["vision_config"].update(patch_size=0), "vision_config.patch_size=0"),
        (lambda raw: raw.update(downsample_ratio=1e-300), "downsample_ratio=1e-300"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"type": "dynamic"}), "factor"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"factor": 2.0}), "rope_scaling … has unknown settings factor"),
        (lambda raw: raw["llm_config"].update(rope_scaling={"type": "linear", "factor": "2"}), "rope_scaling.factor='2'"),
        (lambda raw: raw["llm_config"].update(architectures="Qwen2ForCausalLM"), "llm_config.architectures='Qwen2ForCausalLM'"),
        (lambda raw: raw.update(model_type=["internvl_chat"]), "model_type=['internvl_chat']"),
    ],
)  # fmt: skip
def test_made_up_number_is_refused_at_once_by_its_name(source, edit, said):
    edit_config(source, edit)
    not_converted(source, f"config.json … {said}")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rope: rope.update(long_factor=[1.0] * 3), "long_factor … 3 … 4"),
        (lambda rope: rope.pop("type"), "rope_scaling … has unknown settings long_factor, short_factor"),
    ],
)
def test_rope_scaling_of_another_length_or_without_its_type_is_refused(tmp_path, edit, said):
    source = copy_of(PHI3, tmp_path / "source")
    edit_config(source, lambda raw: edit(raw["llm_config"]["rope_scaling"]))
    not_converted(source, said)


@pytest.mark.parametrize("layout", ["internvl", "internvl_x"])
def test_made_up_depth_in_the_other_layouts_is_refused_at_once(source, tmp_path, layout):
    other = tmp_path / "other"
    convert_checkpoint(source, other, to=layout)
    raw = json_of(other / "config.json")
    for part in ("text_config", "vision_config"):
        for layers in (900, 10_000, 10**12):
            write_json(other / "config.json", raw | {part: raw[part] | {"num_hidden_layers": layers}})
            not_converted(other, f"num_hidden_layers … {layers}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "config.json holds a list … an object"),
        (b"null", "config.json holds a NoneType"),
        (b"3", "config.json holds a int"),
        (b'{"model_type": ', "config.json is not valid JSON"),
        (b'{"model_type": "\xff"}', "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is not valid JSON: maximum recursion"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "config.json is not valid JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "config.json is not valid JSON: 'b' appears twice"),
        (b"{}", "has no config.json"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_config_that_is_no_object_is_named(source, content, said):
    (source / "config.json").write_bytes(content)
    not_converted(source, said, ValueError)


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
    error = internvlx(capsys, "convert", source, source.parent / "out", status=1).err
    assert f"/{file}" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_pipe_in_a_file_s_place_is_named_and_not_waited_for(source, file):
    (source / file).unlink()
    os.mkfifo(source / file)
    not_converted(source, f"{file} is not a regular file", LinkError)
    with refused(f"{file} is not a regular file", by=OSError):
        read_json(source / file)


def test_device_or_folder_in_a_file_s_place_is_named_and_not_read(source):
    config = source / "config.json"
    config.unlink()
    config.mkdir()
    not_converted(source, f"Is a directory: … {config}", OSError)
    config.rmdir()
    config.symlink_to("/dev/zero")
    with refused(f"{config} is not a regular file", by=OSError):
        read_json(config)


@pytest.mark.parametrize("name", ["additional_chat_templates", "chat_template.jinja", "model.safetensors"])
def test_chat_follows_no_link_either(source, name):
    (source / name).touch()
    moved_out(source / name)
    with refused(f"{name} leads to", "elsewhere", by=LinkError):
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
    write_json(source / file, content)
    not_converted(source, f"{file} adds 50001 tokens … at most 50000")
    with refused("adds 50001 tokens", by=CheckpointError):
        load_answerer(str(source))


def test_chat_template_that_never_ends_is_refused_by_its_number_of_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(template_limits, "MAX_STEPS", 200_000)
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for path in (tmp_path / "native").glob("chat_template.*"):
        path.unlink()
    (tmp_path / "native" / "chat_template.jinja").write_text(loop)
    not_converted(tmp_path / "native", "takes more than 200000 steps", ValueError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_named(source):
    (source / "config.json").chmod(0)
    not_converted(source, "Permission denied: … config.json", OSError)


def test_generation_settings_are_judged_before_the_weights(source):
    (source / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    not_converted(source, "generation_config.json: eos_token_id=['</s>']")
    (source / "generation_config.json").write_text('{"eos_token_id": 572}')
    not_converted(source, "generation_config.json: eos_token_id=572 is outside the model's vocabulary of 572")


def test_token_that_is_not_in_the_vocabulary_is_refused(source):
    edit_json(source / "tokenizer_config.json", pad_token="<new>")
    not_converted(source, "tokenizer_config.json has pad_token='<new>', which is not in the vocabulary", ValueError)


def test_image_processor_s_settings_survive_another_conversion(source, tmp_path):
    ours = tmp_path / "ours"
    convert_checkpoint(source, ours)
    saved = json_of(ours / "processor_config.json")["image_processor"]
    saved |= {"resize_backend": "pillow", "do_exif_transpose": False, "crop_to_patches": False, "resample": 2}
    edit_json(ours / "processor_config.json", image_processor=saved)
    # Several tiles are cut only where they are asked for.
    for max_patches, crop_to_patches in ((1, False), (3, True)):
        convert_checkpoint(ours, tmp_path / "again", max_patches=max_patches, overwrite=True)
        found = json_of(tmp_path / "again" / "processor_config.json")["image_processor"]
        assert found == saved | {"max_patches": max_patches, "crop_to_patches": crop_to_patches}


def test_tiles_of_another_size_than_the_model_s_are_refused(source, tmp_path):
    convert_checkpoint(source, tmp_path / "native", to="internvl")
    edit_json(tmp_path / "native" / "preprocessor_config.json", size={"height": 28, "width": 28})
    not_converted(tmp_path / "native", "preprocessor_config.json: size= … 28 … makes tiles of 56x56")
