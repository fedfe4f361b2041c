"""`internvlx answer`: the prompt is that of training, a run resumes, and the file trains a model."""

from collections import Counter

import pytest
import torch
from PIL import Image

from commands import internvlx
from data_cases import write_lines
from internvlx_hf.chat.record_answers import answer_records
from internvlx_hf.data import load_training_data
from internvlx_hf.evaluation.answering import Answerer
from json_files import lines_of, write_json
from refusals import refused
from tiny import LVTC, save_tiny, tiny_model, tiny_processor
from training_helpers import run

USER = {"role": "user", "content": "<image>\nWhat is on the picture?"}


@pytest.fixture
def answerer(monkeypatch):
    """A model that answers with the number of its image tokens; `asked` has the prompts."""
    model = tiny_model(**LVTC)
    processor = tiny_processor(model.config, max_patches=3, slicing="edge")
    tokenizer, answerer = processor.tokenizer, Answerer(model, processor)
    answerer.asked = []

    def generate(input_ids, **kwargs):
        answerer.asked.append({"input_ids": input_ids, **kwargs})
        counts = (input_ids == model.config.image_token_id).sum(1).tolist()
        replies = [tokenizer(f"{count} tokens<|im_end|>", add_special_tokens=False)["input_ids"] for count in counts]
        replies = [reply[: kwargs["max_new_tokens"]] for reply in replies]
        return torch.cat(
            [input_ids, tokenizer.pad({"input_ids": replies}, padding_side="right", return_tensors="pt")["input_ids"]],
            1,
        )

    monkeypatch.setattr(model, "generate", generate)
    return answerer


def write_questions(folder):
    """A file of questions: with an image by its mark, without an image, with an answer, in LLaVA's form."""
    for name, size, colour in (("a.png", (64, 32), "red"), ("b.png", (32, 32), "blue")):
        Image.new("RGB", size, colour).save(folder / name)
    answered = [USER, {"role": "assistant", "content": "Blue."}]
    records = [
        {"messages": [USER], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"messages": answered, "images": ["b.png"]},
        {"messages": [*answered, {"role": "user", "content": "Sure?"}], "images": ["b.png"]},
        {"conversations": [{"from": "human", "value": "<image><image>\nSame?"}], "image": ["a.png", "b.png"]},
    ]
    return write_lines(folder / "questions.jsonl", records)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_prompts_are_those_of_training_and_every_record_has_an_answer(batch_size, answerer, tmp_path):
    data, out = load_training_data(write_questions(tmp_path), answerer.processor), tmp_path / "answers.jsonl"
    counts = answer_records(answerer, data, out, {"model": "tiny"}, batch_size)
    assert counts[:4] == (4, 1, 0, 0)
    lines = lines_of(out)
    assert Counter(line["messages"][-1]["content"] for line in lines) == Counter(
        ["12 tokens", "0 tokens", "Blue.", "4 tokens", "16 tokens"]
    )
    trained = load_training_data(out, answerer.processor)
    rows = [
        ids[mask.bool()].tolist()
        for asked in answerer.asked
        for ids, mask in zip(asked["input_ids"], asked["attention_mask"], strict=True)
    ]
    for line, index in zip(lines, range(5), strict=True):
        sample = trained[index]
        answer = answerer.processor.tokenizer.decode(sample.labels[sample.labels != -100])
        assert line["messages"][-1]["content"] + "<|im_end|>" in answer
        if line.get("answered_by"):
            assert any(sample.input_ids[: len(row)].tolist() == row for row in rows)
    prompts = [answerer.processor.tokenizer.decode(row) for row in rows]
    assert sum("Blue." in prompt and "Sure?" in prompt for prompt in prompts) == 1  # an earlier answer ends no prompt
    tiles = sum(len(asked.get("pixel_values", ())) for asked in answerer.asked)
    assert tiles == (12 + 4 + 16) // 4


def test_the_images_of_a_record_share_a_budget(answerer, tmp_path):
    answerer.update_images_kwargs(max_image_tokens=8)
    data, out = load_training_data(write_questions(tmp_path), answerer.processor), tmp_path / "answers.jsonl"
    answer_records(answerer, data, out, {})
    (shared,) = (line for line in lines_of(out) if len(line.get("images", ())) == 2)
    assert shared["messages"][-1]["content"] == "8 tokens"


@pytest.mark.parametrize(("changed", "most"), [({}, 1), ({"max_patches": 2}, 2)])
def test_a_data_set_s_tile_limits_hold_in_training_too(changed, most, answerer, tmp_path):
    answerer.update_images_kwargs(**changed)
    entry = {"annotation": write_questions(tmp_path).name, "max_dynamic_patch": 1}
    meta, out = tmp_path / "meta.json", tmp_path / "answers.jsonl"
    write_json(meta, {"set": entry})
    answer_records(answerer, load_training_data(meta, answerer.processor), out, {"max_patches": 3})
    lines, trained = lines_of(out), load_training_data(out, answerer.processor)
    assert all(line["images_kwargs"] == {"max_patches": most if "answered_by" in line else 1} for line in lines)
    for line, index in zip(lines, range(5), strict=True):
        if answered_by := line.get("answered_by"):
            assert answered_by["max_patches"] == most
            assert line["messages"][-1]["content"] == f"{4 * sum(trained[index].num_tiles)} tokens"
    assert trained[lines.index(next(line for line in lines if "answered_by" not in line))].num_tiles == [1]


