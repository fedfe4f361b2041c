# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`torch.export` keeps the number of tiles, and the prompt's shape, open."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from tiny import LVTC, tiny_batch, tiny_model

pytestmark = pytest.mark.slow

TILES = {0: Dim("tiles", max=64)}
SMALL = {"vision_config": {"num_hidden_layers": 1}, "text_config": {"num_hidden_layers": 1}}


class Call(nn.Module):
    """A module for a function of a model, as `export` wants one."""

    def __init__(self, model: nn.Module, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: torch.Tensor):
        return self.function(self.model, *inputs)


def image_tokens(model, pixel_values):
    images = model.get_image_features(pixel_values, return_dict=True)
    return (images.pooler_output, *(images.deepstack_features or ()))


def logits(model, input_ids, attention_mask, pixel_values):
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
    return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("projector", ["LVTC", "token_packer", "ldpv2"])
def test_the_vision_side_is_exported_for_any_number_of_tiles(projector):
    if projector == "LVTC":
        model = tiny_model("llama", vision_config=SMALL["vision_config"], **LVTC)
    else:
        model = tiny_model("llama", projector_config={"projector_type": projector}, **SMALL)
    module = Call(model, image_tokens).eval()
    exported = export(module, (torch.randn(3, 3, 32, 32),), dynamic_shapes=((TILES,),)).module()
    for tiles in (1, 5):
        pixel_values = torch.randn(tiles, 3, 32, 32)
        for found, expected in zip(exported(pixel_values), module(pixel_values), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_forward_is_exported_for_any_prompts_and_tiles():
    model = tiny_model("llama", **SMALL)
    names = ("input_ids", "attention_mask", "pixel_values")
    batch = tiny_batch(model.config, [[3, "tile", "tile", 4], [2, "tile", 5]])
    rows = {0: Dim("rows"), 1: Dim("length", max=1000)}
    module = Call(model, logits).eval()
    exported = export(module, tuple(map(batch.get, names)), dynamic_shapes=((rows, rows, TILES),)).module()
    for layouts in ([[3, "tile", 4]], [[3, "tile", "tile", 4, "tile"], [2, "tile", 5], [4]]):
        inputs = [tiny_batch(model.config, layouts)[name] for name in names]
        torch.testing.assert_close(exported(*inputs), module(*inputs))
