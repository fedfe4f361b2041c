"""LVTC with a cache: every way to decode gives what a forward over the whole sequence gives.

Tolerances: as in test_lvtc.py, 1e-4 for logits of size 1 to 5 in float32, summed in another order. Where tokens are compared,
they are equal: the tiny models' best and second best logits lie far enough apart.
"""

import copy
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import varlen  # noqa: F401  registers the attention of that name
from flash_stand_in import use_flash_stand_in
from lvtc_cases import (
    CLOSE,
    GREEDY,
    KEPT,
    KINDS,
    MIXED,
    NEW,
    UNPADDED,
    lvtc,
    model_of_kind,
    new_tokens,
    next_turn,
    rope_model,
    uncached,
)
from one_file import reference_logits
from tiny import IMAGE_TOKEN, LVTC, TEXT_MODELS, split_batch, tiny_batch, tiny_model
from versions import needs_transformers


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def reference_tokens(model, batch):
    """Greedy tokens of every sample, alone and without a cache, by the slow version."""
    rows = []
    for sample in split_batch(batch, model.config):
        ids = sample["input_ids"][0]
        for _ in range(NEW):
            logits, _ = reference_logits(model, ids, sample.get("pixel_values"))
            best = logits[-1]
            best[[IMAGE_TOKEN, model.config.text_config.eos_token_id]] = -torch.inf  # as `generate` and GREEDY do
            ids = torch.cat([ids, best.argmax()[None]])
        rows.append(ids[-NEW:])
    return torch.stack(rows)


def joined(config, first, second):
    """Two turns as one long prompt, the padding of the second in the middle; tiles in the order of the samples."""
    both = {key: torch.cat([first[key], second[key]], dim=1) for key in ("input_ids", "attention_mask")}
    tiles = []
    taken = [0, 0]
    for row in range(len(first["input_ids"])):
        for turn, part in enumerate((first, second)):
            count = int((part["input_ids"][row] == IMAGE_TOKEN).sum()) // config.image_seq_length
            tiles.append(part.get("pixel_values", torch.empty(0, 3, 32, 32))[taken[turn] :][:count])
            taken[turn] += count
    return both | {"pixel_values": torch.cat(tiles)}


# ---- generate


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *(pytest.param(partial(tiny_model, text, **LVTC), id=text) for text in TEXT_MODELS),
        *(pytest.param(partial(model_of_kind, kind), id=kind) for kind in KINDS[1:]),
        pytest.param(partial(tiny_model, "llama", **lvtc(4, 2)), id="forward compression"),
        pytest.param(partial(tiny_model, "llama", **lvtc(**KEPT)), id="kept positions"),
        pytest.param(partial(tiny_model, "llama"), id="one stage"),
    ],
)
def test_greedy_decoding_of_a_left_padded_batch_equals_the_slow_reference(model):
    model = model()
    batch = tiny_batch(model.config, MIXED)
    expected = reference_tokens(model, batch)
    assert expected.unique().numel() > 4  # an answer of one repeated token would prove little
    assert torch.equal(new_tokens(model, batch), expected)
    assert torch.equal(new_tokens(model, batch, use_cache=False), expected)
    assert torch.equal(new_tokens(model, batch, cache_implementation="static", disable_compile=True), expected)
    if model.config.text_config.model_type == "llama":
        model.set_attn_implementation({"text_config": "varlen"})  # flash attention's interface
        assert torch.equal(new_tokens(model, batch), expected)


def decode_with(model, batch, mode, use_cache):
    torch.manual_seed(0)
    settings = {
        "sampling": {"do_sample": True, "temperature": 2.0},
        "several samples": {"do_sample": True, "num_return_sequences": 3},
        "beams": {"num_beams": 3, "num_return_sequences": 2},
        "sampled beams": {"num_beams": 3, "do_sample": True},
    }[mode]
    settings = {**GREEDY, "use_cache": use_cache, "return_dict_in_generate": True, "output_scores": True, **settings}
    return model.generate(**batch, **settings)


