"""Which layers get a mask, and that those without one compute what a mask would have them compute.

The reference is eager attention, whose masks are always explicit, on a cache, where stage two is padded on the left as
it was in every forward before. Tolerances as in test_lvtc_training.py.
"""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from flash_stand_in import use_flash_stand_in
from lvtc_cases import (
    CLOSE,
    KINDS,
    MIXED,
    SLIDING,
    assert_same_step,
    bounds_of,
    labelled,
    loss_and_gradients,
    model_of_kind,
    new_tokens,
    pack,
    training_model,
)
from tiny import LVTC, tiny_batch, tiny_model

RAGGED = [[10], [3, "tile", 3], ["tile", 1, "tile", 1]]  # equal rows that grow apart
NONE, SOME = "no mask", "mask"


def use(attention, model, monkeypatch):
    if attention == "flash":
        use_flash_stand_in(monkeypatch, model)
    else:
        model.set_attn_implementation({"text_config": attention})
    return model


def record_masks(model):
    """What the first layer of each stage is given in the forwards to come; flash attention's bounds are no mask."""
    seen = []
    for index in (0, 2):
        model.model.language_model.layers[index].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(NONE if kwargs["attention_mask"] is None else SOME),
            with_kwargs=True,
        )
    return seen


def without_mask(batch):
    return {key: value for key, value in batch.items() if key != "attention_mask"}


TRAINING = {
    # layouts, padding side, with an attention mask -> masks with SDPA
    "right padding": (MIXED, "right", True, [NONE, NONE]),
    "left padding": (MIXED, "left", True, [SOME, NONE]),
    "no padding": (RAGGED, "left", True, [NONE, NONE]),
    "no attention mask": (RAGGED, "left", False, [NONE, NONE]),
    "text, right padding": ([[9], [5]], "right", True, [NONE, NONE]),
    "text, left padding": ([[9], [5]], "left", True, [SOME, SOME]),
}


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_has_masks_where_it_needs_them(name, monkeypatch):
    layouts, side, with_mask, masks = TRAINING[name]
    model = training_model()
    batch = labelled(model, layouts, padding_side=side)
    model.set_attn_implementation({"text_config": "eager"})
    expected = loss_and_gradients(model.eval(), batch, use_cache=True)
    model.train()
    inputs = batch if with_mask else without_mask(batch)
    seen = record_masks(model)
    for attention in ("eager", "sdpa", "flash"):
        use(attention, model, monkeypatch)
        for use_cache in (None, False):
            seen.clear()
            assert_same_step(loss_and_gradients(model, inputs, use_cache=use_cache), expected)
            if attention == "eager":
                assert seen == [SOME, SOME]
            elif attention == "sdpa" or name != "text, left padding":  # there transformers' flash attention unpads
                assert seen == ([NONE, NONE] if attention == "flash" else masks)


def test_masked_columns_within_a_row_keep_their_mask_in_stage_one_only():
    """A tile that is masked out is not there in stage two."""
    model = training_model()
    batch = labelled(model, [[3, "tile", 2, "tile", 4], [5, "tile", 6]])
    batch["attention_mask"][0, 3:7] = 0
    model.set_attn_implementation({"text_config": "eager"})
    expected = loss_and_gradients(model.eval(), batch, use_cache=True)
    model.train().set_attn_implementation({"text_config": "sdpa"})
    seen = record_masks(model)
    assert_same_step(loss_and_gradients(model, batch), expected)
    assert seen == [SOME, NONE]


