"""A golden checkpoint to change, where a conversion goes, and conversions that tests only read."""

import pytest

from conversion_helpers import GOLDEN, copy_of
from internvlx_hf.conversion import convert_checkpoint


@pytest.fixture
def source(tmp_path):
    return copy_of("internvl2_qwen2", tmp_path / "source")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """`converted(name, **options)` is the folder of that conversion, which is made once."""

    made = {}

    def convert(name="internvl2_qwen2", **options):
        key = repr((name, options))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("converted") / name
            convert_checkpoint(GOLDEN / name, made[key], **options)
        return made[key]

    return convert
