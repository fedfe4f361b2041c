"""A budget of visual tokens in training: the images and frames of each sample share it."""

from dataclasses import replace

import torch
from PIL import Image

from image_cases import random_image
from internvlx_hf.data import InternVLXDataCollator, load_training_data, measure_sizes
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.data.sizes import fingerprint
from internvlx_hf.training.arguments import ModelArguments
from internvlx_hf.training.loading import load_processor
from refusals import refused
from tiny import LVTC, TILE, tiny_config, tiny_processor

CONFIG = tiny_config(**LVTC)
TOKENS = CONFIG.image_seq_length
WIDE, SQUARE, SMALL = (random_image(*size) for size in ((3 * TILE, 2 * TILE), (2 * TILE, 2 * TILE), (20, 15)))


def sample(*images: Image.Image, **media) -> dict:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    return {"messages": messages, "images": list(images), **media}


def processor(tiles: int | None = 8):
    made = tiny_processor(CONFIG, slicing="ratio", max_patches=6, resize_backend="pillow")
    made.max_image_tokens = None if tiles is None else tiles * TOKENS
    return made


SAMPLES = [sample(WIDE, SQUARE), sample(SMALL), sample(), sample(WIDE, WIDE, SMALL)]


def test_a_batch_has_the_tokens_and_pixels_of_the_processor():
    made = processor()
    batch = InternVLXDataCollator(made)(SAMPLES)
    chats = [
        made.apply_chat_template(each["messages"], images=each["images"], return_labels=True, return_tensors="pt")
        for each in SAMPLES
    ]
    for row, mask, chat in zip(batch["input_ids"], batch["attention_mask"], chats, strict=True):
        assert torch.equal(row[mask.bool()], chat["input_ids"][0])
    assert torch.equal(
        batch["pixel_values"], torch.cat([chat["pixel_values"] for chat in chats if "pixel_values" in chat])
    )


def test_only_samples_over_the_budget_have_limits_and_the_batch_is_still_one_call(monkeypatch):
    made = processor()
    encoded = [SampleEncoder(made)(each) for each in SAMPLES]
    assert [each.tile_limits is not None for each in encoded] == [True, False, False, True]
    calls, kind = [], type(made.image_processor)
    call = kind.preprocess
    monkeypatch.setattr(
        kind,
        "preprocess",
        lambda self, images, *args, **kw: calls.append(len(images)) or call(self, images, *args, **kw),
    )
    InternVLXDataCollator(made)(encoded)
    assert calls == [6]


def test_frames_count_too(monkeypatch):
    made = processor(6)
    (encoded,) = [SampleEncoder(made)(sample(WIDE, SQUARE, videos=[[SMALL] * 3]))]
    assert sum(encoded.num_tiles) <= 6
    assert encoded.num_tiles.count(1) >= 3
    assert len(InternVLXDataCollator(made)([encoded])["pixel_values"]) == sum(encoded.num_tiles)


def test_images_of_a_truncated_sample_keep_their_limits():
    made = processor()
    turns = [{"role": role, "content": text} for role, text in (("user", "<image>"), ("assistant", "A cat."))]
    long = {"messages": turns * 2, "images": [WIDE, SQUARE]}
    whole = SampleEncoder(made)(long)
    cut = SampleEncoder(made, max_length=len(whole) - 25)(long)
    assert (len(cut.images), cut.num_tiles, cut.tile_limits) == (1, whole.num_tiles[:1], whole.tile_limits[:1])
    assert len(InternVLXDataCollator(made)([cut])["pixel_values"]) == sum(cut.num_tiles)


def test_large_images_are_cut_into_the_same_tiles_at_once(monkeypatch):
    expected = InternVLXDataCollator(processor())(SAMPLES)["pixel_values"]
    monkeypatch.setattr("internvlx_hf.data.encoding.MAX_WHOLE_PIXELS", 0)
    assert torch.equal(InternVLXDataCollator(processor())(SAMPLES)["pixel_values"], expected)


def test_a_sample_that_does_not_fit_is_broken_and_names_the_smallest_budget():
    collator = InternVLXDataCollator(processor(2))
    with refused(f"3 images take at least {3 * TOKENS} visual tokens"):
        collator(SAMPLES)


def test_measured_sizes_are_those_of_the_budget(tmp_path):
    file = tmp_path / "data.jsonl"
    WIDE.save(tmp_path / "wide.png")
    turns = '[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]'
    file.write_text(f'{{"image": "wide.png", "conversations": {turns}}}\n')
    free, bounded = (load_training_data(str(file), processor(tiles)) for tiles in (None, 4))
    assert [measure_sizes(data).tiles.tolist() for data in (free, bounded)] == [[7], [3]]
    assert fingerprint(free) != fingerprint(bounded)


def test_training_saves_its_budget_with_the_processor(tmp_path):
    processor(None).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), max_image_tokens=4 * TOKENS)
    assert load_processor(arguments).max_image_tokens == 4 * TOKENS
    arguments = replace(arguments, max_image_tokens=TOKENS - 1)
    with refused("1 image takes at least"):
        load_processor(arguments)


def test_training_cuts_the_tiles_that_are_asked_for(tmp_path):
    uncut = processor(None)
    uncut.image_processor.crop_to_patches = False
    uncut.save_pretrained(tmp_path)
    asked = ModelArguments(model_name_or_path=str(tmp_path), max_patches=3)
    loaded = [load_processor(ModelArguments(model_name_or_path=str(tmp_path))), load_processor(asked)]
    assert [each.image_processor.tiling_rule().max_tiles for each in loaded] == [1, 3]
