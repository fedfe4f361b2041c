"""The rules by which a tile's tokens are merged where its size shrinks."""

import pytest
import torch

from dial_cases import dial, dial_batch, dial_logits, dial_model, split_dial
from internvlx_hf.modeling.merge_fastv import keep_attended
from internvlx_hf.modeling.merge_rules import MERGE_RULES, MOVING_RULES, SCORED_RULES
from internvlx_hf.modeling.merge_tome import _merge_pairs, merge_similar
from lvtc_cases import CLOSE, GREEDY, pack
from refusals import refused

# a tile of 4x4 tokens, whose value is their place
TILE = torch.arange(16.0).view(1, 16, 1)
BY_HAND = {
    "mean": [2.5, 4.5, 10.5, 12.5],
    "one": [0.0, 2.0, 8.0, 10.0],
    "knock_out": [0.0] * 4,
}
BLOCKS = [{0, 1, 4, 5}, {2, 3, 6, 7}, {8, 9, 12, 13}, {10, 11, 14, 15}]


def test_every_rule_has_a_case():
    assert {*BY_HAND, "random", "fastv", "tome"} == MERGE_RULES.keys()


@pytest.mark.parametrize("rule", MERGE_RULES.values(), ids=MERGE_RULES)
def test_a_rule_that_says_where_its_tokens_stand_is_listed(rule):
    merged = rule(TILE, 2, *([torch.rand(1, 16)] if rule in SCORED_RULES else []))
    assert isinstance(merged, tuple) == (rule in MOVING_RULES)


@pytest.mark.parametrize("name", BY_HAND)
def test_blocks_are_merged_as_by_hand(name):
    assert MERGE_RULES[name](TILE, 2).flatten().tolist() == BY_HAND[name]


def test_random_takes_one_token_of_each_block():
    torch.manual_seed(0)
    drawn = [MERGE_RULES["random"](TILE, 2).flatten().tolist() for _ in range(50)]
    for place, block in enumerate(BLOCKS):
        assert {row[place] for row in drawn} == block


def test_fastv_keeps_the_tokens_with_the_highest_scores_where_they_are():
    scores = torch.zeros(1, 16)
    scores[0, [3, 14, 7, 9]] = torch.tensor([0.1, 0.4, 0.2, 0.3])
    kept, places = keep_attended(TILE, 2, scores)
    assert kept.flatten().tolist() == places.flatten().tolist() == [3, 7, 9, 14]


def test_tome_merges_by_hand():
    """Of four tokens, the first and third choose among the second and fourth; the third is most like its partner."""
    tile = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0], [0.1, 1.0]])[None]
    sums, weights, places = _merge_pairs(tile, torch.ones(1, 4), torch.arange(4)[None], 1)
    torch.testing.assert_close(sums, torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.1, 3.0]]]))
    assert weights.tolist() == [[1, 1, 2]]
    assert places.tolist() == [[0, 1, 2]]
    merged, places = merge_similar(tile, 2)  # every token counts once, in however many rounds
    torch.testing.assert_close(merged, tile.mean(1, keepdim=True))
    assert places.tolist() == [[0]]
    # lines of four tokens that look in one direction each: no blocks
    ways, lengths = torch.eye(4).repeat_interleave(4, 0), torch.arange(1.0, 17.0)
    merged, places = merge_similar((ways * lengths[:, None])[None], 2)
    assert places.tolist() == [[0, 4, 8, 12]]
    torch.testing.assert_close(merged[0], torch.diag(torch.tensor([2.5, 6.5, 10.5, 14.5])))


def by_hand(name, model, sample):
    """The rule for one tile after another. FastV's scores are read from the weights that eager attention returns."""
    ids, config = sample["input_ids"][0], model.config
    if name != "fastv":
        return lambda tile, before, after: unbatched(MERGE_RULES[name](tile[None], 2))
    own = config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    attended = model(**sample, output_attentions=True).attentions[config.merge_layer - 1][0, :, -1].mean(0)
    model.set_attn_implementation({"text_config": own})
    assert len(attended) == len(ids)
    befores = [config.sizes[size].before for size in sample["tile_sizes"]]
    of_tiles = iter(attended[ids == config.image_token_id].split(befores))
    of_tiles = iter(
        [own for own, size in zip(of_tiles, sample["tile_sizes"], strict=True) if config.sizes[size].after == 4]
    )
    return lambda tile, before, after: unbatched(MERGE_RULES[name](tile[None], 2, next(of_tiles)[None]))


def unbatched(merged):
    return tuple(each[0] for each in merged) if isinstance(merged, tuple) else merged[0]


@pytest.mark.parametrize("name", MERGE_RULES)
@torch.no_grad()
def test_a_request_chooses_the_rule(name):
    model = dial_model(tokens_per_tile=["16", "16:4"], merge_layer=2)
    batch = dial_batch(model.config, [[2, "16:4", 3, "16:4", 2]])
    ids = batch["input_ids"][0]

    torch.manual_seed(1)
    merge = by_hand(name, model, batch)
    want, _ = dial_logits(model, ids, batch["pixel_values"], batch["tile_sizes"], merge=merge)
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


@pytest.mark.parametrize("text", ["llama", "phi3", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["fastv", "tome"])
@torch.no_grad()
def test_tokens_that_are_no_blocks_keep_their_positions_in_all_later_stages(name, side, text):
    """In a padded batch, with tiles that grow two layers later."""
    model = dial_model(text, **dial(3, 1, ["16", "4:16", "16:4"], insert_start=0))
    layouts = [[2, "16:4", 3, "4:16", "16:4", 2], ["16:4", 2]]
    batch = dial_batch(model.config, layouts, padding_side=side)
    before = dict(vars(model.config.text_config))
    logits = model(**batch, merge_rule=name).logits
    assert vars(model.config.text_config) == before
    is_text = (batch["input_ids"] != model.config.image_token_id) & batch["attention_mask"].bool()
    for i, sample in enumerate(split_dial(batch, model.config)):
        merge = by_hand(name, model, sample)
        want, _ = dial_logits(model, **{**sample, "input_ids": sample["input_ids"][0]}, merge=merge)
        torch.testing.assert_close(logits[i][is_text[i]], want, **CLOSE)
        torch.testing.assert_close(model(**sample, merge_rule=name).logits[0, -1], want[-1], **CLOSE)


def test_fastv_refuses_packed_rows():
    model = dial_model(tokens_per_tile=["16", "16:4"], merge_layer=2)
    batch = dial_batch(model.config, [[2, "16:4", 3], [1, "16:4", 2]])
    packed = pack([batch | {"labels": batch["input_ids"]}]) | {"tile_sizes": batch["tile_sizes"]}
    with refused("'fastv'", "'mean'"):
        model(**packed, merge_rule="fastv")
    model(**packed, merge_rule="tome")
