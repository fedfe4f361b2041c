"""A checkpoint that can be pushed, and copies of it."""

import shutil

import pytest

from tiny import LVTC, tiny_model, tiny_processor


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "whole"
    model = tiny_model(**LVTC)
    model.save_pretrained(folder, max_shard_size="250KB")
    tiny_processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")
