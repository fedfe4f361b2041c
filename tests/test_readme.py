"""The README does what it says: its Python runs, and its table of costs is what the image processor answers."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from internvlx_hf import InternVLXImageProcessor
from tiny import tiny_model, tiny_processor

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo_output(tmp_path, monkeypatch):
    """The working folder, with a checkpoint and a page where `make demo` leaves them."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "out/demo/model")
    tiny_processor(model.config).save_pretrained(tmp_path / "out/demo/model")
    (tmp_path / "out/demo/pages").mkdir()
    Image.new("RGB", (128, 96), "white").save(tmp_path / "out/demo/pages/128x96-00.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path


@pytest.mark.slow
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


def test_every_file_that_it_names_exists():
    root = Path(__file__).parent.parent
    named = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert named
    assert [name for name in named if not (root / name).exists()] == []
