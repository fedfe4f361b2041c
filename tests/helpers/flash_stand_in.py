"""Flash attention's kernels on a CPU: plain attention behind their names and arguments, for transformers to import."""

import numpy as np
import torch
from transformers import modeling_flash_attention_utils as flash_utils

NO_WINDOW = (-1, -1)


def _attend(query, key, value, causal, softmax_scale, window_size):
    """(n, heads, width) and (m, heads, width) twice -> (n, heads, width); the last query sees the last key."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    distance = torch.arange(len(key) - len(query), len(key))[:, None] - torch.arange(len(key))
    seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    if window_size != NO_WINDOW:
        seen = seen & (distance <= window_size[0])
    scores = torch.einsum("qhd,khd->hqk", query, key) * (softmax_scale or query.shape[-1] ** -0.5)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=NO_WINDOW):
    return torch.stack([_attend(*row, causal, softmax_scale, window_size) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=NO_WINDOW,
):
    longest = int(max_seqlen_q), int(max_seqlen_k)  # as the kernel's bindings: of a tensor, a wait for the device
    # The kernel reads the bounds on the device.
    lengths = [np.diff(np.from_dlpack(bounds)).tolist() for bounds in (cu_seqlens_q, cu_seqlens_k)]
    assert longest[0] >= max(lengths[0])
    assert longest[1] >= max(lengths[1])
    assert (len(q), len(k)) == (sum(lengths[0]), sum(lengths[1]))
    samples = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
    return torch.cat([_attend(*sample, causal, softmax_scale, window_size) for sample in samples])


def use_flash_stand_in(monkeypatch, *models) -> None:
    """Have models compute attention as with flash attention 2."""
    functions = (flash_attn_func, flash_attn_varlen_func, None, flash_utils._pad_input, flash_utils._unpad_input)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *args, **kwargs: functions)
    for name in list(vars(flash_utils)):  # what an import leaves
        if name == "_loaded_implementation" or (
            name.startswith(("_flash", "_pad", "_unpad", "_process")) and name.endswith("_fn")
        ):
            monkeypatch.setattr(flash_utils, name, None)
    for model in models:
        model.config.text_config._attn_implementation = "flash_attention_2"
