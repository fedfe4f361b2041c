"""Which files of a folder belong to a checkpoint."""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from internvlx_hf.checkpoints.checkpoint_names import KNOWN, checkpoint_file_names
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
    assert checkpoint_file_names(fill(tmp_path, [name])) == {name}


@pytest.mark.parametrize("name", DOES_NOT)
def test_unknown_file_does_not_belong(tmp_path, name):
    assert checkpoint_file_names(fill(tmp_path, [name, *BELONGS])) == set(BELONGS)


def test_every_known_pattern_is_tried_above():
    assert [pattern for pattern in KNOWN if not any(fnmatchcase(name, pattern) for name in BELONGS)] == []


@pytest.mark.parametrize("shards", ["5GB", "250KB"], ids=["one", "several"])
def test_all_that_save_pretrained_writes_belongs(tmp_path, shards):
    model = tiny_model(**LVTC)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    tiny_processor(model.config).save_pretrained(tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert len([name for name in written if name.endswith(".py")]) > 10
    assert checkpoint_file_names(tmp_path) == written
    shutil.copy(tmp_path / "pvtc.py", tmp_path / "secrets.py")
    shutil.copy(next(tmp_path.glob("model*.safetensors")), tmp_path / "model-other.safetensors")
    assert checkpoint_file_names(tmp_path) == written


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
    assert checkpoint_file_names(tmp_path) == {file, "first.py", "second.py", "third.py"}


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
        checkpoint_file_names(tmp_path)
    assert str(tmp_path / file) in str(error.value)


def test_auto_map_does_not_lead_out_of_the_folder(tmp_path):
    folder = fill(tmp_path / "model", ["config.json", "inner.py"])
    (tmp_path / "secret.py").write_text("from .inner import x\n")
    write_json(folder / "config.json", {"auto_map": {"AutoModel": "../secret.Class", "AutoConfig": "..secret.Class"}})
    assert checkpoint_file_names(folder) == {"config.json"}


def test_linked_folder_is_not_entered(tmp_path):
    fill(tmp_path / "elsewhere", ["MIT.txt"])
    folder = fill(tmp_path / "model", ["config.json"])
    (folder / "LICENSES").symlink_to(tmp_path / "elsewhere")
    assert checkpoint_file_names(folder) == {"config.json"}
