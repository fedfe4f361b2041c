"""A conversation that asks again, and recorded answers of a real model at the limit of their tokens."""

import json

import numpy as np
import PIL.Image
import pytest

from internvlx_hf.chat import Session
from internvlx_hf.chat.record_answers import answer_records
from internvlx_hf.cost.request_budget import RequestBudget
from internvlx_hf.data import load_training_data
from internvlx_hf.evaluation.answering import Answerer
from tiny import LVTC, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    model = tiny_model(**LVTC)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return Answerer(model, tiny_processor(model.config), {"max_patches": 4})


def test_the_same_prompt_again_reads_its_last_token_and_has_the_same_answer(answerer):
    levels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    session = Session(answerer, generation={"max_new_tokens": 6})
    session.ask("What is it?", (PIL.Image.fromarray(levels),))
    first = session.ask("And now?")
    session.messages = session.messages[:-2]
    again = session.ask("And now?")
    assert (again.answer, again.prompt_tokens) == (first.answer, 1)


@pytest.mark.parametrize(("at_end", "counts"), [(True, (1, 0, 0, 0)), (False, (0, 0, 0, 1))])
def test_an_answer_of_as_many_tokens_as_allowed_counts_if_its_last_is_the_end(at_end, counts, answerer, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n")
    data = load_training_data(file, answerer.processor)
    prompt = answerer.inputs([[{"role": "user", "content": "Why?"}]], add_generation_prompt=True)
    tokens = answerer.model.generate(**prompt, max_new_tokens=9, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ].tolist()
    most = max(place for place, token in enumerate(tokens) if token not in tokens[:place]) + 1
    config = answerer.model.generation_config
    config.eos_token_id = tokens[most - 1] if at_end else None
    try:
        found = answer_records(answerer, data, tmp_path / "out.jsonl", {}, max_new_tokens=most)
    finally:
        config.eos_token_id = None
    assert found[:4] == counts


def test_equal_records_are_answered_once(answerer, tmp_path):
    records = [{"messages": [{"role": "user", "content": text}]} for text in ("Why?", "Why not?", "Why?")]
    records.append(records[0] | {"images_kwargs": {"max_patches": 1}})  # which makes it another question
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    data = load_training_data(tmp_path / "a.jsonl", answerer.processor)
    answerer.model.generation_config.eos_token_id = list(range(320))  # the first token of an answer is its last
    try:
        found = answer_records(answerer, data, tmp_path / "out.jsonl", {}, max_new_tokens=9)
    finally:
        answerer.model.generation_config.eos_token_id = None
    assert found.earlier == 1


def test_a_conversation_that_loses_its_image_reads_all_anew():
    model = tiny_model()  # whose cache could be cropped into the image
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    session = Session(Answerer(model, tiny_processor(model.config)), generation={"max_new_tokens": 6})
    session.ask("What is it?", (PIL.Image.new("RGB", (32, 32), "red"),))
    session.messages = []
    again = session.ask("What is it?")
    assert (again.tiles, again.answer) == (
        0,
        session.answerer.answer([session.messages[:-1]], max_new_tokens=6)[0].text,
    )


def test_a_question_past_a_budget_is_refused_with_its_tokens(answerer):
    session = Session(answerer, generation={"max_new_tokens": 6}, budget=RequestBudget(max_new_tokens=6))
    assert session.ask("Why?").answer_tokens == 6
    session.generation = {"max_new_tokens": 7}
    with pytest.raises(ValueError, match="7 new tokens, expected at most 6"):
        session.ask("Why?")


def test_the_tokens_that_a_turn_counts_are_those_that_the_model_reads(answerer):
    """After an answer whose last token is the end of the turn, too: it was generated and is not in the cache."""
    end = answerer.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    read = []
    hook = answerer.model.model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        session = Session(answerer, generation={"max_new_tokens": 1, "forced_eos_token_id": end})
        for question in ("Why?", "And now?"):
            read.clear()
            assert session.ask(question).prompt_tokens == read[0]
    finally:
        hook.remove()
