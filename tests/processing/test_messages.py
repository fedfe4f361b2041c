"""What messages may hold and where images go, by every route from a message to tokens."""

from functools import cache
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from chat_recorder import GREEDY, Recorder, recorder_and_tokenizer
from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.evaluation import marks_as_text
from internvlx_hf.processing.literals import MARK_AS_TEXT, escaped
from internvlx_hf.processing.processing_internvlx import DEFAULT_CHAT_TEMPLATE
from internvlx_hf.training import InternVLXDataCollator, load_training_data
from paths import GOLDEN as GOLDEN_ROOT
from paths import ROOT
from tiny import TILE, tiny_model, tiny_processor, tiny_tokenizer

SOURCE = ROOT / "src/internvlx_hf"
GOLDEN = GOLDEN_ROOT / "checkpoints"
IMAGE_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
LITERALS = (*IMAGE_TOKENS, "<image>")
CONTEXT = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"

# the default template of processors that were saved before it checked anything
OLD_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<IMG_CONTEXT>\\n' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- render(message['content']) + '<|im_end|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- render(message['content']) + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
# as Hermes' and Qwen's do
TOOL_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'tool' %}{{- '<tool_response>' }}{%- endif %}
    {%- if message.content is string %}{{- message.content -}}{% endif -%}
    {%- for call in message.tool_calls or [] %}{{- call | tojson }}{%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
"""
TEMPLATES = {
    "default": DEFAULT_CHAT_TEMPLATE,
    "saved before": OLD_TEMPLATE,
    "internvl2_5": chat_template("internvl2_5"),
    "Hermes-2": chat_template("Hermes-2"),
    "phi3-chat": chat_template("phi3-chat"),
    "with tools": TOOL_TEMPLATE,
}
OURS = {name: template for name, template in TEMPLATES.items() if name not in ("saved before", "with tools")}
each_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
each_of_ours = pytest.mark.parametrize("template", OURS.values(), ids=OURS)


@cache
def processor_of(checkpoint=None):
    """A tile takes 4 tokens. Tokenizers of every family, the tiny one by default."""
    tokenizer = convert_tokenizer(GOLDEN / checkpoint) if checkpoint else tiny_tokenizer()
    tokenizer.chat_template = None
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE})
    return InternVLXProcessor(image_processor, tokenizer, image_seq_length=4)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8))


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def text(content):
    return {"type": "text", "text": content}


def image_part(**source):
    return {"type": "image", **source}


def encode(messages, processor=None, **kwargs):
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} | kwargs
    return (processor or processor_of()).apply_chat_template(messages, **kwargs)


def written(inputs, processor=None):
    return (processor or processor_of()).decode(inputs["input_ids"][0])


# ---- what is not understood


UNKNOWN = {
    "video": (user([{"type": "video", "video": "x.mp4"}]), r"turn 0 \(user\) has the part .*expected one of type text or image"),
    "img": (user([{"type": "img", "img": "x.png"}]), "expected one of type text or image"),
    "no type": (user([{"image": "x.png"}]), "expected one of type text or image"),
    "a string among parts": (user(["What?"]), "has the part 'What\\?', expected one of type"),
    "text that is None": (user([{"type": "text", "text": None}]), "has the part .*None"),
    "text that is absent": (user([{"type": "text"}]), "expected one of type text or image"),
    "text with an image": (user([{"type": "text", "text": "x", "image": "x.png"}]), "has image='x.png' in a part of type text"),
    "two images in a part": (user([image_part(path="a.png", url="b.png")]), "has an image part with path and url"),
    "image_url without a url": (user([{"type": "image_url", "image_url": {}}]), "image_url={}, expected"),
    "content that is None": (user(None), "turn 0 is .*'content': None"),
    "content that is a part": (user(text("What?")), "expected a string or a list of parts"),
    "no content": ({"role": "user"}, "turn 0 is .*expected {'role'"),
    "no role": ({"content": "x"}, "has the role None, expected one of system, user, assistant"),
    "an unknown role": ({"role": "robot", "content": "x"}, "has the role 'robot', expected one of system, user, assistant"),
    "a role that is no string": ({"role": ["user"], "content": "x"}, r"has the role \['user'\]"),
    "no message": ("What?", "turn 0 is 'What\\?'"),
    "images beside the content": (user("x") | {"images": ["x.png"]}, "has images=.*the chat template does not write"),
}  # fmt: skip


@each_template
@pytest.mark.parametrize("tokenize", [False, True])
@pytest.mark.parametrize(("message", "error"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_understood_raises_for_every_template(template, tokenize, message, error):
    with pytest.raises(ValueError, match=error):
        encode([message], chat_template=template, tokenize=tokenize)
    with pytest.raises(ValueError, match=f"Conversation 1 is not understood: .*{error}"):
        encode([[user("fine")], [message]], chat_template=template, tokenize=tokenize)


TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks."}}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}
UNWRITTEN = {
    "tools": ([user("x")], {"tools": TOOLS}),
    "documents": ([user("x")], {"documents": [{"title": "a", "text": "b"}]}),
    "tool_calls": ([user("x"), {**CALL, "content": ""}], {}),
    "tool_calls without content": ([user("x"), CALL], {}),
    "a tool's answer": ([user("x"), {"role": "tool", "content": "y"}], {}),
    "reasoning": ([user("x"), {**assistant("y"), "reasoning_content": "hm"}], {}),
}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "with tools"])
@pytest.mark.parametrize(("messages", "given"), UNWRITTEN.values(), ids=UNWRITTEN)
def test_what_a_template_does_not_write_raises(name, messages, given):
    with pytest.raises(ValueError, match=r"does not write|writes no|has the role 'tool', expected one of"):
        encode(messages, chat_template=TEMPLATES[name], **given)


def test_tools_are_written_by_a_template_that_has_them():
    messages = [user("x"), CALL, {"role": "tool", "content": "<img> is a tag"}, assistant("so")]
    prompt = written(encode(messages, chat_template=TOOL_TEMPLATE, tools=TOOLS))
    assert '"description": "Looks."' in prompt
    assert '{"function": {"name": "look"}}' in prompt
    assert "<tool_response><img> is a tag<|im_end|>" in prompt
    with pytest.raises(ValueError, match="writes no documents"):
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
    with pytest.raises(jinja2.TemplateError, match=error):
        tiny_tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False, **given)


def test_the_default_template_raises_of_a_message_without_content():
    for message in ({"role": "user"}, user(None)):
        with pytest.raises(jinja2.TemplateError, match="expected a string or a list of parts"):
            tiny_tokenizer().apply_chat_template([message], chat_template=DEFAULT_CHAT_TEMPLATE, tokenize=False)


@pytest.mark.parametrize("conversation", [[], [[]], "What?", None, {"role": "user", "content": "x"}])
def test_what_is_no_conversation_is_refused(conversation):
    with pytest.raises(ValueError, match=r"The conversation is .*expected a list of messages"):
        encode(conversation)


def test_messages_stay_as_they_were():
    messages = [user([image_part(image=picture(), path=None), text("a"), {"type": "image_url", "image_url": "x"}])]
    given = [user([dict(part) for part in messages[0]["content"]])]
    processor_of().apply_chat_template(given)
    assert given == messages


# ---- where images go


def expected_of(*content, processor=None):
    """What a user's turn of text and placeholders is in the default template."""
    return f"<|im_start|>user\n{''.join(content)}<|im_end|>\n"


PLACES = {
    "a mark": (user("<image>\nWhat?"), 1, f"{CONTEXT}\nWhat?"),
    "marks": (user("Is <image> like <image>?"), 2, f"Is {CONTEXT} like {CONTEXT}?"),
    "a mark in a part": (user([text("See "), text("<image>!")]), 1, f"See {CONTEXT}!"),
    "a mark in two parts": (user([text("See <im"), text("age>!")]), 1, f"See {CONTEXT}!"),
    "bare parts": (user([image_part(), text("or"), image_part()]), 2, f"{CONTEXT}\nor{CONTEXT}\n"),
    "no mark": (user("What?"), 2, f"{CONTEXT}\n{CONTEXT}\nWhat?"),
    "no mark and parts of text": (user([text("What?")]), 1, f"{CONTEXT}\nWhat?"),
}


def by_template(message, images):
    return encode([message], images=images)


def by_processor_kwargs(message, images):
    return encode([message], processor_kwargs={"images": images})


def by_batch(message, images):
    # of rows of one length, so that nothing is padded
    return encode([[message], [message]], images=[images, images])


def by_flat_batch(message, images):
    return encode([[message], [message]], images=[*images, *images])


def by_collator(message, images):
    sample = {"messages": [message, assistant("A cat.")], "images": images}
    batch = InternVLXDataCollator(processor_of())([sample])
    ids = batch["input_ids"]
    start = processor_of().decode(ids[0]).index("<|im_start|>assistant")
    length = len(processor_of().tokenizer(processor_of().decode(ids[0])[:start])["input_ids"])
    return {"input_ids": ids[:, :length], "pixel_values": batch["pixel_values"]}


@pytest.mark.parametrize("route", [by_template, by_processor_kwargs, by_batch, by_flat_batch, by_collator])
@pytest.mark.parametrize(("message", "count", "expected"), PLACES.values(), ids=PLACES)
def test_images_go_where_parts_or_marks_are(route, message, count, expected):
    if route is by_flat_batch and not count_of_places(message):
        pytest.skip("which image is whose is not said")
    images = [picture(seed) for seed in range(count)]
    inputs = route(message, images)
    assert written(inputs) == expected_of(expected)
    pixels = processor_of().image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"][:count], pixels)
    assert len(inputs["pixel_values"]) in (count, 2 * count)


def test_a_flat_list_is_shared_out_in_order():
    conversations = [[user("<image> or <image>")], [user([text("That is all?"), image_part()])]]
    images = [picture(seed) for seed in range(3)]
    inputs = encode(conversations, images=images, processor_kwargs={"padding": True})
    assert torch.equal(
        inputs["pixel_values"], processor_of().image_processor(images, return_tensors="pt")["pixel_values"]
    )


def count_of_places(message):
    return str(message).count("<image>") + str(message).count("'image'")


def test_marks_of_raw_text_are_images():
    expected = processor_of()(images=[picture(), picture(1)], text=["<IMG_CONTEXT> or <IMG_CONTEXT>?"])
    for images in ([picture(), picture(1)], [[picture(), picture(1)]]):
        inputs = processor_of()(images=images, text="<image> or <image>?")
        assert inputs["input_ids"] == expected["input_ids"]
        np.testing.assert_array_equal(inputs["pixel_values"], expected["pixel_values"])
    inputs = processor_of()(images=[[picture()], [picture(1)]], text=["<image>a", "<IMG_CONTEXT>b"])
    assert [processor_of().decode(ids) for ids in inputs["input_ids"]] == [f"{CONTEXT}a", f"{CONTEXT}b"]


@pytest.mark.parametrize("given", [7, [None], [["<image>"]], b"<image>", np.array(["<image>"])], ids=str)
def test_raw_text_of_another_kind_is_refused(given):
    """What is not searched for marks would be answered without its images."""
    with pytest.raises(ValueError, match=r"^text=.*, expected a string or a list of strings"):
        processor_of()(text=given)


def test_a_rendered_prompt_is_tokenized_as_its_conversation():
    conversation = [user("<image>\nWhat?"), assistant("An <img> and <image>."), user("So?")]
    prompt = processor_of().apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor_of()(images=[picture()], text=prompt, return_tensors="pt")
    expected = encode(conversation, images=[picture()], add_generation_prompt=True)
    for name in expected:
        assert torch.equal(inputs[name], expected[name])


def test_marks_are_images_in_the_pipeline():
    model = tiny_model()
    processor = tiny_processor(model.config)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 4, "do_sample": False}
    given = []
    generate = model.generate
    model.generate = lambda **kwargs: given.append(kwargs) or generate(**kwargs)
    ask(images=[picture()], text="<image>What?", generate_kwargs=options)
    ask([user([image_part(image=picture()), text("What?")])], generate_kwargs=options)
    placeholders = [(kwargs["input_ids"] == processor.image_token_id).sum() for kwargs in given]
    assert placeholders[0] == placeholders[1] == processor.image_seq_length
    assert torch.equal(given[0]["pixel_values"], given[1]["pixel_values"])
    with pytest.raises(ValueError, match=r"A mark <image> in the text counts|0 <IMG_CONTEXT> tokens and 1 images"):
        ask(images=[picture()], text="What?", generate_kwargs=options)
    with pytest.raises(ValueError, match="beside image parts"):
        ask([user([image_part(image=picture()), text("<image>What?")])], generate_kwargs=options)


