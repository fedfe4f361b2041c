import pytest

from image_cases import random_image
from tiny import LVTC, save_tiny


@pytest.fixture
def photo(tmp_path):
    random_image(128, 96).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "mine", "qwen3", **LVTC)
