"""The attention "varlen": flash attention's interface, on a CPU."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask


def varlen_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """What flash attention's kernels compute, from what transformers hands them: the bounds of samples packed into one
    row (`cu_seq_lens_*`, or else `position_ids` that restart), or a 2D mask of padding. (1 or B, heads, n, head width)."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if attention_mask is not None:
        assert attention_mask.shape == (batch, keys)
        rows = [
            (i, mask[-queries:].nonzero()[:, 0], mask.nonzero()[:, 0]) for i, mask in enumerate(attention_mask.bool())
        ]
    else:
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is not None:
            assert torch.equal(bounds, kwargs["cu_seq_lens_k"])
            assert kwargs["max_length_q"] == kwargs["max_length_k"] == bounds.diff().max()
        elif batch == 1 and queries == keys:
            bounds = torch.cat([(kwargs["position_ids"][0] == 0).nonzero()[:, 0], torch.tensor([queries])])
        if bounds is None:
            rows = [(i, torch.arange(queries), torch.arange(keys)) for i in range(batch)]
        else:
            assert batch == 1
            assert bounds[-1] == queries == keys
            samples = [torch.arange(a, b) for a, b in bounds.unfold(0, 2, 1).tolist()]
            rows = [(0, sample, sample) for sample in samples]
    output = torch.zeros_like(query)
    for i, q, k in rows:
        # the last query sees all keys
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = (query[i][:, q] @ key[i][:, k].transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
        part = torch.zeros_like(query[i]).index_copy(1, q, scores.softmax(-1) @ value[i][:, k])
        output = output + part[None] * (torch.arange(batch) == i)[:, None, None, None]
    return output.transpose(1, 2), None


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", flash_attention_mask)
