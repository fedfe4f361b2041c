"""What a model call says of its limits: positions, placeholders without pixels, caches that have lost their memory."""

import copy
import logging
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.utils import logging as transformers_logging

from lvtc_cases import KEPT, STEEP
from tiny import IMAGE_TOKEN, LVTC, tiny_batch, tiny_config, tiny_model

# 2x2 tokens per tile, 8x8 after the expansion: 60 more for each
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def warnings(caplog):
    """What is logged, once-only warnings anew for each test."""
    transformers_logging.warning_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- Positions


def model_of_limit(limit, **lvtc):
    settings = STEEP | {"lvtc_config": STEEP["lvtc_config"] | lvtc}
    return tiny_model("llama", text_config={"max_position_embeddings": limit}, **settings)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("limit", "warns"), [(131, True), (132, False)])
def test_positions_of_stage_two_past_the_limit_are_said_once(limit, warns, packed, warnings):
    model = model_of_limit(limit)
    batch = tiny_batch(model.config, [[3, "tile", 1, "tile"], [5]])
    assert batch["input_ids"].shape == (2, 12)  # 12 + 2·60 = 132 in stage two
    if packed:
        rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
        batch = {"input_ids": torch.cat(rows)[None], "pixel_values": batch["pixel_values"], "position_ids": positions}
    with torch.no_grad():
        for _ in range(2):
            model(**batch, use_cache=False)
    assert len(warnings()) == warns
    if warns:
        assert "exceed 131" in warnings()[0]
        assert "`max_position_embeddings`" in warnings()[0]


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("limit", [72, 74, 75])
def test_positions_that_the_answer_takes_past_the_limit_are_said(limit, cache, warnings):
    model = model_of_limit(limit)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    past = cache(config=model.config.text_config, **({"max_cache_len": 90} if cache is StaticCache else {}))
    said = []
    with torch.no_grad():
        for step in range(6):
            inputs = batch if step == 0 else {"input_ids": torch.tensor([[20]])}
            model(**inputs, cache=past)
            said.append(len(warnings()))
    # 69 positions after the prompt, one more for each step; a static cache's length is not read
    first = limit - 69 + 1 if cache is DynamicCache else 6
    assert said == [int(step >= first) for step in range(6)]


def test_positions_that_a_crop_frees_are_counted_anew(warnings):
    model = model_of_limit(69)
    past, said = DynamicCache(config=model.config.text_config), []
    with torch.no_grad():
        model(**tiny_batch(model.config, [[3, "tile", 2]]), cache=past)  # 69 positions
        past.crop(-1)
        for _ in range(2):
            model(input_ids=torch.tensor([[20]]), cache=past)
            said.append(len(warnings()))
    assert said == [0, 1]


def test_kept_positions_pass_the_limit_where_stage_one_does(warnings):
    model = model_of_limit(9, **KEPT)
    past, said = DynamicCache(config=model.config.text_config), []
    with torch.no_grad():
        for inputs in (tiny_batch(model.config, [[3, "tile", 2]]), *[{"input_ids": torch.tensor([[20]])}] * 2):
            model(**inputs, cache=past)
            said.append(len(warnings()))
    assert said == [0, 1, 1]  # 9 positions after the prompt


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "dynamic", "factor": 3.0}, 192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            64,
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 16,
            },
            64,
        ),
    ],
)
def test_the_limit_of_positions_knows_how_the_rotary_embedding_is_scaled(rope, limit):
    parameters = {"rope_theta": 10000.0, "rope_type": "default", **rope}
    config = tiny_config("llama", text_config={"max_position_embeddings": 64, "rope_parameters": parameters})
    assert config.position_limit == limit


# ---- Placeholders without pixels


def test_placeholders_without_pixels_are_said_once(warnings):
    model = tiny_model("llama")
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    del batch["pixel_values"]
    with torch.no_grad():
        model(**batch)
        model(**batch)
        model.generate(**batch, max_new_tokens=2)
    assert len(warnings()) == 1
    assert f"token {IMAGE_TOKEN}" in warnings()[0]
    assert "`pixel_values`" in warnings()[0]


