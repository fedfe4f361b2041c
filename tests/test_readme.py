"""The README is short, says what was counted and measured, and its Python runs. `make wheel` runs its commands."""

import re
from dataclasses import replace

import pytest

from internvlx_hf import cost
from internvlx_hf.cli import main
from internvlx_hf.conversion import ConversionOptions
from internvlx_hf.conversion.upgrades import build_upgrade
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.processing.image_settings import ImageSettings
from paths import ROOT
from tiny import tiny_model, tiny_processor

pytestmark = pytest.mark.any_transformers

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict.fromkeys(("bash", "python", "text"))
for language in BLOCKS:
    BLOCKS[language] = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
WITHOUT_BLOCKS = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"<[^>]*>|\]\([^)]*\)", "", WITHOUT_BLOCKS)


def test_it_has_one_screen_before_its_first_command_and_few_lines():
    before = PROSE.partition("That needs")[0]
    assert README.index("```bash") < README.index("That needs")
    assert len(before.split()) <= 90
    assert len(README.splitlines()) <= 120


def test_no_sentence_has_more_than_25_words():
    sentences = re.split(r"(?<=[.!?])\s|\n\s*\n|\n- |\|", PROSE)
    assert len(sentences) > 50
    assert [each for each in sentences if len(each.split()) > 25] == []


def test_the_output_that_it_shows_is_the_command_s(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"^internvlx (cost .*)$", BLOCKS["bash"][0], re.MULTILINE)
    assert main(command.split()) == 0
    assert capsys.readouterr().out == BLOCKS["text"][0]


def tera(setup: ModelSetup, size: tuple[int, int], **tiling) -> str:
    budget = tiling.pop("budget", None)
    setup = replace(setup, tiling=replace(setup.tiling, **tiling)).changed(ImageSettings(max_image_tokens=budget))
    return f"{cost.CostModel(setup).of_size(*size).prefill_flops / 1e12:.2f}"


def test_its_table_says_what_is_counted():
    setup, llava = cost.load_setup("internvl2-2b"), cost.load_setup("llava-1.5-7b")
    table = README.partition("## What to choose")[2]
    for words, size, tiling in (
        ("640×480: {} TFLOP instead of {}", (640, 480), {"slicing": "edge"}),
        ("1920×1080: {} instead of {}", (1920, 1080), {"slicing": "edge", "max_tiles": 6}),
        ("A4: {} instead of {}", (1240, 1754), {"budget": 1024}),
    ):
        assert words.format(tera(setup, size, **tiling), tera(setup, size)) in table
    caches = [cost.CostModel(setup).of_tiles(tiles).cache_bytes for tiles in (1, 13)]
    assert "{:.1f} GiB of cache instead of {:.1f}, *computed, not".format(*(50 * n / 2**30 for n in caches)) in table
    for words, each, tiles in (("13 tiles: {} instead of {}", setup, 13), ("one tile: {} instead of {}", llava, 1)):
        config, _ = build_upgrade(each.config, ConversionOptions(projector="pvtc", downsample_ratio=1 / 4))
        both = (ModelSetup("pvtc", config, each.tiling), each)
        found = [f"{cost.CostModel(one).of_tiles(tiles).prefill_flops / 1e12:.2f}" for one in both]
        assert words.format(*found) in table


def test_its_python_runs_after_its_commands(tmp_path, monkeypatch, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "out/2b")
    tiny_processor(model.config).save_pretrained(tmp_path / "out/2b")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (block,) = BLOCKS["python"]
    assert len([line for line in block.splitlines() if line and not line.startswith("from")]) <= 8
    exec(compile(block, "README", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_its_links_work_on_pypi_and_name_files_that_exist():
    addresses = re.findall(r"\]\(([^)#]+)|(?:src|srcset)=\"([^\"]+)", README)
    addresses = [link or image for link, image in addresses]
    assert [address for address in addresses if not address.startswith("https://")] == []
    files = {
        re.sub(r"^https://(github|raw\.githubusercontent)\.com/[^/]+/[^/]+/((blob|tree)/)?main/", "", a)
        for a in addresses
    }
    files -= set(addresses)
    assert len(files) >= 8
    assert [name for name in files if not (ROOT / name).exists()] == []