def test_a_later_run_answers_only_what_is_missing(answerer, tmp_path):
    questions, out = write_questions(tmp_path), tmp_path / "answers.jsonl"

    def answer(model, *batch_size):
        return answer_records(
            answerer, load_training_data(questions, answerer.processor), out, {"model": model}, *batch_size
        )

    answer("tiny", 2)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed while a line was written
    assert answer("tiny", 2).earlier == 2
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert answer("tiny")[:4] == (0, 0, 5, 0)
    with refused("model='tiny', this run has 'other'"):
        answer("other")


def test_lines_that_do_not_name_the_model_s_version_count_where_it_is_the_default(answerer, tmp_path):
    data, out = load_training_data(write_questions(tmp_path), answerer.processor), tmp_path / "answers.jsonl"
    earlier, settings = {"model": "tiny"}, {"model": "tiny", "revision": "1" * 40}
    answer_records(answerer, data, out, earlier)
    assert answer_records(answerer, data, out, settings, same_settings=earlier).earlier == 5
    with refused("was written with revision=None", "Choose another file"):
        answer_records(answerer, data, out, settings)


def test_records_without_an_answer_are_named_and_tried_again(answerer, tmp_path):
    questions, out = write_questions(tmp_path), tmp_path / "answers.jsonl"
    (tmp_path / "a.png").write_bytes(b"no picture")
    counts = answer_records(answerer, load_training_data(questions, answerer.processor), out, {}, 5, max_new_tokens=3)
    assert counts[:4] == (0, 1, 0, 4)
    reasons = {name.rpartition(", ")[2]: reason for name, reason in counts.failures}
    assert sorted(reasons) == ["line 1", "line 2", "line 4", "line 5"]
    assert sum("did not end before max_new_tokens=3" in reason for reason in reasons.values()) == 2
    write_questions(tmp_path)
    longest = len(answerer.processor.tokenizer("16 tokens<|im_end|>", add_special_tokens=False)["input_ids"])
    exact = load_training_data(questions, answerer.processor)
    assert answer_records(answerer, exact, tmp_path / "exact.jsonl", {}, max_new_tokens=longest)[:4] == (4, 1, 0, 0)
    assert answer_records(answerer, load_training_data(questions, answerer.processor), out, {})[:4] == (4, 0, 1, 0)


def test_a_question_without_an_image_is_named(answerer, tmp_path):
    """The 100,001st too, which is not read before the model is loaded."""
    data = load_training_data(write_questions(tmp_path), answerer.processor)
    counts = answer_records(answerer, data, tmp_path / "answers.jsonl", {}, allow_text=False)
    assert counts[:4] == (3, 1, 0, 1)
    ((name, reason),) = counts.failures
    assert name.endswith("line 2")
    assert "no image" in reason


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"messages": [{"role": "system", "content": "Be brief."}]},
            ("its last turn is ", "expected one of the user"),
        ),
        ({"messages": [USER], "images": [{"bytes": b"1", "path": None}]}, ("it holds an image that is no file",)),
    ],
)
def test_a_record_that_is_no_question_is_named(record, said, answerer, tmp_path):
    counts = answer_records(answerer, load_training_data([record], answerer.processor), tmp_path / "answers.jsonl", {})
    assert counts.failed == 1
    ((name, reason),) = counts.failures
    assert name == "the list of samples, row 0"
    assert all(part in reason for part in said)


def test_text_is_written_as_it_is_and_not_as_escapes(answerer, tmp_path):
    data = load_training_data([{"messages": [{"role": "user", "content": "何ですか"}]}], answerer.processor)
    answer_records(answerer, data, tmp_path / "answers.jsonl", {})
    assert "何ですか" in (tmp_path / "answers.jsonl").read_text("utf-8")


@pytest.mark.slow
def test_the_command_writes_data_that_train_reads(answerer, tmp_path, monkeypatch, capsys):
    questions, out = write_questions(tmp_path), tmp_path / "answers" / "all.jsonl"
    model = save_tiny(tmp_path / "model")
    loaded = []

    def load_model(found, folder, **wanted):
        found.model = answerer.model
        loaded.append(folder)
        return "cpu"

    monkeypatch.setattr("internvlx_hf.chat.loading.load_model", load_model)
    command = ["answer", model, questions, out]
    assert "there is no folder" in internvlx(capsys, *command, status=1).err
    out.parent.mkdir()
    assert "is the data itself" in internvlx(capsys, *command[:3], questions, status=1).err
    write_lines(out, [{"another": "file"}])
    assert "Choose another file" in internvlx(capsys, *command, "--allow-text", status=1).err
    out.unlink()
    said = internvlx(capsys, *command, status=1).err
    assert "questions.jsonl, line 2: it has no image, expected `images` or `videos` (--allow-text" in said
    missing = ["--image-root", tmp_path / "elsewhere"]
    (tmp_path / "a.jsonl").write_text(questions.read_text().splitlines()[0])
    said = internvlx(capsys, "answer", model, tmp_path / "a.jsonl", out, *missing, status=1).err
    assert "None of the first 1 records can be asked: " in said
    assert "elsewhere/a.png" in said
    assert not loaded
    assert not out.exists()
    assert "all.jsonl: 4 answers, 1 had an answer" in internvlx(capsys, *command, "--allow-text").err
    loaded.clear()
    said = internvlx(capsys, *command, "--allow-text", "--max-patches", "2", status=1).err
    assert "was written with max_patches=6, this run has 2. Choose another file" in said
    assert not loaded
    monkeypatch.chdir(out.parent)
    assert run(tmp_path, train_data=str(out), max_steps=2).state.global_step == 2
