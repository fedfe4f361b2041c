"""Which files of a folder belong to a checkpoint, and where links in it may lead."""

import json
import os
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.checkpoints.folders import checkpoint_files, resolve_inside
from internvlx_hf.checkpoints.names import PATTERNS
from tiny import LVTC, tiny_model, tiny_processor

# a file for each known name, and names beside it that are not known
BELONGS = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
    "conversion_report.json",
    "training_recipe.json",
    "README.md",
    "LICENSE",
    "LICENSE-APACHE.txt",
    "LICENCE",
    "NOTICE.txt",
    "LICENSES/MIT.txt",
    ".gitattributes",
    "model.safetensors",
)
DOES_NOT = (
    "secrets.json",
    "config.json.orig",
    "old/config.json",
    "LICENSES/keys/server",
    "additional_chat_templates/data.jsonl",
    "additional_chat_templates/old/tools.jinja",
    "license_key.txt",
    "model-00001-of-00002.safetensors",
    "consolidated.safetensors",
    "train.py",
    "internvlx_manifest.json",
    ".env",
)


def fill(folder: Path, names) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", BELONGS)
def test_known_file_belongs(tmp_path, name):
    assert checkpoint_files(fill(tmp_path, [name])) == {name}


@pytest.mark.parametrize("name", DOES_NOT)
def test_unknown_file_does_not_belong(tmp_path, name):
    assert checkpoint_files(fill(tmp_path, [name, *BELONGS])) == set(BELONGS)


def test_every_known_pattern_is_tried_above():
    assert [pattern for pattern in PATTERNS if not any(fnmatchcase(name, pattern) for name in BELONGS)] == []


@pytest.mark.parametrize("shards", ["5GB", "250KB"], ids=["one", "several"])
def test_all_that_save_pretrained_writes_belongs(tmp_path, shards):
    model = tiny_model(**LVTC)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    tiny_processor(model.config).save_pretrained(tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert len([name for name in written if name.endswith(".py")]) > 10
    assert checkpoint_files(tmp_path) == written
    shutil.copy(tmp_path / "pvtc.py", tmp_path / "secrets.py")
    shutil.copy(next(tmp_path.glob("model*.safetensors")), tmp_path / "model-other.safetensors")
    assert checkpoint_files(tmp_path) == written


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"auto_map": {"AutoModel": "first.Class"}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "first.Class"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "first.Class"}}}),
        ("processor_config.json", {"video_processor": {"auto_map": {"AutoVideoProcessor": ["first.Class"]}}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "first.Class"}}),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "first.Class"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["first.Slow", None]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "first.Fast"]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["other.Slow", "first.Fast"]}}),
    ],
)
def test_code_belongs_where_an_auto_map_leads_to_it(tmp_path, file, content):
    write_json(tmp_path / file, content)
    (tmp_path / "first.py").write_text("from .second import x\nraise SystemExit('was run')\n")
    (tmp_path / "second.py").write_text("def f():\n    from .third import x\n")
    (tmp_path / "third.py").write_text("from .first import x\n")
    (tmp_path / "stray.py").write_text("")
    assert checkpoint_files(tmp_path) == {file, "first.py", "second.py", "third.py"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", [], "holds a list"),
        ("model.safetensors.index.json", {}, "weight_map=None"),
        ("model.safetensors.index.json", {"weight_map": ["a"]}, "weight_map="),
        ("model.safetensors.index.json", {"weight_map": {"a": 1}}, "the tensor a in 1"),
        (
            "model.safetensors.index.json",
            {"weight_map": {"a": "../x.safetensors"}},
            "the tensor a in '../x.safetensors'",
        ),
        ("model.safetensors.index.json", {"weight_map": {"a": "/x.safetensors"}}, "the tensor a in '/x.safetensors'"),
        ("model.safetensors.index.json", {"weight_map": {"a": "id_rsa"}}, "the tensor a in 'id_rsa'"),
        ("config.json", {"auto_map": ["a"]}, "auto_map="),
        ("config.json", {"auto_map": {"AutoModel": 3}}, "auto_map names 3 for AutoModel"),
    ],
)
def test_damaged_file_is_named(tmp_path, file, content, message):
    write_json(tmp_path / file, content)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint_files(tmp_path)
    assert str(tmp_path / file) in str(error.value)


def test_auto_map_does_not_lead_out_of_the_folder(tmp_path):
    folder = fill(tmp_path / "model", ["config.json", "inner.py"])
    (tmp_path / "secret.py").write_text("from .inner import x\n")
    write_json(folder / "config.json", {"auto_map": {"AutoModel": "../secret.Class", "AutoConfig": "..secret.Class"}})
    assert checkpoint_files(folder) == {"config.json"}


def test_linked_folder_is_not_entered(tmp_path):
    fill(tmp_path / "elsewhere", ["MIT.txt"])
    folder = fill(tmp_path / "model", ["config.json"])
    (folder / "LICENSES").symlink_to(tmp_path / "elsewhere")
    assert checkpoint_files(folder) == {"config.json"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    return folder


def test_files_and_links_inside_a_folder_are_resolved(folder):
    (folder / "inner" / "link").symlink_to("../config.json")
    assert resolve_inside(folder, "config.json") == (folder / "config.json").resolve()
    assert resolve_inside(folder, folder / "inner" / "link") == (folder / "config.json").resolve()


def test_a_folder_may_itself_be_reached_by_a_link(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert resolve_inside(tmp_path / "alias", "config.json") == (folder / "config.json").resolve()


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "inner/../../secret"])
def test_links_out_of_a_folder_are_refused(folder, target):
    (folder / "LICENSE").symlink_to(target)
    with pytest.raises(LinkError, match=r"LICENSE leads to .*outside of .*checkpoint"):
        resolve_inside(folder, "LICENSE")


def test_names_out_of_a_folder_are_refused(folder):
    with pytest.raises(LinkError, match="outside of"):
        resolve_inside(folder, "../secret")


def test_links_through_a_folder_that_leads_outside_are_refused(folder, tmp_path):
    (folder / "LICENSES").symlink_to(tmp_path)
    with pytest.raises(LinkError, match="outside of"):
        resolve_inside(folder, "LICENSES/secret")


def test_links_to_nothing_and_loops_are_refused(folder):
    (folder / "dangling").symlink_to("nowhere")
    os.symlink("loop", folder / "loop")
    for name in ("dangling", "loop"):
        with pytest.raises(LinkError, match=re.escape(f"{name} is a broken link")):
            resolve_inside(folder, name)
    with pytest.raises(LinkError, match="absent does not exist"):
        resolve_inside(folder, "absent")


def _snapshot(cache):
    blobs, snapshot = cache / "models--owner--name" / "blobs", cache / "models--owner--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    return snapshot, blobs


def test_a_snapshot_links_to_its_own_repository_in_any_cache(tmp_path):
    snapshot, blobs = _snapshot(tmp_path / "another_cache")
    assert resolve_inside(snapshot, "config.json") == (blobs / "1234").resolve()


def test_a_folder_may_link_to_the_hubs_cache_only(folder, tmp_path, monkeypatch):
    _, blobs = _snapshot(tmp_path / "cache")
    (folder / "model.safetensors").symlink_to(blobs / "1234")
    with pytest.raises(LinkError, match="outside of"):
        resolve_inside(folder, "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert resolve_inside(folder, "model.safetensors") == (blobs / "1234").resolve()
