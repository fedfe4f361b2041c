"""A new setting of images is one field: processors, their files, commands, the page, training and vLLM have it."""

import json
import os
import shutil

import pytest

import forked
from paths import HELPERS, ROOT

FIELD = '    shade: int | None = _setting(whole(1, 9), "how dark tiles are", "Shade", "shade {}".format, own=3)\n\n'
# what reads images
OVERLAY = ROOT / "build/web"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (OVERLAY / ".installed").exists(), reason="needs build/web, which `make test-integration` installs"
    ),
]
COMMANDS = {"answer", "chat", "convert", "cost", "init", "serve", "show", "train", "web"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a copy of the package with the field makes of it."""
    folder = tmp_path_factory.mktemp("setting")
    package = shutil.copytree(ROOT / "src" / "internvlx_hf", folder / "internvlx_hf")
    source = package / "processing" / "image_settings.py"
    before = "    def __post_init__(self):\n"
    text = source.read_text()
    assert text.count(before) == 1
    source.write_text(text.replace(before, FIELD + before))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, HELPERS, OVERLAY)))}
    done = forked.python(HELPERS / "new_setting_process.py", folder, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_command_that_reads_images_has_its_option(report):
    assert set(report["commands"]) == COMMANDS


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("saved", 7), ("loaded", 6), ("converted", 5)),
        *(("cost", 6), ("served", 5), ("trained", 4), ("answers", 8)),
    ],
)
def test_it_is_saved_and_passed_on(report, place, value):
    assert report[place] == value


def test_the_page_has_its_input(report):
    *names, chosen = report["page"]
    assert names[-1] == "shade"
    assert chosen == 7


def test_vllm_takes_it_and_its_rule_holds_there_and_in_calls(report):
    settings, refused = report["vllm"]
    assert settings == {"shade": 7}
    for message in (refused, report["refused"]):
        assert message == "shade=11, expected a whole number from 1 to 9."
