"""docs/recipes.md: its figures are those of `internvlx cost` and of the results that it links to; its commands run."""

import copy
import json
import re
import shlex
from dataclasses import replace
from functools import cache

import pytest
from PIL import Image

from conversion_geometry import raw_config, write_checkpoint
from internvlx_hf import InternVLXConfig, cost
from internvlx_hf.cli import main
from internvlx_hf.commands.model_options import CommonOptions
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.cost.videos import VideoReport, measure_clip
from internvlx_hf.processing.image_settings import ImageSettings
from internvlx_hf.processing.rvtc import SLICING_STRATEGIES
from paths import ROOT
from video_cases import numbered_video

pytestmark = pytest.mark.any_transformers

PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
QUARTER = {"downsample_ratio": 1 / 4}
UPGRADES = {
    "256, as InternVL2": {},
    "PVTC, 64": QUARTER | {"projector_config": {"projector_type": "pvtc"}},
    "LVTC, 64, then 256": QUARTER | {"lvtc_config": {"downsample_ratio": 1 / 2}},
    "LVTC, 256, then 1024": {"lvtc_config": {}},
    "1024 in all layers": {"downsample_ratio": 1.0},
}


@cache
def model(upgrade: str = "256, as InternVL2", preset: str = "internvl2-8b") -> cost.CostModel:
    setup = cost.load_setup(preset)
    if changes := UPGRADES[upgrade]:
        config = InternVLXConfig(**copy.deepcopy(setup.config.to_dict() | changes))
        setup = ModelSetup(upgrade, config, setup.tiling)
    return cost.CostModel(setup)


def tera(found: cost.Cost) -> str:
    return f"{found.prefill_flops / 1e12:.2f}"


