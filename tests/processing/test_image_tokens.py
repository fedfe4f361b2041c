"""Image tokens in somebody's text: refused in a question, plain text in an answer."""

import json

import pytest
import torch
from tokenizers import Tokenizer

from chat_recorder import GREEDY, Recorder, recorder_and_tokenizer
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.processing.literals import MARK_AS_TEXT, escaped, literals_as_text
from internvlx_hf.training import InternVLXDataCollator
from message_cases import (
    CONTEXT,
    IMAGE_TOKENS,
    LITERALS,
    SOURCE,
    assistant,
    each_template,
    encode,
    image_part,
    picture,
    processor_of,
    text,
    user,
    written,
)
from refusals import refused
from tiny import tiny_model, tiny_processor

FORGED = {
    "a string": [user("a <img> b")],
    "a part": [user([text("a <img> b")])],
    "two parts": [user([text("a <im"), text("g> b")])],
    "three parts": [user([text("a <"), text("im"), text("g> b")])],
    "parts after an image": [user([image_part(image=picture()), text("<im"), text("g>")])],
    "the system message": [{"role": "system", "content": [text("<im"), text("g>")]}, user("x")],
    "a later turn": [user("x"), assistant("y"), user([text("<im"), text("g>")])],
}
CHECKPOINTS = ["internvl2_internlm2", "internvl2_qwen2", "internvl2_phi3", "internvl2_llama3", "internvl2_llama_yi"]
ANSWER = "See <img> </img>,<IMG_CONTEXT> and<image>. <im<img>g>"
each_tokenizer = pytest.mark.parametrize("checkpoint", [None, *CHECKPOINTS])


@each_template
@pytest.mark.parametrize("token", IMAGE_TOKENS)
@pytest.mark.parametrize("messages", FORGED.values(), ids=FORGED)
def test_a_forged_image_token_is_refused_for_every_template(template, token, messages):
    forged = [with_token(message, token) for message in messages]
    for tokenize in (False, True):
        with refused("the text of turn", f") holds the image token '{token}'"):
            encode(forged, chat_template=template, tokenize=tokenize)


def with_token(message, token):
    """The message with another token in place of `<img>`, broken where that was."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content.replace("<img>", token)}
    replaced = {"<im": token[:3], "g>": token[3:], "im": token[1:3], "<": "<"}
    parts = []
    for part in content:
        if part["type"] == "text":
            words = [replaced.get(word, word.replace("<img>", token)) for word in part["text"].split(" ")]
            part = text(" ".join(words))
        parts.append(part)
    return {**message, "content": parts}


@pytest.mark.parametrize("route", [encode, processor_of().apply_chat_template])
@pytest.mark.parametrize("token", LITERALS)
def test_a_token_that_several_messages_form_is_refused(route, token):
    """By a template without anything between them."""
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for messages in ([user(token[:2]), user(token[2:])], [assistant(token[:2]), user(token[2:])]):
        with refused(f"The rendered conversation holds '{token}' 1 times", "0"):
            route(messages, chat_template=template)


def test_a_forged_placeholder_does_not_stand_in_for_an_image_that_the_template_leaves_out():
    template = "{% for message in messages %}{{ message['content'] if message['content'] is string }}{% endfor %}"
    with refused("holds '<IMG_CONTEXT>' 0 times", "1"):
        encode([user([image_part(image=picture()), text("x")])], chat_template=template)


def test_a_token_that_training_messages_form_together_is_refused():
    processor = tiny_processor(tiny_model().config)
    processor.chat_template = (
        "{% for m in messages %}{% generation %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endgeneration %}"
        "{% endfor %}"
    )
    sample = {"messages": [user("<im"), assistant("g> or what?")]}
    with refused("form the image token '<img>' together"):
        SampleEncoder(processor)(sample)


def test_a_token_that_the_messages_of_a_chat_form_together_is_refused():
    model, tokenizer = recorder_and_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for history in ([("<im", "g>")], [("x", "<im")]):
        with refused("Adjacent texts of the conversation form the image token '<img>'"):
            model.chat(tokenizer, None, "g>" if history[0][0] == "x" else "x", GREEDY, history)


def plain_ids(tokenizer, answer):
    """How the tokenizer writes the answer where nothing in it is special."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in IMAGE_TOKENS]
    return Tokenizer.from_str(json.dumps(state)).encode(answer, add_special_tokens=False).ids


def spell_answers(checkpoint, answer):
    """The ids of a conversation with the answer by each route, and with a harmless answer by the first."""
    processor = processor_of(checkpoint)
    conversation = [user("<image>\nWhat?"), assistant(answer), user("So?"), assistant("No.")]
    as_parts = [user("<image>\nWhat?"), assistant([text(answer[:6]), text(answer[6:])]), *conversation[2:]]
    sample = {"messages": conversation, "images": [picture()]}
    return {
        "apply_chat_template": encode(conversation, processor, images=[picture()])["input_ids"][0],
        "parts": encode(as_parts, processor, images=[picture()])["input_ids"][0],
        "prompt": processor(images=[picture()], text=processor.apply_chat_template(conversation), return_tensors="pt")[
            "input_ids"
        ][0],
        "collator": InternVLXDataCollator(processor)([sample])["input_ids"][0],
    }