BESIDE = [user([image_part(image=picture()), text("What is <image>?")]), assistant("A tag.")]
LATER = [user([image_part(image=picture())]), assistant("Yes?"), user("And <image>?"), assistant("A tag.")]
JOINED = [user([image_part(image=picture()), text("<ima"), text("ge>?")]), assistant("A tag.")]
SYSTEM = [{"role": "system", "content": "Look at <image>."}, user("What?"), assistant("A cat.")]


def encode_sample(messages):
    return InternVLXDataCollator(processor_of())([{"messages": messages, "images": []}])


@pytest.mark.parametrize("route", [encode, encode_sample, processor_of().apply_chat_template])
@pytest.mark.parametrize("messages", [BESIDE, LATER, JOINED], ids=["one turn", "another turn", "two parts"])
def test_a_mark_beside_image_parts_raises(route, messages):
    with pytest.raises(
        ValueError, match=r"turn \d \(user\) holds '<image>' beside image parts.*U\+2060|beside image parts"
    ):
        route(messages)


@pytest.mark.parametrize("route", [encode, encode_sample, processor_of().apply_chat_template])
def test_a_mark_in_the_system_message_raises(route):
    with pytest.raises(ValueError, match=r"turn 0 \(system\) holds '<image>' outside of users' turns"):
        route(SYSTEM)


