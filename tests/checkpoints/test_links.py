"""Links in folders that somebody else filled."""

import os
import re

import pytest

from internvlx_hf.checkpoints.links import LinkError, resolve_inside


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
        with pytest.raises(LinkError, match=re.escape(f"{name} is a link to nothing")):
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
