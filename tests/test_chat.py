"""`model.chat`, InternVL's own interface."""

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from internvlx_hf.modeling.chat import chat_query
from tiny import LVTC, tiny_model, tiny_processor

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=[{}, LVTC], ids=["lvtc off", "lvtc on"])
def model_and_processor(request):
    model = tiny_model("llama", **request.param)
    return model, tiny_processor(model.config)


def pixels(processor, *sizes):
    images = [Image.linear_gradient("L").resize(size).convert("RGB") for size in sizes]
    out = processor.image_processor(images, return_tensors="pt")
    return out["pixel_values"], out["num_patches"].tolist()


def tokenizer_of(processor):
    processor.tokenizer.chat_template = processor.chat_template
    return processor.tokenizer


def test_chat_answers_as_generate_does_on_the_processor_s_prompt(model_and_processor):
    model, processor = model_and_processor
    tokenizer = tokenizer_of(processor)
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    output = model.generate(**inputs, **GREEDY, eos_token_id=tokenizer.eos_token_id)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert expected  # an empty answer would prove nothing
    pixel_values, _ = pixels(processor, (70, 40))
    assert model.chat(tokenizer, pixel_values, "What is this?", GREEDY) == expected
    config = GenerationConfig(**GREEDY, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    assert model.chat(tokenizer, pixel_values, "<image>\nWhat is this?", config) == expected


def test_chat_goes_on_with_a_history_and_a_second_image(model_and_processor):
    model, processor = model_and_processor
    tokenizer = tokenizer_of(processor)
    pixel_values, tiles = pixels(processor, (70, 40), (30, 30))
    answer, history = model.chat(
        tokenizer, pixel_values[: tiles[0]], "What is this?", GREEDY, return_history=True, num_patches_list=tiles[:1]
    )
    assert history == [("<image>\nWhat is this?", answer)]
    _, history = model.chat(
        tokenizer,
        pixel_values,
        "And this? <image>",
        GREEDY,
        history=history,
        return_history=True,
        num_patches_list=tiles,
    )
    assert [question for question, _ in history] == ["<image>\nWhat is this?", "And this? <image>"]


def test_text_only_chat_gets_no_image_mark(model_and_processor):
    model, processor = model_and_processor
    _, history = model.chat(tokenizer_of(processor), None, "Hello", GREEDY, return_history=True)
    assert history[0][0] == "Hello"


def test_query_fills_the_marks_in_reading_order(model_and_processor):
    _, processor = model_and_processor
    query = chat_query(tokenizer_of(processor), [("a <image>", "b")], "c <image><image>", [1, 3, 2], 4)
    runs = [run.count("<IMG_CONTEXT>") for run in query.split("<img>")[1:]]
    assert runs == [4, 12, 8]


@pytest.mark.parametrize(
    ("question", "tiles", "message"),
    [
        ("what is <IMG_CONTEXT>?", [1], "Turn 0 .user. contains the image token '<IMG_CONTEXT>'"),
        ("what is </img>?", [1], "contains the image token '</img>'"),
        ("<image> and <image>", [1], "2 '<image>' marks, but 1 images"),
        ("what?", [1, 1], "adds up to 2 tiles, got 1"),
    ],
)
def test_bad_chat_is_refused_before_the_model_runs(model_and_processor, question, tiles, message):
    model, processor = model_and_processor
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer_of(processor), torch.zeros(1, 3, 32, 32), question, GREEDY, num_patches_list=tiles)
