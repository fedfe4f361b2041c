"""The callbacks of the page, without Gradio: one model for all visitors, settings of each request, limits on uploads."""

import os
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import PIL.Image
import pytest

from commands import internvlx
from image_cases import random_image
from internvlx_hf.chat import Session, Turn
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.pictures import attend
from internvlx_hf.processing.pdf_files import open_images
from internvlx_hf.web import fragments, server
from internvlx_hf.web import limits as limits_module
from internvlx_hf.web import shared_model as shared_model_module
from internvlx_hf.web.callbacks import Callbacks
from internvlx_hf.web.limits import Limits
from internvlx_hf.web.shared_model import SharedModel
from internvlx_hf.web.uploads import MAX_CLIENT_UPLOADS, Uploads
from pdf_cases import LOCKED, endless_pdf, pdf
from refusals import refused
from tiny import LVTC, tiny_model, tiny_processor

QUESTION, LONGEST = "What is it?", 6
TURN = Turn("", 1, 4, 16, 20, 5, "stop", 0.1, 0.2)
EDGE, RATIO = ("edge", 1), ("ratio", 6)


@pytest.fixture(scope="module")
def shared() -> SharedModel:
    model = tiny_model(**LVTC)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return SharedModel(Answerer(model, tiny_processor(model.config)), "tiny")


@pytest.fixture
def callbacks(shared, tmp_path) -> Callbacks:
    limits = Limits(max_bytes=50_000, max_pixels=10_000, max_tiles=8, max_new_tokens=8, max_question=50)
    return callbacks_of(shared, tmp_path, limits)


def callbacks_of(shared: SharedModel, folder, limits: Limits) -> Callbacks:
    return Callbacks(shared, limits, Uploads(folder, limits.max_bytes))


@pytest.fixture
def upload(tmp_path) -> str:
    random_image(90, 40).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def whole_answer(shared: SharedModel, upload: str, settings: tuple) -> tuple[str, int]:
    """The answer to the only question about an image, and its tiles."""
    chosen = Limits().check_settings(*settings)
    turn = Session(shared.answerer(chosen), generation={"max_new_tokens": LONGEST}).ask(
        QUESTION, (PIL.Image.open(upload),)
    )
    return turn.answer, turn.tiles


@pytest.mark.slow
def test_cards_have_each_slicing_with_its_tiles_and_tokens(callbacks, upload):
    callbacks.shared.flops_per_second = None
    assert callbacks.show_tiles(None, *EDGE) == ""
    cards = callbacks.show_tiles(upload, *RATIO)
    assert cards.count("data:image/webp;base64,") == cards.count('class="ix-card"') == 3
    for slicing in ("edge", "ratio"):
        tiles = whole_answer(callbacks.shared, upload, (slicing, 6))[1]
        card = cards.split(f"<h3>{slicing}")[1].split("</dl>")[0]
        assert f"<dd>{tiles} (" in card
        assert f"<dd>{tiles * 4}</dd>" in card
        assert f"<dd>{tiles * 16}</dd>" in card
    assert "in use" in cards.split("<h3>ratio")[1].split("</h3>")[0]
    assert "first token, about" not in cards
    callbacks.shared.warm_up()
    assert callbacks.show_tiles(upload, *RATIO).count("first token, about") == 3


def test_cards_show_the_image_as_the_processor_reads_it(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "cards", lambda image, costs, *rest: (image.size, costs[0].plan))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (90, 40), "red").save(tmp_path / "turned.jpg", exif=exif)
    for upright, expected in ((True, (40, 90)), (False, (90, 40))):
        processor = copy(shared.processor)
        processor.image_processor = copy(processor.image_processor)
        processor.image_processor.do_exif_transpose = upright
        callbacks = callbacks_of(SharedModel(Answerer(shared.model, processor), "tiny"), tmp_path, Limits())
        size, plan = callbacks.show_tiles(str(tmp_path / "turned.jpg"), *RATIO)
        assert size == expected
        assert plan == processor.image_processor.tiling_rule({"slicing": "edge"}).plan(*expected)


def test_an_answer_streams_and_the_conversation_continues(callbacks, upload):
    states = list(callbacks.ask(None, upload, QUESTION, LONGEST, *EDGE))
    conversation, turns, turn_cost = states[-1]
    assert turns[1]["content"] == whole_answer(callbacks.shared, upload, EDGE)[0]
    assert len(states) > 2
    assert "edge, at most 1 tile: 1 tile, " in turn_cost
    again, turns, _ = list(callbacks.ask(conversation, upload, "And now?", LONGEST, *EDGE))[-1]
    assert again is conversation
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert len(conversation.session.images) == 1
    other, turns, _ = list(callbacks.ask(conversation, None, "Hello?", LONGEST, *EDGE))[-1]
    assert other is not conversation
    assert len(turns) == 2


