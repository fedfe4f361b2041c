"""A checkpoint that can be pushed, and copies of it."""

import shutil

import pytest

from tiny import LVTC, save_tiny


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("folder") / "whole", max_shard_size="250KB", **LVTC)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")
