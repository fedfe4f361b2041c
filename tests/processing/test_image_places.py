"""Where the images of a conversation go: to its image parts, or to the marks in its text."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from chat_recorder import GREEDY, recorder_and_tokenizer
from internvlx_hf.training import InternVLXDataCollator, load_training_data
from message_cases import (
    CONTEXT,
    TOOLS,
    assistant,
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
from tiny import tiny_model, tiny_processor

PLACES = {
    "a mark": (user("<image>\nWhat?"), 1, f"{CONTEXT}\nWhat?"),
    "marks": (user("Is <image> like <image>?"), 2, f"Is {CONTEXT} like {CONTEXT}?"),
    "a mark in a part": (user([text("See "), text("<image>!")]), 1, f"See {CONTEXT}!"),
    "a mark in two parts": (user([text("See <im"), text("age>!")]), 1, f"See {CONTEXT}!"),
    "bare parts": (user([image_part(), text("or"), image_part()]), 2, f"{CONTEXT}\nor{CONTEXT}\n"),
    "no mark": (user("What?"), 2, f"{CONTEXT}\n{CONTEXT}\nWhat?"),
    "no mark and parts of text": (user([text("What?")]), 1, f"{CONTEXT}\nWhat?"),
}
BESIDE = [user([image_part(image=picture()), text("What is <image>?")]), assistant("A tag.")]
LATER = [user([image_part(image=picture())]), assistant("Yes?"), user("And <image>?"), assistant("A tag.")]
JOINED = [user([image_part(image=picture()), text("<ima"), text("ge>?")]), assistant("A tag.")]
AUDIO = "images, videos and text only"
SYSTEM = [{"role": "system", "content": "Look at <image>."}, user("What?"), assistant("A cat.")]


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


def test_a_flat_list_is_split_in_order():
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
    with refused("text=", "a string or a list of strings"):
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
    with refused("1 images", "<image>"):
        ask(images=[picture()], text="What?", generate_kwargs=options)
    with refused("beside image parts"):
        ask([user([image_part(image=picture()), text("<image>What?")])], generate_kwargs=options)


def encode_sample(messages):
    return InternVLXDataCollator(processor_of())([{"messages": messages, "images": []}])


each_route = pytest.mark.parametrize("route", [encode, encode_sample, processor_of().apply_chat_template])


@each_route
@pytest.mark.parametrize("messages", [BESIDE, LATER, JOINED], ids=["one turn", "another turn", "two parts"])
def test_a_mark_beside_image_parts_raises(route, messages):
    with refused("beside image parts"):
        route(messages)


@each_route
def test_a_mark_in_the_system_message_raises(route):
    with refused("turn 0 (system) holds '<image>'", "outside of users' turns"):
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
    with refused("write the mark as text, use '<\\u2060image>'") as error:
        route([user("What is <image>?"), assistant("A tag.")])
    assert any(words in str(error.value) for words in ("0 images", "no images were"))


test_what_has_no_place_is_refused = refusals(
    (lambda: ask_chat(SYSTEM), "The system message 'Look at <image>.'", "has '<image>'"),
    (lambda: processor_of()(text="x", audio=["x.mp4"]), "Got audio=", AUDIO),
    (lambda: encode([user("x")], processor_kwargs={"audio": ["x.mp4"]}), "Got audio=", AUDIO),
    (lambda: encode([user("x")], audio=["x.mp4"]), "Got audio=", AUDIO),
)


@pytest.mark.parametrize(
    ("messages", "images", "error"),
    [
        ([user("<image> <image>")], 1, "1 images for 2 marks <image> … one for each"),
        ([user("<image>")], 2, "2 images for 1 marks <image> … one for each"),
        ([user([image_part()])], 2, "2 images for 1 image parts"),
        ([user([image_part(image=picture())])], 1, "1 images for 0 image parts without an image of their own"),
        ([{"role": "system", "content": "x"}], 1, "no user's turn"),
        ([[user("<image>")], [user("x")]], 2, "Got 2 images for 1 places in 2 conversations"),
    ],
)
def test_images_and_places_that_differ_are_refused(messages, images, error):
    with refused(error):
        encode(messages, images=[picture()] * images)


@pytest.mark.parametrize("key", ["audio", "audios"])
@pytest.mark.parametrize("value", ["x.mp3", ["x.mp3"], np.zeros((2, 4))])
def test_a_sample_with_audio_is_refused(key, value):
    sample = {"messages": [user("What?"), assistant("A cat.")], key: value}
    for read in (lambda: InternVLXDataCollator(processor_of())([sample]), lambda: loaded(sample)):
        with refused(f"it has {key}=", "images and videos only"):
            read()


def loaded(sample):
    return load_training_data([sample], processor_of())[0]


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
def test_keys_that_training_would_ignore_are_refused(beside, expected):
    (key,) = beside
    sample = {"messages": [user("What?"), assistant("A cat.")]}
    harmless = dict.fromkeys(beside) | {"image_id": "7", "imageId": 7, "width": 3, "source": "x"}
    assert len(loaded(sample | harmless))
    with refused(f"a sample of the batch: it has {key}=", expected):
        InternVLXDataCollator(processor_of())([sample | beside])
    with refused(f"it has {key}=", expected):
        loaded(sample | beside)


@pytest.mark.parametrize("message", [user("x") | {"tool_calls": TOOLS}, user("x") | {"images": ["x.png"]}])
def test_an_unread_key_of_a_training_message_is_refused(message):
    with refused("which the chat template does not write"):
        encode_sample([message, assistant("y")])
