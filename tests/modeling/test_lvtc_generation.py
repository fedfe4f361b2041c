"""LVTC with a cache: every way to decode gives what a forward over the whole sequence gives.

Tolerances: as in test_lvtc.py, 1e-4 for logits of size 1 to 5 in float32, summed in another order. Where tokens are compared,
they are equal: the tiny models' best and second best logits lie far enough apart.
"""

import copy
import io
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache, StaticCache
from transformers.utils import is_optimum_quanto_available

from lvtc_cases import CLOSE, MIXED, SLIDING, lvtc, rope_model
from lvtc_reference import reference_logits
from tiny import IMAGE_TOKEN, LVTC, PAD, TEXT_MODELS, split_batch, tiny_batch, tiny_model
from versions import needs_transformers

NEW = 8
# A generated placeholder would be one without an image wherever the whole sequence is run again.
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
COMPILED = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager")}
COMPILED["compile_config"]._compile_all_devices = True
KINDS = ["full attention", "mistral, sliding", "qwen2, sliding and full"]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def model_of_kind(kind):
    """The windows of 7 tokens are passed in both stages, and in stage two by a tile alone."""
    text = {"full attention": "llama", "mistral, sliding": "mistral", "qwen2, sliding and full": "qwen2"}[kind]
    return tiny_model(text, text_config=SLIDING.get(text, {}), **LVTC)


def new_tokens(model, batch, **kwargs):
    return model.generate(**batch, **{**GREEDY, **kwargs})[:, batch["input_ids"].shape[1] :]


def reference_tokens(model, batch):
    """Greedy tokens of every sample, alone and without a cache, by the slow version."""
    rows = []
    for sample in split_batch(batch, model.config):
        ids = sample["input_ids"][0]
        for _ in range(NEW):
            logits, _ = reference_logits(model, ids, sample.get("pixel_values"))
            best = logits[-1]
            best[[IMAGE_TOKEN, model.config.text_config.eos_token_id]] = -torch.inf  # as GREEDY says
            ids = torch.cat([ids, best.argmax()[None]])
        rows.append(ids[-NEW:])
    return torch.stack(rows)


def next_turn(model, layouts, seed=1):
    return tiny_batch(model.config, layouts, seed=seed)


def uncached(model, batch):
    return model(**batch, use_cache=False).logits


def joined(first, second):
    """Two turns as one long prompt, the padding of the second in the middle; tiles in the order of the samples."""
    both = {key: torch.cat([first[key], second[key]], dim=1) for key in ("input_ids", "attention_mask")}
    tiles = []
    taken = [0, 0]
    for row in range(len(first["input_ids"])):
        for turn, part in enumerate((first, second)):
            count = int((part["input_ids"][row] == 5).sum()) // 4
            tiles.append(part.get("pixel_values", torch.empty(0, 3, 32, 32))[taken[turn] :][:count])
            taken[turn] += count
    return both | {"pixel_values": torch.cat(tiles)}


# ---- generate


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_greedy_decoding_of_a_left_padded_batch_equals_the_slow_reference(text):
    model = tiny_model(text, **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = reference_tokens(model, batch)
    assert expected.unique().numel() > 4  # an answer of one repeated token would prove little
    assert torch.equal(new_tokens(model, batch), expected)
    assert torch.equal(new_tokens(model, batch, use_cache=False), expected)


def test_greedy_decoding_through_flash_attention_s_interface_equals_the_slow_reference():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = reference_tokens(model, batch)
    model.set_attn_implementation({"text_config": "varlen"})
    assert torch.equal(new_tokens(model, batch), expected)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_greedy_decoding_with_sliding_windows_equals_the_slow_reference(kind):
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, MIXED)
    assert torch.equal(new_tokens(model, batch), reference_tokens(model, batch))


def test_greedy_decoding_with_forward_compression_equals_the_slow_reference():
    model = tiny_model("llama", **lvtc(4, 2))
    batch = tiny_batch(model.config, MIXED)
    expected = reference_tokens(model, batch)
    assert torch.equal(new_tokens(model, batch), expected)
    assert torch.equal(new_tokens(model, batch, cache_implementation="static", disable_compile=True), expected)


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


