"""The README does what it says: its Python runs, and its table of costs is what the image processor answers."""

import os
import re

import pytest

from internvlx_hf import InternVLXImageProcessor
from paths import ROOT

pytestmark = pytest.mark.any_transformers

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_python_block_runs_in_order(demo_output, capsys):
    assert len(PYTHON_BLOCKS) >= 4
    namespace = {"__name__": "readme"}
    for number, block in enumerate(PYTHON_BLOCKS):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "1 tile, 256 tokens" in printed
    assert "16 tokens a tile" in printed
    assert {"config.json", "model.safetensors", "modeling_internvlx.py", "processing_internvlx.py"} <= set(
        os.listdir(demo_output / "out/tuned")
    )


def test_table_of_costs_is_what_the_image_processor_answers():
    rows = re.findall(r"^\| (\d+)×(\d+) \|(.*)\|$", README, re.MULTILINE)
    assert len(rows) >= 6
    for width, height, cells in rows:
        for slicing, cell in zip(("ratio", "area", "edge"), cells.split("|"), strict=True):
            image_processor = InternVLXImageProcessor(slicing=slicing, max_patches=12)
            tiles = image_processor.get_number_of_image_patches(int(height), int(width))
            assert cell.strip() == f"{tiles} tile{'s' * (tiles > 1)}, {256 * tiles} tokens"


def test_its_links_work_on_pypi_and_name_files_that_exist():
    addresses = re.findall(r"\]\(([^)#]+)", README)
    assert [address for address in addresses if not address.startswith("https://")] == []
    files = {
        re.sub(r"^https://(github|raw\.githubusercontent)\.com/[^/]+/[^/]+/((blob|tree)/)?main/", "", a)
        for a in addresses
    }
    files -= set(addresses)
    assert len(files) >= 10
    assert [name for name in files if not (ROOT / name).exists()] == []
