"""`internvlx show`: slides of an image's tiles and of a model's attention, without overlapping text or partial files."""

import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from commands import internvlx
from conversion_geometry import raw_config, write_checkpoint
from dial_cases import dial
from internvlx_hf import InternVLXImageProcessor, cost
from internvlx_hf.chat import Session
from internvlx_hf.cli import main
from internvlx_hf.cost.flops import STAGE_ONE, STAGE_TWO
from internvlx_hf.cost.setups import TilingRule
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.pictures import Attention, attend, canvas, draw_attention, draw_boxes, draw_sizes, draw_tiles
from internvlx_hf.pictures.attention import open_upright, record_queries, window_weights
from internvlx_hf.pictures.attention_figure import even_share_overlay, share_overlay
from internvlx_hf.pictures.canvas import save, shorten, text_width
from internvlx_hf.processing.boxes import LabelledBox
from message_cases import encode
from paths import ROOT
from pdf_cases import pdf
from refusals import refused
from slides import assert_readable, fails, texts
from tiny import LVTC, TEXT_MODELS, TILE, save_tiny, tiny_model, tiny_processor

SIZES = [(640, 480), (80, 20), (16, 16), (1, 1), (1080, 2400), (3200, 400), (2000, 2000)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [*(("internvl-x-2b", size) for size in SIZES), ("internvl2-llama3-76b", (2000, 1500))], ids=str
)
def test_a_slide_is_readable_for_every_image_size(name, size):
    figure = draw_tiles(Image.new("RGB", size), cost.load_setup(name), title="an image " * 30)
    assert_readable(figure)
    assert tuple(figure.get_size_inches()) == (13.33, 7.5)


def test_a_slide_of_many_tiles_is_readable():
    setup = cost.load_setup("internvl-x-2b")
    setup = replace(setup, tiling=replace(setup.tiling, max_tiles=40))
    figure = draw_tiles(Image.new("RGB", (3600, 2300)), setup)
    assert "10,496 → 41,984 tokens" in texts(figure)
    assert_readable(figure)


def largest_share(figure) -> float:
    """The share of the slide's area that the largest image covers."""
    width, height = figure.get_size_inches()
    extents = [image.get_extent() for image in figure.axes[0].images]
    return max(abs((right - left) * (bottom - top)) for left, right, bottom, top in extents) / (width * height)


@pytest.mark.parametrize(("size", "least"), [((800, 600), 0.04), ((3200, 400), 0.03), ((400, 3200), 0.02)], ids=str)
def test_images_of_every_shape_are_drawn_large(size, least):
    assert largest_share(draw_tiles(Image.new("RGB", size), cost.load_setup("internvl-x-2b"))) > least


def test_the_slide_reports_the_costs_of_internvlx_cost():
    setup = cost.load_setup("internvl-x-2b")
    figure = draw_tiles(Image.new("RGB", (640, 480)), setup)
    found = texts(figure)
    sizes = {each.get_size() for each in figure.axes[0].texts if each.get_text().startswith(("prefill ", "cache "))}
    assert len(sizes) == 1
    assert {"7 tiles", "1 tile", "1,792 → 7,168 tokens", "256 → 1,024 tokens"} <= set(found)
    own = cost.CostModel(setup).of_size(640, 480)
    assert any(f"prefill {own.prefill_flops / 1e12:.2f} TFLOP" in text for text in found)
    assert "internvl-x-2b: 256 tokens per tile, 1024 from layer 17 on; at most 6 tiles of 448 × 448 pixels" in found


def test_lines_are_drawn_between_the_tiles():
    figure = draw_tiles(Image.new("RGB", (640, 480)), cost.load_setup("internvl-x-2b"))
    # the edges of ratio's 3x2 tiles and of two single tiles, each a line on a white line
    assert len(figure.axes[0].lines) == 2 * ((4 + 3) + (2 + 2) + (2 + 2))
    # the image three times, ratio's six tiles and thumbnail, and two single tiles
    assert len(figure.axes[0].images) == 3 + 7 + 2


