"""LVTC in training: checkpointed, packed, compiled, with the Trainer and peft.

Tolerances: as in test_lvtc.py; gradients are sums over all rows and layers, compared relative to the largest of each tensor:
1e-3. Resuming and gradient checkpointing do the same operations in the same order: 1e-6.
"""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import InternVLConfig, InternVLForConditionalGeneration

import varlen  # noqa: F401  registers the attention of that name
from backbones import on_each_backbone
from lvtc_cases import (
    KEPT,
    MIXED,
    SLIDING,
    assert_same_step,
    bounds_of,
    labelled,
    loss_and_gradients,
    lvtc,
    pack,
    training_model,
)
from tiny import tiny_config, tiny_model

# ---- A training step


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("use_cache", [None, False])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(reentrant, use_cache):
    model = training_model()
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    assert sum(".lvtc." in name for name in expected[1]) > 4
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    runs = []
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    assert_same_step(loss_and_gradients(model, batch, use_cache=use_cache), expected, relative=1e-6)
    assert len(runs) == 8  # each of the four layers once more in the backward pass


@pytest.mark.slow
@on_each_backbone(attention=("varlen", "eager", "sdpa", "varlen_sdpa"))
def test_padding_free_packing_equals_the_padded_batch_in_loss_and_gradients(text, attention):
    model = training_model(text)
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    model.set_attn_implementation({"text_config": attention})
    packed, bounds = pack([batch]), bounds_of(batch)
    with_bounds_only = {key: value for key, value in packed.items() if key != "position_ids"} | bounds
    for inputs in (packed, packed | bounds, with_bounds_only):
        assert_same_step(loss_and_gradients(model, inputs), expected)
        assert_same_step(loss_and_gradients(model, inputs, use_cache=False), expected)


@pytest.mark.parametrize(
    "settings",
    [lvtc(4, 2), lvtc(4, 4), lvtc(num_lr_projectors=1, hr_projector_type=None), lvtc(**KEPT)],
    ids=["N2<N1", "N2=N1", "plain", "kept positions"],
)
def test_packing_with_other_settings_equals_the_padded_batch(settings):
    model = training_model(**settings)
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    for attention in ("sdpa", "varlen", "varlen_sdpa"):
        model.set_attn_implementation({"text_config": attention})
        assert_same_step(loss_and_gradients(model, pack([batch]) | bounds_of(batch)), expected)


@pytest.mark.parametrize("text", SLIDING)
def test_packing_with_sliding_windows_equals_the_padded_batch(text):
    model = training_model(text, text_config=SLIDING[text])
    batch = labelled(model, MIXED)
    assert_same_step(loss_and_gradients(model, pack([batch])), loss_and_gradients(model, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen_sdpa"])
def test_packing_into_two_rows_that_grow_unequally_equals_the_padded_batch(attention):
    """Four tiles in one row, none or one in the other: stage two pads, and must not mix the padding up with samples."""
    model = training_model()
    model.set_attn_implementation({"text_config": attention})
    for second in ([[6], [4]], [[11, "tile"], [1]]):
        layouts = [[2, "tile", 3], ["tile", "tile", 1, "tile", 4]]
        batch = labelled(model, layouts + second)
        parts, tiles = [], sum(row.count("tile") for row in layouts)
        for rows, pixels in ((slice(0, 2), slice(0, tiles)), (slice(2, 4), slice(tiles, None))):
            part = {key: batch[key][rows] for key in ("input_ids", "attention_mask", "labels")}
            parts.append(part | {"pixel_values": batch["pixel_values"][pixels]})
        assert_same_step(loss_and_gradients(model, pack(parts)), loss_and_gradients(model, batch))


def test_bounds_of_packed_samples_in_a_batch_of_two_rows_raise():
    model = training_model()
    batch = labelled(model, [[3, "tile", 2], [4, "tile", 1]])
    with pytest.raises(ValueError, match="`cu_seq_lens_q` needs all samples packed into one row, got 2 rows"):
        model(**batch, **bounds_of(batch))


def test_a_batch_of_text_only_trains_the_language_model():
    model = training_model()
    batch = labelled(model, [[9], [5]])
    loss, gradients = loss_and_gradients(model, batch)
    plain = training_model(lvtc_config=None)
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if ".lvtc." not in name})
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert_same_step((loss, gradients), loss_and_gradients(plain, batch, position_ids=positions))


def test_a_row_of_nothing_but_padding_and_a_masked_tile_have_finite_gradients():
    model = training_model()
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation({"text_config": attention})
        batch = labelled(model, [[3, "tile", 2, "tile", 1], [4], [6, "tile"]])
        batch["attention_mask"][1] = 0
        batch["attention_mask"][0, 3:8] = 0
        batch["labels"][batch["attention_mask"] == 0] = -100
        loss, gradients = loss_and_gradients(model, batch)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients.values())


def native_model(config):
    """Transformers' InternVL of the same size."""
    parts = {"vision_config": config.vision_config.to_dict(), "text_config": config.text_config.to_dict()}
    own = {"image_token_id": config.image_token_id, "downsample_ratio": config.downsample_ratio}
    return InternVLForConditionalGeneration(InternVLConfig(**parts, **own)).train()


def count_graphs(model, batch):
    """Graphs of a compiled step; its loss and gradients."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    model.compile(backend=graphs)
    step = loss_and_gradients(model, batch, use_cache=False)
    return graphs.frame_count, step


@pytest.mark.slow
def test_a_compiled_training_step_equals_an_eager_one_with_at_most_one_graph_more_than_natively():
    """LVTC breaks the graph where the host reads how many rows stage two has."""
    small = {"vision_config": {"num_hidden_layers": 1}, "projector_config": {"projector_type": "pixel_shuffle"}}
    stages = lvtc(expand_layer=1, insert_start=0)
    model = tiny_model("llama", text_config={"num_hidden_layers": 2}, **small, **stages).train()
    batch = labelled(model, MIXED, padding_side="right")
    # as many graphs as with more layers
    native = native_model(tiny_config("llama", text_config={"num_hidden_layers": 1}, **small, downsample_ratio=0.25))
    native(**batch)  # the hooks that it installs when it first runs are graphs of their own
    expected = loss_and_gradients(model, batch)
    graphs, step = count_graphs(model, batch)
    assert_same_step(step, expected)
    assert graphs <= count_graphs(native, batch)[0] + 1


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_step_comes_close(autocast):
    """bfloat16 has 8 bits: the loss is off by a percent, the gradients point the same way."""
    model = training_model()
    batch = labelled(model, MIXED)
    loss, gradients = loss_and_gradients(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got, low = loss_and_gradients(model if autocast else copy.deepcopy(model).to(torch.bfloat16), batch)
    assert abs(got - loss) < 0.03 * loss
    flat, low = (torch.cat([g.flatten().float() for g in grads.values()]) for grads in (gradients, low))
    assert torch.nn.functional.cosine_similarity(flat, low, dim=0) > 0.95


# ---- Trainer and peft
