"""LVTC (paper, Algorithm 1) written a second time, slowly: one sample, no cache, no padding, Python loops over rows and
layers. Of the project's code it uses only the projectors' output; the decoder layers are transformers' own."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

LOWEST = torch.finfo(torch.float32).min


def causal_mask(length, window=None):
    """(1, 1, n, n), added to the scores; with a window, a row sees itself and the `window` - 1 rows before it."""
    mask = torch.full((length, length), LOWEST)
    for row in range(length):
        mask[row, 0 if window is None else max(0, row - window + 1) : row + 1] = 0
    return mask[None, None]


def run_layers(model, rows, layers, insertions, tags, positions=None):
    """Run (n, D) rows through decoder layers, with masks made for n tokens and positions counted from 0 unless given."""
    decoder, text = model.model.language_model, model.config.text_config
    positions = torch.arange(len(rows))[None] if positions is None else torch.tensor([positions])
    rotary = type(decoder.rotary_emb)(text)  # a fresh one: nothing that an earlier call saw
    embeddings = rotary(rows[None], position_ids=positions)
    attention, text._attn_implementation = text._attn_implementation, "eager"
    for i in layers:
        if i in insertions:
            rows = torch.stack(
                [row if tag is None else row + insertions[i][tag] for row, tag in zip(rows, tags, strict=True)]
            )
        sliding = (
            text.model_type in ("mistral", "phi3", "qwen3_moe")
            or getattr(text, "layer_types", [None] * 99)[i] == "sliding_attention"
        )
        mask = causal_mask(len(rows), text.sliding_window if sliding else None)
        rows = decoder.layers[i](
            rows[None], attention_mask=mask, position_embeddings=embeddings, position_ids=positions
        )[0]
    text._attn_implementation = attention
    return rows


def child_of(grid, row, column, before, after, mode):
    """What token (row, column) of the N₂ grid is made of, from a dictionary of the N₁ grid's tokens."""
    if after <= before:
        side = before // after
        block = [grid[row * side + r, column * side + c] for r in range(side) for c in range(side)]
        return sum(block) / len(block)
    scale = after // before
    if mode == "nearest":
        return grid[row // scale, column // scale]
    corners, weights = [], []
    for line in (row, column):
        exact = max((line + 0.5) / scale - 0.5, 0.0)
        low = int(exact)
        corners.append((low, min(low + 1, before - 1)))
        weights.append((1 - exact + low, exact - low))
    return sum(weights[0][r] * weights[1][c] * grid[corners[0][r], corners[1][c]] for r in range(2) for c in range(2))


def parents_of(row, column, before, after):
    """Tokens of the N₁ grid that (row, column) of the N₂ grid answers for."""
    if after >= before:
        return [(row * before // after, column * before // after)]
    side = before // after
    return [(row * side + r, column * side + c) for r in range(side) for c in range(side)]


def expand(model, rows, tags, hr):
    """Rows of stage two, for each row of stage one the number of the one that answers for it, and for each row of stage two
    the number of the (first) one that it is made of."""
    before, after = model.config.token_grid, model.config.expanded_token_grid
    mode = model.config.lvtc_config.upsample_mode
    expanded, answers, made_of, at = [], [], [], 0
    while at < len(rows):
        if tags[at] is None:
            answers.append(len(expanded))
            made_of.append(at)
            expanded.append(rows[at])
            at += 1
            continue
        tile = tags[at][0]
        grid = {(r, c): rows[at + r * before + c] for r in range(before) for c in range(before)}
        answer = {}
        for r in range(after):
            for c in range(after):
                parents = parents_of(r, c, before, after)
                made_of.append(at + parents[0][0] * before + parents[0][1])
                for parent in parents:
                    answer[parent] = len(expanded)  # the last child stays
                token = child_of(grid, r, c, before, after, mode)
                expanded.append(token if hr is None else token + hr[tile, r * after + c])
        answers += [answer[r, c] for r in range(before) for c in range(before)]
        at += before * before
    return torch.stack(expanded), answers, made_of


def reference_logits(model, input_ids, pixel_values=None):
    """(n,) ids of one sample, without padding -> logits (n, vocabulary), and the lengths of the two stages."""
    config, lvtc = model.config, model.config.lvtc_config
    rows = list(model.get_input_embeddings()(input_ids))
    tags = [None] * len(rows)  # (tile, token within it)
    insertions, hr = {}, None
    if pixel_values is not None:
        images = model.get_image_features(pixel_values, return_dict=True)
        later = list(images.deepstack_features or [])
        if lvtc.hr_projector_type is not None:
            hr = later.pop()
        for j, tokens in enumerate(later):
            layer = lvtc.insert_start + lvtc.insert_interval * j
            insertions[layer] = {(t, i): token for t, tile in enumerate(tokens) for i, token in enumerate(tile)}
        seen = 0
        for i, token in enumerate(input_ids.tolist()):
            if token == config.image_token_id:
                tags[i] = divmod(seen, config.image_seq_length)
                rows[i] = images.pooler_output[tags[i]]
                seen += 1
    k, layers = lvtc.expand_layer, config.text_config.num_hidden_layers
    stage_one = run_layers(model, torch.stack(rows), range(k), insertions, tags)
    expanded, answers, made_of = expand(model, stage_one, tags, hr)
    positions = made_of if lvtc.expanded_positions == "kept" else None
    stage_two = run_layers(model, expanded, range(k, layers), {}, tags, positions)
    final = model.model.language_model.norm(stage_two)
    return model.lm_head(final[answers]), (len(rows), len(expanded))


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