@each_tokenizer
def test_an_answer_that_looks_like_images_is_text_by_every_route(checkpoint):
    processor = processor_of(checkpoint)
    normalizer = str(processor.tokenizer.backend_tokenizer.normalizer)
    pre_tokenizer = str(processor.tokenizer.backend_tokenizer.pre_tokenizer)
    spelt = spell_answers(checkpoint, ANSWER)
    for route, ids in spelt.items():
        for token, count in zip(IMAGE_TOKENS, (4, 1, 1), strict=True):
            assert (ids == processor.tokenizer.convert_tokens_to_ids(token)).sum() == count, route
        assert ANSWER in processor.decode(ids), route
        assert "\u2060" not in processor.decode(ids), route
    assert torch.equal(spelt["apply_chat_template"], spelt["prompt"])
    # nothing is left behind in the tokenizer
    assert str(processor.tokenizer.backend_tokenizer.normalizer) == normalizer
    assert str(processor.tokenizer.backend_tokenizer.pre_tokenizer) == pre_tokenizer


@pytest.mark.parametrize("checkpoint", [None, "internvl2_internlm2", "internvl2_qwen2", "internvl2_llama3"])
def test_such_an_answer_has_the_tokens_of_plain_text(checkpoint):
    processor = processor_of(checkpoint)
    answer = f"\n{ANSWER}"
    ids = encode([assistant(answer)], processor)["input_ids"][0].tolist()
    prompt = processor.apply_chat_template([assistant("")])
    expected = plain_ids(processor.tokenizer, prompt.replace("\n<|im_end|>", f"\n{answer}<|im_end|>"))
    assert ids[-len(expected) :] == expected


@each_tokenizer
def test_such_an_answer_carries_loss_in_full(checkpoint):
    processor = processor_of(checkpoint)
    conversation = [user("<image>\nWhat?"), assistant(ANSWER)]
    for batch in (
        InternVLXDataCollator(processor)([{"messages": conversation, "images": [picture()]}]),
        encode(conversation, processor, images=[picture()], return_labels=True),
    ):
        learned = batch["labels"] != -100
        assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
        assert processor.decode(batch["labels"][learned]).strip() == f"{ANSWER}<|im_end|>"


def test_an_answer_that_looks_like_images_does_not_end_a_chat():
    _, tokenizer = recorder_and_tokenizer()
    model = Recorder(tokenizer, 4, reply="x")
    tokenizer.batch_decode = lambda ids, **_: [ANSWER] * len(ids)
    tiles = torch.zeros(1, 3, 1, 1)
    answer, history = model.chat(tokenizer, tiles, "What?", GREEDY, return_history=True)
    assert answer == ANSWER
    _, history = model.chat(tokenizer, tiles, "And <image>?".replace("<image>", "it"), GREEDY, history, True)
    assert [answered for _, answered in history] == [ANSWER, ANSWER]
    prompt = tokenizer.decode(model.inputs["input_ids"][0])
    assert f"assistant\n{ANSWER}<|im_end|>" in prompt
    assert (model.inputs["input_ids"] == model.config.image_token_id).sum() == 4
    model.chat(tokenizer, tiles.repeat(2, 1, 1, 1), "And <image>?", GREEDY, history, num_patches_list=[1, 1])
    assert f"user\nAnd {CONTEXT}?<|im_end|>" in tokenizer.decode(model.inputs["input_ids"][0])


@each_tokenizer
def test_a_mark_may_be_written_as_text(checkpoint):
    processor = processor_of(checkpoint)
    question = f"What is {MARK_AS_TEXT} in HTML?"
    for inputs in (encode([user(question)], processor), processor(text=[question], return_tensors="pt")):
        assert "What is <image> in HTML?" in written(inputs, processor)
        assert not torch.isin(inputs["input_ids"], torch.tensor(processor.image_token_ids)).any()
    model, tokenizer = recorder_and_tokenizer()
    model.chat(tokenizer, None, question, GREEDY)
    assert "What is <image> in HTML?" in tokenizer.decode(model.inputs["input_ids"][0])


def test_a_literal_in_the_final_message_is_continued():
    conversation = [user("<image>x"), assistant("The <img> tag")]
    inputs = encode(conversation, images=[picture()], continue_final_message=True)
    assert written(inputs).endswith("assistant\nThe <img> tag")


def test_a_tokenizer_that_cannot_write_literals_is_refused():
    class Slow:
        added_tokens_decoder = {}

    with refused("a Slow cannot write as text"), literals_as_text(Slow(), ["<\u2060img>"], LITERALS):
        pass
    with literals_as_text(Slow(), ["harmless"], LITERALS):
        pass


def test_escaping_changes_no_other_text():
    assert escaped("a <img> <image>", LITERALS) == "a <\u2060img> <\u2060image>"
    assert escaped("a < img> <im age> <IMAGE>", LITERALS) == "a < img> <im age> <IMAGE>"


def test_both_folders_have_the_same_code_for_literals():
    """Neither may import from the other: each travels alone."""
    assert (SOURCE / "processing/literals.py").read_text() == (SOURCE / "modeling/literal_text.py").read_text()