def table(header: str) -> dict[str, list[str]]:
    """The cells of each row of the table whose first cell is `header`."""
    (lines,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-:|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    return {first: cells for first, *cells in rows}


@pytest.mark.slow
def test_what_tokens_and_tiles_save_is_what_is_counted():
    counted = {}
    for name in UPGRADES:
        found = {tiles: model(name).of_tiles(tiles) for tiles in (1, 5, 13, 25)}
        counted[name] = [*map(tera, found.values()), f"{found[13].cache_bytes / 2**20:.0f} MiB"]
    assert {name: cells[:-1] for name, cells in table("tokens per tile").items()} == counted
    for start, dense, share in (
        ("LVTC, 64, then 256", "256, as InternVL2", "53 to 64 %"),
        ("LVTC, 256, then 1024", "1024 in all layers", "41 to 51 %"),
    ):
        shares = [100 * float(a) / float(b) for a, b in zip(counted[start][:4], counted[dense][:4], strict=True)]
        assert f"{min(shares):.0f} to {max(shares):.0f} %" == share
        assert share in TEXT


def tiles(size: tuple[int, int], **rule) -> int:
    return replace(model().setup.tiling, **rule).plan(*size).num_tiles


def test_photos_take_the_tiles_that_are_counted():
    rules = [{}, {"slicing": "edge"}, {"slicing": "edge", "max_tiles": 6}]
    for photo, cells in table("photo").items():
        counts = [tiles(cost.parse_size(photo), **rule) for rule in rules]
        assert cells == [f"{n} tile{'s' * (n > 1)}, {tera(model().of_tiles(n))} TFLOP" for n in counts]


def test_scanned_pages_take_the_tiles_that_are_counted():
    scans = [(1240, 1754), (2480, 3508)]
    rules = [{"slicing": slicing, "max_tiles": most} for slicing in SLICING_STRATEGIES for most in range(6, 24)]
    assert {tiles(size, **rule) for size in scans for rule in rules} == {7}
    assert [tiles(size, max_tiles=24) for size in scans] == [7, 25]
    setup = model().setup
    free, bound = (
        cost.CostModel(each).together([scans[0]] * 10)
        for each in (setup, setup.changed(ImageSettings(max_image_tokens=8192)))
    )
    for found, cache_size in ((free, "2.2"), (bound, "1.0")):
        assert f"{found.stage_one_tokens:,} tokens, {tera(found)} TFLOP and {cache_size} GiB" in TEXT
        assert f"{found.cache_bytes / 2**30:.1f}" == cache_size


@pytest.mark.slow
def test_videos_take_what_is_counted(monkeypatch):
    monkeypatch.setattr("internvlx_hf.cost.videos.TOKENS_PER_FRAME", (64,))
    for frames, cells in table("frames").items():
        clip = measure_clip("60s", num_frames=int(frames.partition(",")[0]))
        rows = VideoReport(clip, cost.load_setup("internvl2-8b"))
        by_tokens = {
            (each.sizes.image_seq_length, each.setup.has_lvtc): f"{found.prefill_flops / 1e12:.1f}"
            for (_, each), found in zip(rows.models, rows.costs, strict=True)
        }
        assert cells == [by_tokens[key] for key in ((256, False), (64, True), (64, False))]


@pytest.mark.slow
def test_what_fits_on_a_gpu_is_what_is_counted():
    large, small = model(), model(preset="internvl2-2b")
    one = large.of_tiles(13)
    running, prompts, training = table("on a GPU of")
    assert f"{one.weight_bytes / 2**30:.2f} GiB of weights, {one.peak_bytes / 2**30:.2f} GiB" in running
    found = [large.of_tiles(tiles) for tiles in (13, 7, 1)]
    for memory, cell in zip((24, 80), table("on a GPU of")[prompts], strict=True):
        free = 0.9 * memory * 2**30 - one.weight_bytes
        many = [str(free // each.cache_bytes).removesuffix(".0") for each in found]
        assert cell == f"{many[0]}, {many[1]} or {many[2]}"
    both = {  # GB of a teacher and a student in bfloat16
        size: 2 * (model(preset=size).parameters + model("PVTC, 64", size).parameters) / 1e9
        for size in ("internvl2-2b", "internvl2-8b")
    }
    full = (2 * small.parameters + 16 * model("PVTC, 64", "internvl2-2b").parameters) / 1e9
    lora, whole = table("on a GPU of")[training]
    assert f"{both['internvl2-2b']:.0f} GB" in lora
    assert f"8B with LoRA: {both['internvl2-8b']:.0f} GB" in whole
    assert f"2B in full: {full:.0f} GB" in whole
    assert f"({small.of_tiles(1).weight_bytes / 2**30:.2f} GiB of weights)" in TEXT
    assert f"{found[1].stage_one_tokens} for 7 tiles, {large.of_tiles(25).stage_one_tokens} for 25" in TEXT


ON_A_CPU = shlex.split(
    "--use_cpu true --bf16 false --teacher_dtype float32 --dtype float32 --dataloader_num_workers 0"
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working folder, with stand-ins for InternVL2-8B, the configurations, the images and the data that the page names."""
    raw = raw_config((64, 2, 4, 128, False), "InternLM2ForCausalLM", 64, 4, 4, 2, 96, 92553, tile=112)
    (tmp_path / "OpenGVLab").mkdir()
    write_checkpoint(tmp_path / "OpenGVLab/InternVL2-8B", raw)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("photo.jpg", "page.png", "1.png", "2.png", "photos/a.jpg", "photos/b.jpg", "scans/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 40), "gray" if name == "photos/b.jpg" else "white").save(tmp_path / name)
    (tmp_path / "clip.mp4").write_bytes(numbered_video())
    (tmp_path / "data").mkdir()
    question = {"from": "human", "value": "<image>\nWhat is this?"}
    record = {"image": "../photo.jpg", "conversations": [question, {"from": "gpt", "value": "A photo."}]}
    (tmp_path / "data/own.jsonl").write_text(json.dumps(record) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERNVLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CommonOptions.__dataclass_fields__["max_new_tokens"], "default", 2)
    monkeypatch.setattr("internvlx_hf.cost.videos.TOKENS_PER_FRAME", ())
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(workplace, capsys):
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [
        shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    for program, *words in commands:
        if program == "vllm" or words[0] == "serve":
            continue
        assert program == "internvlx"
        words += {"convert": ["--overwrite"], "train": ON_A_CPU}.get(words[0], [])
        assert main(words) == 0, (words, capsys.readouterr().err)