needs_uncached_beams = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="an older transformers' beams without a cache mix the images up, with any model",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        "sampling",
        "several samples",
        pytest.param("beams", marks=needs_uncached_beams),
        pytest.param("sampled beams", marks=needs_uncached_beams),
    ],
)
@pytest.mark.parametrize("layouts", [MIXED, [["tile", "tile", 2], [3, "tile", "tile", "tile", 1]]])
def test_decoding_is_the_same_with_and_without_a_cache(mode, layouts):
    """Beams and samples repeat a row's tiles together, also those of rows with several."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, layouts)
    with_cache, without = (decode_with(model, batch, mode, use_cache) for use_cache in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    for a, b in zip(with_cache.scores, without.scores, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("settings", [{}, LVTC], ids=["one stage", "LVTC"])
def test_beams_find_the_best_continuation_of_each_sample_alone(settings):
    model = tiny_model("llama", **settings)
    batch = tiny_batch(model.config, [["tile", "tile", 2], [9], [3, "tile", 1, "tile", "tile", 1]])
    together = new_tokens(model, batch, num_beams=4)
    for row, sample in zip(together, split_batch(batch, model.config), strict=True):
        assert torch.equal(row, new_tokens(model, sample, num_beams=4)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_lookup_and_assisted_decoding_equal_greedy_decoding(kind):
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, [[3, "tile", 2, "tile", 1]])
    # the prompt ends as it began, so that there is something to look up
    batch["input_ids"] = torch.cat([batch["input_ids"], batch["input_ids"][:, :3], batch["input_ids"][:, :3]], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    expected = new_tokens(model, batch)
    assert torch.equal(new_tokens(model, batch, prompt_lookup_num_tokens=3), expected)
    same, other = model_of_kind(kind), tiny_model("qwen2", seed=5, **LVTC)
    for assistant in (same, other):
        assert torch.equal(new_tokens(model, batch, assistant_model=assistant), expected)


@needs_transformers("5.18", "`generate` does not know `mm_encoder_outputs`")
def test_assisted_decoding_with_a_text_model_equals_greedy_decoding():
    """It takes placeholders for text, so it guesses badly, but no harm is done."""
    model = tiny_model("llama", **LVTC)
    settings = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    assistant = LlamaForCausalLM(LlamaConfig(**settings, num_attention_heads=2)).eval()
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    features = {"image": model.get_image_features(batch.pop("pixel_values"), return_dict=True)}
    expected = new_tokens(model, batch, mm_encoder_outputs=copy.deepcopy(features))
    generated = new_tokens(model, batch, mm_encoder_outputs=features, assistant_model=assistant)
    assert torch.equal(generated, expected)


@needs_transformers("5.24", "assisted decoding takes no static cache")
@pytest.mark.parametrize("first", ["tile", 9], ids=["image", "text"])
def test_drafts_are_taken_back_from_a_static_cache(first):
    """An assistant's: with prompt lookup, 5.24.0 drafts one token more than its cache has room for, in native models too."""
    model, assistant = tiny_model("llama", **LVTC), tiny_model("llama")
    batch = tiny_batch(model.config, [[first, 7, 7, 7, 7, 7]])
    settings = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(new_tokens(model, batch, assistant_model=assistant, **settings), new_tokens(model, batch))


@pytest.mark.parametrize("settings", [{}, LVTC], ids=["one stage", "LVTC"])
def test_generating_from_embeddings_equals_generating_from_ids(settings):
    model = tiny_model("llama", **settings)
    batch = tiny_batch(model.config, MIXED)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    inputs = {"attention_mask": batch["attention_mask"], "pixel_values": batch["pixel_values"]}
    for beams in (1, 2):
        found = model.generate(inputs_embeds=embeds, **inputs, **GREEDY, num_beams=beams)
        assert torch.equal(found, new_tokens(model, batch, num_beams=beams))


@pytest.mark.parametrize("chunk", [3, 4, 64])
@pytest.mark.parametrize("settings", [LVTC, lvtc(hr_projector_type=None, num_lr_projectors=1)])
def test_a_chunked_prefill_with_images_raises_and_names_the_setting(chunk, settings):
    model = tiny_model("llama", **settings)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        new_tokens(model, batch, prefill_chunk_size=chunk)


def test_a_chunked_prefill_of_text_equals_a_whole_one():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[13], [9]])
    assert torch.equal(new_tokens(model, batch, prefill_chunk_size=4), new_tokens(model, batch))