def ask_chat(messages):
    model, tokenizer = recorder_and_tokenizer()
    model.system_message = messages[0]["content"] if messages[0]["role"] == "system" else None
    model.chat(tokenizer, None, messages[-2]["content"], GREEDY)


def ask_batch_chat(messages):
    model, tokenizer = recorder_and_tokenizer()
    model.batch_chat(tokenizer, None, [messages[-2]["content"]], GREEDY)


def ask_raw(messages):
    processor_of()(text=messages[-2]["content"])


@pytest.mark.parametrize("route", [encode, encode_sample, ask_chat, ask_batch_chat, ask_raw])
def test_a_mark_without_images_names_the_remedy(route):
    with pytest.raises(ValueError, match=r"(?i)a mark that is only text is written '<\\u2060image>'") as error:
        route([user("What is <image>?"), assistant("A tag.")])
    assert any(words in str(error.value) for words in ("0 images", "no images were"))


def test_chat_refuses_a_mark_in_the_system_message():
    with pytest.raises(ValueError, match=r"The system message 'Look at <image>\.' has '<image>'"):
        ask_chat(SYSTEM)


@pytest.mark.parametrize(
    ("messages", "images", "error"),
    [
        ([user("<image> <image>")], 1, "1 images for 2 marks <image>, expected one for each"),
        ([user("<image>")], 2, "2 images for 1 marks <image>, expected one for each"),
        ([user([image_part()])], 2, "2 images for 1 image parts"),
        ([user([image_part(image=picture())])], 1, "1 images for 0 image parts without an image of their own"),
        ([{"role": "system", "content": "x"}], 1, "no user's turn"),
        ([[user("<image>")], [user("x")]], 2, "Got 2 images for 1 places in 2 conversations"),
    ],
)
def test_images_and_places_that_differ_are_refused(messages, images, error):
    with pytest.raises(ValueError, match=error):
        encode(messages, images=[picture()] * images)


