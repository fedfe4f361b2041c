"""Fixtures that several test files share."""

import gc
import logging
import os
import sys
from contextlib import suppress

import pytest

import forked

# The process that only distributes tests has no use for torch: it is imported here by the others alone, and below by none.
if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith(("-n", "--numprocesses")) for word in sys.argv):
    forked.start_server()

with suppress(ImportError):  # a machine lent for its GPU may lack it
    from hypothesis import HealthCheck, settings

    # no test fails because a machine is slow
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")

# suites of their own: `make test-hf`, `make test-vllm`, `make docs`
collect_ignore = ["hf_suite", "engines", "site"]


def pytest_ignore_collect(collection_path, config):
    """`-m cuda` imports only files with such tests: a machine lent for its GPU may lack what the others import."""
    if config.option.markexpr != "cuda":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.cuda" in file.read_text(encoding="utf-8") for file in files) else True


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that at the end no worker waits for one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What was imported stays: leaving it out makes each garbage collection quick, and every training starts with one."""
    gc.freeze()


# deprecations that a test asks for, or that transformers' assisted decoding logs about itself
EXPECTED_DEPRECATIONS = ("`torch_dtype` is deprecated", "Passing `generation_config` together with")


class DeprecationRecorder(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record):
        message = record.getMessage()
        if "deprecated" in message and not message.startswith(EXPECTED_DEPRECATIONS):
            self.found.append(f"{record.name}: {message}")


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used():
    """transformers logs some deprecations, most only once. Those that it warns of are errors: see pyproject.toml."""
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    recorder, logger = DeprecationRecorder(), logging.getLogger("transformers")
    logger.addHandler(recorder)
    yield recorder.found
    logger.removeHandler(recorder)
    assert recorder.found == []


@pytest.fixture
def demo_output(tmp_path, monkeypatch):
    """The working folder, with a checkpoint and a page where `make demo` leaves them."""
    from PIL import Image

    from tiny import tiny_model, tiny_processor
    from video_cases import numbered_video

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