@pytest.mark.parametrize("text", ["mistral", "qwen2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sliding_windows_hold_without_a_mask_of_padding(text, side, monkeypatch):
    model = training_model(text, text_config=SLIDING[text])
    batch = labelled(model, MIXED, padding_side=side)
    model.set_attn_implementation({"text_config": "eager"})
    expected = loss_and_gradients(model.eval(), batch, use_cache=True)
    model.train()
    seen = record_masks(model)
    for attention in ("sdpa", "flash"):
        use(attention, model, monkeypatch)
        assert_same_step(loss_and_gradients(model, batch), expected)
    full = NONE if text == "qwen2" else SOME  # layer 2 of qwen2 attends to everything
    assert seen == [SOME, full, NONE, NONE]


def test_packed_rows_with_flash_attention_equal_the_padded_batch(monkeypatch):
    model = training_model()
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    use_flash_stand_in(monkeypatch, model)
    packed = pack([batch])
    positions = packed.pop("position_ids")
    for inputs in (packed | {"position_ids": positions}, packed | bounds_of(batch)):
        assert_same_step(loss_and_gradients(model, inputs), expected)


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["lvtc off", "lvtc on"])
def test_packed_rows_equal_the_padded_batch_in_training_and_in_the_trainer_s_evaluation(lvtc):
    model = training_model(**lvtc) if lvtc else tiny_model("qwen2", projector_config={"drop_path_rate": 0.0}).train()
    batch = labelled(model, MIXED, padding_side="right")
    expected, packed = loss_and_gradients(model, batch), pack([batch])
    assert_same_step(loss_and_gradients(model, packed), expected)
    model.eval()
    assert model(**packed).cache is not None
    model.config.use_cache = False  # as the `Trainer` does
    torch.testing.assert_close(model(**packed).loss, expected[0], **CLOSE)
    without_positions = {"input_ids": packed["input_ids"], "pixel_values": packed["pixel_values"]}
    assert model(**without_positions).cache is not None


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}])
@pytest.mark.parametrize("positions", [False, True])
def test_right_padding_needs_no_mask_without_lvtc_either(kwargs, positions, monkeypatch):
    model = tiny_model("llama", projector_config={"drop_path_rate": 0.0}).train()
    batch = labelled(model, MIXED, padding_side="right")
    model.set_attn_implementation({"text_config": "eager"})
    expected = loss_and_gradients(model, batch)
    if positions:
        kwargs = kwargs | {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    seen = record_masks(model)
    for attention in ("sdpa", "flash"):
        use(attention, model, monkeypatch)
        assert_same_step(loss_and_gradients(model, batch, **kwargs), expected)
    assert seen == [NONE] * 4


def test_positions_that_do_not_count_from_zero_keep_the_mask():
    model = tiny_model("llama", projector_config={"drop_path_rate": 0.0}).train()
    batch = labelled(model, MIXED, padding_side="right")
    positions = (2 * batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    seen = record_masks(model)
    model(**batch, position_ids=positions)
    assert seen == [SOME, SOME]


PREFILLS = {
    "one": ([[3, "tile", 2, "tile", 4]], [NONE, NONE]),
    "several of equal length": ([[3, "tile", 4], [2, "tile", 5]], [NONE, NONE]),
    "several that grow apart": (RAGGED, [NONE, SOME]),
    "left padding": ([[3, "tile", 4], [9], ["tile", "tile", 5]], [SOME, SOME]),
}


@pytest.mark.parametrize("name", PREFILLS)
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@torch.no_grad()
def test_a_prompt_on_an_empty_cache_has_masks_where_it_needs_them_and_the_next_turn_has(
    name, cache_class, monkeypatch
):
    layouts, masks = PREFILLS[name]
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, layouts)
    turns = [batch]
    for layout in ([[2]] * len(layouts), [[3, "tile"]] * len(layouts), [[1]] * len(layouts)):
        turn = tiny_batch(model.config, layout, seed=1)
        mask = torch.cat([turns[-1]["attention_mask"], turn["attention_mask"]], dim=1)
        turns.append(turn | {"attention_mask": mask})
    seen = record_masks(model)
    expected = None
    for attention in ("eager", "sdpa", "flash"):
        if attention == "flash" and cache_class is StaticCache:
            continue  # of which transformers would unpad more than there is
        use(attention, model, monkeypatch)
        for with_mask in (True, False) if batch["attention_mask"].all() else (True,):
            seen.clear()
            kwargs = {"max_cache_len": 96} if cache_class is StaticCache else {}
            cache = cache_class(config=model.config.text_config, **kwargs)
            logits = [
                model(**(turn if with_mask else without_mask(turn)), cache=cache).logits[:, -1] for turn in turns
            ]
            if expected is None:
                expected = logits
            for got, want in zip(logits, expected, strict=True):
                torch.testing.assert_close(got, want, **CLOSE)
            if attention == "sdpa" and cache_class is DynamicCache:
                # the next turns have several queries on an earlier cache; the last is a single one
                assert seen == [*masks, SOME, SOME, SOME, SOME, *masks]
            if attention == "flash":
                assert seen == [NONE] * 8 if name != "left padding" else seen[:4] == [NONE] * 4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_with_flash_attention_gives_the_tokens_of_sdpa(kind, monkeypatch):
    model = model_of_kind(kind)
    for layouts in (MIXED, RAGGED):
        batch = tiny_batch(model.config, layouts)
        model.set_attn_implementation({"text_config": "sdpa"})
        expected = new_tokens(model, batch)
        use_flash_stand_in(monkeypatch, model)
        assert torch.equal(new_tokens(model, batch), expected)
        assert torch.equal(new_tokens(model, batch, use_cache=False), expected)


@torch.no_grad()
def test_a_cache_made_in_training_can_be_continued():
    """It is padded on the right, and the mask of the next step knows that."""
    model = training_model()
    batch = tiny_batch(model.config, RAGGED)
    with torch.enable_grad():
        cache = model(**batch).cache
    token = torch.full((len(RAGGED), 1), 11)
    logits = model(input_ids=token, cache=cache).logits
    ids = torch.cat([batch["input_ids"], token], dim=1)
    expected = model(input_ids=ids, pixel_values=batch["pixel_values"], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(logits, expected, **CLOSE)
    with pytest.raises(ValueError, match="cropped by at most 0 tokens"):
        cache.crop(-2)