def test_beams_find_the_best_continuation_of_each_sample_alone():
    model = tiny_model("llama", **LVTC)
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


def test_generating_from_embeddings_equals_generating_from_ids():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    inputs = {"attention_mask": batch["attention_mask"], "pixel_values": batch["pixel_values"]}
    assert torch.equal(model.generate(inputs_embeds=embeds, **inputs, **GREEDY), expected)
    beams = {"num_beams": 2}
    expected = new_tokens(model, batch, **beams)
    assert torch.equal(model.generate(inputs_embeds=embeds, **inputs, **GREEDY, **beams), expected)


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_hand_written_decode_loop_with_a_mask_equals_the_uncached_logits(kind, padding_side):
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, MIXED, padding_side=padding_side)
    outputs = model(**batch)
    for _ in range(NEW):
        token = outputs.logits[:, -1:, 10:].argmax(-1) + 10  # no special one
        batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(token)], dim=1)
        outputs = model(
            input_ids=token, attention_mask=batch["attention_mask"], past_key_values=outputs.past_key_values
        )
        torch.testing.assert_close(outputs.logits[:, -1], uncached(model, batch)[:, -1], **CLOSE)


@pytest.mark.parametrize("cache", [None, DynamicCache, partial(StaticCache, max_cache_len=64)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hand_written_decode_loop_without_a_mask_equals_the_uncached_logits(kind, cache):
    """Rows of one length, but of 0, 1 and 2 tiles: stage two needs a mask although the caller has none."""
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, [[10], [3, "tile", 3], ["tile", 1, "tile", 1]])
    del batch["attention_mask"]
    if cache is not None:
        cache = cache(config=model.config.text_config)
    outputs = model(**batch, past_key_values=cache)
    for _ in range(NEW):
        token = outputs.logits[:, -1:, 10:].argmax(-1) + 10  # no special one
        batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
        outputs = model(input_ids=token, past_key_values=outputs.past_key_values)
        torch.testing.assert_close(outputs.logits[:, -1], uncached(model, batch)[:, -1], **CLOSE)


def test_a_cache_without_a_configuration_works():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    outputs = model(**batch, past_key_values=DynamicCache())
    token = torch.tensor([[11]])
    logits = model(input_ids=token, past_key_values=outputs.past_key_values).logits
    both = {"input_ids": torch.cat([batch["input_ids"], token], dim=1), "pixel_values": batch["pixel_values"]}
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
            outputs = model(**inputs[i], past_key_values=caches[i])
            outputs.logits[:, -1, [IMAGE_TOKEN, model.config.text_config.eos_token_id]] = -torch.inf
            token = outputs.logits[:, -1:].argmax(-1)
            caches[i] = outputs.past_key_values
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
    step = model(input_ids=torch.tensor([[11]]), past_key_values=outputs.past_key_values)
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
}


@pytest.mark.parametrize(
    ("kind", "turns"), [(kind, turns) for kind in KINDS for turns in TURNS if kind == KINDS[0] or "batch" not in turns]
)
def test_a_second_turn_with_a_new_image_on_the_old_cache_equals_one_long_prompt(kind, turns):
    model = model_of_kind(kind)
    first, second = (next_turn(model, layouts, seed) for seed, layouts in enumerate(TURNS[turns]))
    both = joined(first, second)
    cache = model(**first).past_key_values
    logits = model(**(second | {"attention_mask": both["attention_mask"]}), past_key_values=cache).logits
    visible = second["attention_mask"].bool()
    expected = uncached(model, both)[:, -visible.shape[1] :]
    torch.testing.assert_close(logits[visible], expected[visible], **CLOSE)
    token = torch.full((len(visible), 1), 11)
    mask = torch.nn.functional.pad(both["attention_mask"], (0, 1), value=1)
    logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
    longer = both | {"input_ids": torch.cat([both["input_ids"], token], dim=1), "attention_mask": mask}
    torch.testing.assert_close(logits[:, -1], uncached(model, longer)[:, -1], **CLOSE)


