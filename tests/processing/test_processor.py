# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The processor: placeholders, chat templates, labels, bad input, and loading as remote code."""

import base64
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from image_cases import random_image, saved
from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from message_cases import encode
from refusals import refusals, refused
from tiny import tiny_config, tiny_processor

IMAGE_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
}


def make_tokenizer(with_attributes: bool = True, image_tokens=None, **kwargs):
    """One token a byte, and the markers."""
    image_tokens = image_tokens or IMAGE_TOKENS.values()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *image_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=IMAGE_TOKENS if with_attributes else {},
        **kwargs,
    )


@functools.cache
def make_processor(**kwargs) -> InternVLXProcessor:
    image_processor = InternVLXImageProcessor(size={"height": 28, "width": 28})
    return InternVLXProcessor(image_processor, make_tokenizer(), image_seq_length=4, **kwargs)


def image(width: int = 70, height: int = 41, seed: int = 0) -> Image.Image:
    return random_image(width, height, seed=seed)


def user(*parts) -> dict:
    """A turn of the user: strings are text, all else is an image."""
    kinds = ["text" if isinstance(part, str) else "image" for part in parts]
    return {"role": "user", "content": [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]}


def assistant(text: str) -> dict:
    return user(text) | {"role": "assistant"}


def chat(conversation, processor=None, **kwargs):
    return encode(conversation, processor or make_processor(), **kwargs)


# ---- placeholders


def test_an_image_becomes_its_tiles_placeholders_between_markers():
    processor = make_processor()
    inputs = processor(images=[image(), image(20, 20)], text="a <IMG_CONTEXT> b <IMG_CONTEXT>", return_tensors="pt")
    tiles = [processor.image_processor.get_number_of_image_patches(*size) for size in ((41, 70), (20, 20))]
    assert tiles == [7, 1]
    expected = "a <img>{}</img> b <img>{}</img>".format(*("<IMG_CONTEXT>" * 4 * count for count in tiles))
    assert processor.decode(inputs["input_ids"][0]) == expected
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"} == set(processor.model_input_names)
    assert inputs["pixel_values"].shape == (8, 3, 28, 28)
    for one_image in (image(), [image()], [[image()]], np.array(image()), np.array(image())[None]):
        assert len(processor(images=one_image, text="a <IMG_CONTEXT>")["pixel_values"]) == 7


images_of_a_prompt = st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), max_size=3)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(images_of_a_prompt, st.text(st.characters(exclude_categories=["Cs"]), max_size=12)), min_size=1
    ),
    st.integers(1, 6),
    st.sampled_from(["edge", "area", "ratio"]),
    st.sampled_from(["left", "right"]),
    st.sampled_from(["RGB", "L", "RGBA", "P"]),
    st.none() | st.integers(3 * 4, 80),
)
def test_tokens_predicted_are_tokens_made_are_tiles_made(prompts, maximum, slicing, padding_side, mode, budget):
    processor = make_processor()
    kwargs = {"max_patches": maximum, "slicing": slicing, "max_image_tokens": budget}
    conversations = [[user(text, *(image(*size).convert(mode) for size in sizes))] for sizes, text in prompts]
    inputs = chat(conversations, processor_kwargs={"padding": True, "padding_side": padding_side, **kwargs})
    total_tiles = 0
    for ids, mask, (sizes, _) in zip(inputs["input_ids"], inputs["attention_mask"], prompts, strict=True):
        predicted = processor._get_num_multimodal_tokens(image_sizes=[size[::-1] for size in sizes], **kwargs)
        assert torch.isin(ids, torch.tensor(processor.image_token_ids)).sum() == sum(predicted.num_image_tokens)
        tiles = sum(predicted.num_image_patches)
        assert (ids == processor.image_token_id).sum() == tiles * processor.image_seq_length
        assert budget is None or tiles * processor.image_seq_length <= budget
        assert mask[0 if padding_side == "right" else -1] == 1
        total_tiles += tiles
    assert total_tiles == len(inputs.get("pixel_values", ()))


def test_a_sample_is_the_same_alone_and_in_a_padded_batch():
    conversations = [[user("none")], [user(image(seed=1), "one")], [user("two", image(seed=2), "b", image(30, 90))]]
    for side in ("left", "right"):
        batch = chat(conversations, processor_kwargs={"padding": True, "padding_side": side})
        pixels = []
        for conversation, ids, mask in zip(conversations, batch["input_ids"], batch["attention_mask"], strict=True):
            alone = chat(conversation)
            assert torch.equal(ids[mask.bool()], alone["input_ids"][0])
            assert mask.tolist() == sorted(mask.tolist(), reverse=side == "right")
            pixels.extend(alone.get("pixel_values", []))
        assert torch.equal(batch["pixel_values"], torch.stack(pixels))


