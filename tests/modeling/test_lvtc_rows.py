"""Where rows go if every tile has its own number of tokens before and after the expansion, against loops over rows."""

import random
from itertools import accumulate
from math import isqrt

import pytest
import torch
from transformers import DynamicCache

from internvlx_hf.modeling.layout import read_layout
from internvlx_hf.modeling.lvtc_layout import Tiles, lay_out
from internvlx_hf.modeling.tile_sizes import TileSize
from lvtc_cases import KEPT, lvtc
from tiny import tiny_config

PAIRS = [(1, 4), (4, 4), (4, 16), (16, 4), (4, 0), (9, 9), (1, 1)]


def random_rows(seed):
    """Samples as lists of None for text and (tile, place) for placeholders, and the sizes of the tiles."""
    draw, rows, sizes = random.Random(seed), [], [(4, 16)]
    rows.append([None, *((0, place) for place in range(4))])
    for _ in range(draw.randint(0, 3)):
        row = [None] * draw.randint(0, 2)
        for _ in range(draw.randint(0, 5)):
            if draw.random() < 0.5:
                row += [None] * draw.randint(1, 3)
                continue
            sizes.append(draw.choice(PAIRS))
            row += [(len(sizes) - 1, place) for place in range(sizes[-1][0])]
        rows.append(row or [None])
    return rows, sizes


