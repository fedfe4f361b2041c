"""`internvlx cost` and `internvlx_hf.cost`: images measured by their headers, and what they cost as text, JSON and CSV."""

import csv
import io
import json
import os

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from commands import complaint, internvlx
from image_cases import random_image
from internvlx_hf import InternVLXImageProcessor, cost
from internvlx_hf.checkpoints.numbers import BYTE_UNITS, unit
from internvlx_hf.cost import CostModel
from internvlx_hf.cost.flops import decode_flops
from internvlx_hf.cost.images import ImageSizes
from internvlx_hf.cost.report import Report, bar, table
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.processing.image_files import open_image
from internvlx_hf.processing.image_sources import PillowSource
from internvlx_hf.processing.rvtc import SLICING_WORDS, TilingRule
from paths import GOLDEN
from pdf_cases import pdf
from refusals import refusals
from tiny import LVTC, tiny_config, tiny_model


@pytest.fixture
def photos(tmp_path):
    """Three images, one in a subfolder, a text file, and a photo that lies on its side."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (640, 480)).save(folder / "a.png")
    Image.new("RGB", (1000, 300)).save(folder / "b.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1000, 300)).save(folder / "below" / "turned.jpg", exif=exif)
    (folder / "labels.txt").write_text("a")
    (folder / "notes.palm").write_text("a")  # Pillow writes PALM and does not read it
    return folder


def run(capsys, *arguments) -> str:
    return internvlx(capsys, "cost", *arguments).out


def rows_of(capsys, *arguments) -> dict:
    return json.loads(run(capsys, *arguments, "--json"))


def fails(capsys, *arguments) -> str:
    return complaint(capsys, "cost", *arguments)


def test_a_folder_is_measured_with_all_below_upright(photos):
    found = cost.find_images([photos])
    assert [os.path.basename(name) for name in found.names] == ["a.png", "b.jpg", "turned.jpg"]
    assert found.sizes == [(640, 480), (1000, 300), (300, 1000)]
    assert [os.path.basename(name) for name in found.ignored] == ["labels.txt", "notes.palm"]


def test_the_pages_of_a_pdf_are_measured(photos, capsys):
    (photos / "scan.pdf").write_bytes(pdf((72, 36), (36, 72)))
    assert cost.find_images([photos]).names[-2:] == [f"{photos}/scan.pdf#page=1", f"{photos}/scan.pdf#page=2"]
    assert cost.find_images([f"{photos}/scan.pdf#page=2", str(photos / "*.pdf")]).sizes == [
        (75, 150),
        (150, 75),
        (75, 150),
    ]
    assert "lost.pdf does not exist" in fails(capsys, "lost.pdf")


def test_patterns_and_files_are_measured(photos):
    assert cost.find_images([str(photos / "**" / "*.jpg")]).sizes == [(1000, 300), (300, 1000)]
    assert cost.find_images([photos / "a.png", photos / "a.png"]).sizes == [(640, 480)] * 2


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9), 99])
def test_a_header_says_the_size_that_the_processor_sees(tmp_path, ending, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"image.{ending}"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    source = PillowSource(open_image(path), upright=True, convert_rgb=True)
    assert cost.read_image_size(path) == (source.width, source.height)


def test_pixels_are_not_decoded(tmp_path):
    path = tmp_path / "cut.png"
    random_image(400, 300).save(path)
    path.write_bytes(path.read_bytes()[:500])  # the header is whole, the pixels are not
    assert cost.read_image_size(path) == (400, 300)


def test_a_file_that_is_not_an_image_is_named(photos, capsys):
    (photos / "broken.png").write_text("no")
    assert "broken.png" in fails(capsys, photos)
    assert "labels.txt" in fails(capsys, photos / "labels.txt")
    assert "labels.txt" in fails(capsys, photos / "*.txt")
    text = run(capsys, photos, "--skip-broken", "--full")
    assert "Skipped" in text
    assert "broken.png" in text
    assert "averages of 3 images" in text
    assert "Where the prefill's FLOPs go in this model, on average\n" in text
    skipped = rows_of(capsys, photos, "--skip-broken")["skipped"]
    assert [os.path.basename(name) for name in skipped] == ["broken.png"]
    printed = internvlx(capsys, "cost", photos, "--skip-broken", "--csv")
    assert "broken.png" not in printed.out
    assert "Skipped" in printed.err
    assert "broken.png" in printed.err
    assert "broken.png" in fails(capsys, photos / "broken.png", "--skip-broken")


def test_nothing_to_measure_is_said(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert "nothing to measure" in fails(capsys)
    assert "has no images (1 other files)" in fails(capsys, tmp_path)
    assert "does not exist" in fails(capsys, tmp_path / "none.png")
    assert "No file matches" in fails(capsys, tmp_path / "*.png")
    assert "path is empty" in fails(capsys, "")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (size, "is not a size, expected WIDTHxHEIGHT")
        for size in ("640", "640x", "x480", "640*480", "-1x5", "1x2x3", "1.5x2", "")
    ]
    + [(size, "has no pixels") for size in ("0x480", "640x0")],
)
def test_a_size_that_is_none_is_named(size, said, capsys):
    assert f"{size!r} {said}" in fails(capsys, f"--size={size}")


def test_sizes_are_width_first():
    assert cost.parse_size("640x480") == cost.parse_size(" 640 X 480 ") == cost.parse_size("640×480") == (640, 480)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "internvl2-2bb"], "Did you mean 'internvl2-2b'"),
        (["--model", GOLDEN], "no config.json"),
        *(([f"--{name}-tokens", "0"], f"{name}_tokens=0") for name in ("text", "answer")),
        (["--max-patches", "0"], "--max-patches=0"),
    ],
)
def test_other_arguments_out_of_range_are_named(arguments, said, capsys):
    assert said in fails(capsys, "--size", "9x9", *arguments)


def test_the_paper_s_example_costs_what_it_says(capsys):
    report = rows_of(capsys, "--size", "640x480")
    tokens = {(s["slicing"], s["max_tiles"], s["projector"]): s["average_tokens"] for s in report["settings"]}
    assert tokens["ratio", 12, "pixel_shuffle"] == 13 * 256
    assert tokens["edge", 6, "pvtc"] == 256


@pytest.mark.parametrize("model", ["internvl2-2b", "internvl-x-2b", "llava-1.5-7b", "internvl2-llama3-76b"])
@pytest.mark.parametrize("images", [("a.png",), (".",), (".", "--together")], ids=" ".join)
def test_without_full_the_report_has_eight_lines_of_eighty_columns(photos, capsys, monkeypatch, model, images):
    monkeypatch.chdir(photos)
    (photos / "labels.txt").unlink()
    (photos / "notes.palm").unlink()
    lines = run(capsys, *images, "--model", model).splitlines()
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("->") for line in lines) == 1


def test_the_report_says_what_an_image_costs_with_each_slicing(photos, capsys):
    lines = run(capsys, photos / "a.png", "--model", "internvl2-2b").splitlines()
    model = cost.CostModel(cost.load_setup("internvl2-2b"))
    found = {1: model.of_tiles(1), 13: model.of_tiles(13)}
    for name, tiles in (("-> ratio", 13), ("area", 1), ("edge", 1)):
        (row,) = [line for line in lines if line.strip().startswith(name)]
        peak = f"{found[tiles].peak_bytes / 2**30:.2f}"
        assert row.split()[-4:] == [str(tiles), f"{256 * tiles:,}", f"{found[tiles].prefill_flops / 1e12:.2f}", peak]
        assert SLICING_WORDS[name.split()[-1]] in row


def test_the_table_shows_every_setting_aligned(capsys):
    text = run(capsys, "--size", "640x480", "--full")
    assert text.startswith(
        "internvl-x-2b: 2.38 billion parameters, 4.44 GiB in bfloat16; 256 tokens per tile, 1024 from"
    )
    lines = text.split("\n")
    start = lines.index("Side by side") + 1
    rows = lines[start : start + 10]
    assert len({len(row) for row in rows}) == 1
    assert rows[2].startswith("-> this model")
    assert "  1,024  " in rows[2]
    assert sum("native" in row for row in rows) == 2
    assert "lvtc.hr_projector" in text
    assert "language model, stage two" in text
    assert not any(line != line.rstrip() for line in lines)


def test_a_data_set_gets_averages_and_a_histogram(photos, capsys):
    text = run(capsys, photos, "--model", "internvl2-8b", "--full")
    assert "averages of 3 images" in text
    assert "Images by number of tiles, thumbnail included; at most 12 without it" in text
    assert "Ignored: 2 files of other kinds in the folders (palm, txt)." in text
    processor = InternVLXImageProcessor(slicing="ratio", max_patches=12)
    sizes = cost.find_images([photos]).sizes
    mean = sum(processor.get_number_of_image_patches(h, w) for w, h in sizes) / 3
    assert f"{mean:.3f}" in text.partition("  mean  ")[2].partition("\n")[0]
    assert f"{256 * mean:,.0f}" in text.partition("\ntokens  ")[2].partition("\n")[0]


def test_many_images_are_not_listed_one_by_one(tmp_path, capsys):
    for number in range(25):
        Image.new("1", (50 + number, 40)).save(tmp_path / f"{number}.png")
    text = run(capsys, tmp_path, "--full")
    assert "averages of 25 images" in text
    assert "Each image" not in text
    assert "24.png" not in text


def test_json_has_every_number_of_every_image(photos, capsys):
    report = rows_of(capsys, photos, "--text-tokens", "10", "--answer-tokens", "5")
    assert (report["model"], report["text_tokens"], report["answer_tokens"]) == ("internvl-x-2b", 10, 5)
    assert report["estimated"] == ["peak_bytes"]
    assert [picture["width"] for picture in report["pictures"]] == [640, 1000, 300]
    model = cost.CostModel(cost.load_setup("internvl-x-2b"), text_tokens=10, answer_tokens=5)
    for prompt, size in zip(report["settings"][0]["prompts"], [(640, 480), (1000, 300), (300, 1000)], strict=True):
        assert prompt == {"pictures": prompt["pictures"], **model.of_size(*size).to_dict()}
        assert prompt["prompt_tokens"] == 10 + prompt["stage_one_tokens"]
        assert prompt["prefill_flops"] == sum(prompt["flops"].values())


def test_csv_has_a_row_for_each_image_with_each_setup(photos, capsys):
    rows = list(csv.DictReader(io.StringIO(run(capsys, photos, "--size", "20x20", "--csv"))))
    assert len(rows) == 4 * 8
    first = rows[0]
    assert (first["width"], first["height"], first["setting"], first["lvtc"]) == ("640", "480", "internvl-x-2b", "on")
    modules = [int(value) for name, value in first.items() if name.startswith("flops.")]
    assert sum(modules) == int(first["prefill_flops"])
    assert {row["picture"] for row in rows} == {*map(str, sorted(photos.rglob("*.[jp][pn]g"))), "20x20"}


def test_images_may_share_a_prompt(photos, capsys):
    together = rows_of(capsys, photos, "--together")["settings"][0]["prompts"]
    apart = rows_of(capsys, photos)["settings"][0]["prompts"]
    assert len(together) == 1
    assert together[0]["tiles"] == sum(prompt["tiles"] for prompt in apart)
    assert "all images and 64 tokens of text" in run(capsys, photos, "--together", "--full")
    assert run(capsys, photos, "--together", "--csv").count("\n") == 9


def test_a_model_of_one_s_own_is_measured_in_its_own_way(tmp_path, capsys):
    tiny_config(**LVTC).save_pretrained(tmp_path / "mine")
    text = run(capsys, "--size", "100x64", "--model", tmp_path / "mine", "--dtype", "float32", "--full")
    assert "in float32; 4 tokens per tile, 16 from layer 2 of 4 on" in text
    assert "MFLOP" in text
    assert "KiB" in text
    ours = json.loads(run(capsys, "--size", "100x64", "--model", tmp_path / "mine", "--slicing", "ratio", "--json"))
    assert ours["settings"][0]["slicing"] == "ratio"
    one = run(capsys, "--size", "100x64", "--model", tmp_path / "mine", "--max-patches", "1", "--json")
    assert json.loads(one)["settings"][0]["prompts"][0]["tiles"] == 1


def test_without_lvtc_there_is_one_stage(capsys):
    text = run(capsys, "--size", "640x480", "--model", "internvl2-1b", "--full")
    assert "stage two\n" not in text
    assert "language model  " in text
    found = cost.CostModel(cost.load_setup("internvl2-1b")).of_size(640, 480)
    assert found.flops["language_model.stage_two"] == 0
    assert found.stage_one_tokens == found.stage_two_tokens


def test_costs_add_up():
    model = cost.CostModel(cost.load_setup("internvl-x-2b"))
    found = model.of_size(1024, 768)
    assert found.prompt_tokens == 64 + found.tiles * 256
    assert found.expanded_prompt_tokens == 64 + found.tiles * 1024
    assert found.vision_flops == found.tiles * model.of_tiles(1).vision_flops
    assert found.peak_bytes > found.weight_bytes == 2 * model.parameters
    assert model.of_sizes([(1024, 768)] * 2) == [found, found]
    assert model.together([(1024, 768)] * 2) == model.of_tiles(2 * found.tiles)


test_a_size_without_pixels_is_refused = refusals(
    (lambda: cost.CostModel(cost.load_setup("internvl-x-2b")).of_size(0, 5), "0x5", "expected"),
    (lambda: cost.CostModel(cost.load_setup("internvl-x-2b")).of_tiles(-1), "tiles=-1", "expected"),
)


def test_units_and_bars_and_tables():
    assert unit([5, 2e6], {"M": 1e6, "k": 1e3}) == ("M", 1e6)
    assert unit([5], {"M": 1e6, "k": 1e3}) == ("k", 1e3)
    assert bar(1) == "█" * 14
    assert bar(0) == ""
    assert len(bar(1e-9)) == 1
    assert table(["a", "b"], [["xyz", 1]], left=(0,)) == "a    b\n------\nxyz  1"


@pytest.mark.parametrize("answer", [1, 2, 7])
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
def test_the_answer_s_cost_is_that_of_generating_it(lvtc, answer):
    """The prefill gives the first token, and the last one is not read again."""
    config = tiny_config("llama", **lvtc)
    setting = ModelSetup("tiny", config, TilingRule(config.tile_size, config.tile_size, max_tiles=1))
    model = CostModel(setting, text_tokens=5, answer_tokens=answer, dtype=torch.float32)
    cost = model.of_tiles(1)
    ids = torch.tensor([[10] * 5 + [config.image_token_id] * config.image_seq_length])
    pixels = torch.zeros(1, 3, config.tile_size, config.tile_size)
    cache = DynamicCache(config=config.text_config)
    tiny_model("llama", **lvtc).generate(
        input_ids=ids,
        pixel_values=pixels,
        cache=cache,
        max_new_tokens=answer,
        min_new_tokens=answer,
        do_sample=False,
    )
    assert cost.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    lengths = cost.prompt_tokens, cost.expanded_prompt_tokens
    assert cost.answer_flops == decode_flops(setting.sizes, lengths, answer - 1)
    assert (cost.answer_flops == 0) == (answer == 1)
    assert cost.positions == cost.expanded_prompt_tokens + answer - 1


@pytest.mark.parametrize("model", ["internvl-x-2b", "internvl2-8b"])
@pytest.mark.parametrize(("width", "missing"), [(60, "peak"), (80, "answer"), (110, None)])
def test_a_narrow_terminal_gets_fewer_columns(width, missing, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    photo = tmp_path / f"a-long-name-{'0' * 80}-its-end.png"
    Image.new("RGB", (9, 9)).save(photo)
    sizes = ("--size", "640x480", "--size", "1920x1080")
    text = run(capsys, photo, *sizes, "--model", model, "--answer-tokens", 40_000, "--full")
    assert max(map(len, text.splitlines())) <= width
    assert "its-end.png  " in text
    assert "1920x1080  " in text
    comparison = text.partition("Each image")[0].partition("Side by side")[2].partition("->")[0]
    assert missing is None or missing not in comparison
    for kept in ("slicing", "projector", "tokens", "prefill", *(["peak", "answer"][: (width - 60) // 20])):
        assert kept in comparison
    assert "Over the limit" in text


def test_the_table_has_the_largest_peak_of_the_images():
    setting = ModelSetup("tiny", tiny_config(**LVTC), TilingRule(32, 32, max_tiles=9))
    sizes = [(32, 32), (96, 96)]
    report = Report(ImageSizes(["small", "large"], sizes), [CostModel(setting)])
    (row,) = [line for line in report.to_text().splitlines() if line.startswith("-> this model")]
    peaks = [cost.peak_bytes for cost in report.costs[0]]
    name, size = unit([report.costs[0][0].weight_bytes], BYTE_UNITS)
    assert f"peak {name}*" in report.to_text()
    assert row.split()[-1] == f"{max(peaks) / size:,.2f}" != f"{min(peaks) / size:,.2f}"


def test_costs_with_a_tile_router_are_called_upper_bounds():
    router = {"router_relative_threshold": 0.1, "router_absolute_threshold": 0.5}
    setting = ModelSetup(
        "tiny", tiny_config(projector_config={"projector_type": "pixel_shuffle"}, **router), TilingRule(32, 32)
    )
    report = Report(ImageSizes(["a"], [(32, 32)]), [CostModel(setting)])
    assert "the tile router gives a tile 4 tokens instead of 16" in report.to_text()
    assert report.costs[0][0].flops["tile_router"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ("--projector", "pvtc", "--downsample-ratio", "1/4"),
        ("--lvtc", '{"downsample_ratio": 1}'),
        ("--projector", "pvtc", "--lvtc"),
    ],
)
def test_the_cost_before_a_conversion_is_that_of_the_result(capsys, tmp_path, options):
    source = GOLDEN / "checkpoints" / "internvl2_llama3"
    internvlx(capsys, "convert", source, tmp_path / "out", *options)
    before, after = (
        rows_of(capsys, "--size", "70x50", "--model", model, *given)
        for model, given in ((source, options), (tmp_path / "out", ()))
    )
    assert before["settings"][0] | {"name": ""} == after["settings"][0] | {"name": ""}
    assert "already has LVTC" in fails(capsys, "--size", "70x50", "--model", "internvl-x-2b", "--lvtc")
