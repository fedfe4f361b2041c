"""The releases of transformers that this package is tested with, and what it says of others."""

import os
import warnings

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import forked
import resolve_newest
from internvlx_hf.modeling.version import TESTED_TRANSFORMERS, warn_outside_tested_range
from paths import ROOT

pytestmark = pytest.mark.any_transformers

OVERLAYS = ROOT / "tests/overlays"


def pinned(path) -> Version:
    return Version(resolve_newest.pins(path.read_text(encoding="utf-8"))["transformers"])


def test_the_tested_range_is_that_of_the_lanes():
    allowed = SpecifierSet(resolve_newest.setup_cfg_requirements()["transformers"])
    oldest, newest = (pinned(OVERLAYS / name) for name in ("oldest.txt", "newest.txt"))
    assert (oldest.release[:2], newest.release[:2]) == TESTED_TRANSFORMERS
    assert oldest in allowed
    assert Version("5.15.99") not in allowed
    assert pinned(ROOT / "constraints.txt").release[:2] == TESTED_TRANSFORMERS[1]  # patch releases may differ


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        ("5.15.1", "install a newer transformers"),
        ("5.25.0", "install a newer internvlx-hf"),
        ("5.25.0.dev0", "install a newer internvlx-hf"),
        ("6.0.0", "install a newer internvlx-hf"),
    ],
)
def test_other_releases_are_warned_of(installed, advice):
    with pytest.warns(UserWarning, match=rf"tested with transformers 5\.16 to 5\.24, but {installed} is.*{advice}"):
        warn_outside_tested_range(installed)


@pytest.mark.parametrize("installed", ["5.16.0", "5.20.2", "5.24.3"])
def test_tested_releases_are_not_warned_of(installed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_outside_tested_range(installed)


@pytest.mark.slow
def test_an_import_beside_an_untested_release_says_so_once(tmp_path):
    (tmp_path / "transformers-5.99.0.dist-info").mkdir()
    (tmp_path / "transformers-5.99.0.dist-info/METADATA").write_text("Name: transformers\nVersion: 5.99.0\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    run = forked.python("-c", "import internvlx_hf", env={**os.environ, "PYTHONPATH": path})
    assert (
        run.stderr.count("internvlx_hf 0.2.0 is tested with transformers 5.16 to 5.24, but 5.99.0 is installed") == 1
    )


def test_the_newest_releases_are_direct_dependencies_and_what_differs_from_the_pins():
    installed = {"transformers": "5.25.0", "tokenizers": "0.24.0", "tqdm": "4.70.1", "brandnew": "1.0"}
    constraints = "# a comment\ntransformers==5.24.0 ; python_version >= '3.11'\ntokenizers==0.23.3\ntqdm==4.70.1\n"
    assert resolve_newest.newest_lines(installed, {"transformers"}, resolve_newest.pins(constraints)) == [
        "brandnew==1.0",
        "tokenizers==0.24.0",
        "transformers==5.25.0",
    ]


def test_every_direct_dependency_has_its_newest_release_listed():
    listed = resolve_newest.pins((OVERLAYS / "newest.txt").read_text(encoding="utf-8"))
    assert resolve_newest.setup_cfg_requirements().keys() - {"torch"} <= listed.keys()
    assert "torch" not in listed