@pytest.mark.parametrize("key", ["video", "videos", "audio", "audios"])
@pytest.mark.parametrize("value", ["x.mp4", ["x.mp4"], [np.zeros((2, 4, 4, 3))], np.zeros((2, 4, 4, 3))])
def test_other_media_of_a_sample_are_its_own_fault(key, value, tmp_path):
    sample = {"messages": [user("<video>What?"), assistant("A cat.")], key: value}
    with pytest.raises(ValueError, match=f"(?s)a sample of the batch: it has {key}=.*, expected images only"):
        InternVLXDataCollator(processor_of())([sample])
    with pytest.raises(ValueError, match=f"it has {key}="):
        load_training_data([sample], processor_of())[0]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"tools": [{"type": "function"}]}, "messages only: training writes no tools"),
        ({"system": "Be brief."}, "it as the first message, of role system"),
        ({"imges": ["x.png"]}, "`images`"),
        ({"Image": "x.png"}, "`image`"),
        ({"image2": "x.png"}, "`image`"),
    ],
)
def test_what_training_would_drop_of_a_sample_is_refused(beside, expected):
    (key,) = beside
    sample = {"messages": [user("What?"), assistant("A cat.")]}
    harmless = dict.fromkeys(beside) | {"image_id": "7", "imageId": 7, "width": 3, "source": "x"}
    assert len(load_training_data([sample | harmless], processor_of())[0])
    with pytest.raises(ValueError, match=f"a sample of the batch: it has {key}=.*, expected {expected}"):
        InternVLXDataCollator(processor_of())([sample | beside])
    with pytest.raises(ValueError, match=f"it has {key}=.*, expected {expected}"):
        load_training_data([sample | beside], processor_of())[0]


