"""Conversions of golden checkpoints that tests only read, each made once."""

import pytest

from conversion_helpers import GOLDEN
from internvlx_hf.conversion import convert_checkpoint


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """`converted(name, **options)` is the folder of that conversion."""

    made = {}

    def convert(name="internvl2_qwen2", **options):
        key = repr((name, options))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("converted") / name
            convert_checkpoint(GOLDEN / name, made[key], **options)
        return made[key]

    return convert