@pytest.mark.parametrize("kwargs", [{}, LVTC], ids=["lvtc off", "lvtc on"])
def test_no_placeholder_is_missed_where_pixels_came_earlier(kwargs, warnings):
    model = tiny_model("llama", **kwargs)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    with torch.no_grad():
        model.generate(**batch, max_new_tokens=3)
        model.generate(**batch, max_new_tokens=3, num_beams=2)
        model.generate(**batch, max_new_tokens=3, cache_implementation="static", disable_compile=True)
        images = model.get_image_features(batch["pixel_values"])
        text = {key: batch[key] for key in ("input_ids", "attention_mask")}
        outputs = model(**text, mm_encoder_outputs={"image": images})
        # a second turn may hold the token: what the cache has seen is not looked up
        model(input_ids=torch.tensor([[7, IMAGE_TOKEN]]), cache=outputs.cache)
        model(**tiny_batch(model.config, [[9]]))
    assert warnings() == []


@pytest.mark.slow
def test_looking_for_placeholders_does_not_break_a_graph(warnings):
    model = tiny_model("llama")
    batch = tiny_batch(model.config, [[6]])
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        torch.testing.assert_close(compiled(**batch, use_cache=False).logits, expected, **CLOSE)
    assert warnings() == []


# ---- Caches


def prefilled(model, layout=(3, "tile", 5)):
    batch = tiny_batch(model.config, [list(layout)])
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**batch, cache=cache)
    return batch, cache


def rebuilt(cache):
    again = DynamicCache()
    for i, layer in enumerate(cache.layers):
        again.update(layer.keys, layer.values, i)
    return again


def test_a_cache_rebuilt_from_keys_and_values_raises():
    model = tiny_model("llama", **LVTC)
    _, cache = prefilled(model)
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    for plain in (rebuilt(cache), DynamicCache(pairs)):
        with pytest.raises(ValueError, match=r"12 tokens before LVTC's expansion and 24 after it.*Pass the cache"):
            model(input_ids=torch.tensor([[20]]), cache=plain)
        with pytest.raises(ValueError, match="12 tokens before"):
            model(**tiny_batch(model.config, [["tile", 2]]), cache=plain)


def test_a_rebuilt_cache_of_text_goes_on():
    model = tiny_model("llama", **LVTC)
    _, cache = prefilled(model, (4,))
    token = torch.tensor([[20]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=token, cache=rebuilt(cache)).logits,
            model(input_ids=token, cache=cache).logits,
            **CLOSE,
        )


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_that_was_cropped_still_knows_where_its_image_is(carry):
    model = tiny_model("llama", **LVTC)
    _, cache = prefilled(model)
    cache.crop(-2)
    cache = carry(cache)
    with pytest.raises(ValueError, match=r"cropped by at most 3 tokens .* got 4"):
        cache.crop(-4)
    cache.crop(-3)
    with torch.no_grad():
        model(input_ids=torch.tensor([[20]]), cache=cache)


def lengths(cache):
    return [cache.get_seq_length(i) for i in range(len(cache.layers))]


@pytest.mark.parametrize("decoded", [0, 2])
def test_a_cache_cropped_twice_is_not_cropped_into_an_image(decoded):
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    with torch.no_grad():
        for _ in range(decoded):
            model(input_ids=torch.tensor([[20]]), cache=cache)
    cache.crop(-3 - decoded)
    before = lengths(cache)
    with pytest.raises(ValueError, match=r"cropped by at most 2 tokens .* got 3"):
        cache.crop(-3)
    assert lengths(cache) == before
    cache.crop(-2)
    with pytest.raises(ValueError, match=r"cropped by at most 0 tokens .* got 1"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="got 106"):
        cache.crop(-106)
    kept = batch["input_ids"][:, :-5]
    token = torch.tensor([[20]])
    with torch.no_grad():
        found = model(input_ids=token, cache=cache).logits[:, -1]
        whole = model(input_ids=torch.cat([kept, token], 1), pixel_values=batch["pixel_values"], use_cache=False)
    torch.testing.assert_close(found, whole.logits[:, -1], **CLOSE)


def test_a_length_to_keep_is_no_way_to_crop_two_stages():
    _, cache = prefilled(tiny_model("llama", **LVTC))
    before = lengths(cache)
    with pytest.raises(ValueError, match="by a negative number, the tokens to remove, got 10"):
        cache.crop(10)
    assert lengths(cache) == before


@pytest.mark.parametrize(("room", "fits"), [(24, True), (23, False)])
def test_a_static_cache_of_exactly_stage_two_s_length_fits(room, fits):
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 5]])  # 24 tokens after the expansion
    cache = StaticCache(model.config.text_config, max_cache_len=room)
    with torch.no_grad():
        if fits:
            expected = model(**batch, use_cache=False).logits
            torch.testing.assert_close(model(**batch, cache=cache).logits, expected, **CLOSE)
        else:
            with pytest.raises(ValueError, match=r"room for 23 tokens.* need 24"):
                model(**batch, cache=cache)