def test_videos_in_a_file_are_named_with_their_line(tmp_path):
    good = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "videos": []}'
    (tmp_path / "data.jsonl").write_text(good + "\n" + good.replace('"videos": []', '"videos": ["x.mp4"]') + "\n")
    data = load_training_data(tmp_path / "data.jsonl", processor_of())
    assert len(data[0])
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: it has videos=\['x\.mp4'\], expected images only"):
        data[1]
    skipping = load_training_data(tmp_path / "data.jsonl", processor_of(), on_broken="skip")
    np.testing.assert_array_equal(skipping[1].input_ids, data[0].input_ids)


@pytest.mark.parametrize("message", [user("x") | {"tool_calls": TOOLS}, user("x") | {"images": ["x.png"]}])
def test_a_key_of_a_training_message_that_nobody_reads_is_refused(message):
    with pytest.raises(ValueError, match="which the chat template does not write"):
        encode_sample([message, assistant("y")])


@pytest.mark.parametrize("name", ["videos", "audio"])
def test_the_processor_takes_no_other_media(name):
    with pytest.raises(ValueError, match=f"Got {name}=.*, expected images and text only"):
        processor_of()(text="x", **{name: ["x.mp4"]})
    with pytest.raises(ValueError, match=f"Got {name}=.*, expected images and text only"):
        encode([user("x")], processor_kwargs={name: ["x.mp4"]})
    with pytest.raises(ValueError, match=f"Got {name}=.*, expected images and text only"):
        encode([user("x")], **{name: ["x.mp4"]})


