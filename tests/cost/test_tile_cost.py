"""What tiles of several sizes cost: FLOPs of each stage as torch counts them, keys and values as a cache holds them."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dial_cases import SIZES, dial, dial_batch, dial_model
from internvlx_hf.cost import CostModel, ModelSetup
from internvlx_hf.processing.image_settings import ImageSettings
from refusals import refused
from tiny import TILE, tiny_config

IMAGES = [(3 * TILE, TILE), (TILE, TILE), (TILE, TILE), (TILE, TILE)]  # the first has three tiles and a thumbnail
CHOICES = ["16+4", "16:4", "4:16", "16:0"]
TEXT = 10
THREE_STAGES, PLAIN = dial(3, 1), {"tokens_per_tile": ["16", "4", "1"]}


def cost_of(config, **settings):
    setup = ModelSetup.reading("dial", config, ImageSettings(max_patches=6, **settings))
    return CostModel(setup, TEXT, 1, "float32")


def check(model, names, cost):
    model.set_attn_implementation("eager")
    batch = dial_batch(model.config, [[4, *names, TEXT - 4]])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cache = model(**batch, logits_to_keep=1).cache
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rotary = sum(count for name, count in flops.items() if "rotary_emb" in name)
    assert cost.prefill_flops == flops["Global"] - rotary
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cost.cache_bytes == held
    assert cost.prompt_tokens == cache.get_seq_length(0) == batch["input_ids"].shape[1]
    assert cost.expanded_prompt_tokens == cache.get_seq_length(3)


def test_mixed_sizes_cost_what_is_computed():
    model = dial_model(**THREE_STAGES)
    cost = cost_of(model.config, tokens_per_tile=CHOICES).together(IMAGES)
    check(model, ["16", "16", "16", "4", "16:4", "4:16", "16:0"], cost)
    assert [name for name in cost.flops if "stage" in name] == [
        f"language_model.stage_{name}" for name in ("one", "two", "three")
    ]


@pytest.mark.parametrize("size", SIZES)
def test_one_size_costs_what_is_computed(size):
    model = dial_model(**THREE_STAGES)
    check(model, [size] * 7, cost_of(model.config, tokens_per_tile=size).together(IMAGES))


def test_plain_sizes_and_a_budget_cost_what_is_computed():
    model = dial_model(**PLAIN)
    # 7 tiles of 16 are 112; the budget makes the last images smaller
    cost = cost_of(model.config, max_image_tokens=80).together(IMAGES)
    check(model, ["16"] * 4 + ["4"] * 3, cost)


def test_a_size_in_words_and_one_that_is_not_offered():
    config = tiny_config(**THREE_STAGES)
    words = {size: cost_of(config, tokens_per_tile=size).setup.tokens_of_tiles() for size in SIZES}
    assert words["16"] == "16 tokens per tile"
    assert words["4:16"] == "4 tokens per tile, 16 from layer 3 on"
    assert words["16:0"] == "16 tokens per tile, 0 from layer 1 on"
    with refused("tokens_per_tile='64'", "16, 4, 4:16, 16:4, 16:0, 16:1"):
        cost_of(config, tokens_per_tile="64").together(IMAGES)
