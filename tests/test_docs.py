"""The Python in docs/ runs, block after block, and the files that it names exist."""

import re
from pathlib import Path

import pytest

DOCS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [path for path in DOCS if python_blocks(path)], ids=lambda path: path.name)
def test_every_python_block_runs(path, demo_output):
    blocks = python_blocks(path)
    namespace = {"__name__": "docs"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{path.name} block {number}", "exec"), namespace)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_file_that_it_names_exists(path):
    named = re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (path.parent / name).exists()] == []


def test_the_lvtc_figure_is_drawn_from_the_paper_s_layer(tmp_path):
    import runpy

    draw = runpy.run_path(str(DOCS[0].parent / "draw_lvtc.py"))
    from internvlx_hf import InternVLXConfig

    config = InternVLXConfig(text_config=draw["INTERNVL2_2B"], image_token_id=92546, lvtc_config={})
    tokens = draw["tokens_per_layer"](config)
    assert tokens == [64 + 256] * 17 + [64 + 1024] * 7
