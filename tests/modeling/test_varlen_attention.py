"""The attention "varlen_sdpa": packed rows without a mask, everything else as "sdpa"; and what masks take elsewhere.

Tolerances: as in test_lvtc_training.py; where the same operations run, exact.
"""

import inspect
import runpy

import pytest
import torch
from transformers import AttentionInterface

import varlen  # noqa: F401  registers the attention of that name
from internvlx_hf.modeling import varlen_attention
from internvlx_hf.training.attention import dense_mask_bytes
from lvtc_cases import (
    CLOSE,
    MIXED,
    SLIDING,
    assert_same_step,
    bounds_of,
    labelled,
    loss_and_gradients,
    pack,
    training_model,
)

NO_LVTC = {"lvtc_config": None}
CASES = {
    "LVTC": {},
    "no LVTC": NO_LVTC,
    "LVTC, some layers slide": {"text": "qwen2", "text_config": SLIDING["qwen2"]},
    "no LVTC, all slide": {"text": "mistral", "text_config": SLIDING["mistral"]} | NO_LVTC,
}


@pytest.fixture(params=CASES)
def model(request):
    return training_model(**CASES[request.param])


def attention_masks(model, batch) -> list[torch.Tensor]:
    """The masks that a forward hands to the layers' attention, each once."""
    masks = {}

    def keep(module, args, kwargs):
        masks[id(kwargs["attention_mask"])] = kwargs["attention_mask"]

    layers = model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return list(masks.values())


def test_a_packed_row_trains_as_with_a_dense_mask_and_makes_none(model, monkeypatch):
    batch = labelled(model, MIXED)
    packed = pack([batch])
    model.set_attn_implementation({"text_config": "sdpa"})
    expected = loss_and_gradients(model, packed, use_cache=False)
    model.set_attn_implementation({"text_config": "varlen_sdpa"})
    monkeypatch.setattr(varlen_attention, "sdpa_mask", None)  # would raise if it were called
    for inputs in (packed, packed | bounds_of(batch)):
        assert_same_step(loss_and_gradients(model, inputs, use_cache=False), expected)
        assert {mask.ndim for mask in attention_masks(model, inputs)} == {1}


def test_rows_that_are_not_packed_run_as_with_sdpa(model):
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    model.set_attn_implementation("varlen_sdpa")  # the vision tower too
    loss, gradients = loss_and_gradients(model, batch)
    assert loss == expected[0]
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected[1].items())


def test_each_sample_of_a_packed_row_has_the_numbers_that_it_has_alone():
    model = training_model().eval()
    model.set_attn_implementation({"text_config": "varlen_sdpa"})
    batch = labelled(model, MIXED)
    batch.pop("labels")
    packed = pack([{**batch, "labels": batch["input_ids"]}])
    packed.pop("labels")
    logits = model(**packed, use_cache=False).logits[0].split(batch["attention_mask"].sum(-1).tolist())
    tiles = batch["pixel_values"].split([0, 1, 3, 1])
    for i, mask in enumerate(batch["attention_mask"].bool()):
        pixels = {"pixel_values": tiles[i]} if len(tiles[i]) else {}
        alone = model(input_ids=batch["input_ids"][i][mask][None], **pixels, use_cache=False).logits[0]
        torch.testing.assert_close(logits[i], alone, **CLOSE)


def signature(text: str) -> inspect.Signature:
    return inspect.signature(eval(f"lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, {text}: None"))


# of `torch.nn.attention.varlen.varlen_attn`, by the release that brought it
KERNELS = {
    (2, 10): signature("is_causal=False, return_aux=None"),
    (2, 11): signature("*, return_aux=None, scale=None, window_size=(-1, -1)"),
    (2, 12): signature(
        "*, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, "
        "num_splits=None"
    ),
}


def kernel_stand_in(calls, real: inspect.Signature):
    """Takes what the real kernel takes, and refuses what it refuses."""

    def varlen_attn(*args, **kwargs):
        query, key, value, cu_seq_q, cu_seq_k, max_q = real.bind(*args, **kwargs).args[:6]
        scale, window_size = kwargs["scale"], kwargs["window_size"]
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_q is cu_seq_k
        assert key.shape[1] == value.shape[1]
        assert kwargs.get("enable_gqa") or key.shape[1] == query.shape[1]
        calls.append((cu_seq_q.tolist(), max_q, window_size))
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        sample = torch.bucketize(torch.arange(len(query)), cu_seq_q[1:].long(), right=True)
        distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = (sample[:, None] == sample) & (distance >= 0)
        if window_size[0] >= 0:
            seen &= distance <= window_size[0]
        scores = (torch.einsum("qhd,khd->hqk", query, key) * scale).masked_fill(~seen, -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)

    return varlen_attn