def test_a_rotated_photo_is_drawn_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_upright(tmp_path / "turned.jpg").size == (50, 100)
    found = texts(draw_tiles(tmp_path / "turned.jpg", cost.load_setup("internvl-x-2b")))
    assert "turned.jpg, 50 × 100 pixels" in found


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg", "jpg"])
def test_every_format_is_written(photo, tmp_path, ending, capsys):
    out = tmp_path / f"tiles.{ending}"
    assert main(["show", str(photo), "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000
    assert f"{out}: {photo}, 128x96 pixels; 1 tile, 256 tokens" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", f"tiles.{ending}"]


def test_a_dollar_in_a_name_does_not_start_a_formula(tmp_path):
    figure = draw_tiles(Image.new("RGB", (9, 9)), cost.load_setup("internvl-x-2b"), title="costs $5_$6^{")
    save(figure, tmp_path / "dollar.png")
    assert "costs $5_$6^{, 9 × 9 pixels" in texts(figure)


@pytest.mark.filterwarnings("error")
def test_letters_are_drawn_in_a_font_that_has_them_or_as_boxes(tmp_path, monkeypatch):
    letter = "\u1d84"  # of the fonts that come with matplotlib, only STIXGeneral has it, and not its bold
    for fonts, drawn in ((("DejaVu Sans", "Absent"), "a□□"), (("DejaVu Sans", "STIXGeneral"), f"a{letter}□")):
        monkeypatch.setattr(canvas, "FONTS", fonts)
        slide = canvas.Canvas()
        for weight in ("normal", "bold"):
            slide.text(1, 1, f"a{letter}\U0001f9ff", 12, 5, weight=weight)
        save(slide.figure, tmp_path / "letters.png")
        assert texts(slide.figure) == [drawn, "a□□"]


def test_long_text_is_shortened_in_the_middle():
    assert shorten("short", 5, 10) == "short"
    shorter = shorten("a" * 50 + "b" * 50, 2, 10)
    assert shorter.startswith("a")
    assert "…" in shorter
    assert shorter.endswith("b")
    assert text_width(shorter, 10) <= 2 < text_width("a" * 50, 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["broken.png"], "broken.png"),
        (["truncated.png"], "truncated"),
        (["none.png"], "none.png"),
        (["photo.png", "--out", "tiles.gif"], "should end in one of .png, .pdf, .svg, .jpg"),
        (["photo.png", "--out", "nowhere/tiles.png"], "does not exist"),
        (["photo.png", "--out", "folder.png"], "is a folder"),
        (["photo.png", "--model", "internvl9-2b"], "Did you mean"),
        (["photo.png", "--max-patches", "0"], "--max-patches=0"),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(photo, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_text("no")
    (tmp_path / "truncated.png").write_bytes(photo.read_bytes()[:3000])
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    assert said in fails(capsys, "--out", "tiles.png", *arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupted_write_leaves_the_old_file(photo, tmp_path, monkeypatch):
    out = tmp_path / "tiles.png"
    out.write_text("old")
    figure = draw_tiles(photo, cost.load_setup("internvl-x-2b"))

    def fail(path, **kwargs):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(figure, "savefig", fail)
    with refused("disk is full", by=OSError):
        save(figure, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "tiles.png"]


def test_without_matplotlib_the_error_says_how_to_install_it(photo, tmp_path, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("matplotlib", "internvlx_hf.pictures")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "9x9" in internvlx(capsys, "cost", "--size", "9x9").out
    error = fails(capsys, photo, "--out", tmp_path / "tiles.png")
    assert error.strip().endswith("is not installed: pip install matplotlib")


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_recorded_attention_equals_the_model_s(text, lvtc, photo):
    model = tiny_model(text, **lvtc)
    processor = tiny_processor(model.config)
    found = attend(model, processor, photo, "What is this?", max_new_tokens=3)
    ids, answer, pixels = replayed(model, processor, photo, found)
    # the same attention, computed in one forward call on the prompt and the answer
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(input_ids=answer, pixel_values=pixels, output_attentions=True)
    tiles, config = len(pixels), model.config
    first = (ids[0] == config.image_token_id).nonzero()[0].item()
    for stage, maps in found.stages.items():
        count = config.image_seq_length if stage == STAGE_ONE else config.expanded_image_seq_length
        grown = tiles * (count - config.image_seq_length)
        rows = slice(ids.shape[1] + grown - 1, ids.shape[1] + grown - 1 + len(found.tokens))
        columns = slice(first, first + tiles * count)
        layers = [outputs.attentions[i][0, :, rows, columns].mean(0) for i in found.layers[stage]]
        expected = torch.stack(layers).mean(0).view(maps.shape)
        # one token at a time and all at once sum the products in different orders
        torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-3)
    assert (STAGE_TWO in found.stages) == bool(lvtc)


def replayed(model, processor, photo, found):
    content = [{"type": "image", "image": Image.open(photo)}, {"type": "text", "text": found.question}]
    inputs = encode([{"role": "user", "content": content}], processor, add_generation_prompt=True)
    model.set_attn_implementation("sdpa")
    answer = model.generate(**inputs, max_new_tokens=len(found.tokens), do_sample=False, eos_token_id=None)
    written = [processor.tokenizer.decode([token]) for token in answer[0, inputs["input_ids"].shape[1] :]]
    assert written == found.tokens
    return inputs["input_ids"], answer[:, :-1], inputs["pixel_values"]


def test_attend_reads_the_image_as_the_processor_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2 * TILE, TILE), "red").save(tmp_path / "turned.jpg", exif=exif)
    model = tiny_model("qwen3")
    for upright, size in ((True, (TILE, 2 * TILE)), (False, (2 * TILE, TILE))):
        processor = tiny_processor(model.config, do_exif_transpose=upright)
        found = attend(model, processor, tmp_path / "turned.jpg", "What?", max_new_tokens=1)
        assert found.image.size == size
        assert (found.plan.columns, found.plan.rows) == (size[0] // TILE, size[1] // TILE)


def test_attend_does_not_change_the_model(photo):
    model = tiny_model("qwen3", **LVTC)
    processor = tiny_processor(model.config)
    attend(model, processor, photo, "What?", max_new_tokens=2)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_recorded_pvtc_weights_give_its_output(ratio):
    model = tiny_model("qwen2", downsample_ratio=ratio)
    pixels = torch.randn(2, 3, 32, 32)
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = (module, *inputs, output)

        return hook

    projector = model.model.multi_modal_projector
    projector.local_layers[-1].attention.register_forward_hook(keep("local"))
    projector.global_layers[-1].attention.register_forward_hook(keep("global"))
    with torch.no_grad(), record_queries(model) as weights:
        model.get_image_features(pixels)
    for name, (module, query, patches, output) in seen.items():
        heads = module.num_heads
        # keys and values for every patch, as in the paper
        q = module.query(query).unflatten(-1, (heads, -1))
        k = (patches @ module.key.T).unflatten(-1, (heads, -1))
        v = (patches @ module.value.T).unflatten(-1, (heads, -1))
        each = ((q[:, None] * k).sum(-1) * module.scaling).softmax(1)  # [n, M², H]
        torch.testing.assert_close(
            module.output((each[..., None] * v).sum(1).flatten(1)), output, atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(weights[name], each.mean(-1), atol=1e-6, rtol=1e-4)
        assert window_weights(module, query, patches).sum(-1).allclose(torch.ones(len(query)))


def test_pvtc_s_map_has_the_windows_in_order(photo):
    model = tiny_model("qwen2", downsample_ratio=0.25)
    found = attend(model, tiny_processor(model.config), photo, "What?", max_new_tokens=1)
    for maps in found.queries.values():
        assert maps.shape == (7, 8, 8)
        windows = maps.unfold(1, 4, 4).unfold(2, 4, 4)
        torch.testing.assert_close(windows.sum(dim=(-1, -2)), torch.full((7, 2, 2), 16.0))


def test_without_pvtc_no_queries_are_drawn(photo):
    model = tiny_model("llama", projector_config={"projector_type": "pixel_shuffle"})
    found = attend(model, tiny_processor(model.config), photo, "What?", max_new_tokens=2)
    assert found.queries == {}
    figure = draw_attention(found, "mine")
    assert_readable(figure)
    assert not any("PVTC" in text for text in texts(figure))


def test_a_sliding_window_has_no_attention_to_tokens_before_it(photo):
    model = tiny_model("mistral", text_config={"sliding_window": 12}, **LVTC)
    found = attend(model, tiny_processor(model.config), photo, "Is it a picture?" * 4, max_new_tokens=3)
    assert all(maps.sum() == 0 for maps in found.stages.values())
    assert_readable(draw_attention(found, "mine"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "least"), [((128, 96), 0.04), ((20, 20), 0.04), ((32, 192), 0.02), ((192, 32), 0.03)], ids=str
)
def test_an_attention_slide_is_readable_and_draws_images_of_every_shape_large(size, least):
    model = tiny_model("qwen3", **LVTC)
    processor = tiny_processor(model.config, max_patches=6)
    found = attend(model, processor, Image.new("RGB", size), "What is it? " * 20, max_new_tokens=24)
    figure = draw_attention(found, "a model with a long name " * 9)
    assert_readable(figure)
    assert largest_share(figure) > least
    assert {"PVTC's local queries", "Stage one: layers 0–1", "Stage two: layers 2–3"} <= set(texts(figure))


def recorded(size, stage_one=0.4, stage_two=0.6, expand_layer=1, layers=4) -> Attention:
    """Made-up attention: the last tile, of 4×4 or 8×8 tokens, gets twice an even share."""
    plan = TilingRule(32, 32, max_tiles=12).plan(*size)
    stages = {}
    for stage, share, side in ((STAGE_ONE, stage_one, 4), (STAGE_TWO, stage_two, 8)):
        maps = torch.ones(3, plan.num_tiles, side, side)
        maps[:, -1] = 2
        stages[stage] = share * maps / maps[0].sum()
    spans = {STAGE_ONE: range(expand_layer), STAGE_TWO: range(expand_layer, layers)}
    queries = {name: torch.rand(plan.num_tiles, 16, 16) * 2 for name in ("local", "global")}
    return Attention(
        Image.new("RGB", size), plan, "What?", "yes, it", ["yes", ",", " it"], "stop", queries, stages, spans
    )


def test_each_stage_s_panel_names_its_layers_and_the_share_of_text():
    figure = draw_attention(recorded((128, 96)), "mine")
    assert_readable(figure)
    found = texts(figure)
    assert {"Stage one: layer 0", "Stage two: layers 1–3", "Token by token, layers 1–3"} <= set(found)
    assert {"attention: 40% image, 60% text", "attention: 60% image, 40% text"} <= set(found)
    assert found.count("≥2.0× an even share") == 3
    assert any("Layers are counted from 0." in text for text in found)


def test_panels_and_token_maps_show_the_thumbnail():
    attention = recorded((128, 96))
    assert attention.plan.num_tiles == 13
    figure = draw_attention(attention, "mine")
    thumbnails = [patch for patch in figure.axes[0].patches if patch.get_linestyle() not in ("-", "solid")]
    assert len(thumbnails) == 4 + 3
    assert any("Dashed: the thumbnail." in text for text in texts(figure))


def test_a_stage_that_looks_at_text_has_a_line_and_no_panel():
    found = texts(draw_attention(recorded((128, 96), stage_two=0.001), "mine"))
    assert "Stage two: layers 1–3 looks at text: 0.1% of its attention goes to the image." in found
    assert "Stage two: layers 1–3" not in found
    assert "Token by token, layer 0" in found
    figure = draw_attention(recorded((128, 96), 0.0, 0.0), "mine")
    assert not any(text.startswith("Token by token") for text in texts(figure))
    assert_readable(figure)


def test_overlays_are_strongest_where_attention_is_highest():
    maps = torch.ones(1, 4, 4)
    assert share_overlay(maps)[..., 3].max() == 0
    assert even_share_overlay(maps)[..., 3].max() == 0
    maps[0, 1, 2] = 3.0
    strongest = share_overlay(maps)[..., 3]
    assert np.unravel_index(strongest.argmax(), strongest.shape) == (0, 1, 2)
    shares = even_share_overlay(torch.tensor([[[2.0, 0.5, 1.0, 0.0]]]))[0, 0]
    assert shares[0, 0] > shares[0, 2]
    assert shares[1, 2] > shares[1, 0]
    assert shares[2, 3] == 0
    assert shares[0, 3] == shares[3, 3] == pytest.approx(0.7)


def test_attention_of_a_checkpoint_is_drawn(photo, checkpoint, tmp_path, capsys):
    out = tmp_path / "attention.png"
    arguments = ["--model", checkpoint, "--attention", "--question", "What is it?", "--max-new-tokens", "4"]
    assert main(["show", *map(str, [photo, "--out", out, *arguments])]) == 0
    assert Image.open(out).size == (1999, 1125)
    assert "answer: " in (said := capsys.readouterr().out)
    assert "4 tokens, cut off at --max-new-tokens 4" in said


def test_one_page_of_a_pdf_is_drawn(tmp_path, capsys):
    scan, out = tmp_path / "scan.pdf", tmp_path / "page.png"
    scan.write_bytes(pdf((72, 36), (36, 72)))
    assert f"has 2 pages, expected one to draw: {scan}#page=1" in fails(capsys, scan, "--out", out)
    assert "75x150 pixels" in internvlx(capsys, "show", f"{scan}#page=2", "--out", out).out


ASK = ["--attention", "--question", "What is it?"]
BOXES = "<ref>a cat</ref><box>[[100, 200, 500, 400]]</box> beside <ref>dogs</ref><box>[[0, 0, 500, 500], [500, 500, 1000, 1000]]</box>"
NO_CONVERSION = "--projector, --lvtc and --downsample-ratio do not apply to --attention"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (ASK, "is a preset"),
        (["--model", "MODEL", "--attention"], "needs a --question"),
        (["--model", "MODEL", *ASK[:2], "<img>"], "image token"),
        (["--model", "MODEL", *ASK[:2], "What is <image>?"], "in front of it; expected"),
        (["--model", "MODEL", *ASK[:2], "<image>"], "is empty but for its marks"),
        (["--model", "MODEL", *ASK, "--max-new-tokens", "0"], "--max-new-tokens=0"),
        (["--model", "MODEL", *ASK, "--lvtc"], NO_CONVERSION),
        (["--model", "MODEL", *ASK, "--projector", "pvtc"], NO_CONVERSION),
        (["--model", "MODEL", *ASK, "--downsample-ratio", "1/4"], NO_CONVERSION),
        (["--model", "MODEL", *ASK, "--text-tokens", "9"], "--text-tokens and --answer-tokens do not apply to --att"),
        (ASK[1:], "--question and --max-new-tokens need --attention"),
        (["--max-new-tokens", "64"], "--question and --max-new-tokens need --attention"),
        (["--model", "bare", *ASK], "has no weights"),
        (["--model", "source", *ASK], "internvlx convert"),
        (["--boxes", "I see a cat"], "The answer 'I see a cat' has no boxes"),
        (["--boxes", BOXES, "--attention"], "--attention and --boxes are two figures"),
        (
            ["--boxes", BOXES, *ASK[1:]],
            "--question and --max-new-tokens need --attention, --sizes, or --boxes without",
        ),
        (["--boxes", *ASK[1:]], "--boxes needs weights, but 'internvl-x-2b' is a preset"),
        (["--boxes", BOXES, "--text-tokens", "3"], "do not apply to --boxes, which draws no cost"),
        (["--sizes", *ASK], "--attention and --sizes are two figures"),
        (["--sizes", "--tokens-per-tile", "4"], "do not apply to --sizes"),
    ],
)
def test_the_error_names_what_a_figure_needs(photo, checkpoint, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    if "bare" in arguments:
        tiny_model().config.save_pretrained("bare")
        InternVLXImageProcessor(size={"height": TILE, "width": TILE}).save_pretrained("bare")
    if "source" in arguments:
        raw = raw_config((64, 2, 4, 128, False), "Qwen2ForCausalLM", 64, 2, 4, 2, 96, 151655)
        write_checkpoint(tmp_path / "source", raw)
    arguments = [checkpoint if argument == "MODEL" else argument for argument in arguments]
    assert said in fails(capsys, photo, "--out", "attention.png", *arguments)
    assert not (tmp_path / "attention.png").exists()


@pytest.mark.slow
def test_every_command_of_the_docs_runs(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.png", "scans/below/c.png", "page.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "white").save(tmp_path / name)
    for name in ("path/to", "out/demo"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "path/to/checkpoint").symlink_to(checkpoint)
    (tmp_path / "out/demo/model").symlink_to(checkpoint)
    text = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        assert words[0] == "internvlx"
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "tiles.png").exists()
    assert (tmp_path / "attention.png").exists()


def test_boxes_of_an_answer_are_drawn_where_they_are(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "cat.png")
    drawn = []
    monkeypatch.setattr(canvas, "save", lambda figure, out: drawn.append(figure))
    printed = internvlx(capsys, "show", tmp_path / "cat.png", "--boxes", BOXES, "--out", tmp_path / "out.png").out
    assert "200x100 pixels; 3 boxes; answer: '<ref>a cat</ref>" in printed
    (figure,) = drawn
    assert_readable(figure)
    assert {"1  a cat  (20, 20, 100, 40)", "3  dogs  (100, 50, 200, 100)"} <= set(texts(figure))
    (image,), frames = figure.axes[0].images, figure.axes[0].patches
    left, right, bottom, top = image.get_extent()
    frame = frames[0].get_bbox()
    assert (frame.x0 - left) / (right - left) == pytest.approx(0.1)
    assert (frame.y0 - top) / (bottom - top) == pytest.approx(0.2)
    assert frame.width / (right - left) == pytest.approx(0.4)


def test_many_boxes_are_counted(tmp_path):
    boxes = [("a", n, 0, n + 1, 1) for n in range(50)]
    figure = draw_boxes(Image.new("RGB", (60, 60)), [LabelledBox(*box) for box in boxes], "many")
    assert len(figure.axes[0].patches) == 100
    assert any(re.fullmatch(r"and \d+ more", text) for text in texts(figure))


@pytest.mark.slow
def test_boxes_of_the_model_s_own_answer_are_drawn(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "cat.png")
    save_tiny(tmp_path / "model")
    asked = []
    answer = type("Turn", (), {"answer": BOXES})()
    monkeypatch.setattr(Session, "ask", lambda self, question, images: (asked.append(question), answer)[1])
    command = ["show", tmp_path / "cat.png", "--out", tmp_path / "out.png", "--model", tmp_path / "model", "--boxes"]
    assert "3 boxes" in internvlx(capsys, *command, "--question", "Where?").out
    assert asked == ["Where?"]
    assert (tmp_path / "out.png").exists()
    assert "--boxes needs a --question" in internvlx(capsys, *command, status=1).err


# -- sizes


def dial_setup(names, **settings):
    setup = cost.load_setup("internvl-x-2b")
    config = type(setup.config).from_dict(setup.config.to_dict() | {"tokens_per_tile": names, **settings})
    return replace(cost.setups.ModelSetup("a dial", config, setup.tiling), tiling=setup.tiling)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(640, 480), (3200, 400), (16, 16)], ids=str)
