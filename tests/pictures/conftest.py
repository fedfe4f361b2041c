import numpy as np
import pytest
from PIL import Image

from tiny import LVTC, tiny_model, tiny_processor


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "mine"
    model = tiny_model("qwen3", **LVTC)
    model.save_pretrained(folder)
    tiny_processor(model.config).save_pretrained(folder)
    return folder