def test_settings_belong_to_a_request_and_not_to_the_model(callbacks, upload):
    shared = callbacks.shared
    before = shared.processor.image_processor.to_dict()
    alone = [whole_answer(shared, upload, settings) for settings in (EDGE, RATIO)]
    assert alone[0][1] != alone[1][1]

    def visit(settings):
        return list(callbacks.ask(None, upload, QUESTION, LONGEST, *settings))[-1][1][1]["content"]

    with ThreadPoolExecutor(2) as visitors:
        assert list(visitors.map(visit, (EDGE, RATIO))) == [answer for answer, _ in alone]
    assert shared.processor.image_processor.to_dict() == before


def test_a_budget_of_visual_tokens_is_one_of_the_settings(callbacks, upload):
    shared, tokens = callbacks.shared, callbacks.shared.model.config.image_seq_length
    budget = ("ratio", 6, 1, True, 3 * tokens)
    assert f">{3 * tokens}</dd>" in callbacks.show_tiles(upload, *budget)
    *_, (_, turns, note) = callbacks.ask(None, upload, QUESTION, LONGEST, *budget)
    answer, tiles = whole_answer(shared, upload, budget)
    assert (turns[1]["content"], tiles) == (answer, 3)
    assert f"at most {3 * tokens} visual tokens: 3 tiles" in note
    saved = Answerer(shared.model, shared.processor, {"max_image_tokens": 8})
    assert saved.image_settings.max_image_tokens == 8


def test_an_empty_budget_lifts_that_of_the_checkpoint(shared, upload, tmp_path):
    processor = copy(shared.processor)
    processor.max_image_tokens = 8
    callbacks = callbacks_of(SharedModel(Answerer(shared.model, processor), "tiny"), tmp_path, Limits())
    unlimited, limited = (("ratio", 6, 1, True, budget) for budget in (None, 8))
    *_, (_, _, note) = callbacks.ask(None, upload, QUESTION, LONGEST, *unlimited)
    tiles = whole_answer(shared, upload, unlimited)[1]
    assert tiles > 2
    assert f"ratio, at most 6 tiles: {tiles} tiles, " in note
    assert f">{4 * tiles}</dd>" in callbacks.show_tiles(upload, *unlimited)
    attended = callbacks.shared.attend(PIL.Image.open(upload), QUESTION, Limits().check_settings(*unlimited), 1)
    assert attended.plan.num_tiles == tiles
    *_, (_, _, note) = callbacks.ask(None, upload, QUESTION, LONGEST, *limited)
    assert "at most 8 visual tokens: 1 tile, " in note
    assert processor.max_image_tokens == 8


def test_compared_answers_equal_those_of_each_setting_alone(callbacks, upload):
    states = list(callbacks.compare(upload, QUESTION, LONGEST, *EDGE, *RATIO))
    assert "…" in states[0][2]
    *answers, table = states[-1]
    alone = [whole_answer(callbacks.shared, upload, settings) for settings in (EDGE, RATIO)]
    assert answers == [answer for answer, _ in alone]
    assert f"<td>tiles</td><td>{alone[0][1]}</td><td>{alone[1][1]}</td>" in table
    assert "seconds to the first token" in table


@pytest.mark.slow
def test_attention_uses_the_chosen_slicing(callbacks, upload):
    shared = callbacks.shared
    answer, slide = callbacks.show_attention(upload, QUESTION, *EDGE)
    processor = tiny_processor(shared.model.config, slicing="edge", max_patches=1)
    assert answer == attend(shared.model, processor, upload, QUESTION, 8).answer
    assert 'class="ix-wide"><img src="data:image/webp;base64,' in slide


def test_a_visitor_who_leaves_stops_the_answer(callbacks, upload):
    states = callbacks.ask(None, upload, QUESTION, LONGEST, *EDGE)
    conversation = next(states)[0]
    next(states)
    states.close()
    with callbacks.shared._lock:  # the answer has ended
        pass
    turns = list(callbacks.ask(conversation, upload, QUESTION, LONGEST, *EDGE))[-1][1]
    assert turns[-1]["content"] == whole_answer(callbacks.shared, upload, EDGE)[0]


def test_only_the_latest_conversations_keep_their_cache(callbacks, upload, monkeypatch):
    monkeypatch.setattr(shared_model_module, "MAX_CACHES", 1)
    first, second = (list(callbacks.ask(None, upload, QUESTION, LONGEST, *EDGE))[-1][0] for _ in range(2))
    assert first.session._cache is None
    second = list(callbacks.ask(second, upload, QUESTION, LONGEST, *EDGE))[-1][0]  # which counts once
    assert second.session._cache is not None


