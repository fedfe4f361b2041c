"""Sizes: each tile has its own number of tokens before and after a layer, tied to a loop over segments."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.utils import is_optimum_quanto_available

from dial_cases import SIZES, dial, dial_batch, dial_logits, dial_model, split_dial
from internvlx_hf.modeling.outputs import CACHE
from lvtc_cases import (
    CLOSE,
    GREEDY,
    KEPT,
    NEW,
    SLIDING,
    assert_same_step,
    bounds_of,
    loss_and_gradients,
    new_tokens,
    pack,
    unpack_four_bits,
)
from versions import needs_transformers

MIXED = [[3, "16", 2, "4:16", 4], [5], ["4", 2, "16:4", 1, "16:0", "16:1", 3], ["16:0", 2], [1, "4:16", "16:4", 2]]
MODELS = {
    "one boundary": {**dial(2, 2)},
    "merged after the expansion": {**dial(2, 3)},
    "merged before the expansion": {**dial(3, 1, insert_start=0)},
    "an insertion between the boundaries": {**dial(3, 1, insert_start=2)},
    "kept positions": {**dial(3, 2, **KEPT)},
    "pixel shuffle": {**dial(), "projector_config": {"projector_type": "pixel_shuffle"}},
    "sliding windows": {**dial(3, 1), "text": "mistral", "text_config": SLIDING["mistral"]},
    "no growth": {"tokens_per_tile": ["16", "4", "16:4", "16:0", "16:1"], "merge_layer": 2},
    "plain": {"tokens_per_tile": ["16", "4", "1"]},
    "grown by default": {**dial(tokens_per_tile=["4:16", "16", "16:4", "4"]), "downsample_ratio": 0.25},
}


def layouts_of(config):
    """Those samples of `MIXED` for which the model has sizes, with a stand-in for each that it lacks."""
    names = config.tokens_per_tile
    return [[names[-1] if isinstance(part, str) and part not in names else part for part in row] for row in MIXED]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_mixed_sizes_equal_the_loop(name, side):
    model = dial_model(**MODELS[name])
    batch = dial_batch(model.config, layouts_of(model.config), padding_side=side)
    is_text = (batch["input_ids"] != model.config.image_token_id) & batch["attention_mask"].bool()
    with torch.no_grad():
        for arguments in ({"use_cache": False}, {}):
            logits = model(**batch, **arguments).logits
            for i, sample in enumerate(split_dial(batch, model.config)):
                want, _ = dial_logits(model, **{**sample, "input_ids": sample["input_ids"][0]})
                torch.testing.assert_close(logits[i][is_text[i]], want, **CLOSE)


@pytest.mark.parametrize("name", ["merged before the expansion", "an insertion between the boundaries"])
@torch.no_grad()
def test_a_masked_out_tile_is_as_if_it_were_not_there(name):
    model = dial_model(**MODELS[name])
    batch = dial_batch(model.config, [[3, "16:4", 2, "4:16", 4, "16:0", 1]])
    batch["attention_mask"][0, 3:19] = 0
    visible = batch["attention_mask"].bool()
    rest = {key: batch[key][1:] for key in ("pixel_values", "tile_sizes")}
    want = model(input_ids=batch["input_ids"][visible][None], **rest).logits[0]
    torch.testing.assert_close(model(**batch).logits[visible], want, **CLOSE)


@pytest.mark.parametrize("size", SIZES)
def test_one_size_for_all_tiles_equals_the_loop(size):
    model = dial_model(**MODELS["merged before the expansion"])
    batch = dial_batch(model.config, [[2, size, 1, size, 3]])
    ids = batch["input_ids"][0]
    with torch.no_grad():
        want, lengths = dial_logits(model, ids, batch["pixel_values"], batch["tile_sizes"])
        outputs = model(**batch)
        if size == SIZES[0]:  # the default
            del batch["tile_sizes"]
            torch.testing.assert_close(model(**batch).logits, outputs.logits)
    torch.testing.assert_close(outputs.logits[0, ids != model.config.image_token_id], want, **CLOSE)
    assert [outputs.cache.get_seq_length(layer) for layer in range(4)] == lengths


def test_keys_and_values_of_merged_and_dropped_tokens_are_freed():
    model = dial_model(**MODELS["merged before the expansion"])
    batch = dial_batch(model.config, [[2, "16:4", 1, "4:16", 1, "16:0", 2]])
    with torch.no_grad():
        cache = model(**batch).cache
    assert [cache.get_seq_length(layer) for layer in range(4)] == [42, 14, 14, 26]
    assert [layer.keys.shape[2] for layer in cache.layers] == [42, 14, 14, 26]


def training_dial(name):
    projector = {"drop_path_rate": 0.0, **MODELS[name].get("projector_config", {})}
    return dial_model(**{**MODELS[name], "projector_config": projector}).train()


def labelled_dial(model, layouts, **kwargs):
    """Labels on all text that follows text of the same sample."""
    batch = dial_batch(model.config, layouts, **kwargs)
    is_text = (batch["input_ids"] != model.config.image_token_id) & batch["attention_mask"].bool()
    follows = torch.nn.functional.pad(is_text[:, :-1], (1, 0)) & is_text
    return batch | {"labels": batch["input_ids"].where(follows, -100)}


@pytest.mark.parametrize("name", ["merged before the expansion", "kept positions", "plain", "pixel shuffle"])
def test_gradients_equal_the_loops_with_checkpointing_too(name):
    model = training_dial(name)
    batch = labelled_dial(model, layouts_of(model.config))
    loss, count = 0, int((batch["labels"][:, 1:] != -100).sum())
    for sample in split_dial(batch, model.config):
        ids = sample["input_ids"][0]
        logits, _ = dial_logits(model, **{**sample, "input_ids": ids})
        is_text = ids != model.config.image_token_id
        follows = is_text[:-1] & is_text[1:]  # text that the row before it, text too, predicts
        own = logits[: int(is_text[:-1].sum())][is_text[1:][is_text[:-1]]]
        loss = loss + torch.nn.functional.cross_entropy(own, ids[1:][follows], reduction="sum")
    loss = loss / count
    loss.backward()
    want = loss.detach(), {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    assert_same_step(loss_and_gradients(model, batch), want)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(loss_and_gradients(model, batch), want)


def test_packed_samples_do_not_see_each_other():
    model = training_dial("merged before the expansion")
    batch = labelled_dial(model, layouts_of(model.config))
    want = loss_and_gradients(model, batch)
    packed = pack([batch]) | {"tile_sizes": batch["tile_sizes"]}
    assert_same_step(loss_and_gradients(model, packed), want)
    bounds = bounds_of(batch)
    assert_same_step(loss_and_gradients(model, packed, **bounds), want)


def greedy_by_loop(model, sample, steps):
    ids, start = sample["input_ids"][0], sample["input_ids"].shape[1]
    for _ in range(steps):
        logits = dial_logits(model, **{**sample, "input_ids": ids})[0][-1]
        logits[model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None]])
    return ids[start:]


GENERATIONS = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("how", GENERATIONS)
@pytest.mark.parametrize("name", ["merged before the expansion", "kept positions", "plain"])
@torch.no_grad()
def test_generated_tokens_equal_the_loops(name, how):
    model = dial_model(**MODELS[name])
    batch = dial_batch(model.config, layouts_of(model.config))
    samples = split_dial(batch, model.config)
    if how == "prompt lookup":
        batch, samples = samples[2], samples[2:3]
    got = new_tokens(model, batch, **GENERATIONS[how])
    for own, sample in zip(got, samples, strict=True):
        assert own.tolist() == greedy_by_loop(model, sample, NEW).tolist()


@needs_transformers("5.23", "beams get each other's images")
@pytest.mark.parametrize("name", ["merged before the expansion", "plain"])
@torch.no_grad()
def test_beams_of_mixed_sizes_equal_those_of_each_sample_alone(name):
    model = dial_model(**MODELS[name])
    batch = dial_batch(model.config, layouts_of(model.config))
    together = new_tokens(model, batch, num_beams=3, num_return_sequences=2)
    for i, sample in enumerate(split_dial(batch, model.config)):
        torch.testing.assert_close(
            together[2 * i : 2 * i + 2], new_tokens(model, sample, num_beams=3, num_return_sequences=2)
        )


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["merged before the expansion", "one boundary", "kept positions"])
@torch.no_grad()
def test_a_second_turn_of_other_sizes_on_a_filled_cache(name, implementation):
    model = dial_model(**MODELS[name])
    turns = [
        [[2, "16:4", 3], [4, "4:16", "16:0", 1]],
        [["16", "4:16", 2], [1, "16:4", 2]],
        [[3], [3]],
        [["16", 2], ["4", "16:0", 2]],
    ]
    batches = [dial_batch(model.config, turn, seed=seed) for seed, turn in enumerate(turns)]
    cache = DynamicCache(config=model.config.text_config)
    if implementation == "static":
        cache = StaticCache(config=model.config.text_config, max_cache_len=160)
    masks, logits = [], None
    for batch in batches:
        masks.append(batch["attention_mask"])
        logits = model(**{**batch, "attention_mask": torch.cat(masks, 1), CACHE: cache}).logits
    for i in range(2):
        parts = [split_dial(batch, model.config)[i] for batch in batches]
        whole = {
            key: torch.cat([part[key] for part in parts if key in part], 1 if key == "input_ids" else 0)
            for key in ("input_ids", "pixel_values", "tile_sizes")
        }
        want, _ = dial_logits(model, **{**whole, "input_ids": whole["input_ids"][0]})
        torch.testing.assert_close(logits[i, -1], want[-1], **CLOSE)


@pytest.mark.parametrize("seed", [0, 5], ids=["same", "other"])
@torch.no_grad()
def test_assisted_decoding_equals_greedy_decoding(seed):
    model, assistant = (dial_model(**MODELS["merged before the expansion"], seed=number) for number in (0, seed))
    batch = dial_batch(model.config, MIXED[2:3])
    assert torch.equal(new_tokens(model, batch, assistant_model=assistant), new_tokens(model, batch))


@needs_transformers("5.18", "`generate` does not know `mm_encoder_outputs`")
@torch.no_grad()
def test_features_that_are_made_ahead_carry_the_sizes():
    model = dial_model(**MODELS["merged before the expansion"])
    batch = dial_batch(model.config, MIXED)
    want = new_tokens(model, batch)
    tiles = {name: batch.pop(name) for name in ("pixel_values", "tile_sizes")}
    features = model.get_image_features(**tiles, return_dict=True)
    assert torch.equal(new_tokens(model, batch, mm_encoder_outputs={"image": features}), want)


@pytest.mark.skipif(not is_optimum_quanto_available(), reason="needs optimum-quanto")
@torch.no_grad()
def test_a_quantized_cache_has_each_stage_s_length_and_the_first_logits(monkeypatch):
    from optimum.quanto.library.extensions.cpp import ext

    # in place of its C++ extension, which takes a minute to compile
    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack_four_bits))
    model = dial_model(**MODELS["merged before the expansion"])
    batch = dial_batch(model.config, MIXED[2:3])
    settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    quantized = {"cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4}}
    got = model.generate(**batch, **settings, **quantized, cache_implementation="quantized")
    want = model.generate(**batch, **settings)
    torch.testing.assert_close(got.logits[0], want.logits[0], **CLOSE)
    lengths = [[getattr(each, CACHE).get_seq_length(layer) for layer in range(4)] for each in (got, want)]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@torch.no_grad()
def test_a_cache_with_merged_tiles_is_copied_reordered_and_cropped_as_one(implementation):
    model = dial_model(**MODELS["merged before the expansion"])
    batch = dial_batch(model.config, [["16:4", 1, "4:16", 3], ["4:16", "16:0", 4]])
    cache = DynamicCache(config=model.config.text_config)
    if implementation == "static":
        cache = StaticCache(config=model.config.text_config, max_cache_len=80)
    logits = model(**batch, **{CACHE: cache}).logits[:, -1]
    copied = pickle.loads(pickle.dumps(cache)) if implementation == "dynamic" else cache
    copied.reorder_cache(torch.tensor([1, 0]))
    step = {"input_ids": torch.tensor([[11], [11]])}
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    swapped = model(**step, attention_mask=mask.flip(0), **{CACHE: copied}).logits[:, -1]
    whole = {**batch, "input_ids": torch.cat([batch["input_ids"], step["input_ids"]], 1), "attention_mask": mask}
    torch.testing.assert_close(swapped.flip(0), model(**whole, use_cache=False).logits[:, -1], **CLOSE)
    if implementation == "dynamic":
        cache.crop(-1)
        step = {"input_ids": batch["input_ids"][:, -1:], "attention_mask": batch["attention_mask"]}
        torch.testing.assert_close(model(**step, **{CACHE: cache}).logits[:, -1], logits, **CLOSE)
        with pytest.raises(ValueError, match="can be cropped by at most"):
            cache.crop(-5)