def test_a_slide_of_sizes_shows_the_tokens_and_the_answer_of_each(size):
    names = ["256:1024", "64", "256", "256:64", "256:0"]
    setup = dial_setup(names, merge_layer=16)
    answers = {name: f"An answer at {name}. " * 9 for name in names}
    figure = draw_sizes(Image.new("RGB", size), setup, answers, "What is it?", "an image " * 30)
    assert_readable(figure)
    shown = texts(figure)
    assert {*names, "dropped"} <= {*shown}
    of_dropped = cost.CostModel(setup.changed(cost.setups.ImageSettings(tokens_per_tile="256:0"))).of_size(*size)
    assert f"{of_dropped.stage_one_tokens:,} → 0 tokens" in shown
    assert sum(text.startswith("An answer at") for text in shown) >= len(names)
    assert_readable(draw_sizes(Image.new("RGB", size), cost.load_setup("internvl-x-2b")))


def test_show_draws_each_size_of_a_checkpoint_with_its_answer(tmp_path, capsys):
    kwargs = dial(2, 3, ["16", "4", "16:4"]) | {"lvtc_config": None}
    model = tiny_model(**kwargs)
    model.save_pretrained(tmp_path / "dial")
    plain = tiny_processor(model.config)
    processor = type(plain)(
        plain.image_processor, plain.tokenizer, image_seq_length=16, offered_sizes=model.config.tokens_per_tile
    )
    processor.save_pretrained(tmp_path / "dial")
    Image.new("RGB", (80, 40)).save(tmp_path / "photo.png")
    command = ["show", str(tmp_path / "photo.png"), "--model", str(tmp_path / "dial"), "--sizes"]
    assert main([*command, "--out", str(tmp_path / "plain.png")]) == 0
    assert "3 sizes (16, 4, 16:4)" in capsys.readouterr().out
    assert main([*command, "--question", "What?", "--max-new-tokens", "3", "--out", str(tmp_path / "asked.png")]) == 0
    said = capsys.readouterr().out
    for name in ("16", "4", "16:4"):
        session = Session(Answerer(model, processor, {"tokens_per_tile": name}), generation={"max_new_tokens": 3})
        answer = session.ask("What?", (Image.open(tmp_path / "photo.png"),)).answer
        assert f"{name}: {answer!r:.60}" in said
    assert (tmp_path / "asked.png").stat().st_size > (tmp_path / "plain.png").stat().st_size


def test_the_lines_of_a_cost_are_of_one_size():
    figure = draw_tiles(Image.new("RGB", (64, 48)), cost.load_setup("internvl-x-2b"))
    lines = [text for text in figure.axes[0].texts if text.get_text().startswith(("prefill ", "cache "))]
    assert len(lines) > 2
    assert len({line.get_fontsize() for line in lines}) == 1
