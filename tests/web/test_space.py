"""The Space's folder: its settings for the Hub and its program."""

import re
import runpy

from paths import ROOT
from refusals import refused

SPACE = ROOT / "integrations/space"


def test_the_space_uses_the_tested_gradio():
    front_matter = (SPACE / "README.md").read_text().split("---\n")[1]
    settings = dict(re.findall(r'^(\w+): "?(.*?)"?$', front_matter, re.MULTILINE))
    assert f"gradio=={settings['sdk_version']}\n" in (ROOT / "tests/overlays/web.txt").read_text()
    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()


def test_a_space_without_a_model_exits_with_an_error(monkeypatch):
    monkeypatch.delenv("MODEL", raising=False)
    with refused("MODEL is not set", "a Hub id", by=SystemExit):
        runpy.run_path(str(SPACE / "app.py"))
