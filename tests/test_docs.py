"""The Python in docs/ runs, block after block; the files, commands and options that it names exist."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from internvlx_hf.cli import COMMANDS
from internvlx_hf.cost.presets import preset_name
from internvlx_hf.processing.image_settings import ImageSettings
from paths import ROOT

pytestmark = pytest.mark.any_transformers

DOCS = sorted((ROOT / "docs").glob("*.md"))
RESULTS = sorted((ROOT / "benchmarks").rglob("*.md"))


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCS if python_blocks(path)], ids=lambda path: path.name)
def test_every_python_block_runs(path, demo_output):
    blocks = python_blocks(path)
    namespace = {"__name__": "docs"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{path.name} block {number}", "exec"), namespace)


@pytest.mark.parametrize("path", [*DOCS, *RESULTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_it_names_exists(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert [name for name in named if not (path.parent / name.partition("#")[0]).exists()] == []
    scripts = re.findall(r"\bpython (?!llama\.cpp)([\w/.-]+\.py)", text)
    assert [name for name in scripts if not (ROOT / name).exists()] == []
    targets = re.findall(r"(?:^|`)make ([a-z][\w-]*)(?![\w/-])", text, re.MULTILINE)
    known = re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(" ".join(known).split())


def command_lines() -> set[tuple[str, str]]:
    """Sub-command and the rest of each `internvlx ...` line in the documentation's shell blocks."""
    found = set()
    for path in (ROOT / "README.md", *DOCS):
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            found |= set(re.findall(r"^internvlx +(\S+)(.*)$", block.replace("\\\n", " "), re.MULTILINE))
    return found


@pytest.mark.parametrize("name", sorted({name for name, _ in command_lines()}))
def test_every_option_that_the_documentation_gives_a_command_exists(name, capsys):
    assert name in COMMANDS
    with pytest.raises(SystemExit) as stop:
        import_module(f"internvlx_hf.commands.{name}").main(["--help-all" if name == "train" else "--help"])
    assert stop.value.code == 0
    explained = capsys.readouterr().out
    used = {
        option
        for command, rest in command_lines()
        if command == name
        for option in re.findall(r"(?<=\s)--[\w.-]+", rest.split(" #")[0])
    }
    assert [option for option in used if not re.search(rf"(?<!\S){re.escape(option)}(?![\w-])", explained)] == []


def test_no_converted_folder_is_taken_for_a_preset_by_later_commands():
    written = {words.split()[1] for command, words in command_lines() if command == "convert"}
    assert len(written) > 5
    assert [folder for folder in written if preset_name(folder)] == []


def test_the_lvtc_figure_is_drawn_from_the_paper_s_layer(tmp_path):
    import runpy

    draw = runpy.run_path(str(DOCS[0].parent / "draw_lvtc.py"))
    from internvlx_hf import InternVLXConfig

    config = InternVLXConfig(text_config=draw["INTERNVL2_2B"], image_token_id=92546, lvtc_config={})
    tokens = draw["tokens_per_layer"](config)
    assert tokens == [64 + 256] * 17 + [64 + 1024] * 7


def test_what_lvtc_costs_beside_one_grid_in_all_layers_is_what_is_counted():
    from internvlx_hf import cost

    setting = cost.load_setup("internvl-x-2b")
    one_grid = {256: cost.load_setup("internvl2-2b"), 1024: cost.load_setup("internvl2-2b")}
    one_grid[1024].config.downsample_ratio = 1.0
    text = (ROOT / "docs" / "lvtc.md").read_text(encoding="utf-8")
    for start, each in (("256 in", one_grid[256]), ("LVTC, 256 and", setting), ("1024 in", one_grid[1024])):
        few, many = (cost.CostModel(each).of_tiles(tiles) for tiles in (1, 7))
        cells = [f"{c.prefill_flops / 1e12:.2f} TFLOP | {c.cache_bytes / 2**20:.0f} MiB" for c in (few, many)]
        assert re.search(rf"^\| {start}[^|]* \| {re.escape(' | '.join(cells))} \|$", text, re.MULTILINE), cells


def test_what_sizes_cost_is_what_is_counted():
    from internvlx_hf import cost

    preset = cost.load_setup("internvl2-2b")
    config = preset.config
    config.update({"tokens_per_tile": ["256", "64", "64:256", "256:64", "256:0"], "merge_layer": 16})
    config.update({"lvtc_config": {"downsample_ratio": 0.5, "expand_layer": 17}})
    text = (ROOT / "docs" / "dial.md").read_text(encoding="utf-8")
    for size in config.tokens_per_tile:
        setup = cost.ModelSetup("dial", config, preset.tiling, settings=ImageSettings(tokens_per_tile=size))
        cells = [
            f"{found.prefill_flops / 1e12:.2f} TFLOP | {found.cache_bytes / 2**20:.0f} MiB"
            for found in map(cost.CostModel(setup).of_tiles, (1, 7))
        ]
        assert f"| {size} | {' | '.join(cells)} |" in text


def test_evidence_is_what_the_results_say(monkeypatch, tmp_path):
    import runpy

    script = runpy.run_path(str(ROOT / "docs/write_evidence.py"))
    assert (ROOT / "docs/evidence.md").read_text(encoding="utf-8") == script["page"](), "python docs/write_evidence.py"
    script["page"].__globals__["RESULTS"] = tmp_path  # a study that has no results leaves a gap and no error
    assert script["page"]().count("not measured yet") > 10


def test_the_table_of_image_settings_is_that_of_their_fields():
    rows = []
    for each in fields(ImageSettings):
        own = "none" if each.metadata["own"] is None else each.metadata["own"]
        rows.append(f"| `{each.name}` | {own} | {each.metadata['help']} |\n")
    assert "".join(rows) + "\n" in (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")


def test_everything_public_is_documented():
    import runpy

    modules = [import_module(name) for name in runpy.run_path(str(ROOT / "docs/site_hooks.py"))["REFERENCE"]]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    assert "internvlx_hf.training.InternVLXDataCollator" in public
    undocumented = [
        name for name, value in public.items() if callable(value) and not vars(value).get("__doc__", value.__doc__)
    ]
    assert undocumented == []


def test_the_site_s_menu_has_every_page():
    in_menu = re.findall(r"^ +- .*: ([\w.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(in_menu) == [path.name for path in DOCS]
