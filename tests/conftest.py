"""Fixtures that several test files share."""

import gc

import pytest
from PIL import Image

from tiny import tiny_model, tiny_processor
from video_cases import numbered_video

# suites of their own: `make test-hf`, `make test-vllm`, `make docs`
collect_ignore = ["hf_suite", "engines", "site"]


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that at the end no worker waits for one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What was imported stays: leaving it out makes each garbage collection quick, and every training starts with one."""
    gc.freeze()


@pytest.fixture
def demo_output(tmp_path, monkeypatch):
    """The working folder, with a checkpoint and a page where `make demo` leaves them."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "out/demo/model")
    tiny_processor(model.config).save_pretrained(tmp_path / "out/demo/model")
    (tmp_path / "out/demo/pages").mkdir()
    Image.new("RGB", (128, 96), "white").save(tmp_path / "out/demo/pages/128x96-00.png")
    (tmp_path / "clip.mp4").write_bytes(numbered_video())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path