def test_the_installed_torch_has_the_kernel_that_is_recorded_for_it():
    release = tuple(map(int, torch.__version__.split(".")[:2]))
    recorded = [kernel for since, kernel in KERNELS.items() if since <= release]
    if varlen_attention.varlen_attn is None:
        assert not recorded
    else:
        found = inspect.signature(varlen_attention.varlen_attn).parameters.values()
        plain = [each.replace(annotation=inspect.Parameter.empty) for each in found]
        assert plain == list(recorded[-1].parameters.values())


def use_kernel(monkeypatch, release, calls) -> None:
    """As on a GPU with that release of torch."""
    kernel = kernel_stand_in(calls, KERNELS[release])
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    monkeypatch.setattr(varlen_attention, "_KERNEL_ARGUMENTS", set(KERNELS[release].parameters))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize(("release", "suffices"), [((2, 10), False), ((2, 11), True), ((2, 12), True)])
def test_the_kernel_is_used_from_torch_2_11_on(release, suffices, monkeypatch):
    use_kernel(monkeypatch, release, [])
    assert varlen_attention.has_varlen_kernel(torch.device("cuda"), torch.bfloat16) == suffices


@pytest.mark.parametrize("release", [(2, 11), (2, 12)])
def test_torch_s_kernel_gets_the_bounds_and_windows_of_both_stages(release, monkeypatch):
    """With a stand-in for the kernel, which needs a GPU; under autocast, which must cast for it."""
    model = training_model(**CASES["LVTC, some layers slide"])
    batch = labelled(model, MIXED)
    packed = pack([batch]) | bounds_of(batch)
    model.set_attn_implementation({"text_config": "varlen_sdpa"})
    with torch.autocast("cpu", torch.bfloat16):
        expected, calls = loss_and_gradients(model, packed), []
        monkeypatch.setattr(varlen_attention, "has_varlen_kernel", lambda device, dtype: dtype == torch.bfloat16)
        use_kernel(monkeypatch, release, calls)
        # numbers of 8 bits
        torch.testing.assert_close(loss_and_gradients(model, packed)[0], expected[0], atol=2e-2, rtol=2e-2)
        short, long = bounds_of(batch)["cu_seq_lens_q"], [0, 5, 26, 79, 104]
        stages = [(short.tolist(), int(short.diff().max())), (long, 53)]
        windows = [(6, 0), (-1, 0), (-1, 0), (6, 0)]
        assert calls == [(*stages[i // 2], window) for i, window in enumerate(windows)]
        # without bounds the kernel takes the row's length for its longest sample's
        calls.clear()
        loss_and_gradients(model, pack([batch]))
        assert [(bounds, longest) for bounds, longest, _ in calls[1:3]] == [(stages[0][0], short[-1]), (long, 104)]


def test_a_checkpoint_s_copy_of_the_code_leaves_the_attention_as_it_is():
    known = AttentionInterface()["varlen_sdpa"]
    runpy.run_path(varlen_attention.__file__, run_name=f"{varlen_attention.__package__}.copy")
    assert AttentionInterface()["varlen_sdpa"] is known is varlen_attention.varlen_sdpa_forward


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's variable-length kernel needs a GPU")
def test_torch_s_kernel_trains_as_sdpa_does():
    model = training_model("qwen2", text_config=SLIDING["qwen2"]).cuda()
    batch = {name: tensor.cuda() for name, tensor in pack([labelled(model, MIXED)]).items()}
    with torch.autocast("cuda", torch.bfloat16):
        expected = loss_and_gradients(model, batch)
        model.set_attn_implementation({"text_config": "varlen_sdpa"})
        assert varlen_attention.has_varlen_kernel(torch.device("cuda"), torch.bfloat16)
        loss, gradients = loss_and_gradients(model, batch)
    # numbers of 8 bits
    torch.testing.assert_close(loss, expected[0], atol=2e-2, rtol=2e-2)
    for name, gradient in expected[1].items():
        assert (gradients[name] - gradient).norm() <= 0.1 * gradient.norm() + 1e-3, name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_bytes_of_dense_masks_are_those_that_a_forward_makes(model, attention):
    model.set_attn_implementation({"text_config": attention})
    packed = pack([labelled(model, MIXED)])
    masks = attention_masks(model, packed)
    itemsize = 1 if attention == "sdpa" else 4
    lengths = packed["input_ids"].shape[1], masks[-1].shape[-1]
    assert dense_mask_bytes(model.config, *lengths, itemsize) == sum(mask.nbytes for mask in masks)