# ---- image tokens


FORGED = {
    "a string": [user("a <img> b")],
    "a part": [user([text("a <img> b")])],
    "two parts": [user([text("a <im"), text("g> b")])],
    "three parts": [user([text("a <"), text("im"), text("g> b")])],
    "parts after an image": [user([image_part(image=picture()), text("<im"), text("g>")])],
    "the system message": [{"role": "system", "content": [text("<im"), text("g>")]}, user("x")],
    "a later turn": [user("x"), assistant("y"), user([text("<im"), text("g>")])],
}


@each_template
@pytest.mark.parametrize("token", IMAGE_TOKENS)
@pytest.mark.parametrize("messages", FORGED.values(), ids=FORGED)
def test_a_forged_image_token_is_refused_for_every_template(template, token, messages):
    forged = [with_token(message, token) for message in messages]
    for tokenize in (False, True):
        with pytest.raises(ValueError, match=rf"the text of turn \d \(\w+\) holds the image token '{token}'"):
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
        with pytest.raises(ValueError, match=f"The rendered conversation holds '{token}' 1 times, expected 0"):
            route(messages, chat_template=template)


def test_a_forged_placeholder_does_not_stand_in_for_an_image_that_the_template_leaves_out():
    template = "{% for message in messages %}{{ message['content'] if message['content'] is string }}{% endfor %}"
    with pytest.raises(ValueError, match="holds '<IMG_CONTEXT>' 0 times, expected 1"):
        encode([user([image_part(image=picture()), text("x")])], chat_template=template)


def test_a_token_that_training_messages_form_together_is_refused():
    processor = tiny_processor(tiny_model().config)
    processor.chat_template = (
        "{% for m in messages %}{% generation %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endgeneration %}"
        "{% endfor %}"
    )
    sample = {"messages": [user("<im"), assistant("g> or what?")]}
    with pytest.raises(ValueError, match="form the image token '<img>' together"):
        SampleEncoder(processor)(sample)


def test_a_token_that_the_messages_of_a_chat_form_together_is_refused():
    model, tokenizer = recorder_and_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for history in ([("<im", "g>")], [("x", "<im")]):
        with pytest.raises(ValueError, match="Texts of the conversation form the image token '<img>' together"):
            model.chat(tokenizer, None, "g>" if history[0][0] == "x" else "x", GREEDY, history)


# ---- answers are text

CHECKPOINTS = ["internvl2_internlm2", "internvl2_qwen2", "internvl2_phi3", "internvl2_llama3", "internvl2_llama_yi"]
ANSWER = "See <img> </img>,<IMG_CONTEXT> and<image>. <im<img>g>"
each_tokenizer = pytest.mark.parametrize("checkpoint", [None, *CHECKPOINTS])


def plain_ids(tokenizer, answer):
    """How the tokenizer writes the answer where nothing in it is special."""
    backend = type(tokenizer.backend_tokenizer).from_str(without_image_tokens(tokenizer))
    return backend.encode(answer, add_special_tokens=False).ids


def without_image_tokens(tokenizer):
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in IMAGE_TOKENS]
    return json.dumps(state)


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
@pytest.mark.parametrize("route", ["return_labels", "collator"])
def test_such_an_answer_is_learnt_whole(checkpoint, route):
    processor = processor_of(checkpoint)
    conversation = [user("<image>\nWhat?"), assistant(ANSWER)]
    if route == "collator":
        batch = InternVLXDataCollator(processor)([{"messages": conversation, "images": [picture()]}])
    else:
        batch = encode(conversation, processor, images=[picture()], return_labels=True)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert processor.decode(labels[labels != -100]).strip() == f"{ANSWER}<|im_end|>"
    assert torch.equal(labels[labels != -100], ids[labels != -100])


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