def noise(path, height, width) -> str:
    random_image(width, height).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: noise(folder / "a.png", 101, 100), "'a.png' has 100x101 pixels … at most 10,000"),
        (lambda folder: noise(folder / "a.bmp", 130, 140), "'a.bmp' has 54,654 bytes … at most 50,000"),
        (
            lambda folder: noise(folder / "a.ppm", 10, 10),
            "'a.ppm' is a file of the format PPM … of the format JPEG, PNG",
        ),
        (lambda folder: str(folder / "gone.png"), "'gone.png' is no longer there. Upload the image again"),
    ],
)
def test_uploads_are_limited(callbacks, tmp_path, make, message):
    with refused(message) as error:
        callbacks.show_tiles(make(tmp_path), *EDGE)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("name", "cut"),
    [("text.png", lambda content: b"root:x:0:0"), ("half.png", lambda content: content[: len(content) // 2])],
)
def test_broken_uploads_are_named_without_their_folder(callbacks, upload, tmp_path, name, cut):
    (tmp_path / name).write_bytes(cut((tmp_path / "photo.png").read_bytes()))
    with refused(name) as error:
        callbacks.show_tiles(str(tmp_path / name), *EDGE)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("question", "longest", "settings", "message"),
    [
        (" ", 1, EDGE, "The question is empty"),
        ("a" * 51, 1, EDGE, "The question has 51 characters … at most 50"),
        ("<IMG_CONTEXT>", 1, EDGE, "IMG_CONTEXT"),
        (QUESTION, 9, EDGE, "Maximum answer length: 9 … a whole number from 1 to 8 tokens"),
        (QUESTION, float("nan"), EDGE, "Maximum answer length: nan"),
        (QUESTION, 1, ("edge", 9), "Maximum tiles: 9 … a whole number from 1 to 8"),
        (QUESTION, 1, ("edge", "x"), "Maximum tiles: 'x'"),
        (QUESTION, 1, ("edge", 2, 3), "min_patches=3 … min_patches <= max_patches"),
        (QUESTION, 1, ("edge", 2, 1, True, 0), "Visual tokens: 0 … a whole number from 1"),
        (QUESTION, 1, ("edge", 2, 1, True, 1), "max_image_tokens=1 is too small: 1 image takes at least 4"),
        (QUESTION, 1, ("corner", 2), "slicing='corner' … one of 'edge'"),
    ],
)
def test_the_error_names_what_is_wrong_with_a_request(callbacks, upload, question, longest, settings, message):
    with refused(message):
        list(callbacks.ask(None, upload, question, longest, *settings))


def test_text_is_escaped(callbacks):
    assert "<b>" not in fragments.comparison([("<b>", None)]) + fragments.note("<b>")
    turns = next(callbacks.ask(None, None, "Is it <b>?", LONGEST, *EDGE))[1]
    assert turns[0]["content"] == "Is it &lt;b&gt;?"


@pytest.mark.parametrize(
    ("limits", "question", "reason"),
    [
        (Limits(max_visual_tokens=4), QUESTION, "visual tokens … at most 4"),
        (Limits(max_prompt_tokens=9), QUESTION, "tokens in its prompt … at most 9"),
        (Limits(), "!" * 1100, "expected together at most 1024, the model's positions"),
    ],
)
def test_a_question_past_the_budget_is_refused_before_the_model_works(
    shared, upload, tmp_path, monkeypatch, limits, question, reason
):
    monkeypatch.setattr(shared.model, "forward", None)
    callbacks = callbacks_of(shared, tmp_path, limits)
    with refused(reason):
        list(callbacks.ask(None, upload, question, 1, *RATIO))
    with refused(reason):
        list(callbacks.compare(upload, question, 1, *RATIO, *RATIO))
    with refused(reason):
        callbacks.show_attention(upload, question, *RATIO)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "0"], "--port=0"),
        (["--max-bytes", "0"], "--max-bytes=0, expected"),
        ([], "pip install gradio matplotlib"),
    ],
)
def test_wrong_options_are_named(options, said, monkeypatch, capsys):
    if not options:
        monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert said in internvlx(capsys, "web", "nowhere", *options, status=1).err


def test_a_page_of_a_pdf_becomes_an_upload_of_the_visitor(callbacks, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pdf((36, 36), (30, 20)))
    path = callbacks.draw_page(str(tmp_path / "scan.pdf"), 2, "a visitor")
    assert callbacks.uploads.file(path).name == "page-2.png"
    page = PIL.Image.open(path)
    assert page.tobytes() == open_images(tmp_path / "scan.pdf")[1].rendered().tobytes()
    answer = list(callbacks.ask(None, path, QUESTION, LONGEST, *EDGE))[-1][1][1]["content"]
    assert answer == whole_answer(callbacks.shared, path, EDGE)[0]