@pytest.mark.parametrize("turns", ["an image in both", "text first", "text second"])
def test_a_second_turn_without_a_mask_equals_one_long_prompt(turns):
    model = tiny_model("llama", **LVTC)
    first, second = (next_turn(model, layouts, seed) for seed, layouts in enumerate(TURNS[turns]))
    both = joined(first, second)
    for turn in (first, second, both):
        del turn["attention_mask"]
    cache = model(**first).past_key_values
    logits = model(**second, past_key_values=cache).logits
    torch.testing.assert_close(logits, uncached(model, both)[:, -logits.shape[1] :], **CLOSE)


@pytest.mark.parametrize("static", [False, True])
def test_generate_continues_a_conversation_with_a_new_image_on_the_cache_of_the_last_one(static):
    model = tiny_model("llama", **LVTC)
    first, second = (next_turn(model, layouts, seed) for seed, layouts in enumerate(TURNS["an image in both"]))
    cache = (
        StaticCache(model.config.text_config, max_cache_len=96)
        if static
        else DynamicCache(config=model.config.text_config)
    )
    settings = {**GREEDY, "past_key_values": cache}
    answer = model.generate(**first, **settings)
    ids = torch.cat([answer, second["input_ids"]], dim=1)
    continued = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second["pixel_values"], **settings
    )
    pixel_values = torch.cat([first["pixel_values"], second["pixel_values"]])
    expected = model.generate(input_ids=ids, pixel_values=pixel_values, **GREEDY)
    assert torch.equal(continued, expected)


# ---- What can be done to a cache


def prefilled(model, layouts=([3, "tile", 4], [9], ["tile", "tile", 5]), **kwargs):
    batch = tiny_batch(model.config, list(layouts), **kwargs)
    return batch, model(**batch).past_key_values