@pytest.mark.parametrize(("side", "mask"), [({}, [0, 0, 1]), ({"padding_side": "right"}, [1, 0, 0])])
def test_padding_is_on_the_left_unless_the_tokenizer_was_made_otherwise(side, mask):
    processor = InternVLXProcessor(InternVLXImageProcessor(), make_tokenizer(**side))
    inputs = processor(text=["a", "bcd"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"].tolist() == [mask, [1, 1, 1]]


# ---- chat templates


def test_the_default_template_is_chatml():
    conversation = [
        {"role": "system", "content": "Be brief."},
        user(image(), "What?"),
        assistant("Noise."),
        user("So?"),
    ]
    assert make_processor().apply_chat_template(conversation, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nNoise.<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_given_comes_before_the_tokenizers_and_that_before_the_default():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "of the tokenizer"
    image_processor = InternVLXImageProcessor()
    assert InternVLXProcessor(image_processor, tokenizer).chat_template == "of the tokenizer"
    assert InternVLXProcessor(image_processor, tokenizer, chat_template="given").chat_template == "given"


def test_an_image_in_a_message_gives_the_same_inputs_by_every_route(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(saved(image()))
    encoded = base64.b64encode(path.read_bytes()).decode()
    expected = chat([user(image(), "What?")])
    for part in [
        {"type": "image", "url": f"file://{path}"},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": str(path)},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": np.array(image())},
        {"type": "image_url", "image_url": {"url": f"file://{path}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]:
        inputs = chat([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
        assert [name for name in expected if not torch.equal(inputs[name], expected[name])] == [], part


# ---- labels


CONVERSATIONS = [
    [user(image(), "What is it?"), assistant("Noise."), user("And now", image(30, 90)), assistant(" Grün\n")],
    [{"role": "system", "content": "Be brief."}, user("Hi."), {"role": "assistant", "content": "Hello!"}],
    [user("No answer yet.")],
]
ANSWERS = [["Noise.", " Grün\n"], ["Hello!"], []]


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_what_the_assistant_writes_carries_loss(side):
    processor = make_processor()
    inputs = chat(CONVERSATIONS, return_labels=True, processor_kwargs={"padding": True, "padding_side": side})
    assert "assistant_masks" not in inputs
    masked = chat(CONVERSATIONS[0], return_labels=True, return_assistant_tokens_mask=True)
    assert torch.equal(masked["labels"] != -100, masked["assistant_masks"].bool())
    assert inputs["labels"].shape == inputs["input_ids"].shape
    for ids, labels, answers in zip(inputs["input_ids"], inputs["labels"], ANSWERS, strict=True):
        is_supervised = labels != -100
        assert torch.equal(labels[is_supervised], ids[is_supervised])
        assert processor.decode(labels[is_supervised]) == "".join(answer + "<|im_end|>" for answer in answers)
        # each answer is one run, right after its header
        starts = (is_supervised & ~is_supervised.roll(1)).nonzero().flatten()
        assert len(starts) == len(answers)
        for start in starts:
            assert processor.decode(ids[:start]).endswith("<|im_start|>assistant\n")


def test_an_image_in_the_assistants_turn_carries_no_loss():
    processor = make_processor()
    answer = {"role": "assistant", "content": [{"type": "text", "text": "This:"}, {"type": "image", "image": image()}]}
    inputs = chat([user("Draw."), answer], return_labels=True)
    labels = inputs["labels"][inputs["labels"] != -100]
    assert processor.decode(labels) == "This:\n<|im_end|>"


# ---- bad input


TOOL = {"type": "function", "function": {"name": "f", "description": "<img>"}}
WITHOUT_MARKS = "{% for m in messages %}{{ m['role'] }}{% endfor %}"


def with_tokenizer(**kwargs):
    tokenizer = make_tokenizer(with_attributes=False, image_tokens=("<IMG_CONTEXT>", "<img>"))
    return InternVLXProcessor(InternVLXImageProcessor(), kwargs.pop("tokenizer", tokenizer), **kwargs)


test_what_has_no_meaning_is_refused = refusals(
    (lambda: chat([user("Hi.")], tools=[TOOL]), "text of tools", "holds the image token '<img>'"),
    (
        lambda: chat(CONVERSATIONS[1], return_labels=True, chat_template=WITHOUT_MARKS),
        "return_labels=True",
        "needs a chat template that puts {% generation %}",
    ),
    (lambda: with_tokenizer(), "no token '</img>'", "(its attribute end_image_token)"),
    (lambda: with_tokenizer(tokenizer=make_tokenizer(), image_seq_length=0), "image_seq_length=0", "a positive"),
    (lambda: with_video_processor(num_frame=4), "'num_frame'", "`num_frames`"),
    *(
        (
            lambda images=images: make_processor()(images=images, text="<IMG_CONTEXT>"),
            "Found 1 <IMG_CONTEXT>",
            "no images",
        )
        for images in (None, [], [[]])
    ),
)


def with_video_processor(**settings):
    processor = tiny_processor(tiny_config())
    return InternVLXProcessor(processor.image_processor, processor.tokenizer, video_processor=settings)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([image()], "none"),
        ([image()] * 2, "<IMG_CONTEXT>"),
        ([image()], "<IMG_CONTEXT> <IMG_CONTEXT>"),
        ([[image()], [image()] * 2], ["<IMG_CONTEXT>", "<IMG_CONTEXT>"]),
        ([[image()], [image()] * 2], ["<IMG_CONTEXT>" * 2, "<IMG_CONTEXT>"]),  # the sum alone would be right
    ],
)
def test_more_or_fewer_images_than_placeholders_are_refused(images, text):
    with refused("tokens in the prompts should be the same as the number of images passed"):
        make_processor()(images=images, text=text)


def test_a_tokenizer_without_attributes_is_known_by_its_vocabulary():
    processor = InternVLXProcessor(InternVLXImageProcessor(), make_tokenizer(with_attributes=False))
    assert processor.image_token_ids == make_processor().image_token_ids


# ---- saving


def test_arguments_of_loading_hold_in_every_call_and_can_be_changed(tmp_path):
    """Transformers keeps them with the tokenizer, whose arguments override the image processor's."""
    tiny_processor(tiny_config(), max_patches=3, slicing="ratio").save_pretrained(tmp_path / "saved")
    processor = AutoProcessor.from_pretrained(tmp_path / "saved", max_patches=6, num_frames=2, max_image_tokens=400)
    assert processor.max_image_tokens == 400
    picture = Image.new("RGB", (96, 64))
    for maximum, tiles in ((6, 7), (1, 1)):
        processor.image_processor.change_tiling(max_patches=maximum)
        processor.save_pretrained(tmp_path / str(maximum))
        for own in (processor, AutoProcessor.from_pretrained(tmp_path / str(maximum))):
            assert len(own(images=[picture], text="<image>")["pixel_values"]) == tiles
            assert own._get_num_multimodal_tokens([(64, 96)]).num_image_patches == [tiles]
            assert len(own(videos=[[picture] * 4], text="<video>", do_sample_frames=True)["pixel_values"]) == 2
            assert own.video_processor.num_frames == 2
            assert not {"max_patches", "num_frames"} & own.tokenizer.init_kwargs.keys()


def test_arguments_of_loading_cut_several_tiles(tmp_path):
    tiny_processor(tiny_config(), crop_to_patches=False).save_pretrained(tmp_path)
    for arguments, tiles in (({}, 1), ({"max_patches": 4}, 4), ({"max_patches": 4, "crop_to_patches": False}, 1)):
        processor = AutoProcessor.from_pretrained(tmp_path, **arguments)
        assert processor.image_processor.tiling_rule().max_tiles == tiles


@pytest.mark.parametrize(
    ("arguments", "value", "remedy"),
    [
        ({"max_patchs": 6}, "'max_patchs' of the image processor", "`max_patches`"),
        ({"max_image_token": 4}, "'max_image_token' of the processor", "`max_image_tokens`"),
        ({"num_frame": 4}, "'num_frame' of the processor", "`num_frames`"),
    ],
)
def test_misspelt_arguments_of_loading_are_named(arguments, value, remedy, tmp_path):
    tiny_processor(tiny_config()).save_pretrained(tmp_path)
    with refused(value, remedy):
        AutoProcessor.from_pretrained(tmp_path, **arguments)
