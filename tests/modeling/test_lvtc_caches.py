"""LVTC's caches: reordered, copied, cropped, static, quantized and offloaded ones.

Tolerances: as in test_lvtc.py, 1e-4 for logits of size 1 to 5 in float32, summed in another order.
"""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import CompileConfig, DynamicCache, QuantizedCache, StaticCache
from transformers.utils import is_optimum_quanto_available

import varlen  # noqa: F401  registers the attention of that name
from internvlx_hf.modeling.outputs import CACHE
from lvtc_cases import CLOSE, GREEDY, KINDS, MIXED, NEW, SLIDING, model_of_kind, new_tokens, unpack_four_bits
from one_file import reference_logits
from tiny import LVTC, split_batch, tiny_batch, tiny_model
from versions import needs_transformers


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


COMPILED = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager")}
COMPILED["compile_config"]._compile_all_devices = True


def prefilled(model, layouts=([3, "tile", 4], [9], ["tile", "tile", 5]), **kwargs):
    batch = tiny_batch(model.config, list(layouts), **kwargs)
    return batch, model(**batch).cache


def step(model, batch, cache, rows=None, token=11):
    """Logits of one more token on the cache, and what they must be; `rows` says which sample each row is now."""
    rows = list(range(len(batch["input_ids"]))) if rows is None else rows
    samples = split_batch(batch, model.config)
    expected = []
    for row in rows:
        ids = torch.nn.functional.pad(samples[row]["input_ids"][0], (0, 1), value=token)
        expected.append(reference_logits(model, ids, samples[row].get("pixel_values"))[0][-1])
    mask = torch.nn.functional.pad(batch["attention_mask"][rows], (0, 1), value=1)
    logits = model(input_ids=torch.full((len(rows), 1), token), attention_mask=mask, cache=cache).logits
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
        model(**batch, cache=cache)
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


def test_cropping_into_an_image_raises_and_leaves_the_cache_as_it_was():
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    with pytest.raises(
        ValueError, match="cropped by at most 4 tokens of the prompt, back to its last image or padding, got 5"
    ):
        cache.crop(-5)
    torch.testing.assert_close(*step(model, batch, cache), **CLOSE)


def test_cropping_right_padding_raises():
    """What is at the end of the padded rows is padding in stage one, but text in stage two."""
    model = tiny_model("llama", **LVTC)
    _, cache = prefilled(model, padding_side="right")
    with pytest.raises(ValueError, match="cropped by at most 0 tokens"):
        cache.crop(-1)


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


@pytest.mark.slow
def test_decoding_with_a_static_cache_compiles_once():
    """Without breaks, in the first steps (a sliding window has a second graph for when it is full); the next test's is full."""
    model = model_of_kind("qwen2, sliding and full")
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch, max_new_tokens=16, min_new_tokens=16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = new_tokens(model, batch, max_new_tokens=16, min_new_tokens=16, **COMPILED)
    assert torch.equal(compiled, expected)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def test_a_static_cache_is_as_long_as_the_longest_before_it():
    """In stage two too, after text alone too; a sliding window's is no longer than the window."""
    model, lengths = model_of_kind("qwen2, sliding and full"), []
    for layout in ([3, "tile", 2], [9], ["tile", "tile", "tile", 4], [9], [1, "tile", "tile", 2]):
        batch = tiny_batch(model.config, [layout, [1]])
        outputs = model.generate(
            **batch, **GREEDY, cache_implementation="static", disable_compile=True, return_dict_in_generate=True
        )
        assert torch.equal(outputs.sequences[:, batch["input_ids"].shape[1] :], new_tokens(model, batch))
        lengths.append([layer.max_cache_len for layer in getattr(outputs, CACHE).layers])
    one, three = 9 + NEW - 1, 16 + NEW - 1  # tokens in stage one; a tile adds twelve in stage two
    assert lengths == [[7, one, one + 12, 7]] * 2 + [[7, three, three + 36, 7]] * 3


@pytest.mark.slow
def test_decoding_compiles_once_for_prompts_of_changing_tile_counts():
    """The longest prompt comes first."""
    model = tiny_model("llama", **LVTC)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for tiles in (6, 1, 0, 3, 6, 2):
        batch = tiny_batch(model.config, [[1 + 2 * tiles % 3, *["tile"] * tiles, 2]])
        compiled = new_tokens(model, batch, **settings, **COMPILED)
        assert torch.equal(compiled, new_tokens(model, batch, **settings))
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


def test_a_static_cache_that_is_too_short_raises_with_both_lengths():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = StaticCache(model.config.text_config, max_cache_len=24)  # enough for the 13 of the prompt, not for 37
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37 \(37 for the 13 of this prompt\)"):
        model(**batch, cache=cache)
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37"):
        model.generate(**batch, cache=cache, **GREEDY)


def test_a_static_sliding_cache_that_is_too_short_raises_too():
    """A window of 30 in a cache of 24 would be a window of 24."""
    model = tiny_model("mistral", text_config={"sliding_window": 30}, **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = StaticCache(model.config.text_config, max_cache_len=24)
    with pytest.raises(ValueError, match=r"room for 24 tokens.*need 37"):
        model(**batch, cache=cache)


@pytest.mark.skipif(not is_optimum_quanto_available(), reason="needs optimum-quanto")
def test_a_quantized_cache_keeps_each_stage_s_length_and_comes_close(monkeypatch):
    """Four bits a number: tokens may differ, the first logits (computed before anything is quantized) may not."""
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
    cache = getattr(outputs, CACHE)
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


def test_a_static_cache_without_room_for_a_second_image_raises():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = StaticCache(model.config.text_config, max_cache_len=48)  # enough for the 37 of one turn, not for two
    model(**batch, cache=cache)
    both = batch | {"attention_mask": batch["attention_mask"].repeat(1, 2)}
    with pytest.raises(ValueError, match=r"room for 48 tokens.*need 74 \(37 for the 13 of this prompt\)"):
        model(**both, cache=cache)


@pytest.mark.parametrize("n", [0, 3])
def test_a_later_column_that_the_mask_hides_is_hidden_in_all_stages(n):
    model = tiny_model("llama", **LVTC)
    batch, cache = prefilled(model)
    kept = batch["input_ids"].shape[1] - n
    if n:
        cache.crop(-n)
    cropped = batch | {key: batch[key][:, :kept] for key in ("input_ids", "attention_mask")}
    mask = torch.nn.functional.pad(cropped["attention_mask"], (0, 2), value=1)
    mask[:, kept] = 0
    logits = model(input_ids=torch.tensor([[12, 11]] * 3), attention_mask=mask, cache=cache).logits[:, -1]
    samples = split_batch(cropped, model.config)
    for row, sample in zip(logits, samples, strict=True):
        ids = torch.nn.functional.pad(sample["input_ids"][0], (0, 1), value=11)
        torch.testing.assert_close(row, reference_logits(model, ids, sample.get("pixel_values"))[0][-1], **CLOSE)
