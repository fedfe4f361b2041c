"""Chat templates against the prompts that InternVL's own conversation templates write (golden/tokenizer)."""

from functools import cache

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion.prepare import stop_token
from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from json_files import json_of
from paths import GOLDEN
from refusals import refused
from tiny import tiny_tokenizer

PROMPTS = json_of(GOLDEN / "tokenizer/prompts.json")
END_MARKERS = {name: template["sep"].strip() for name, template in PROMPTS["templates"].items()}


@cache
def tokenizer_with(template) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template(template)
    return tokenizer


@cache
def processor_with(template) -> InternVLXProcessor:
    return InternVLXProcessor(InternVLXImageProcessor(), tokenizer_with(template))


def messages_of(case, as_parts=False):
    """The case's messages, and whether the assistant's next one is asked for."""
    texts = [] if case["system_message"] is None else [("system", case["system_message"])]
    texts += [(role, text) for role, text in case["messages"] if text is not None]
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text} for role, text in texts
    ]
    return messages, len(texts) < len(case["messages"]) + (case["system_message"] is not None)


@pytest.mark.parametrize("as_parts", [False, True], ids=["strings", "lists of parts"])
@pytest.mark.parametrize("owner", [tokenizer_with, processor_with], ids=["tokenizer", "processor"])
def test_prompts_of_internvl_s_templates_are_reproduced_byte_for_byte(owner, as_parts):
    assert len(PROMPTS["prompts"]) == 240
    for case in PROMPTS["prompts"]:
        messages, wants_answer = messages_of(case, as_parts)
        # a batch of one: a conversation without messages, which some cases are, is taken only so
        prompts = owner(case["template"]).apply_chat_template(
            [messages], tokenize=False, add_generation_prompt=wants_answer
        )
        assert prompts == [case["prompt"]]


@pytest.mark.parametrize("name", PROMPTS["templates"])
def test_an_image_becomes_the_placeholder_of_the_processor(name):
    content = [{"type": "text", "text": "Left: "}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    processor = processor_with(name)
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert f"Left: {processor.image_token}\nWhat is it?{END_MARKERS[name]}" in prompt
    assert prompt.count(processor.image_token) == 1


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("internvl2_internlm2", "internlm2-chat"),
        ("internvl2_qwen2", "Hermes-2"),
        ("internvl2_phi3", "phi3-chat"),
        ("internvl2_qwen2", "internvl2_5"),
    ],
)
def test_the_assistant_mask_covers_the_answers_and_their_end_markers(checkpoint, name):
    tokenizer = convert_tokenizer(GOLDEN / "checkpoints" / checkpoint)
    answers = ["A red bicycle.", "Red: 红色"]
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": [{"type": "text", "text": answers[1]}]},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": ""},
    ]
    inputs = tokenizer.apply_chat_template(
        messages,
        chat_template=chat_template(name),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    written = [token for token, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True) if mask]
    assert written[-1] == tokenizer.convert_tokens_to_ids(END_MARKERS[name])
    assert written.count(written[-1]) == 2
    expected = "".join(answer + END_MARKERS[name] for answer in answers)
    assert tokenizer.decode(written) == expected


@pytest.mark.parametrize("name", PROMPTS["templates"])
@pytest.mark.parametrize(
    ("message", "value", "remedy"),
    [
        ({"role": "tool", "content": "1"}, "a message of role tool", "user and assistant"),
        ({"role": "system", "content": "Late"}, "a message of role system", "system only first"),
        ({"role": "user", "content": [{"type": "video"}]}, "a part of type video", "text or image"),
    ],
)
def test_what_a_template_cannot_write_is_refused(name, message, value, remedy):
    with refused(value, remedy, by=jinja2.TemplateError):
        tokenizer_with(name).apply_chat_template([{"role": "user", "content": "Hi"}, message], tokenize=False)


def test_an_unknown_template_is_refused_with_the_names_of_the_known_ones():
    with refused("template 'internvl_zh'", "one of internlm2-chat, Hermes-2, phi3-chat, internvl2_5."):
        chat_template("internvl_zh")


@pytest.mark.parametrize(
    ("content", "end", "stop"),
    [
        ("{{ message['content'] + '' }}", "<|im_end|>\\n", "<|im_end|>"),
        ("{% for part in message['content'] %}{{ part['text'] + '' }}{% endfor %}", "<|im_end|>", "<|im_end|>"),
        ("{{ message['content'] }}", " ", None),
    ],
    ids=["strings", "parts", "no marker"],
)
def test_stop_token_is_what_ends_an_answer(content, end, stop):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>" + content + end + "{% endfor %}"
    assert stop_token(tokenizer) == (stop and tokenizer.convert_tokens_to_ids(stop))
