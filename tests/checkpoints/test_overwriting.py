"""What a folder may be overwritten for: what this package wrote, as its manifest says, and nothing else."""

import json
import stat
from pathlib import Path

import pytest

from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.checkpoints.manifest import MANIFEST
from small_folder import PERSONS, content, names, whole, write


@pytest.mark.parametrize("kind", ["source tree", "foreign checkpoint", "file"])
def test_what_was_not_written_this_way_is_not_overwritten_and_is_listed(kind, tmp_path):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("a file")
    else:
        out.mkdir()
        (out / "config.json").write_text(json.dumps({"model_type": "internvl_x"}))
        (out / "conversion_report.json").write_text("{}")  # as a training copies it
    if kind == "source tree":
        (out / "src").mkdir()
        (out / "src" / "main.py").write_text("")
    expected = {
        "source tree": r"not the folder of a checkpoint that internvlx wrote.* holds config\.json, conversion_report\.json, src/\.",
        "foreign checkpoint": r"not the folder of a checkpoint that internvlx wrote.* holds config\.json, conversion_report\.json\.",
        "file": r"is not the folder of a checkpoint",
    }
    before = content(out) if out.is_dir() else out.read_text()
    with pytest.raises(FileExistsError, match=expected[kind]):
        write(out, "new", overwrite=True)
    assert (content(out) if out.is_dir() else out.read_text()) == before
    assert names(tmp_path) == ["out"]


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (lambda out: (out / "notes.txt").write_text(""), "notes.txt"),
        (lambda out: (out / "checkpoint-500").mkdir(), "checkpoint-500"),
        (lambda out: (out / "LICENSES" / "mine").write_text(""), "LICENSES/"),
        (lambda out: (out / "model.safetensors").write_text("OLD"), "model.safetensors (changed since)"),
        (lambda out: (out / "config.json").write_text("older"), "config.json (changed since)"),
        (lambda out: link(out / "model.safetensors", "config.json"), "model.safetensors (changed since)"),
        (lambda out: link(out / "README.md", "config.json"), "README.md (changed since)"),
        (lambda out: link(out / "data", ".."), "data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_came_into_a_folder_of_ours_later_is_listed_before_the_work(change, listed, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    change(out)
    with pytest.raises(FileExistsError) as error, atomic_folder(out, overwrite=True):
        raise AssertionError("the work began")
    assert f"did not write, and is not overwritten: {listed}. Move" in str(error.value)
    assert names(tmp_path) == ["out"]


def test_weights_that_were_trained_in_place_are_not_what_was_written(tmp_path):
    """Of a large file only parts are compared; training changes values everywhere."""
    out = tmp_path / "out"
    with atomic_folder(out) as partial:
        (partial / "model.safetensors").write_bytes(bytes(5_000_000))
    (out / "model.safetensors").write_bytes(bytes(2_000_000) + b"\1" * 3_000_000)
    with (
        pytest.raises(FileExistsError, match=r"model\.safetensors \(changed since\)"),
        atomic_folder(out, overwrite=True),
    ):
        pass


@pytest.mark.parametrize(
    "text", ["[]", "null", "{", '{"format": 2, "files": {}}', '{"format": 1, "files": []}', "\xff"]
)
def test_folder_with_a_manifest_that_is_none_is_not_overwritten(text, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    (out / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileExistsError, match="not the folder of a checkpoint that internvlx wrote"):
        write(out, "new", overwrite=True)
    assert content(out) == whole("old")


def test_manifest_that_records_no_digest_covers_nothing(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"] |= {"thesis.txt": None, "../out/notes.txt": None, str(out / "more.txt"): {}}
    (out / MANIFEST).write_text(json.dumps(manifest))
    for name in ("thesis.txt", "notes.txt", "more.txt"):
        (out / name).write_text("years of work")
    with pytest.raises(FileExistsError, match=r": more\.txt, notes\.txt, thesis\.txt \(changed since\)\."):
        write(out, "new", overwrite=True)


def test_missing_file_and_edited_card_do_not_forbid_to_overwrite(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    (out / "model.safetensors").unlink()
    (out / "README.md").write_text(PERSONS)
    write(out, "new", overwrite=True)
    assert content(out) == whole("new", PERSONS)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o775])
def test_a_folder_that_is_replaced_keeps_its_permissions(mode, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    out.chmod(mode)
    write(out, "new", overwrite=True)
    assert stat.S_IMODE(out.stat().st_mode) == mode
