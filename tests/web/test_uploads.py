"""The folder of uploads: what a request may name, quotas, and deletion."""

import os

import pytest

from internvlx_hf.web import uploads as uploads_module
from internvlx_hf.web.uploads import DELETE_AFTER, MAX_CLIENT_UPLOADS, MAX_UPLOADS, Uploads
from refusals import refused

LARGEST = 1000


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads", LARGEST)


def stored(uploads: Uploads, name: str, size: int = 1, age: float = 0) -> str:
    path = uploads.folder / f"hash of {name}" / name
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return str(path)


def test_only_a_file_in_the_folder_is_an_upload(uploads, tmp_path):
    path = stored(uploads, "a.png")
    assert str(uploads.file(path)) == os.path.realpath(path)
    private = tmp_path / "a.png"
    private.write_bytes(b"private")
    (uploads.folder / "link").symlink_to(private)
    (uploads.folder / "folder").symlink_to(tmp_path)
    others = {
        *(str(private), str(uploads.folder / "link"), str(uploads.folder / "folder/a.png"), str(uploads.folder)),
        *(f"file://{path}", f"{path}\0", "\ud800", "", f"{uploads.folder}/../a.png", str(tmp_path / "uploads2/a.png")),
    }
    for name in others:
        with refused("is no longer there. Upload the image again"):
            uploads.file(name)


def test_a_client_has_its_own_quota_for_as_long_as_uploads_stay(uploads, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(uploads_module.time, "time", lambda: now)
    for _ in range(MAX_CLIENT_UPLOADS):
        assert uploads.refusal("a", LARGEST) is None
        now += 60
    expected = (
        f"has uploaded {MAX_CLIENT_UPLOADS * LARGEST:,} bytes within 60 minutes, expected at most 10,000. Try again in"
    )
    assert f"{expected} 50 minutes" in uploads.refusal("a", LARGEST)
    assert uploads.refusal("b", LARGEST) is None
    now = 1000.0 + DELETE_AFTER
    assert uploads.refusal("a", LARGEST) is None
    assert f"{expected} 1 minute." in uploads.refusal("a", LARGEST)


def test_tiny_uploads_are_limited_in_number(uploads):
    refused = [uploads.refusal("a", 1) is not None for _ in range(300)]
    assert refused == [False] * 200 + [True] * 100


def test_old_uploads_are_deleted_also_those_that_were_never_completed(uploads):
    old, new = stored(uploads, "old", age=DELETE_AFTER + 1), stored(uploads, "new", age=DELETE_AFTER - 60)
    partial = uploads.folder / "tmp_partial"
    partial.write_bytes(b"0")
    os.utime(partial, (0, 0))
    uploads.clean()
    assert not os.path.exists(os.path.dirname(old))
    assert not partial.exists()
    assert os.path.exists(new)


def test_a_full_folder_loses_its_oldest_uploads(uploads):
    paths = [stored(uploads, str(i), LARGEST, age=60 - i) for i in range(MAX_UPLOADS + 2)]
    uploads.clean()
    assert [os.path.exists(path) for path in paths] == [False] * 2 + [True] * MAX_UPLOADS