def expand_by_hand(row, sizes):
    """Rows of stage two, ("text", column) or (tile, child), the column that each is made of, and what each column reads."""
    expanded, parents, reads = [], [], []
    for column, part in enumerate(row):
        if part is None:
            reads.append(len(expanded))
            expanded.append(("text", column))
            parents.append(column)
        elif part[1] == 0:
            (before, after), start, answers = sizes[part[0]], len(expanded), {}
            m, n = isqrt(before), isqrt(after)
            for child in range(after):
                # the square of cells that the child and its parents share, on a grid of m * n cells a side
                cells = [(y, x) for y in range(m * n) for x in range(m * n) if (y // m, x // m) == divmod(child, n)]
                made_of = sorted({(y // n) * m + x // n for y, x in cells})
                answers |= dict.fromkeys(made_of, start + child)
                parents.append(column + made_of[0])
                expanded.append((part[0], child))
            reads += [answers.get(place, max(start - 1, 0)) for place in range(before)]
    return expanded, parents, reads


def as_batch(rows, left):
    length = max(map(len, rows))
    pads = [[False] * (length - len(row)) for row in rows]
    mask = [pad + [True] * len(row) if left else [True] * len(row) + pad for row, pad in zip(rows, pads, strict=True)]
    placeholders = torch.zeros(len(rows), length, dtype=torch.bool)
    placeholders[torch.tensor(mask)] = torch.tensor([part is not None for row in rows for part in row])
    return placeholders, torch.tensor(mask)


def plan_of(config, placeholders, sizes, mask=None, pads_left=False, cache=None, **kwargs):
    embeds, positions = torch.zeros(*placeholders.shape, 1), kwargs.pop("position_ids", None)
    layout = read_layout(config, embeds, mask, positions, cache, kwargs, will_expand=True)
    (boundary,), keeps = config.boundaries, config.sizes[0].keeps_positions
    tiles = Tiles(placeholders, [TileSize(*pair, boundary, keeps_positions=keeps) for pair in sizes])
    return lay_out(config, layout, tiles, cache, pads_left)


@pytest.mark.parametrize("left", [True, False], ids=["padded left before", "padded right before"])
@pytest.mark.parametrize("pads_left", [True, False], ids=["padded left after", "padded right after"])
def test_mixed_sizes_equal_a_loop_on_random_batches(left, pads_left):
    counted, kept = tiny_config("llama", **lvtc()), tiny_config("llama", **lvtc(**KEPT))
    for seed in range(75):
        rows, sizes = random_rows(seed)
        placeholders, mask = as_batch(rows, left)
        plan, of_kept = (plan_of(config, placeholders, sizes, mask, pads_left) for config in (counted, kept))
        (row_map,), (_, second) = plan.row_maps, plan.layouts
        ids = torch.arange(1, mask.numel() + 1)
        tile_ids = [("tile", tile, child) for tile, (_, after) in enumerate(sizes) for child in range(after)]
        names = dict(enumerate(tile_ids, start=len(ids) + 1))
        placed = row_map.place(ids, torch.tensor(list(names), dtype=torch.long))
        read = row_map.undo(placed.unsqueeze(-1)).squeeze(-1)
        hand = [expand_by_hand(row, sizes) for row in rows]
        assert placed.shape[1] == max(len(expanded) for expanded, *_ in hand)
        for i, (expanded, parents, reads) in enumerate(hand):
            own = ids.view_as(mask)[i][mask[i]].tolist()
            want = [own[place] if kind == "text" else ("tile", kind, place) for kind, place in expanded]
            fill = placed.shape[1] - len(want)
            where = slice(fill, None) if pads_left else slice(0, len(want))
            assert [names.get(n, n) for n in placed[i, where].tolist()] == want
            assert placed[i].count_nonzero() == len(want)
            assert second.positions[i, where].tolist() == list(range(len(want)))
            assert of_kept.layouts[1].positions[i, where].tolist() == parents
            assert plan.memory.shift[0, i].item() == len(want) - len(rows[i])
            if want:
                assert read[i][mask[i]].tolist() == [placed[i, where].tolist()[place] for place in reads]
        assert plan.memory.masks[0].tolist() == placed.bool().tolist()
        assert plan.memory.last_position == second.positions.max()
        assert not of_kept.memory.shift.any()


def test_samples_of_mixed_sizes_packed_into_a_row_are_counted_one_by_one():
    config = tiny_config("llama", **lvtc())
    for seed in range(40):
        rows, sizes = random_rows(seed)
        placeholders = torch.tensor([[part is not None for row in rows for part in row]])
        bounds = torch.tensor([0, *accumulate(map(len, rows))], dtype=torch.int32)
        plan = plan_of(config, placeholders, sizes, cu_seq_lens_q=bounds, max_length_q=int(bounds.diff().max()))
        hand = [expand_by_hand(row, sizes)[0] for row in rows]
        assert plan.layouts[1].positions.tolist() == [[place for row in hand for place in range(len(row))]]
        assert plan.layouts[1].bounds["cu_seq_lens_q"].tolist() == [0, *accumulate(map(len, hand))]
        assert plan.layouts[1].bounds["max_length_q"] == max(map(len, hand))


def test_a_second_prompt_of_mixed_sizes_counts_on_from_the_first():
    config, (rows, sizes) = tiny_config("llama", **lvtc()), random_rows(3)
    placeholders, mask = as_batch(rows, left=True)
    first = plan_of(config, placeholders, sizes, mask, pads_left=True)
    cache = DynamicCache(config=config.text_config)
    for layer, length in enumerate([mask.shape[1]] * 2 + [first.memory.masks[0].shape[1]] * 2):
        cache.update(*torch.zeros(2, len(rows), 1, length, 1), layer)
    cache.layers[0].expansion = first.memory
    second = plan_of(config, placeholders, sizes, mask.repeat(1, 2), pads_left=True, cache=cache)
    for i, row in enumerate(rows):
        expanded, *_ = expand_by_hand(row, sizes)
        assert second.layouts[1].positions[i, -len(expanded) :].tolist() == list(
            range(len(expanded), 2 * len(expanded))
        )
    assert torch.equal(second.memory.masks[0], first.memory.masks[0].repeat(1, 2))
    assert torch.equal(second.memory.shift, 2 * first.memory.shift)


def test_text_between_the_placeholders_of_a_tile_is_refused():
    placeholders = torch.tensor([[True, True, False, True, True]])
    with pytest.raises(ValueError, match="must be contiguous"):
        plan_of(tiny_config("llama", **lvtc()), placeholders, [(4, 16)])
