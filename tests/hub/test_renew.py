"""`internvlx renew`: the code of a checkpoint that an earlier version saved is replaced, whole or not at all."""

import os

import pytest

from commands import internvlx
from internvlx_hf.checkpoints.manifest import foreign_files, write_manifest
from internvlx_hf.cli import main
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import check_folder, renew_code
from json_files import json_of, write_json
from paths import GOLDEN
from refusals import refused


@pytest.fixture
def old(tmp_path):
    """A converted checkpoint with the code of another version."""
    folder = tmp_path / "old"
    convert_checkpoint(GOLDEN / "checkpoints" / "internvl2_qwen2", folder)
    for path in folder.glob("*.py"):
        path.write_text(path.read_text() + "# of an earlier version\n")
    (folder / "image_placeholders.py").unlink()
    (folder / "internvlx_manifest.json").unlink()
    return folder


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_code_is_replaced_and_a_second_run_has_nothing_to_do(old):
    before = contents(old)
    changes = renew_code(old)
    after = contents(old)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == changes.keys()
    assert {"added", "replaced"} <= set(changes.values())
    assert all(name.endswith(".py") for name in changes)
    assert renew_code(old) == {}
    check_folder(old)


def test_a_dry_run_names_the_files_and_changes_nothing(old, capsys):
    before = contents(old)
    assert main(["renew", str(old), "--dry-run"]) == 0
    assert contents(old) == before
    said = capsys.readouterr().out
    assert "replaced: modeling_internvlx.py\n" in said
    assert said == internvlx(capsys, "renew", old).out + "dry run: nothing was changed\n"
    assert "has this version's code" in internvlx(capsys, "renew", old).out


@pytest.mark.parametrize("written", [0, 1, "before the added", 20])
def test_a_failure_leaves_the_folder_as_it_was(old, written, monkeypatch):
    before, replace = contents(old), os.replace
    if written == "before the added":
        written = list(renew_code(old, dry_run=True).values()).index("added")
    left = iter([replace] * written)

    def full(source, target):
        try:
            next(left)(source, target)
        except StopIteration:
            raise OSError("no space left") from None

    monkeypatch.setattr("internvlx_hf.hub.renew.os.replace", full)
    with refused("no space left", by=OSError):
        renew_code(old)
    assert contents(old) == before


def test_code_that_nothing_loads_any_more_is_removed_and_other_files_are_kept(old):
    (old / "notes.py").write_text("")
    (old / "former.py").write_text("")
    with (old / "modeling_internvlx.py").open("a") as file:
        file.write("\nfrom .former import *\n")
    changes = renew_code(old)
    assert changes["former.py"] == "removed"
    assert (old / "notes.py").exists()
    assert not (old / "former.py").exists()


def test_a_manifest_follows_so_that_the_folder_may_still_be_replaced(old):
    write_manifest(old, "0123abcd")
    renew_code(old)
    assert foreign_files(old) == []
    assert json_of(old / "internvlx_manifest.json")["run"] == "0123abcd"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "it has no config.json"),
        ({"model_type": "llava"}, "model_type='llava'"),
        (
            {"model_type": "internvl_x", "auto_map": {"AutoModel": "mine.MyModel"}},
            "loads 'mine.MyModel', which is not",
        ),
        (
            {"model_type": "internvl_x", "auto_map": {"AutoModel": "a/b--modeling_internvlx.InternVLXModel"}},
            "loads 'a/b--modeling_internvlx.InternVLXModel'",
        ),
    ],
)
def test_another_folder_is_refused(config, message, tmp_path, capsys):
    if config is not None:
        write_json(tmp_path / "config.json", config)
    before = contents(tmp_path)
    assert message in internvlx(capsys, "renew", tmp_path, status=1).err
    assert contents(tmp_path) == before
