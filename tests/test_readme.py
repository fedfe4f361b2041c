"""The README does what it says: its Python runs, and its tables hold what was measured and what the package answers."""

import os
import re

import pytest

from benchmark_scripts import importable
from internvlx_hf import InternVLXImageProcessor
from paths import ROOT

pytestmark = pytest.mark.any_transformers

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_python_block_runs_in_order(demo_output, capsys):
    assert len(PYTHON_BLOCKS) >= 3
    namespace = {"__name__": "readme"}
    for number, block in enumerate(PYTHON_BLOCKS):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "1 tile, 256 tokens" in printed
    assert {"config.json", "model.safetensors", "modeling_internvlx.py", "processing_internvlx.py"} <= set(
        os.listdir(demo_output / "out/tuned")
    )


def test_table_of_costs_is_what_the_image_processor_answers():
    section = README.partition("## What an image costs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+)×(\d+) \|(.*)\|$", section, re.MULTILINE)
    assert len(rows) >= 6
    for width, height, cells in rows:
        for slicing, cell in zip(("ratio", "area", "edge"), cells.split("|"), strict=True):
            image_processor = InternVLXImageProcessor(slicing=slicing, max_patches=12)
            tiles = image_processor.get_number_of_image_patches(int(height), int(width))
            assert cell.strip() == f"{tiles} tile{'s' * (tiles > 1)}, {256 * tiles} tokens"


def test_its_times_and_memory_are_those_of_the_end_to_end_benchmark():
    measured = (ROOT / "benchmarks/results/end_to_end.md").read_text(encoding="utf-8")
    found = 0
    for width, height, block in re.findall(r"^\| (\d+)×(\d+) (\| visual tokens .*\n.*\n.*)", README, re.MULTILINE):
        tokens, seconds, memory = (line.split("|")[-5:-1] for line in block.split("\n"))
        for case, *cells in zip(
            ("InternVL", "RVTC edge", "PVTC", "PVTC + LVTC"), tokens, seconds, memory, strict=True
        ):
            (row,) = re.findall(rf"^\| {width}x{height} +\| {re.escape(case)} +\|(.*)\|$", measured, re.MULTILINE)
            _, first, time, _, _, peak, *_ = (cell.strip() for cell in row.split("|"))
            stages = f"{first}, then {4 * int(first)}" if "LVTC" in case else first
            assert [cell.strip() for cell in cells] == [stages, f"{float(time):.1f} s", f"{peak} GiB"]
            found += 1
    assert found == 12


def tables_of(page: str) -> list[dict[str, str]]:
    """The rows of all tables of a page of results."""
    with importable():
        from evidence.tables import read_tables

        return list(read_tables((ROOT / "benchmarks/results" / page / "README.md").read_text(encoding="utf-8")))


def stages(first: str, second: str) -> str:
    """The tokens of a page in the first layers, and in the last ones where these are more."""
    first, second = (f"{float(tokens):g}" for tokens in (first, second))
    return first if first == second else f"{first}, then {second}"


BEFORE_USE = README.partition("## Ask")[0]
TOKENS, SHARE = r"([\d., then]+)", r"([\d.]+ ± [\d.]+ %)"


def test_its_words_are_those_of_the_document_study():
    measured = [
        (
            stages(row["tokens"], row["tokens, last layers"]),
            *(f"{row[kind]} %" for kind in ("words right, %", "random words: words right, %")),
        )
        for row in tables_of("documents")
        if "words right, %" in row and "tokens" in row
    ]
    rows = re.findall(rf"^\| .* \| {TOKENS} \| {SHARE} \| {SHARE} \|$", BEFORE_USE, re.MULTILINE)
    assert len(rows) >= 6
    assert [row for row in rows if row not in measured] == []
    means = {
        row["row"]: float(row["words right, %"].split()[0])
        for row in tables_of("documents")
        if "letters right, %" in row and "row" in row
    }
    assert 0.4 < (means["LVTC"] - means["N"]) / (means["4N"] - means["N"]) < 0.6
    assert "LVTC adds about half of what four times the tokens in all layers add" in " ".join(README.split())


def test_its_accuracies_are_those_of_the_ablation():
    measured = [
        (stages(row["tokens"], row["tokens, stage two"]), f"{row['accuracy, %']} %", row["MFLOPs a page"])
        for row in tables_of("ablation")
        if "tokens, stage two" in row and "accuracy, %" in row
    ]
    rows = re.findall(rf"^\| .* \| {TOKENS} \| {SHARE} \| (\d+) \|$", BEFORE_USE, re.MULTILINE)
    assert len(rows) >= 7
    assert [row for row in rows if row not in measured] == []


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
