# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`max_image_tokens` of the processor: each text's images and frames share it, on every way into the processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from image_cases import random_image
from internvlx_hf import InternVLXProcessor
from message_cases import encode
from refusals import refusals, refused
from tiny import IMAGE_TOKEN, LVTC, TILE, tiny_config, tiny_processor

CONFIG = tiny_config(**LVTC)
TOKENS = CONFIG.image_seq_length
WIDE, SQUARE, SMALL = (random_image(*size) for size in ((3 * TILE, 2 * TILE), (2 * TILE, 2 * TILE), (20, 15)))


@pytest.fixture(scope="module")
def processor() -> InternVLXProcessor:
    return tiny_processor(CONFIG, slicing="ratio", max_patches=6)


def turn(*parts) -> list[dict]:
    """A user's turn: lists are videos, strings text, all else images."""
    kinds = [("text" if isinstance(part, str) else "video" if isinstance(part, list) else "image") for part in parts]
    return [{"role": "user", "content": [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]}]


def chat(processor, *conversations, **kwargs):
    return encode(list(conversations), processor, processor_kwargs={"padding": True, **kwargs})


def tiles_of_rows(inputs) -> list[int]:
    return ((inputs["input_ids"] == IMAGE_TOKEN).sum(1) // TOKENS).tolist()


def test_each_conversation_of_a_batch_has_its_own_budget(processor):
    batch = [turn(WIDE, SQUARE, "What?"), turn("What?"), turn(SMALL, "What?"), turn(WIDE, WIDE, SMALL, "What?")]
    assert tiles_of_rows(chat(processor, *batch)) == [12, 0, 7, 21]
    inputs = chat(processor, *batch, max_image_tokens=8 * TOKENS)
    found = tiles_of_rows(inputs)
    assert max(found) <= 8
    assert found == [tiles_of_rows(chat(processor, each, max_image_tokens=8 * TOKENS))[0] for each in batch]
    assert len(inputs["pixel_values"]) == sum(found)
    rules = processor.tiling_rules([WIDE.size, SQUARE.size], max_image_tokens=8 * TOKENS)
    limits = {"max_patches": [rule.max_tiles for rule in rules]}
    alone = chat(processor, batch[0], **limits)
    assert torch.equal(inputs["pixel_values"][: found[0]], alone["pixel_values"])


def test_texts_with_marks_and_images_without_texts_share_it_too(processor):
    budget = {"max_image_tokens": 9 * TOKENS, "return_tensors": "pt", "padding": True}
    texts = ["<image><image> What?", "And <image>?"]
    flat = processor(images=[WIDE, SQUARE, WIDE], text=texts, **budget)
    assert tiles_of_rows(flat) == [8, 7]
    for images in ([[WIDE, SQUARE], [WIDE]], [[np.array(WIDE), SQUARE], [torch.from_numpy(np.array(WIDE))]]):
        assert torch.equal(processor(images=images, text=texts, **budget)["pixel_values"], flat["pixel_values"])
    assert len(processor(images=[WIDE, SQUARE, WIDE], **budget)["pixel_values"]) <= 9
    assert processor(text="What?", **budget).keys() == {"input_ids", "attention_mask"}


def test_frames_count_and_are_never_dropped(processor):
    frames = [SMALL] * 5
    inputs = chat(processor, turn(WIDE, frames, "What?"), max_image_tokens=8 * TOKENS)
    assert tiles_of_rows(inputs) == [8]
    with refused("1 image and 5 frames take at least 24", "fewer frames (`num_frames`"):
        chat(processor, turn(WIDE, frames, "What?"), max_image_tokens=6 * TOKENS - 1)
    fewer = chat(processor, turn(WIDE, frames, "What?"), max_image_tokens=6 * TOKENS - 1, num_frames=2)
    assert tiles_of_rows(fewer) == [5]


def test_a_call_s_other_settings_bound_the_tiles_as_well(processor):
    for settings in ({"max_patches": 2}, {"images_kwargs": {"max_patches": 2}}, {"crop_to_patches": False}):
        free = chat(processor, turn(WIDE, SQUARE, "What?"), **settings)
        inputs = chat(processor, turn(WIDE, SQUARE, "What?"), max_image_tokens=4 * TOKENS, **settings)
        assert tiles_of_rows(inputs) <= [4]
        assert tiles_of_rows(inputs) <= tiles_of_rows(free)


def test_a_photograph_is_measured_upright(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    WIDE.save(tmp_path / "turned.png", exif=exif)
    budget = {"max_image_tokens": 8 * TOKENS}
    (expected,) = {tuple(tiles_of_rows(chat(processor, turn(WIDE.rotate(270, expand=True), SQUARE, "?"), **budget)))}
    part = {"type": "image", "path": str(tmp_path / "turned.png")}
    turned = [{"role": "user", "content": [part, *turn(SQUARE, "?")[0]["content"]]}]
    assert tuple(tiles_of_rows(chat(processor, turned, **budget))) == expected
    lying = tiles_of_rows(chat(processor, turned, do_exif_transpose=False, **budget))
    assert lying == tiles_of_rows(chat(processor, turn(WIDE, SQUARE, "?"), **budget))


def test_a_saved_budget_applies_unless_a_call_gives_another(tmp_path):
    saved = tiny_processor(CONFIG, slicing="ratio", max_patches=6)
    saved.max_image_tokens = 5 * TOKENS
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.max_image_tokens == 5 * TOKENS
    assert tiles_of_rows(chat(loaded, turn(WIDE, SQUARE, "What?"))) == [4]
    assert tiles_of_rows(chat(loaded, turn(WIDE, SQUARE, "What?"), max_image_tokens=100 * TOKENS)) == [12]


BATCH = [turn(SMALL, "What?"), turn(SMALL, SMALL, "What?")]
test_what_is_not_possible_is_refused_by_name = refusals(
    (
        lambda processor: chat(processor, *BATCH, max_image_tokens=7),
        "Text 1: max_image_tokens=7 is too small",
        "2 images take at least 8",
    ),
    (
        lambda processor: InternVLXProcessor(processor.image_processor, processor.tokenizer, max_image_tokens=0),
        "max_image_tokens=0",
        "a whole number of at least 1",
    ),
    (
        lambda processor: chat(processor, *BATCH, images_kwargs={"max_image_tokens": 8}),
        "max_image_tokens=8",
        "is a setting of InternVLXProcessor",
    ),
    (
        lambda processor: processor(
            images=SMALL, text="<image>", max_image_tokens=8, return_text_replacement_offsets=True
        ),
        "max_image_tokens=8",
        "with return_text_replacement_offsets, which vLLM",
    ),
)
