"""`model.chat` and `model.batch_chat`, InternVL's own interface."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig
from transformers.testing_utils import CaptureLogger

from chat_recorder import GREEDY, recorder_and_tokenizer
from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.modeling.chat import chat_query, end_marker, logger, opening_question
from paths import GOLDEN
from tiny import LVTC, tiny_model, tiny_processor, tiny_tokenizer

CHAT_QUERIES = json.loads((GOLDEN / "tokenizer/prompts.json").read_text())["chat_queries"]
CHECKPOINTS = sorted(path.name for path in (GOLDEN / "checkpoints").iterdir() if path.is_dir())


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


def expanded(query_rle):
    return re.sub(r"<IMG_CONTEXT\*(\d+)>", lambda run: "<IMG_CONTEXT>" * int(run[1]), query_rle)


def conversation(case):
    history = [tuple(turn) for turn in case["history"] or []]
    return case["question"], history, case["num_patches_list"]


def matches(case):
    """Whether there are as many marks as images, of which the reference writes in one where there is none."""
    question, history, tiles = conversation(case)
    texts = [text for turn in history for text in turn] + [opening_question(question, history, bool(tiles))]
    return sum(text.count("<image>") for text in texts) == len(tiles)


def test_prompts_of_internvl_s_chat_are_reproduced():
    assert len(CHAT_QUERIES) == 96
    for case in CHAT_QUERIES:
        _, tokenizer = recorder_and_tokenizer(case["template"])
        question, history, tiles = conversation(case)
        question = opening_question(question, history, bool(tiles))
        query = chat_query(tokenizer, question, history, tiles, case["num_image_token"])
        assert query == expanded(case["query_rle"])
        assert len(query) == case["query_chars"]


def test_chat_hands_internvl_s_prompts_to_the_model_and_refuses_those_where_internvl_guesses():
    refused = 0
    for case in CHAT_QUERIES:
        model, tokenizer = recorder_and_tokenizer(case["template"], case["num_image_token"])
        question, history, tiles = conversation(case)
        pixel_values = torch.zeros(sum(tiles), 3, 1, 1) if tiles else None
        arguments = (tokenizer, pixel_values, question, dict(GREEDY), history or None, True, tiles)
        if not matches(case):
            with pytest.raises(ValueError, match="'<image>' marks, but"):
                model.chat(*arguments)
            refused += 1
            continue
        answer, returned_history = model.chat(*arguments)
        assert answer == "an answer"
        assert [list(turn) for turn in returned_history] == case["returned_history"]
        expected = tokenizer(expanded(case["query_rle"]), return_tensors="pt")["input_ids"]
        assert torch.equal(model.inputs["input_ids"], expected)
        assert (model.inputs["input_ids"] == model.config.image_token_id).sum() == case["img_context_count"]
    assert refused == 16


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


def test_batch_chat_answers_each_question_as_chat_does(model_and_processor):
    model, processor = model_and_processor
    tokenizer = tokenizer_of(processor)
    tokenizer.padding_side = "right"  # batch_chat pads on the left whatever the tokenizer does
    pixel_values, tiles = pixels(processor, (70, 40), (30, 30))
    questions = ["What is on this picture?", "<image>\nDigits?", "Hello"]
    answers = model.batch_chat(tokenizer, pixel_values, questions, GREEDY, num_patches_list=[*tiles, 0])
    expected = [
        model.chat(tokenizer, images, question, GREEDY)
        for images, question in zip([*pixel_values.split(tiles), None], questions, strict=True)
    ]
    assert answers == expected
    assert len(set(answers)) == 3
    assert tokenizer.padding_side == "right"


def test_batch_chat_of_text_needs_no_images():
    model, tokenizer = recorder_and_tokenizer()
    assert model.batch_chat(tokenizer, None, ["Hello", "What is on the picture?"], GREEDY) == ["an answer"] * 2
    assert "pixel_values" not in model.inputs


def test_batch_chat_takes_internvl_s_older_name_of_the_tile_counts():
    model, tokenizer = recorder_and_tokenizer()
    model.batch_chat(tokenizer, torch.zeros(3, 3, 1, 1), ["a", "b"], GREEDY, image_counts=[1, 2])
    assert (model.inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [4, 8]


@pytest.mark.parametrize("arguments", [{"history": [("a", "b")]}, {"return_history": True}])
def test_batch_chat_knows_no_history(arguments):
    model, tokenizer = recorder_and_tokenizer()
    with pytest.raises(NotImplementedError, match="Use `chat`"):
        model.batch_chat(tokenizer, None, ["Hello"], GREEDY, **arguments)


def test_batch_chat_refuses_as_many_images_as_there_are_no_questions_for():
    model, tokenizer = recorder_and_tokenizer()
    with pytest.raises(ValueError, match="has 1 images for 2 questions"):
        model.batch_chat(tokenizer, torch.zeros(1, 3, 1, 1), ["a", "b"], GREEDY, num_patches_list=[1])
    with pytest.raises(ValueError, match="adds up to 2 tiles, got 3"):
        model.batch_chat(tokenizer, torch.zeros(3, 3, 1, 1), ["a", "b"], GREEDY)


def test_generation_stops_at_the_template_s_end_marker_and_not_at_the_tokenizer_s_eos():
    model, tokenizer = recorder_and_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = dict(GREEDY, eos_token_id=tokenizer.eos_token_id)
    model.chat(tokenizer, None, "Hello", options)
    assert model.inputs["eos_token_id"] == end
    assert options["eos_token_id"] == tokenizer.eos_token_id  # the user's options stay as they were
    model.chat(tokenizer, None, "Hello", GenerationConfig(**GREEDY))
    assert model.inputs["eos_token_id"] == end
    model.chat(tokenizer, None, "Hello", GenerationConfig(**GREEDY, eos_token_id=7))
    assert "eos_token_id" not in model.inputs


def test_an_answer_is_cut_at_an_end_marker_that_decoding_keeps():
    model, tokenizer = recorder_and_tokenizer(reply="an answer<|im_end|>more")
    tokenizer.batch_decode = lambda ids, **_: ["an answer<|im_end|>more"]
    assert model.chat(tokenizer, None, "Hello", GREEDY) == "an answer"


def test_a_template_without_a_known_end_marker_ends_with_the_tokenizer_s_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template("phi3-chat")  # whose <|end|> this tokenizer does not know
    assert end_marker(tokenizer) == "<|im_end|>"
    tokenizer.chat_template = chat_template("internvl2_5")
    tokenizer.eos_token = "<|endoftext|>"
    assert end_marker(tokenizer) == "<|im_end|>"


def test_chat_writes_the_model_s_system_message():
    model, tokenizer = recorder_and_tokenizer()
    model.system_message = "Be brief."
    model.chat(tokenizer, None, "Hello", GREEDY)
    prompt = tokenizer.decode(model.inputs["input_ids"][0])
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>")


def test_chat_takes_the_arguments_of_internvl_s():
    model, tokenizer = recorder_and_tokenizer()
    tokens = {"IMG_START_TOKEN": "<box>", "IMG_END_TOKEN": "</box>", "IMG_CONTEXT_TOKEN": "<IMG_CONTEXT>"}
    pixel_values = torch.zeros(1, 3, 1, 1)
    with CaptureLogger(logger) as log:
        model.chat(tokenizer, pixel_values, "What?", GREEDY, None, False, [1], **tokens, verbose=False)
    assert log.out == ""
    prompt = tokenizer.decode(model.inputs["input_ids"][0])
    assert "<box>" + "<IMG_CONTEXT>" * 4 + "</box>\nWhat?" in prompt
    with CaptureLogger(logger) as log:
        model.chat(tokenizer, pixel_values, "What?", GREEDY, verbose=True)
    assert "user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nan answer" in log.out


def test_an_image_token_that_is_not_the_model_s_is_refused():
    model, tokenizer = recorder_and_tokenizer()
    with pytest.raises(ValueError, match="the tokenizer's '<img>' is"):
        model.chat(tokenizer, torch.zeros(1, 3, 1, 1), "What?", GREEDY, IMG_CONTEXT_TOKEN="<img>")


@pytest.mark.parametrize(
    ("question", "tiles", "message"),
    [
        ("what is <IMG_CONTEXT>?", [1], "contains the image token '<IMG_CONTEXT>' as text"),
        ("what is </img>?", [1], "contains the image token '</img>' as text"),
        ("<image> and <image>", [1], "2 '<image>' marks, but 1 images"),
        ("what?", [1, 1], "1 '<image>' marks, but 2 images"),
        ("<image> and <image>", [1, 1], "adds up to 2 tiles, got 1"),
    ],
)
def test_bad_chat_is_refused_before_the_model_runs(model_and_processor, question, tiles, message):
    model, processor = model_and_processor
    model.generate = None  # whoever calls it gets a TypeError
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer_of(processor), torch.zeros(1, 3, 32, 32), question, GREEDY, num_patches_list=tiles)


@pytest.mark.parametrize("place", ["question", "system message"])
def test_an_image_token_in_a_message_of_the_user_or_the_system_is_refused(place):
    model, tokenizer = recorder_and_tokenizer()
    history = [("Hi", "Hello")]
    model.system_message = "<IMG_CONTEXT>" if place == "system message" else None
    with pytest.raises(ValueError, match="contains the image token"):
        model.chat(tokenizer, None, "<IMG_CONTEXT>" if place == "question" else "Go on", GREEDY, history)
    assert not hasattr(model, "inputs")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_chat_of_a_converted_checkpoint_writes_what_internvl_s_does(name, tmp_path):
    golden = json.loads((GOLDEN / f"checkpoints/{name}.golden.json").read_text())
    tensors = load_file(GOLDEN / f"checkpoints/{name}.golden.safetensors")
    convert_checkpoint(GOLDEN / "checkpoints" / name, tmp_path / name)
    model = InternVLXForConditionalGeneration.from_pretrained(tmp_path / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name, trust_remote_code=True, use_fast=False)
    question = re.search(r"</img>\n(.*?)<\|(?:im_)?end\|>", golden["texts"]["query"])[1]
    options = {"max_new_tokens": 12, "do_sample": False}
    given, written = [], []
    generate = model.generate

    def recording_generate(**kwargs):
        output = generate(**kwargs)
        given.append(kwargs["input_ids"])
        written.append(output[:, kwargs["input_ids"].shape[1] :])
        assert kwargs["eos_token_id"] == golden["info"]["eos_token_id"]
        return output

    model.generate = recording_generate
    answer = model.chat(tokenizer, tensors["pixel_values"], question, options)
    assert torch.equal(given[0], tensors["input_ids"])
    assert torch.equal(written[0], tensors["generated_ids"])
    assert answer == golden["generated_text"].strip()
    model.chat(tokenizer, None, "Hello", options)
    assert torch.equal(given[1], tensors["text.input_ids"])
    assert torch.equal(written[1], tensors["text.generated_ids"])
