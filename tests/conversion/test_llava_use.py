"""A converted LLaVA, whose images have no start and end tokens, in chat, on the page, behind the server and in training."""

import json

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from commands import internvlx
from conversion_helpers import load
from internvlx_hf import InternVLXProcessor, cost
from internvlx_hf.chat import Session, load_answerer
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.web.callbacks import Callbacks
from internvlx_hf.web.limits import Limits
from internvlx_hf.web.shared_model import SharedModel
from internvlx_hf.web.uploads import Uploads
from llava_sources import IMAGE, conversation, llava_processor, prompt, save_llava
from refusals import refused
from training_helpers import losses, run, saved_weights

NEW, QUESTION = 6, "What is on the image?"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava_use") / "llava"
    save_llava(folder)
    return folder


@pytest.fixture(scope="module")
def converted(llava):
    convert_checkpoint(llava, llava.with_name("converted"))
    return llava.with_name("converted")


@pytest.fixture(scope="module")
def llava_s_answer(llava) -> str:
    model, processor = LlavaForConditionalGeneration.from_pretrained(llava).eval(), llava_processor()
    inputs = prompt(processor, conversation())
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


def test_chat_converts_a_llava_once_and_answers_as_it(llava, llava_s_answer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNVLX_CACHE", str(tmp_path / "cache"))
    IMAGE.save(tmp_path / "photo.png")
    options = ["--max-new-tokens", str(NEW), "--device", "cpu"]
    found = internvlx(capsys, "chat", llava, tmp_path / "photo.png", QUESTION, *options)
    assert "Converting llava once" in found.err
    assert llava_s_answer in found.out
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_later_turns_and_the_page_answer_as_one_prompt(converted, llava_s_answer, tmp_path):
    answerer = load_answerer(str(converted), say=lambda line: None, device="cpu", dtype="float32")
    session = Session(answerer, generation={"max_new_tokens": NEW, "do_sample": False})
    assert session.ask(QUESTION, (IMAGE,)).answer == llava_s_answer
    later = session.ask("And now?")
    expected = answerer.answer([session.messages[:-1]], max_new_tokens=NEW, do_sample=False)[0].text.strip()
    assert later.answer == expected
    IMAGE.save(tmp_path / "photo.png")
    limits = Limits(max_new_tokens=8)
    callbacks = Callbacks(SharedModel(answerer, "llava"), limits, Uploads(tmp_path, limits.max_bytes))
    *_, (_, turns, _) = callbacks.ask(None, str(tmp_path / "photo.png"), QUESTION, NEW, "edge", 1)
    assert turns[1]["content"] == llava_s_answer


def test_model_s_own_chat_writes_images_without_start_and_end(converted, llava_s_answer):
    model, processor = load(converted), InternVLXProcessor.from_pretrained(converted)
    pixels = processor.image_processor(IMAGE, return_tensors="pt")["pixel_values"]
    settings = {"max_new_tokens": NEW, "do_sample": False}
    answer, history = model.chat(processor.tokenizer, pixels, QUESTION, settings, return_history=True, verbose=True)
    assert answer == llava_s_answer
    # such a token would be text, as is any other
    again = model.chat(processor.tokenizer, pixels, "What is <img>?", settings, history=history)
    messages = [
        *conversation(),
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        {"role": "user", "content": "What is <img>?"},
    ]
    inputs = prompt(processor, messages)
    ids = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    assert again == processor.decode(ids, skip_special_tokens=True).strip()
    assert model.batch_chat(processor.tokenizer, pixels, [QUESTION], settings) == [llava_s_answer]
    with refused("'<IMG_CONTEXT>' as text"):
        model.chat(processor.tokenizer, pixels, "What is <IMG_CONTEXT>?", settings)


@pytest.mark.parametrize(
    "question", ["<image>\nWhat?", "Look: <image> What?", [{"type": "image"}, {"type": "text", "text": "A"}]]
)
def test_training_data_have_the_processor_s_ids_and_labels(converted, question):
    processor = InternVLXProcessor.from_pretrained(converted)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "A set.<|im_end|>"}]
    batch = InternVLXDataCollator(processor)([{"messages": turns, "images": [IMAGE]}])
    expected = processor.apply_chat_template([turns], images=[[IMAGE]], return_labels=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], expected[name]), name
    labelled = batch["labels"][batch["labels"] != -100]
    assert processor.tokenizer.decode(labelled).strip() == "A set.<|im_end|>"


@pytest.mark.slow
def test_upgraded_llava_trains_and_keeps_its_prompts(llava, tmp_path, out):
    report = convert_checkpoint(llava, tmp_path / "base", projector="pvtc", lvtc=True, slicing="edge", max_patches=3)
    assert any("end the answers of the data with <|im_end|>" in note for note in report.notes)
    trainer = run(tmp_path, model_name_or_path=str(tmp_path / "base"), max_steps=3)
    assert len(losses(trainer)) == 3
    assert all(torch.tensor(losses(trainer)).isfinite())
    before, after = saved_weights(tmp_path / "base"), saved_weights(out)
    for part in ("multi_modal_projector.local_query.linear_1.weight", "lvtc.hr_projector.linear_2.weight"):
        assert not torch.equal(before[f"model.{part}"], after[f"model.{part}"]), part
    assert not InternVLXProcessor.from_pretrained(out).wrap_images


def test_cost_of_a_llava_needs_no_conversion(llava, converted, capsys):
    ours, theirs = cost.load_setup(converted), cost.load_setup(llava)
    assert ours.tiling == theirs.tiling
    assert cost.CostModel(ours).of_size(640, 480) == cost.CostModel(theirs).of_size(640, 480)
    assert cost.CostModel(ours).of_size(640, 480).stage_one_tokens == 64
    rows = json.loads(
        internvlx(capsys, "cost", "--model", converted, "--size", "640x480", "--max-patches", "6", "--json").out
    )
    assert "native" not in json.dumps(rows)


def test_cost_of_lvtc_is_what_a_conversion_adds(llava, out):
    convert_checkpoint(llava, out, lvtc=True)
    added = cost.load_setup(out).sizes
    setup = cost.load_setup(llava)
    assert setup.varied("LVTC on", "with LVTC", setup.tiling).sizes == added
