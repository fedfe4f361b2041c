"""A new type of projector is one file and its class in a list: configurations, training, checkpoints, costs, cards know it."""

import json
import os
import shutil

import pytest

import forked
from paths import HELPERS, ROOT


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a copy of the package with the projector of `mean_projector.py` makes of it."""
    folder = tmp_path_factory.mktemp("sixth")
    package = shutil.copytree(ROOT / "src" / "internvlx_hf", folder / "internvlx_hf")
    shutil.copy(HELPERS / "mean_projector.py", package / "modeling")
    registry = package / "modeling" / "projectors.py"
    text = registry.read_text()
    text = text.replace("from .projector import", "from .mean_projector import MeanProjector\nfrom .projector import")
    text = text.replace("    LDPv2Projector,\n", "    LDPv2Projector,\n    MeanProjector,\n")
    registry.write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{HELPERS}",
        "HF_MODULES_CACHE": str(folder / "hub"),
    }
    done = forked.python(HELPERS / "sixth_projector_process.py", folder, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_it_is_built_and_trained(report):
    assert report["trained"]
    assert report["scale"] == pytest.approx(3.0, abs=0.1)  # the mean of 64 values with a deviation of 0.2
    assert report["no_split"] == ["MeanProjector"]


@pytest.mark.slow
def test_its_checkpoints_load_with_the_package_and_with_their_own_code(report):
    assert "mean_projector.py" in report["saved"]
    assert report["remote"] == "transformers_modules"
    assert report["equal"] == [True, True]


@pytest.mark.slow
def test_its_cost_is_counted(report):
    assert report["flops"] == 2 * 16 * 32 * 64  # 16 tokens, from width 32 to 64
    assert report["peak"] > 0


@pytest.mark.slow
def test_its_card_is_written(report):
    assert "projector `mean`" in report["card"]


@pytest.mark.slow
def test_lvtc_starts_it_at_zero_in_a_warm_upgrade(report):
    assert report["starts at zero"]
    assert report["upgraded scale"] == pytest.approx(3.0, abs=0.1)
