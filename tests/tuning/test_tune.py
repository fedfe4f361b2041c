"""`internvlx tune`: what it promises, what it stores, what it writes, what it refuses."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from matplotlib.text import Text

from commands import complaint, internvlx
from data_cases import write_lines
from image_cases import random_image
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.tuning import tune
from internvlx_hf.tuning.answers import Asker
from internvlx_hf.tuning.items import load_items
from internvlx_hf.tuning.options import QUESTION
from internvlx_hf.tuning.page import draw
from internvlx_hf.tuning.run import _shuffled
from internvlx_hf.tuning.settings import OWN, Costs
from json_files import json_of, lines_of
from refusals import refused
from tiny import save_tiny, tiny_model, tiny_processor


def quietly(*args, **kwargs):
    return tune("tiny", *args, say=lambda line: None, **kwargs)


def test_too_few_images_certify_nothing_and_the_sentence_says_how_many_would(oracle, photos, tmp_path):
    report = quietly([photos(24)], keep=0.98, out=tmp_path / "out")
    assert report.verdict == "cannot tell"
    assert report.sentences[0] == (
        "cannot tell: the 12 held-out of your 24 images certify at most 0.78; 0.98 needs 149, 298 in all"
    )
    assert report.recommended == {"slicing": "edge"}
    assert "by the estimate: slicing=edge: 24 of 24 images keep their answers" in report.sentences[1]
    assert report.certificate["share"] == pytest.approx(0.05 ** (1 / 12))


def test_what_the_held_out_half_certifies_is_chosen_on_the_other(oracle, photos, tmp_path):
    report = quietly([photos(24)], keep=0.75, out=tmp_path / "out")
    assert report.verdict == "certified"
    assert report.sentences[0].startswith(
        "certified: slicing=edge: 12 of 12 held-out images keep their answers, so that at least 0.779 of images like these do"
    )
    assert (report.images, report.held_out) == (24, 12)


def test_a_setting_that_the_held_out_half_does_not_confirm_is_not_certified(oracle, photos, tmp_path, monkeypatch):
    from internvlx_hf.tuning.run import Tuning

    changed = Tuning._changed
    monkeypatch.setattr(Tuning, "_changed", lambda self, s, u: 4 if u is self.held_out else changed(self, s, u))
    report = quietly([photos(24)], keep=0.75, out=tmp_path / "out")
    assert report.verdict == "cannot tell"
    assert "8 of the 12 held-out of your 24 images keep their answers with slicing=edge" in report.sentences[0]
    assert "which certifies 0.39, not 0.75" in report.sentences[0]


def test_a_choice_that_the_held_out_half_contradicts_is_not_recommended(oracle, photos, tmp_path, monkeypatch):
    folder, compare = photos(6), Asker.compare
    held_out = {item.key for unit in _shuffled(load_items([folder], QUESTION))[3:] for item in unit}

    def contradicted(self, setting, item, reading=None):
        found = compare(self, setting, item, reading)
        return replace(found, same=False) if setting != OWN and item.key in held_out else found

    monkeypatch.setattr(Asker, "compare", contradicted)
    report = quietly([folder], keep=0.6, out=tmp_path / "out")
    assert (report.verdict, report.recommended) == ("cannot tell", None)
    assert "3 of 6 images keep their answers" in report.sentences[1]


def test_nothing_to_save_is_an_answer(oracle, photos, tmp_path):
    oracle.reply = lambda tiles, rows: f"{tiles} tiles"
    report = quietly([photos(20)], keep=0.9, out=tmp_path / "out")
    assert report.verdict == "nothing to save"
    assert report.recommended is None
    assert "more than 1 of the 10 images to choose on, all that 0.9 allows with 10 held out;" in report.sentences[0]
    assert report.sentences[1].startswith("training")
    assert all(row.same == 0 for row in report.rows[1:])
    figure = draw(report)
    figure.draw_without_rendering()
    labels = figure.axes[0].texts
    assert {"keep 0.9", "the model's own", "slicing=edge"} <= {label.get_text() for label in labels}
    assert min(label.get_window_extent().y0 for label in labels) > figure.axes[0].get_window_extent().y0
    columns = sorted(map(Text.get_window_extent, labels[:-1]), key=lambda box: box.y0)  # without the line's own label
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(columns))


DIAL = {"tokens_per_tile": ["16", "16:4", "16:0"], "merge_layer": 3}


@pytest.mark.parametrize("sizes", [{}, DIAL], ids=["no sizes", "sizes"])
@pytest.mark.parametrize("reading", [4, 3, 2], ids="the first {} of 4 layers read the image".format)
def test_layers_that_do_not_read_the_image_do_without_it_and_no_others(
    reading, sizes, photos, tmp_path, monkeypatch, capsys
):
    """The checkpoint that is saved has the size and the layer, and answers and costs what the tuning measured."""
    model = tiny_model("llama", **sizes)
    for layer in model.model.language_model.layers[reading:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    processor = tiny_processor(model.config, slicing="edge")
    processor.offered_sizes = model.config.tokens_per_tile
    model.save_pretrained(tmp_path / "source")
    processor.save_pretrained(tmp_path / "source")
    before = model.config.to_dict()
    monkeypatch.setattr("internvlx_hf.tuning.run.load_answerer", lambda *_, **__: Answerer(model, processor))
    paths = {"out": tmp_path / "out", "save": tmp_path / "saved"}
    report = tune(str(tmp_path / "source"), [photos(10)], keep=0.5, max_new_tokens=3, say=lambda line: None, **paths)
    assert (model.config.to_dict(), model.model.lvtc is None) == (before, not sizes)
    own = {"merge_layer": 3} if not sizes else {}
    tried = [{"tokens_per_tile": size, **own} for size in ("16:4", "16:0")]
    tried += [{"tokens_per_tile": size, "merge_layer": 2} for size in ("16:4", "16:0")]
    assert sorted(map(str, (row.settings for row in report.rows[1:]))) == sorted(map(str, tried))
    expected = ("nothing to save", None) if reading == 4 else ("certified", tried[1 if reading == 3 else 3])
    assert (report.verdict, report.recommended) == expected
    saved = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "saved")
    offered = (["16", "16:4", "16:0"] if sizes else ["16", "16:0"]) if sizes or reading < 4 else None
    assert saved.config.tokens_per_tile == offered
    (row,) = [row for row in report.rows if row.settings == (report.recommended or {})]
    again = Answerer(saved, InternVLXProcessor.from_pretrained(tmp_path / "saved"))
    known = next(line for line in lines_of(tmp_path / "out/answers.jsonl") if line["setting"] == row.name)
    (item,) = load_items([str(tmp_path / "photos" / known["image"])], "What is in this image?").units.values()
    assert Costs(again, item).flops(OWN) == pytest.approx(row.flops)
    content = [{"type": "image", "image": item[0].open()[0]}, {"type": "text", "text": "What is in this image?"}]
    (answer,) = again.answer([[{"role": "user", "content": content}]], max_new_tokens=3)
    assert answer.text.strip() == known["answer"]


def test_images_of_one_tile_leave_nothing_to_try(oracle, photos, tmp_path, monkeypatch):
    from internvlx_hf.tuning import run as module

    model = tiny_model(text_config={"num_hidden_layers": 1})  # no layer after which an image could be left out
    loaded = Answerer(model, tiny_processor(model.config, slicing="edge"))
    monkeypatch.setattr(module, "load_answerer", lambda *_, **__: loaded)
    report = quietly([photos(4)], out=tmp_path / "out")
    assert report.verdict == "nothing to save"
    assert report.sentences[0] == "nothing to save: no image setting is cheaper on these images"


def test_a_model_that_disagrees_with_itself_is_reported_as_that(oracle, photos, tmp_path):
    oracle.reply = lambda tiles, rows: "alone" if rows == 1 else "together"
    report = quietly([photos(8)], keep=0.9, out=tmp_path / "out")
    assert report.verdict == "noisy"
    assert report.noise["changed"] == 4
    assert "changes its own answers about 4 of 4 images, more than 0.1 of them" in report.sentences[0]
    assert report.recommended is None


def test_a_first_look_asks_about_twenty_images_under_a_handful_of_settings(oracle, photos, tmp_path, capsys):
    oracle.reply = lambda tiles, rows: "few" if tiles < 4 else "many"
    text = internvlx(capsys, "tune", "tiny", photos(23), "--out", tmp_path / "out").out
    assert "20 of 23 images were used; --keep 0.98 asks about all" in text
    report = json_of(tmp_path / "out/tune.json")
    assert all(row["asked"] == 20 for row in report["rows"])
    assert {"tokens", "flops", "seconds", "same", "divergence", "common"} <= report["rows"][0].keys()
    page = (tmp_path / "out/index.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert (tmp_path / "out/tune.png").stat().st_size > 10_000
    assert text.count("'many' -> '") == 3 * sum(row["same"] == 0 for row in report["rows"])


def test_settings_that_cut_an_image_alike_share_its_answer(oracle, photos, tmp_path):
    quietly([photos(6)], out=tmp_path / "out")
    lines = lines_of(tmp_path / "out/answers.jsonl")
    read = [(line["image"], line["tiles"]) for line in lines if "batches" not in line["setting"]]
    assert len(read) == len(set(read))
    assert oracle.asked == len(lines)


def test_a_killed_run_goes_on_where_it_was(oracle, photos, tmp_path):
    oracle.reply = lambda tiles, rows: "few" if tiles < 2 else "many"
    folder = photos(20)
    whole = quietly([folder], keep=0.9, out=tmp_path / "whole")
    needed = oracle.asked
    oracle.asked, oracle.stop_after = 0, 13
    with pytest.raises(KeyboardInterrupt):
        quietly([folder], keep=0.9, out=tmp_path / "out")
    assert 0 < oracle.asked < needed
    with (tmp_path / "out/answers.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # killed while a line was written
    (tmp_path / "out/.tune.part.png").touch()  # or while the picture was
    oracle.stop_after = None
    resumed = quietly([folder], keep=0.9, out=tmp_path / "out")
    assert oracle.asked == needed
    assert (resumed.verdict, resumed.sentences) == (whole.verdict, whole.sentences)
    assert [row.same for row in resumed.rows] == [row.same for row in whole.rows]
    again = quietly([folder], keep=0.9, out=tmp_path / "out")
    assert oracle.asked == needed
    assert again.to_dict() == resumed.to_dict()


def test_answers_of_records_are_scored_and_count_by_image(oracle, photos, tmp_path):
    oracle.reply = lambda tiles, rows: "Yes."
    photos(6)
    records = [
        {
            "messages": [
                {"role": "user", "content": f"<image>\nQuestion {number % 2}?"},
                {"role": "assistant", "content": "yes" if number % 2 else "no"},
            ],
            "images": [f"photos/{number // 2:03}.png"],
        }
        for number in range(12)
    ]
    report = quietly(data=write_lines(tmp_path / "data.jsonl", [*records, records[0]]), out=tmp_path / "out")
    assert report.images == 6
    assert report.rows[0].asked == 6
    assert [row.score for row in report.rows] == [0.5 * ("merge_layer" not in row.settings) for row in report.rows]
    assert report.notes == ["Left out: 1 with the same pixels and question as another."]
    assert "exact_match" in report.to_text()


def saved_settings(folder):
    processor = InternVLXProcessor.from_pretrained(folder)
    rule = processor.image_processor.tiling_rule()
    return rule.slicing, rule.max_tiles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "options", "reads", "slicing", "words"),
    [
        (0.75, [], False, "edge", "The image settings are those that `internvlx tune` certified."),
        (0.98, ["--accept-estimate"], False, "edge", "recommended by an estimate; they are not certified."),
        (0.98, [], False, "ratio", "The image settings are the source's"),
        (0.75, ["--accept-estimate"], True, "ratio", "The image settings are the source's"),
    ],
)
def test_a_saved_checkpoint_has_the_settings_and_its_card_says_which(
    keep, options, reads, slicing, words, oracle, photos, tmp_path, capsys
):
    oracle.reply = lambda tiles, rows: f"{tiles} tiles" if reads else "yes"
    source = save_tiny(tmp_path / "source", image_settings={"slicing": "ratio", "max_patches": 6})
    command = ["tune", source, photos(24), "--keep", keep, "--out", tmp_path / "out", "--save", tmp_path / "saved"]
    internvlx(capsys, *command, *options)
    assert saved_settings(tmp_path / "saved") == (slicing, 6)
    card = (tmp_path / "saved/README.md").read_text()
    assert words in card
    report = json_of(tmp_path / "out/tune.json")
    assert "; ".join(report["sentences"]) in card
    assert not any(sentence.endswith(".") for sentence in report["sentences"])  # the card ends them
    assert report["saved"]["folder"] == "saved"
    asked = oracle.asked
    assert "exists already" in complaint(capsys, *command)
    assert oracle.asked == asked


@pytest.mark.slow
def test_a_real_model_from_the_command_line_to_the_page(photos, tmp_path, capsys):
    source = save_tiny(tmp_path / "source", image_settings={"slicing": "ratio", "max_patches": 4})
    command = ["tune", source, photos(6, size=(70, 40)), "--out", tmp_path / "out", "--max-new-tokens", 4]
    text = internvlx(capsys, *command).out
    assert "noise floor: 3 of 3 images" in text
    first = json_of(tmp_path / "out/tune.json")
    assert first["rows"][0]["same"] == first["rows"][0]["asked"] == 6
    own = [line for line in lines_of(tmp_path / "out/answers.jsonl") if "likeliest" in line]
    assert len(own) == 6
    assert any(row["divergence"] > 0 for row in first["rows"][1:])
    internvlx(capsys, *command)
    assert json_of(tmp_path / "out/tune.json") == first


def test_a_page_shows_texts_as_texts(oracle, photos, tmp_path):
    oracle.reply = lambda tiles, rows: f"<b>{tiles}</b>"
    quietly([photos(4)], question="Is 1 < 2?", out=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "&lt;b&gt;7&lt;/b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("options", "value", "remedy"),
    [
        ({"keep": 1}, "keep=1", "between 0 and 1"),
        ({"keep": 0.0}, "keep=0.0", "between 0 and 1"),
        ({"do_sample": True}, "do_sample=True", "only greedy answers can be compared"),
        ({"temperature": 0.7}, "temperature=0.7", "only greedy answers can be compared"),
        ({"num_beams": 4}, "num_beams=4", "num_beams=1"),
        ({"metric": "bleu"}, "metric='bleu'", "'exact_match', 'anls'"),
        ({"most": 1}, "most=1", "at least 2"),
        ({"max_new_tokens": 0}, "max_new_tokens=0", "at least 1"),
        ({"question": " "}, "question=' '", "expected a question"),
        ({"kep": 0.9}, "kep=0.9", "Did you mean keep?"),
        ({"question": "Which?", "data": "a.jsonl"}, "question='Which?'", "has its own questions"),
        ({"data": "a.jsonl"}, "data='a.jsonl'", "leave out 1 images"),
        ({"question": "<image> <image> Which?"}, "<image> <image> Which?", "expected a question without marks"),
    ],
)
def test_arguments_that_are_refused_before_a_model_is_loaded(options, value, remedy, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("internvlx_hf.tuning.run.load_answerer", None)
    with refused(value, remedy):
        quietly([photos(4)], out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read_are_named_and_counted(oracle, photos, tmp_path, capsys):
    folder = photos(6)
    whole = (tmp_path / "photos/000.png").read_bytes()
    (tmp_path / "photos/000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/001.png").write_bytes(b"no image")
    command = ["tune", "tiny", folder, "--out", tmp_path / "out"]
    error = complaint(capsys, *command)
    assert "2 of 6 images cannot be read; leave them out with --skip-broken" in error
    assert "000.png" in error
    assert "001.png" in error
    assert oracle.asked == 0
    text = internvlx(capsys, *command, "--skip-broken").out
    assert text.count("Skipped: ") == 2
    assert text.startswith("4 images")


def test_what_there_is_nothing_to_ask_about_is_refused(oracle, tmp_path, capsys):
    assert "There are no images to ask about" in complaint(capsys, "tune", "tiny", "--question", "What?")
    (tmp_path / "empty").mkdir()
    assert "has no images" in complaint(capsys, "tune", "tiny", tmp_path / "empty", "--out", tmp_path / "out")
    random_image(30, 20).save(tmp_path / "one.png")
    assert "expected at least 2" in complaint(capsys, "tune", "tiny", tmp_path / "one.png", "--out", tmp_path / "out")
    record = {"messages": [{"role": "user", "content": "Why?"}]}
    data = write_lines(tmp_path / "data.jsonl", [record])
    assert "a question without images" in complaint(capsys, "tune", "tiny", "--data", data)
    assert "leave out 1 images" in complaint(capsys, "tune", "tiny", "a.png", "--data", data)
    assert oracle.asked == 0


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "assistant", "content": "Yes."}], "images": ["photos/000.png"]}, "it has no question"),
        ({"messages": [{"role": "user", "content": "What?"}], "videos": ["clip.mp4"]}, "it has a video"),
        (
            {
                "messages": [{"role": "user", "content": "What?"}],
                "images": ["photos/000.png"],
                "images_kwargs": {"max_patches": 2},
            },
            "expected the settings that are tuned",
        ),
    ],
)
def test_a_record_that_cannot_be_asked_is_named(record, reason, photos, tmp_path):
    photos(1)
    data = write_lines(tmp_path / "data.jsonl", [record])
    with refused("data.jsonl, line 1", reason):
        quietly(data=data, out=tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(oracle, photos, tmp_path):
    folder = photos(4)
    with refused("holds something else: 000.png", "Choose an empty or new folder", by=FileExistsError):
        quietly([folder], out=folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers.jsonl").write_text(json.dumps({"image": "a.png", "answer": "?"}) + "\n")
    with refused("was not written by this command", "Choose another file"):
        quietly([folder], out=tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("a file")
    with refused("is a file", "expected a folder", by=FileExistsError):
        quietly([folder], out=tmp_path / "out")
    for save in ("new", "new/saved", "."):
        with refused(f"--save='{tmp_path / save}'", "Choose separate folders", by=FileExistsError):
            quietly([folder], out=tmp_path / "new", save=tmp_path / save, overwrite=True)
    assert oracle.asked == 0
