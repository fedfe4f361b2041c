"""`share_tiles`: the images of a sample share the most tiles of an image, on every way to a batch."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from internvlx_hf.data import (
    InternVLXDataCollator,
    PackedData,
    PackedStream,
    load_training_data,
    measure_sizes,
)
from tiny import TILE, tiny_config, tiny_processor

COUNTS = (1, 2, 3, 4, 6, 7)  # images of each sample
MOST = 6


def wide_image() -> Image.Image:
    """An image that takes as many tiles as it may."""
    return Image.fromarray(np.zeros((TILE, 12 * TILE, 3), dtype=np.uint8))


def sample(images: int, **kwargs) -> dict:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    return {"messages": messages, "images": [wide_image()] * images, **kwargs}


def processor(**kwargs):
    return tiny_processor(tiny_config(), **{"max_patches": MOST, "use_thumbnail": False, "slicing": "ratio"} | kwargs)


def shares(images: int, most: int = MOST) -> list[int]:
    return [max(1, most // images)] * images


def load(source, **kwargs):
    return load_training_data(source, processor(), share_tiles=True, **kwargs)


@pytest.fixture(scope="module")
def samples():
    return [sample(images) for images in COUNTS]


def test_each_image_takes_its_share(samples):
    data = load(samples)
    assert [data[i].num_tiles for i in range(len(data))] == [shares(images) for images in COUNTS]
    unshared = load_training_data(samples, processor())
    assert [unshared[i].num_tiles for i in range(len(data))] == [[MOST] * images for images in COUNTS]


def test_images_of_one_tile_stay_so(samples):
    data = load_training_data(samples, processor(crop_to_patches=False), share_tiles=True)
    assert [data[i].num_tiles for i in range(len(data))] == [[1] * images for images in COUNTS]


def test_measuring_finds_the_same_tiles_and_tokens(samples):
    data = load(samples)
    sizes = measure_sizes(data)
    assert sizes.tiles.tolist() == [sum(shares(images)) for images in COUNTS]
    assert sizes.tokens.tolist() == [len(data[i]) for i in range(len(data))]


def test_streams_packed_rows_and_the_pixels_have_them_too(samples):
    data, tiles = load(samples), [sum(shares(images)) for images in COUNTS]
    streamed = load(samples, streaming=True)
    assert sorted(sum(item.num_tiles) for item in streamed) == sorted(tiles)
    records = Dataset.from_list([sample(2)]).to_iterable_dataset()
    assert [item.num_tiles for item in load(records)] == [shares(2)]
    packed = PackedData(data, measure_sizes(data).tokens, 10_000, seed=0)
    (row,) = [packed[i] for i in range(len(packed))]
    assert sum(sum(item.num_tiles) for item in row) == sum(tiles)
    (row,) = PackedStream(streamed, 10_000)
    batch = InternVLXDataCollator(processor(), packing=True)([row])
    assert len(batch["pixel_values"]) == sum(tiles)


def test_a_collator_that_encodes_shares_them(samples):
    batch = InternVLXDataCollator(processor(), share_tiles=True)(samples[1:3])
    assert batch["pixel_values"].shape[0] == sum(shares(2) + shares(3))
    assert torch.isfinite(batch["pixel_values"]).all()


def test_a_thumbnail_and_a_data_set_s_own_most_tiles_stay():
    """The most tiles that a meta file gives a data set are shared; the thumbnail comes beside them, the least gives way."""
    encoder = InternVLXDataCollator(processor(use_thumbnail=True), share_tiles=True).encoder
    settings = {"max_patches": 8, "min_patches": 5}
    assert encoder.measure(sample(2, images_kwargs=settings)).num_tiles == [4 + 1] * 2
    assert encoder.measure(sample(1, images_kwargs=settings)).num_tiles == [8 + 1]
