"""Training samples whose images take the sizes that the processor or the sample asks for."""

import pytest
import torch

from dial_cases import dial_model
from image_cases import random_image
from internvlx_hf.training import InternVLXDataCollator
from tiny import IMAGE_TOKEN, TILE, tiny_processor

SIZES = ["16", "4", "16:4"]
DIAL = {"tokens_per_tile": SIZES, "merge_layer": 2}


def sample(**kwargs):
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A bicycle."}]
    return {"messages": messages, "images": [random_image(2 * TILE, TILE, seed=1)], **kwargs}


def sized_processor(config, choice=None):
    processor = tiny_processor(config)
    processor.offered_sizes, processor.tokens_per_tile = SIZES, choice
    return processor


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    ("choice", "sizes", "tokens"), [("4", [1, 1, 1], 12), ("16:4+4", [2, 2, 1], 36), ("16+4", [0, 0, 1], 36)]
)
def test_a_batch_has_the_sizes_that_the_processor_asks_for(choice, sizes, tokens, packing):
    model = dial_model(**DIAL).train()
    collator = InternVLXDataCollator(sized_processor(model.config, choice), packing=packing)
    batch = collator([sample(), sample()])
    assert batch["tile_sizes"].tolist() == 2 * sizes
    assert (batch["input_ids"] == IMAGE_TOKEN).sum() == 2 * tokens
    assert torch.isfinite(model(**batch).loss)


def test_a_sample_asks_for_a_size_of_its_own():
    collator = InternVLXDataCollator(sized_processor(dial_model(**DIAL).config))
    batch = collator([sample(), sample(images_kwargs={"tokens_per_tile": "16:4"})])
    assert batch["tile_sizes"].tolist() == [0, 0, 0, 2, 2, 2]
    assert "tile_sizes" not in collator([sample(), sample()])