def test_a_tokenizer_that_cannot_write_literals_says_so():
    processor = processor_of()

    class Slow:
        added_tokens_decoder = {}

    from internvlx_hf.processing.literals import literals_as_text

    with (
        pytest.raises(ValueError, match="a Slow cannot write as text"),
        literals_as_text(Slow(), ["<\u2060img>"], LITERALS),
    ):
        pass
    with literals_as_text(Slow(), ["harmless"], LITERALS):
        assert processor.image_token == "<IMG_CONTEXT>"


def test_escaping_goes_around_no_other_text():
    assert escaped("a <img> <image>", LITERALS) == "a <\u2060img> <\u2060image>"
    assert escaped("a < img> <im age> <IMAGE>", LITERALS) == "a < img> <im age> <IMAGE>"


def test_both_folders_have_the_same_code_for_literals():
    """Neither may import from the other: each travels alone."""
    assert (SOURCE / "processing/literals.py").read_text() == (SOURCE / "modeling/literal_text.py").read_text()


# ---- what chat takes


@pytest.mark.parametrize(
    "value", ["x.png", Path("x.png"), picture(), [picture()], np.zeros((1, 3, 4, 4)), torch.zeros(3, 4, 4)]
)
@pytest.mark.parametrize("method", ["chat", "batch_chat"])
def test_chat_says_how_tiles_are_made(method, value):
    model, tokenizer = recorder_and_tokenizer()
    question = "What?" if method == "chat" else ["What?"]
    with pytest.raises(
        ValueError, match=r"(?s)`pixel_values` is .*expected a tensor \(tiles, 3, H, W\).*image_processor\(image"
    ):
        getattr(model, method)(tokenizer, value, question, GREEDY)


def test_chat_says_that_it_takes_a_tokenizer_and_text():
    model, tokenizer = recorder_and_tokenizer()
    with pytest.raises(ValueError, match="`tokenizer` is a InternVLXProcessor, expected its tokenizer"):
        model.chat(processor_of(), None, "What?", GREEDY)
    with pytest.raises(ValueError, match="A message is 7, expected text"):
        model.chat(tokenizer, None, 7, GREEDY)
    with pytest.raises(ValueError, match="A message is None, expected text"):
        model.chat(tokenizer, None, "x", GREEDY, [("a", None)])


# ---- one door for images


@pytest.mark.parametrize("route", ["part", "url part", "image_url", "images", "raw"])
def test_what_a_message_names_is_opened_by_the_image_processor(route, monkeypatch):
    opened = []

    def open_image(source, access):
        opened.append((source, access))
        return picture()

    monkeypatch.setattr("internvlx_hf.processing.image_processing_internvlx.open_image", open_image)
    name = "/no/such.png"
    if route == "raw":
        processor_of()(images=[name], text="<image>")
    elif route == "images":
        encode([user("<image>")], images=[name])
    else:
        part = {
            "part": image_part(path=name),
            "url part": image_part(url=name),
            "image_url": {"type": "image_url", "image_url": {"url": name}},
        }[route]
        encode([user([part])])
    assert opened == [(name, processor_of().image_processor.access)]


# ---- the first label


def first_supervised(batch):
    return int((batch["labels"][0] != -100).nonzero()[0])


@pytest.mark.parametrize("route", ["return_labels", "collator"])
def test_the_first_label_is_the_first_token_of_the_answer(route):
    processor = processor_of()
    conversation = [user("<image>\nWhat?"), assistant("A cat.")]
    if route == "collator":
        batch = InternVLXDataCollator(processor)([{"messages": conversation, "images": [picture()]}])
    else:
        batch = encode(conversation, processor, images=[picture()], return_labels=True)
    header = encode(conversation[:1], processor, images=[picture()], add_generation_prompt=True)["input_ids"][0]
    first = first_supervised(batch)
    assert first == len(header)
    assert torch.equal(batch["input_ids"][0, :first], header)
    answer = processor.tokenizer("A cat.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert batch["labels"][0, first : first + len(answer)].tolist() == answer


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