def step(model, batch, cache, rows=None, token=11):
    """Logits of one more token on the cache, and what they must be; `rows` says which sample each row is now."""
    rows = list(range(len(batch["input_ids"]))) if rows is None else rows
    samples = split_batch(batch, model.config)
    expected = []
    for row in rows:
        ids = torch.nn.functional.pad(samples[row]["input_ids"][0], (0, 1), value=token)
        expected.append(reference_logits(model, ids, samples[row].get("pixel_values"))[0][-1])
    mask = torch.nn.functional.pad(batch["attention_mask"][rows], (0, 1), value=1)
    logits = model(input_ids=torch.full((len(rows), 1), token), attention_mask=mask, past_key_values=cache).logits
    return logits[:, -1], torch.stack(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_can_be_reordered_repeated_selected_and_copied(kind):
    model = model_of_kind(kind)
    changes = {
        "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
    }
    for change, rows in changes.values():
        batch, cache = prefilled(model)
        kept = copy.deepcopy(cache)
        change(cache)
        for a, b in ((cache, rows), (kept, None)):
            torch.testing.assert_close(*step(model, batch, a, b), **CLOSE)


def test_a_static_cache_can_be_reordered():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 4], [9], ["tile", "tile", 5]])
    cache = StaticCache(model.config.text_config, max_cache_len=64)
    model(**batch, past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    torch.testing.assert_close(*step(model, batch, cache, [2, 0, 0]), **CLOSE)


def test_a_cache_can_be_pickled():
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    torch.testing.assert_close(*step(model, batch, torch.load(file, weights_only=False)), **CLOSE)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(DynamicCache, marks=needs_transformers("5.18", "a dynamic cache keeps its length")),
        partial(StaticCache, max_cache_len=64),
    ],
    ids=["dynamic", "static"],
)
def test_a_cache_can_be_reset_and_used_for_another_prompt(make):
    model = tiny_model("llama", **LVTC)
    cache = make(config=model.config.text_config)
    for layouts in (([3, "tile", 4], [9]), ([7], [3]), (["tile", "tile", 2], [1])):
        batch = tiny_batch(model.config, list(layouts))
        model(**batch, past_key_values=cache)
        torch.testing.assert_close(*step(model, batch, cache), **CLOSE)
        cache.reset()


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_cache_can_be_cropped_into_the_prompt_s_last_text(n, attention):
    model = tiny_model("llama", **LVTC)
    model.set_attn_implementation({"text_config": attention})
    batch, cache = prefilled(model)
    cache.crop(-n)
    cropped = {key: batch[key][:, :-n] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(*step(model, batch | cropped, cache), **CLOSE)


def test_a_cache_can_be_cropped_after_decoding_and_twice():
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    for token in (13, 14):
        mask = torch.nn.functional.pad(
            batch["attention_mask"], (0, cache.get_seq_length() + 1 - batch["input_ids"].shape[1]), value=1
        )
        model(input_ids=torch.full((3, 1), token), attention_mask=mask, past_key_values=cache)
    cache.crop(-3)
    cache.crop(-1)
    cropped = {key: batch[key][:, :-2] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(*step(model, batch | cropped, cache), **CLOSE)


def test_cropping_into_an_image_raises_and_leaves_the_cache_as_it_was():
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    with pytest.raises(
        ValueError, match="cropped by 4 tokens into the prompt, back to its last image or padding, got 5"
    ):
        cache.crop(-5)
    torch.testing.assert_close(*step(model, batch, cache), **CLOSE)


def test_cropping_right_padding_raises():
    """What is at the end of the padded rows is padding in stage one, but text in stage two."""
    model = tiny_model("llama", **LVTC)
    _, cache = prefilled(model, padding_side="right")
    with pytest.raises(ValueError, match="cropped by 0 tokens"):
        cache.crop(-1)


# ---- Static caches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_cache_len", [None, 80])
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(kind, max_cache_len):
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, MIXED)
    settings = {"cache_implementation": "static", "disable_compile": True}
    if max_cache_len:
        settings["max_cache_len"] = max_cache_len
    assert torch.equal(new_tokens(model, batch, **settings), new_tokens(model, batch))


@pytest.mark.parametrize("text", ["mistral", "qwen2"])
def test_a_static_cache_shorter_than_the_window_still_grows_with_the_expansion(text):
    """The window of 40 is longer than the prompt and its answer, and shorter than them after the expansion; then longer."""
    for window in (40, 500):
        settings = {**SLIDING[text], "sliding_window": window}
        model = tiny_model(text, text_config=settings, **LVTC)
        batch = tiny_batch(model.config, [[3, "tile", 2, "tile", "tile", 1], [4]])
        expected = new_tokens(model, batch)
        settings = {"cache_implementation": "static", "disable_compile": True}
        assert torch.equal(new_tokens(model, batch, **settings), expected)
        assert torch.equal(new_tokens(model, batch, **settings, num_beams=2), new_tokens(model, batch, num_beams=2))


@pytest.mark.parametrize(("kind", "padded"), [(KINDS[0], False), *((kind, True) for kind in KINDS)])
def test_decoding_with_a_static_cache_compiles_once(kind, padded):
    """Graphs without breaks, made in the first steps (a sliding window has a second one for when it is full)."""
    model = model_of_kind(kind)
    batch = tiny_batch(model.config, MIXED if padded else [[10], [3, "tile", 3]])
    expected = new_tokens(model, batch, max_new_tokens=16, min_new_tokens=16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = new_tokens(model, batch, max_new_tokens=16, min_new_tokens=16, **COMPILED)
    assert torch.equal(compiled, expected)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= (1 if kind == "full attention" else 3)


def test_a_static_cache_that_is_too_short_raises_with_both_lengths():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = StaticCache(model.config.text_config, max_cache_len=24)  # enough for the 13 of the prompt, not for 37
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37 \(37 for the 13 of this prompt\)"):
        model(**batch, past_key_values=cache)
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37"):
        model.generate(**batch, past_key_values=cache, **GREEDY)


def test_a_static_sliding_cache_that_is_too_short_raises_too():
    """A window of 30 in a cache of 24 would be a window of 24."""
    model = tiny_model("mistral", text_config={"sliding_window": 30}, **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = StaticCache(model.config.text_config, max_cache_len=24)
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37"):
        model(**batch, past_key_values=cache)


def test_a_static_cache_that_is_long_enough_can_be_handed_in():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2], [4, "tile"]])
    cache = StaticCache(model.config.text_config, max_cache_len=37 + NEW)
    assert torch.equal(new_tokens(model, batch, past_key_values=cache), new_tokens(model, batch))


# ---- Quantised and offloaded caches


def unpack_four_bits(packed, bits):
    assert bits == 4
    return torch.cat([packed & 15, packed >> 4])