# ---- Decoding by hand


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", [None, DynamicCache, partial(StaticCache, max_cache_len=64)])
@pytest.mark.parametrize("mask", ["left", "right", None])
def test_a_hand_written_decode_loop_equals_the_uncached_logits(kind, cache, mask):
    """Without a mask, rows of one length, but of 0, 1 and 2 tiles: stage two needs a mask although the caller has none."""
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, MIXED, padding_side=mask) if mask else tiny_batch(model.config, UNPADDED)
    if not mask:
        del batch["attention_mask"]
    outputs = model(**batch, cache=cache and cache(config=model.config.text_config))
    for _ in range(NEW):
        token = outputs.logits[:, -1:, 10:].argmax(-1) + 10  # no special one
        batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
        if mask:
            batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(token)], dim=1)
        outputs = model(input_ids=token, attention_mask=batch.get("attention_mask"), cache=outputs.cache)
        torch.testing.assert_close(outputs.logits[:, -1], uncached(model, batch)[:, -1], **CLOSE)


@pytest.mark.parametrize("first", [["tile", 2], [5]], ids=["image", "text"])
def test_a_cache_without_a_configuration_works(first):
    """Its layers exist only when they are filled."""
    model = tiny_model("llama", **LVTC)
    turns = tiny_batch(model.config, [first]), tiny_batch(model.config, [[3, "tile", 2]], seed=1)
    cache = DynamicCache()
    for turn in turns:
        logits = model(input_ids=turn["input_ids"], pixel_values=turn.get("pixel_values"), cache=cache).logits
    both = {
        "input_ids": torch.cat([turn["input_ids"] for turn in turns], dim=1),
        "pixel_values": torch.cat([turn["pixel_values"] for turn in turns if "pixel_values" in turn]),
    }
    torch.testing.assert_close(logits[:, -1], uncached(model, both)[:, -1], **CLOSE)


def test_two_generations_may_interleave_on_one_model():
    model = tiny_model("llama", **LVTC)
    prompts = [
        tiny_batch(model.config, [layout], seed=i) for i, layout in enumerate([[2, "tile", 3], ["tile", 1, "tile", 4]])
    ]
    expected = [new_tokens(model, prompt) for prompt in prompts]
    caches, tokens = [None, None], [[], []]
    inputs = [dict(prompt) for prompt in prompts]
    for _ in range(NEW):
        for i in (0, 1):
            outputs = model(**inputs[i], cache=caches[i])
            outputs.logits[:, -1, [IMAGE_TOKEN, model.config.text_config.eos_token_id]] = -torch.inf
            token = outputs.logits[:, -1:].argmax(-1)
            caches[i] = outputs.cache
            mask = torch.nn.functional.pad(inputs[i]["attention_mask"], (0, 1), value=1)
            inputs[i] = {"input_ids": token, "attention_mask": mask}
            tokens[i].append(token)
    for got, want in zip(tokens, expected, strict=True):
        assert torch.equal(torch.cat(got, dim=1), want)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_the_stages_keep_their_own_rope_state_while_decoding(rope):
    """Stage one stays below the limit of 24 tokens and stage two above, so that within a stage nothing changes."""
    model = rope_model(rope)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 1]])
    outputs = model(**batch)
    step = model(input_ids=torch.tensor([[11]]), cache=outputs.cache)
    ids = torch.nn.functional.pad(batch["input_ids"], (0, 1), value=11)
    expected, lengths = reference_logits(model, ids[0], batch["pixel_values"])
    assert lengths[0] <= 24 < lengths[1]
    if (
        rope == "dynamic"
    ):  # its frequencies follow the longest row, so that older keys are off, as transformers' own are
        assert not torch.allclose(step.logits[0, -1], expected[-1], **CLOSE)
        assert (step.logits[0, -1] - expected[-1]).abs().max() < 1.0
    else:
        torch.testing.assert_close(step.logits[0, -1], expected[-1], **CLOSE)
    fresh = rope_model(rope)
    torch.testing.assert_close(
        uncached(model, {"input_ids": ids, "pixel_values": batch["pixel_values"]}),
        uncached(fresh, {"input_ids": ids, "pixel_values": batch["pixel_values"]}),
        **CLOSE,
    )