def test_pages_count_as_uploads_of_the_visitor(callbacks, tmp_path, monkeypatch):
    (tmp_path / "scan.pdf").write_bytes(pdf((36, 36)))
    monkeypatch.setattr(Limits, "render_page", lambda self, file, number: bytes(self.max_bytes))
    for _ in range(MAX_CLIENT_UPLOADS):
        callbacks.draw_page(str(tmp_path / "scan.pdf"), 1, "a visitor")
    with refused("Try again in 60 minutes"):
        callbacks.draw_page(str(tmp_path / "scan.pdf"), 1, "a visitor")
    assert callbacks.draw_page(str(tmp_path / "scan.pdf"), 1, "another")


@pytest.mark.parametrize(
    ("content", "number", "message"),
    [
        (pdf((36, 36), (36, 36)), 3, "'scan.pdf' has 2 pages … pages from 1 to 2"),
        (pdf((36, 36)), 0, "Page: 0 … a whole number from 1"),
        (pdf((36, 36)), None, "Page: None, expected"),
        (pdf((72, 72)), 1, "'scan.pdf' of 150x150 pixels is larger than max_pixels=10000"),
        (pdf((36, 36))[:300], 1, "'scan.pdf' is truncated"),
        (b"%PDF-1.4 %%EOF", 1, "'scan.pdf' cannot be read as a PDF"),
        (LOCKED, 1, "'scan.pdf' needs a password"),
        (b"\x89PNG", 1, "'scan.pdf' is not a PDF"),
        (bytes(50_001), 1, "'scan.pdf' has 50,001 bytes … at most 50,000"),
    ],
)
def test_what_is_wrong_with_a_pdf_is_named_without_its_folder(callbacks, tmp_path, content, number, message):
    (tmp_path / "scan.pdf").write_bytes(content)
    with refused(message) as error:
        callbacks.draw_page(str(tmp_path / "scan.pdf"), number, "a visitor")
    assert str(tmp_path) not in str(error.value)
    assert os.listdir(tmp_path) == ["scan.pdf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "message"), [(1, "takes more than 1 seconds"), (300, "takes too much memory or is broken")]
)
def test_a_page_without_end_is_given_up(callbacks, tmp_path, monkeypatch, seconds, message):
    (tmp_path / "scan.pdf").write_bytes(endless_pdf())
    monkeypatch.setattr(limits_module, "PAGE_SECONDS", seconds)
    with refused(f"Page 1 of 'scan.pdf' {message}"):
        callbacks.draw_page(str(tmp_path / "scan.pdf"), 1, "a visitor")


def test_a_pdf_that_is_no_upload_is_not_opened(callbacks, tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "scan.pdf"
    path.write_bytes(pdf((36, 36)))
    with refused("'scan.pdf' is no longer there. Upload"):
        callbacks.draw_page(str(path), 1, "a visitor")


def test_boxes_of_an_answer_are_drawn_below_it(callbacks, upload, monkeypatch):
    turns = iter(["<ref>a cat</ref><box>[[0, 0, 500, 500]]</box>", "no boxes"])

    def ask(session, *_):
        yield "half", None
        yield (turn := replace(TURN, answer=next(turns))).answer, turn

    monkeypatch.setattr(callbacks.shared, "ask", ask)
    for drawn in (1, 0):
        *_, (_, shown, below) = callbacks.ask(None, upload, QUESTION, LONGEST, *EDGE)
        assert "first token after" in below
        assert below.count("1 box of the answer") == below.count("data:image/webp;base64,") == drawn
        assert "<" not in shown[-1]["content"]


def test_the_sizes_of_a_model_are_asked_and_drawn(tmp_path, upload):
    model = tiny_model(tokens_per_tile=["16", "16:4"], merge_layer=2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    plain = tiny_processor(model.config)
    processor = type(plain)(plain.image_processor, plain.tokenizer, image_seq_length=16, offered_sizes=["16", "16:4"])
    shared = SharedModel(Answerer(model, processor), "tiny")
    callbacks = callbacks_of(shared, tmp_path, Limits(max_pixels=10_000, max_tiles=8, max_new_tokens=8))
    slide = callbacks.show_sizes(upload, QUESTION, *EDGE)
    assert slide.count("<img") == 1
    assert "16:4: " in slide
    with refused("There is no image yet"):
        callbacks.show_sizes(None, QUESTION, *EDGE)
