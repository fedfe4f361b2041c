"""`tokens_per_tile`: which of the model's sizes the images of a request take."""

import random

import pytest
import torch
from PIL import Image

from dial_cases import SIZES, dial, dial_model
from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.processing.rvtc import TilingRule
from internvlx_hf.processing.token_budget import Tokens, fit_request
from refusals import refused
from tiny import IMAGE_TOKEN, TILE, tiny_tokenizer

IMAGES = [
    Image.new("RGB", (3 * TILE, 2 * TILE), "red"),
    Image.new("RGB", (TILE, TILE), "blue"),
]  # 6 tiles and a thumbnail; 1
TEXT = ["<image> is left of <image>?"]
BEFORE = [int(size.partition(":")[0]) for size in SIZES]


def sized_processor(**kwargs):
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, crop_to_patches=True)
    return InternVLXProcessor(image_processor, tiny_tokenizer(), image_seq_length=16, offered_sizes=SIZES, **kwargs)


CHOICES = {
    "4": [1] * 8,
    4: [1] * 8,
    "16:4": [3] * 8,
    "16:0": [4] * 8,
    "16+4": [0] * 6 + [1, 0],
    "4:16 + 16:1": [2] * 6 + [5, 2],
    ("4", "16:4"): [1] * 7 + [3],
    ("16+4", 4): [0] * 6 + [1, 1],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_request_chooses_the_size_of_each_image_and_of_thumbnails(choice):
    asked = list(choice) if isinstance(choice, tuple) else choice
    processor, want = sized_processor(), CHOICES[choice]
    inputs = processor(IMAGES, TEXT, tokens_per_tile=asked, return_tensors="pt")
    tokens = [BEFORE[size] for size in want]
    assert inputs["tile_sizes"].tolist() == want
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum() == sum(tokens)
    counted = processor._get_num_multimodal_tokens([image.size[::-1] for image in IMAGES], tokens_per_tile=asked)
    assert counted["num_image_tokens"] == [2 + sum(tokens[:7]), 2 + tokens[7]]


@torch.no_grad()
def test_the_model_takes_what_the_processor_gives():
    model, processor = dial_model(**dial()), sized_processor()
    inputs = processor(IMAGES, TEXT, tokens_per_tile=["16+4", "4:16"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_the_default_size_needs_no_sizes():
    for choice in (None, "16", 16, "16+16", ["16", 16]):
        assert "tile_sizes" not in sized_processor()(IMAGES, TEXT, tokens_per_tile=choice, return_tensors="pt")


def test_a_default_is_saved_and_a_request_overrides_it(tmp_path):
    sized_processor(tokens_per_tile="16+4").save_pretrained(tmp_path)
    processor = InternVLXProcessor.from_pretrained(tmp_path)
    assert processor(IMAGES, TEXT)["tile_sizes"] == [0] * 6 + [1, 0]
    assert processor(IMAGES, TEXT, tokens_per_tile="4")["tile_sizes"] == [1] * 8
    assert "tile_sizes" not in processor(IMAGES, TEXT, tokens_per_tile="16")


def test_a_chat_takes_a_size():
    message = {"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "What?"}]}
    settings = {"tokenize": True, "return_dict": True, "processor_kwargs": {"tokens_per_tile": "16:4"}}
    assert sized_processor().apply_chat_template([message], **settings)["tile_sizes"] == [3] * 7


def test_frames_of_videos_take_the_size_between_images(tmp_path):
    frames = [Image.new("RGB", (TILE, TILE), colour) for colour in ("red", "green")]
    text = ["<image> then <video> then <image>"]
    inputs = sized_processor()(IMAGES[::-1], text, videos=[frames], tokens_per_tile="4+16", return_tensors="pt")
    assert inputs["tile_sizes"].tolist() == [1, 1, 1, *[1] * 6, 0]
    inputs = sized_processor()(IMAGES[::-1], text, videos=[frames], tokens_per_tile=["4", "16:4"], return_tensors="pt")
    assert inputs["tile_sizes"].tolist() == [1, 0, 0, *[3] * 7]


@pytest.mark.parametrize("choice", ["64", "16:2", "4+64", 64])
def test_a_size_that_the_model_lacks_is_refused_with_those_that_it_has(choice):
    with refused(f"tokens_per_tile={choice!r}", "16, 4, 4:16, 16:4, 16:0, 16:1"):
        sized_processor()(IMAGES, TEXT, tokens_per_tile=choice)
    with refused(f"tokens_per_tile={choice!r}", "16, 4, 4:16, 16:4, 16:0, 16:1"):
        sized_processor(tokens_per_tile=choice)


@pytest.mark.parametrize("choice", ["4:4:4", "4+4+4", True, "", "four", 16.0, "16:", [True], ["4", "x"]])
def test_what_is_no_size_is_refused(choice):
    with refused(f"tokens_per_tile={choice!r}", "expected a size of a tile (64, '64:256', '256:64' or '256:0')"):
        sized_processor()(IMAGES, TEXT, tokens_per_tile=choice)


def test_a_checkpoint_of_one_size_takes_no_other():
    one = InternVLXProcessor(sized_processor().image_processor, tiny_tokenizer(), image_seq_length=16)
    assert "tile_sizes" not in one(IMAGES, TEXT, tokens_per_tile="16")
    with refused("tokens_per_tile='4'", "expected one of 16, or two"):
        one(IMAGES, TEXT, tokens_per_tile="4")


def test_a_list_of_another_length_than_the_images_is_refused():
    with refused("tokens_per_tile has 3 sizes for 2 images", "one for each"):
        sized_processor()(IMAGES, TEXT, tokens_per_tile=["4", "4", "4"])


def test_a_processor_for_another_default_is_refused():
    with refused("offered_sizes=['16', '4'", "image_seq_length=4"):
        InternVLXProcessor(
            sized_processor().image_processor, tiny_tokenizer(), image_seq_length=4, offered_sizes=SIZES
        )


def test_a_budget_takes_smaller_sizes_before_fewer_tiles():
    processor = sized_processor()
    found = {}
    for budget in (128, 127, 116, 115, 32, 31, 16, 8):
        inputs = processor(IMAGES, TEXT, max_image_tokens=budget, return_tensors="pt")
        sizes = inputs["tile_sizes"].tolist() if "tile_sizes" in inputs else [0] * len(inputs["pixel_values"])
        found[budget] = (sizes.count(0), sizes.count(1))
        assert (inputs["input_ids"] == IMAGE_TOKEN).sum() <= budget
    # the last image gives first
    assert found == {128: (8, 0), 127: (7, 1), 116: (7, 1), 115: (0, 8), 32: (0, 8), 31: (0, 6), 16: (0, 4), 8: (0, 2)}
    with refused("max_image_tokens=7 is too small: 2 images take at least 8", "max_image_tokens=8 or more"):
        processor(IMAGES, TEXT, max_image_tokens=7)
    # a size that the request asks for is kept
    inputs = processor(IMAGES, TEXT, max_image_tokens=64, tokens_per_tile="16:4", return_tensors="pt")
    assert set(inputs["tile_sizes"].tolist()) == {3}
    assert len(inputs["pixel_values"]) <= 4


@pytest.mark.parametrize("seed", range(20))
def test_a_smaller_budget_never_gives_an_image_more_tiles_or_tokens(seed):
    draw = random.Random(seed)
    rule = TilingRule(32, 32, draw.choice([1, 1, 2]), draw.randint(2, 12), draw.choice(["edge", "area", "ratio"]))
    images = [(draw.randint(8, 400), draw.randint(8, 400)) for _ in range(draw.randint(1, 5))]
    tokens, smaller = [Tokens(256, draw.choice([256, 64]))] * len(images), draw.choice([(), (64,), (64, 16)])
    frames, before = (draw.randint(0, 3), 64), None
    for budget in (None, *range(9000, 0, -draw.randint(40, 160))):
        try:
            fitted = fit_request(rule, images, tokens, smaller, budget, frames)
        except ValueError:
            break
        assert fitted == fit_request(rule, images, tokens, smaller, budget, frames)
        plans = [own.plan(*size) for own, size in zip(fitted[0], images, strict=True)]
        used = [own.of(plan) for own, plan in zip(fitted[1], plans, strict=True)]
        assert budget is None or sum(used) + frames[0] * frames[1] <= budget
        now = [(plan.num_tiles, *own, total) for plan, own, total in zip(plans, fitted[1], used, strict=True)]
        if before is not None:
            assert all(a <= b for image in zip(now, before, strict=True) for a, b in zip(*image, strict=True))
        before = now
    assert before is not None