# ---- Several turns

# With sliding windows, padding between the turns counts as tokens, in transformers' own masks too: one sample only.
TURNS = {
    "an image in both": ([[3, "tile", 2]], [[2, "tile", 1]]),
    "text first": ([[6]], [[2, "tile", "tile", 1]]),
    "text second": ([[3, "tile", 2]], [[4]]),
    "a batch, padded in both turns": (
        [[3, "tile", 2], [4], ["tile", "tile", 1]],
        [[2, "tile", 1], [1, "tile", "tile", 3], [5]],
    ),
    "a batch, text second": ([[3, "tile", 2], [4], ["tile", "tile", 1]], [[6], [2], [4]]),
    "a batch, text first": ([[6], [2], [4]], [[2, "tile", 1], [3], [1, "tile", "tile", 3]]),
    "a batch, padded in the second turn": ([[8], [3, "tile", 1]], [[1, "tile", 3], [4]]),
    "a batch that grows apart in both": ([[3, "tile", 1], [8], [8]], [[2, "tile", 2], ["tile", 4], [8]]),
}


TURNING = {
    **{kind: partial(model_of_kind, kind) for kind in KINDS},
    "kept positions": partial(tiny_model, "llama", **lvtc(**KEPT)),
    "one stage": partial(tiny_model, "llama", downsample_ratio=0.25),
}


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize(
    ("kind", "padding_side", "attention"),
    [
        *((kind, "left", "sdpa") for kind in TURNING),
        *((kind, "right", "sdpa") for kind in TURNING if "sliding" not in kind),
        (KINDS[0], "left", "flash"),
    ],
)
def test_a_second_turn_with_a_new_image_on_the_old_cache_equals_one_long_prompt(
    kind, turns, padding_side, attention, monkeypatch
):
    if "sliding" in kind and "batch" in turns:
        return
    model = TURNING[kind]()
    first, second = (
        tiny_batch(model.config, layouts, seed=seed, padding_side=side)
        for seed, (layouts, side) in enumerate(zip(TURNS[turns], ("left", padding_side), strict=True))
    )
    both = joined(model.config, first, second)
    visible = second["attention_mask"].bool()
    expected = uncached(model, both)[:, -visible.shape[1] :]
    token = torch.full((len(visible), 1), 11)
    mask = torch.nn.functional.pad(both["attention_mask"], (0, 1), value=1)
    longer = both | {"input_ids": torch.cat([both["input_ids"], token], dim=1), "attention_mask": mask}
    after = uncached(model, longer)[:, -1]
    if attention == "flash":
        use_flash_stand_in(monkeypatch, model)
    cache = model(**first).cache
    logits = model(**(second | {"attention_mask": both["attention_mask"]}), cache=cache).logits
    torch.testing.assert_close(logits[visible], expected[visible], **CLOSE)
    logits = model(input_ids=token, attention_mask=mask, cache=cache).logits
    torch.testing.assert_close(logits[:, -1], after, **CLOSE)
    if both["attention_mask"].all():
        for turn in (first, second):
            del turn["attention_mask"]
        logits = model(**second, cache=model(**first).cache).logits
        torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("settings", [{}, LVTC], ids=["one stage", "LVTC"])
def test_generate_continues_a_conversation_with_a_new_image_on_the_cache_of_the_last_one(settings, static):
    model = tiny_model("llama", **settings)
    first, second = (next_turn(model, layouts, seed) for seed, layouts in enumerate(TURNS["an image in both"]))
    cache = (
        StaticCache(model.config.text_config, max_cache_len=96)
        if static
        else DynamicCache(config=model.config.text_config)
    )
    settings = {**GREEDY, "cache": cache}
    answer = model.generate(**first, **settings)
    ids = torch.cat([answer, second["input_ids"]], dim=1)
    continued = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second["pixel_values"], **settings
    )
    pixel_values = torch.cat([first["pixel_values"], second["pixel_values"]])
    expected = model.generate(input_ids=ids, pixel_values=pixel_values, **GREEDY)
    assert torch.equal(continued, expected)
