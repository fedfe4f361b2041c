"""The rules by which a tile's tokens are merged where its size shrinks."""

import pytest
import torch

from dial_cases import dial_batch, dial_logits, dial_model
from internvlx_hf.modeling.merge_rules import MERGE_RULES
from lvtc_cases import CLOSE, GREEDY

# a tile of 4x4 tokens, whose value is their place
TILE = torch.arange(16.0).view(1, 16, 1)
BY_HAND = {
    "mean": [2.5, 4.5, 10.5, 12.5],
    "one": [0.0, 2.0, 8.0, 10.0],
    "knock_out": [0.0] * 4,
}
BLOCKS = [{0, 1, 4, 5}, {2, 3, 6, 7}, {8, 9, 12, 13}, {10, 11, 14, 15}]


def test_every_rule_has_a_case():
    assert {*BY_HAND, "random"} == MERGE_RULES.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_blocks_are_merged_as_by_hand(name):
    assert MERGE_RULES[name](TILE, 2).flatten().tolist() == BY_HAND[name]


def test_random_takes_one_token_of_each_block():
    torch.manual_seed(0)
    drawn = [MERGE_RULES["random"](TILE, 2).flatten().tolist() for _ in range(50)]
    for place, block in enumerate(BLOCKS):
        assert {row[place] for row in drawn} == block


@pytest.mark.parametrize("name", MERGE_RULES)
@torch.no_grad()
def test_a_request_chooses_the_rule(name):
    model = dial_model(tokens_per_tile=["16", "16:4"], merge_layer=2)
    batch = dial_batch(model.config, [[2, "16:4", 3, "16:4", 2]])
    ids = batch["input_ids"][0]

    def by_hand(tile, before, after):
        return MERGE_RULES[name](tile[None], 2)[0]

    torch.manual_seed(1)
    want, _ = dial_logits(model, ids, batch["pixel_values"], batch["tile_sizes"], merge=by_hand)
    torch.manual_seed(1)
    got = model(**batch, merge_rule=name).logits[0, ids != model.config.image_token_id]
    if name != "random":  # which draws for all tiles at once
        torch.testing.assert_close(got, want, **CLOSE)
    torch.manual_seed(1)
    generated = model.generate(**batch, **GREEDY, merge_rule=name)
    assert (
        generated[0, len(ids)]
        == got[-1].index_fill(0, torch.tensor([model.config.image_token_id]), -torch.inf).argmax()
    )