@pytest.mark.skipif(not is_optimum_quanto_available(), reason="needs optimum-quanto")
def test_a_quantised_cache_keeps_each_stage_s_length_and_comes_close(monkeypatch):
    """Four bits a number: tokens may differ, the first logits (computed before anything is quantised) may not."""
    from optimum.quanto.library.extensions.cpp import ext

    # in place of its C++ extension, which takes a minute to compile
    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack_four_bits))
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    outputs = model.generate(
        **batch,
        **GREEDY,
        cache_implementation="quantized",
        cache_config={"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4},
        return_dict_in_generate=True,
        output_logits=True,
    )
    reference = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
    torch.testing.assert_close(outputs.logits[0], reference.logits[0], **CLOSE)
    cache = outputs.past_key_values
    assert isinstance(cache, QuantizedCache)
    length = batch["input_ids"].shape[1] + NEW - 1
    assert [cache.get_seq_length(i) for i in range(4)] == [
        length,
        length,
        length + 36,
        length + 36,
    ]  # three tiles more
    error = (outputs.logits[1] - reference.logits[1]).abs()[
        (outputs.logits[1] > -1e9) & (reference.sequences[:, [-NEW]] == outputs.sequences[:, [-NEW]])
    ]
    assert error.mean() < 0.5 * reference.logits[1].abs().mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading a cache needs the streams of an NVIDIA GPU")
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_gives_the_tokens_of_a_dynamic_one(implementation):
    model = tiny_model("llama", **LVTC).to("cuda")
    batch = {key: value.to("cuda") for key, value in tiny_batch(model.config, MIXED).items()}
    expected = new_tokens(model, batch)
    assert torch.equal(new_tokens(model, batch, cache_implementation=implementation), expected)


# ---- Devices


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_tokens(place, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch)
    if place == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    assert next(model.model.language_model.layers[3].parameters()).device.type == "meta"
    assert torch.equal(new_tokens(model, batch), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_device_map_with_disk_offload_gives_the_same_tokens(whole, tmp_path):
    """Also where the map names the language model as a whole, whose own forward LVTC does not call."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch)
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "disk",
        "model.lvtc": "disk",
        "lm_head": "cpu",
    }
    if whole:
        device_map["model.language_model"] = "disk"
    else:
        device_map |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
        device_map |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.model.language_model.parameters())
    assert torch.equal(new_tokens(loaded, batch), expected)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a scalar, or a size that depends on values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name.startswith(self.READS)
        if name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in (args[1] if name == "index" else ())
        ):
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask", [True, False])
def test_a_decode_step_reads_the_device_no_more_often_than_transformers_own(mask):
    """Making a mask, transformers asks whether there is padding: once a stage. LVTC adds nothing to that."""
    reads = {}
    for name, settings in {"on": LVTC, "off": {"downsample_ratio": 0.25}}.items():
        model = tiny_model("llama", **settings)
        batch = tiny_batch(model.config, MIXED if mask else [[10], [3, "tile", 3]])
        if not mask:
            del batch["attention_mask"]
        cache = model(**batch).past_key_values
        inputs = {"input_ids": torch.full((len(batch["input_ids"]), 1), 11), "past_key_values": cache}
        if mask:
            inputs["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
        with HostReads() as mode:
            model(**inputs)
        reads[name] = mode.count
    assert reads["on"] == reads["off"] + 1


def test_a_decode_step_with_masks_made_ahead_reads_nothing():
    """As `generate` calls it, compiled or not, with a static cache."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    cache = StaticCache(model.config.text_config, max_cache_len=64)
    model(**batch, past_key_values=cache)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    ids = torch.cat([batch["input_ids"], torch.full((4, 1), PAD + 11)], dim=1)
    with HostReads() as mode:
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=1, past_key_values=cache, attention_mask=mask, position_ids=mask.cumsum(-1) - 1
        )
        logits = model(**inputs).logits
    assert mode.count == 0
    assert set(inputs["attention_mask"]) == {"full_attention", "expanded_full_attention"}
    torch.testing.assert_close(
        logits[:, -1], uncached(model, batch | {"input_ids": ids, "attention_mask": mask})[:, -1], **CLOSE
    )
