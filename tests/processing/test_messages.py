"""What messages may hold and where images go, by every route from a message to tokens."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from chat_recorder import GREEDY, recorder_and_tokenizer
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.evaluation import marks_as_text
from internvlx_hf.processing.processing_internvlx import DEFAULT_CHAT_TEMPLATE
from message_cases import (
    CONTEXT,
    TEMPLATES,
    TOOL_TEMPLATE,
    TOOLS,
    assistant,
    each_of_ours,
    each_template,
    encode,
    expected_of,
    image_part,
    picture,
    processor_of,
    text,
    user,
    written,
)
from refusals import refusals, refused
from tiny import tiny_model, tiny_processor, tiny_tokenizer

# ---- what is not understood


UNKNOWN = {
    "audio": (user([{"type": "audio", "audio": "x.mp3"}]), "turn 0 (user) has the part … expected one of type text, image or video"),
    "img": (user([{"type": "img", "img": "x.png"}]), "expected one of type text, image or video"),
    "no type": (user([{"image": "x.png"}]), "expected one of type text, image or video"),
    "a string among parts": (user(["What?"]), "has the part 'What?' … one of type"),
    "text that is None": (user([{"type": "text", "text": None}]), "has the part … None"),
    "text that is absent": (user([{"type": "text"}]), "expected one of type text, image or video"),
    "text with an image": (user([{"type": "text", "text": "x", "image": "x.png"}]), "has image='x.png' in a part of type text"),
    "two images in a part": (user([image_part(path="a.png", url="b.png")]), "has an image part with path and url"),
    "image_url without a url": (user([{"type": "image_url", "image_url": {}}]), "image_url={}, expected"),
    "content that is None": (user(None), "turn 0 is … 'content': None"),
    "content that is a part": (user(text("What?")), "expected a string or a list of parts"),
    "no content": ({"role": "user"}, "turn 0 is … expected {'role'"),
    "no role": ({"content": "x"}, "has the role None … one of system, user, assistant"),
    "an unknown role": ({"role": "robot", "content": "x"}, "has the role 'robot' … one of system, user, assistant"),
    "a role that is no string": ({"role": ["user"], "content": "x"}, "has the role ['user']"),
    "no message": ("What?", "turn 0 is 'What?'"),
    "images beside the content": (user("x") | {"images": ["x.png"]}, "has images= … the chat template does not write"),
}  # fmt: skip


@each_template
@pytest.mark.parametrize("tokenize", [False, True])
@pytest.mark.parametrize(("message", "error"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_understood_raises_for_every_template(template, tokenize, message, error):
    with refused(error):
        encode([message], chat_template=template, tokenize=tokenize)
    with refused("Conversation 1 is not understood:", error):
        encode([[user("fine")], [message]], chat_template=template, tokenize=tokenize)


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}
UNWRITTEN = {
    "tools": ([user("x")], {"tools": TOOLS}, "tools"),
    "documents": ([user("x")], {"documents": [{"title": "a", "text": "b"}]}, "documents"),
    "tool_calls": ([user("x"), {**CALL, "content": ""}], {}, "tool_calls … does not write"),
    "tool_calls without content": ([user("x"), CALL], {}, "tool_calls … does not write"),
    "a tool's answer": ([user("x"), {"role": "tool", "content": "y"}], {}, "has the role 'tool' … one of"),
    "reasoning": (
        [user("x"), {**assistant("y"), "reasoning_content": "hm"}],
        {},
        "reasoning_content … does not write",
    ),
}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "with tools"])
@pytest.mark.parametrize(("messages", "given", "said"), UNWRITTEN.values(), ids=UNWRITTEN)
def test_what_a_template_does_not_write_raises(name, messages, given, said):
    with refused(said):
        encode(messages, chat_template=TEMPLATES[name], **given)


def test_tools_are_written_by_a_template_that_has_them():
    messages = [user("x"), CALL, {"role": "tool", "content": "<img> is a tag"}, assistant("so")]
    prompt = written(encode(messages, chat_template=TOOL_TEMPLATE, tools=TOOLS))
    assert '"description": "Looks."' in prompt
    assert '{"function": {"name": "look"}}' in prompt
    assert "<tool_response><img> is a tag<|im_end|>" in prompt
    with refused("writes no documents"):
        encode([user("x")], chat_template=TOOL_TEMPLATE, documents=[{"title": "a", "text": "b"}])


def test_empty_values_and_nones_are_nothing_to_write():
    plain = [user("x"), assistant("y")]
    padded = [
        {"role": "user", "content": [{"type": "text", "text": "x", "image": None}], "name": None},
        {**assistant("y"), "tool_calls": [], "refusal": None},
    ]
    assert written(encode(padded, tools=[], documents=None)) == written(encode(plain))


JINJA = {
    "video": ([user([{"type": "video"}])], {}, "video"),
    "img": ([user([{"type": "img"}])], {}, "img"),
    "no type": ([user([{"image": "x.png"}])], {}, "has the part"),
    "None": ([user([{"type": "text", "text": None}])], {}, "has the part"),
    "no text": ([user([{"type": "text"}])], {}, "has the part"),
    "content that is a part": ([user(text("What?"))], {}, "expected a string or a list of parts"),
    "content that is a number": ([user(7)], {}, "expected a string or a list of parts"),
    "tools": ([user("x")], {"tools": TOOLS}, "Got tools or documents"),
    "documents": ([user("x")], {"documents": [{"title": "a", "text": "b"}]}, "Got tools or documents"),
    "tool_calls": ([user("x"), {**CALL, "content": ""}], {}, "tool_calls"),
    "tool": ([user("x"), {"role": "tool", "content": "y"}], {}, "role tool"),
    "robot": ([user("x"), {"role": "robot", "content": "y"}], {}, "role robot"),
    "no role": ([user("x"), {"content": "y"}], {}, "of role"),
}


@each_of_ours
@pytest.mark.parametrize(("messages", "given", "error"), JINJA.values(), ids=JINJA)
def test_our_own_templates_raise_wherever_they_are_rendered(template, messages, given, error):
    """As engines render them: by the tokenizer, without the processor."""
    with refused(error, by=jinja2.TemplateError):
        tiny_tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False, **given)


@pytest.mark.parametrize("message", [{"role": "user"}, user(None)])
def test_the_default_template_raises_of_a_message_without_content(message):
    with refused("expected a string or a list of parts", by=jinja2.TemplateError):
        tiny_tokenizer().apply_chat_template([message], chat_template=DEFAULT_CHAT_TEMPLATE, tokenize=False)


@pytest.mark.parametrize("conversation", [[], [[]], "What?", None, {"role": "user", "content": "x"}])
def test_what_is_no_conversation_is_refused(conversation):
    with refused("The conversation is", "expected a list of messages"):
        encode(conversation)


def test_messages_and_parts_may_be_dataclasses_and_pydantic_models():
    @dataclass
    class Message:
        role: str
        content: list
        tool_calls: list | None = None

    class Part(BaseModel):
        type: str
        text: str | None = None

    plain = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    given = [Message("user", [Part(type="image"), Part(type="text", text="What?")])]
    for conversation, expected in ((given, plain), ([given, given], [plain, plain])):
        assert processor_of().apply_chat_template(conversation) == processor_of().apply_chat_template(expected)


def test_messages_stay_as_they_were():
    messages = [user([image_part(image=picture(), path=None), text("a"), {"type": "image_url", "image_url": "x"}])]
    given = [user([dict(part) for part in messages[0]["content"]])]
    processor_of().apply_chat_template(given)
    assert given == messages


# ---- what chat takes


@pytest.mark.parametrize(
    "value", ["x.png", Path("x.png"), picture(), [picture()], np.zeros((1, 3, 4, 4)), torch.zeros(3, 4, 4)]
)
@pytest.mark.parametrize("method", ["chat", "batch_chat"])
def test_chat_explains_how_to_make_tiles(method, value):
    model, tokenizer = recorder_and_tokenizer()
    question = "What?" if method == "chat" else ["What?"]
    with refused("`pixel_values` is", "expected a tensor (tiles, 3, H, W)", "image_processor(image"):
        getattr(model, method)(tokenizer, value, question, GREEDY)


def say(message, history=(), tokenizer=None):
    model, own = recorder_and_tokenizer()
    model.chat(tokenizer or own, None, message, GREEDY, list(history))


test_chat_says_that_it_takes_a_tokenizer_and_text = refusals(
    (lambda: say("What?", tokenizer=processor_of()), "`tokenizer` is a InternVLXProcessor", "its tokenizer"),
    (lambda: say(7), "A message is 7", "text"),
    (lambda: say("x", [("a", None)]), "A message is None", "text"),
)


# ---- one door for images


NAME = "/no/such.png"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: encode([user([image_part(path=NAME)])]),
        lambda: encode([user([image_part(url=NAME)])]),
        lambda: encode([user([{"type": "image_url", "image_url": {"url": NAME}}])]),
        lambda: encode([user("<image>")], images=[NAME]),
        lambda: processor_of()(images=[NAME], text="<image>"),
    ],
)
def test_what_a_message_names_is_opened_by_the_image_processor(ask, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "internvlx_hf.processing.image_processing_internvlx.open_image",
        lambda *given: opened.append(given) or picture(),
    )
    ask()
    assert opened == [(NAME, processor_of().image_processor.access)]


# ---- the first label


def test_the_first_token_of_a_sample_carries_no_loss():
    """Nothing comes before it: in a packed row it would be predicted from the sample before."""
    processor = tiny_processor(tiny_model().config)
    processor.chat_template = (
        "{% for m in messages %}{% generation %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endgeneration %}"
        "{% endfor %}"
    )
    sample = SampleEncoder(processor)({"messages": [assistant("A cat.")]})
    assert sample.labels[0] == -100
    np.testing.assert_array_equal(sample.labels[1:], sample.input_ids[1:])


# ---- harnesses


def test_a_mark_in_a_harness_s_question_is_text_beside_its_images():
    question = "<image> Which of <image>?"
    asked = [{"role": "system", "content": "See <image>."}, user([image_part(image=picture()), text(question)])]
    prompt = written(encode(marks_as_text(asked)))
    assert prompt.endswith(expected_of(f"{CONTEXT}\n{question}"))
    assert "See <image>." in prompt
    assert asked[1]["content"][1]["text"] == question
