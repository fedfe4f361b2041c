"""Rows, positions, lengths and names of prompts whose tiles have several sizes, tied to the plan that transformers' forward makes."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from dial_cases import dial, dial_batch, dial_model
from internvlx_hf.modeling.layout import Layout, Rows
from internvlx_hf.modeling.tile_tokens import read_image_tokens
from internvlx_hf.processing.size_choices import Choice
from internvlx_hf.vllm.packing import pack_tiles, unpack_tiles
from internvlx_hf.vllm.tile_rows import find_stages, long_rows, named_with_sizes, read_prompt, read_rows, read_sizes
from lvtc_cases import KEPT
from tiny import LVTC

MODELS = {
    "one boundary": dial(2, 2),
    "merged after the expansion": dial(2, 3),
    "merged before the expansion": dial(3, 1, insert_start=0),
    "kept positions": dial(3, 2, **KEPT),
    "no growth": {"tokens_per_tile": ["16", "4", "16:4", "16:0", "16:1"], "merge_layer": 2},
    "no shrinking": {**dial(2, None, tokens_per_tile=["16", "4", "4:16"])},
    "one size": LVTC,
    "one size without an HR projector": {**LVTC, "lvtc_config": LVTC["lvtc_config"] | {"hr_projector_type": None}},
}
# lengths of texts, and images, each the sizes of its tiles; with one more name, the thumbnail's
LAYOUT = [3, ("16",), 2, ("4:16",) * 2, 1, ("16:4",) * 3 + ("4",), ("16:0",), 2, ("4", "4", "4:16"), 1, ("16:1",), 4]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return dial_model(**MODELS[request.param])


def fitting(config) -> list:
    """The layout, with the last size of the model for those that it lacks."""
    names = [str(size) for size in config.sizes]
    return [
        part if isinstance(part, int) else tuple(size if size in names else names[-1] for size in part)
        for part in LAYOUT
    ]


def prompt_of(config):
    """The length of the long sequence, its images as vLLM has them, the tiles' sizes, and which rows are tiles'."""
    names = [str(size) for size in config.sizes]
    images, sizes, is_tile = [], [], []
    for part in fitting(config):
        if isinstance(part, int):
            is_tile += [False] * part
            continue
        indices = [names.index(size) for size in part]
        own = [config.sizes[index] for index in indices]
        place = SimpleNamespace(offset=len(is_tile), length=sum(map(long_rows, own)))
        name = named_with_sizes("lora-ab-12", Choice(indices[0], indices[-1]))
        images.append(SimpleNamespace(identifier=name, mm_position=place))
        sizes += own
        is_tile += [True] * place.length
    return len(is_tile), images, sizes, torch.tensor(is_tile)


def test_sizes_are_read_from_an_image_s_name(model):
    _, images, sizes, _ = prompt_of(model.config)
    assert [size for image in images for size in read_sizes(model.config, image)] == sizes


@pytest.fixture(scope="module")
def step(model):
    """A whole prompt: its batch, embeddings of the long sequence, and tiles as a step unpacks them."""
    config = model.config
    flat = [part for parts in fitting(config) for part in ([parts] if isinstance(parts, int) else parts)]
    if config.tokens_per_tile is None:
        config.tokens_per_tile = [str(config.sizes[0])]
        batch = dial_batch(config, [flat])
        config.tokens_per_tile = None
    else:
        batch = dial_batch(config, [flat])
    with torch.no_grad():
        features = model.model.get_image_features(batch["pixel_values"], batch["tile_sizes"])
    tokens = read_image_tokens(config, features, features.last_hidden_state)
    _, _, _, is_tile = prompt_of(config)
    packed = torch.cat(pack_tiles(config, tokens))
    return SimpleNamespace(batch=batch, tokens=tokens, packed=packed, tiles=unpack_tiles(config, packed, is_tile))


@pytest.fixture(scope="module")
def whole(model, step):
    """What vLLM carries of a prompt, and the rows of all of it."""
    config = model.config
    length, images, *_ = prompt_of(config)
    stages, prompt = find_stages(config), read_prompt(length, images, config)
    carried, delta = prompt.carried(stages[0].radix)
    rows, maps = read_rows(stages, config.boundaries, torch.arange(length), carried, step.tiles)
    return SimpleNamespace(
        length=length, prompt=prompt, stages=stages, carried=carried, delta=delta, rows=rows, maps=maps
    )


def test_packed_tiles_are_unpacked_as_they_were(model, step):
    packed, tokens, found = step.packed, step.tokens, step.tiles.tokens
    sizes = tokens.of_tiles
    changing = [i for i, size in enumerate(sizes) if size.boundary is not None]
    assert found.sizes == [sizes[i] for i in changing]
    rows = tokens.rows.split([size.before for size in sizes])
    assert torch.equal(found.rows, torch.cat([rows[i] for i in changing]))
    for entry, wanted in zip(found.lr, tokens.lr, strict=True):
        assert all(torch.equal(own, wanted[i]) for own, i in zip(entry, changing, strict=True))
    assert (found.hr is None) == (tokens.hr is None)
    for own, i in zip(found.hr or (), changing, strict=bool(found.hr)):
        assert torch.equal(own, tokens.hr[i])
    long = [long_rows(size) for size in sizes]
    for (own, size), first in zip(zip(packed.split(long), sizes, strict=True), rows, strict=True):
        if not size.has_lvtc:
            assert torch.equal(own[:, : first.shape[1]], first)
    with pytest.raises(RuntimeError, match="expected whole tiles"):
        unpack_tiles(model.config, packed[: long[0] + 3], step.tiles.is_tile)


def test_rows_and_positions_are_those_of_the_plan(model, step, whole):
    config, prompt, length = model.config, whole.prompt, whole.length
    _, _, sizes, _ = prompt_of(config)
    ids = step.batch["input_ids"]
    layout = Layout(Rows.WHOLE, torch.arange(ids.shape[1])[None], None, {})
    plan = model.model._plan_tiles(layout, ids == config.image_token_id, sizes, len(sizes), None, trains=False)
    for stage, found, wanted in zip(whole.stages, whole.rows, plan.layouts, strict=True):
        assert found.positions.tolist() == wanted.positions[0].tolist()
        assert found.numbers.tolist() == list(range(len(found.index)))
        counts = [prompt.count(tokens, stage.is_expanded, stage.is_merged) for tokens in range(length + 3)]
        assert counts[length + 2] == len(found.index) + 2
        assert counts[: length + 1] == [int((found.index < tokens).sum()) for tokens in range(length + 1)]
        later = torch.arange(length, length + 3)
        numbers, positions = stage.places(later, later + whole.delta)
        assert numbers.tolist() == [len(found.index) + i for i in range(3)]
        assert positions.tolist() == [int(found.positions[-1]) + 1 + i for i in range(3)]
    changing = torch.isin(torch.arange(len(sizes)), torch.tensor([i for i, s in enumerate(sizes) if s.boundary]))
    of_stages = pairwise([plan.row_maps[0].tiles, *(row_map.tiles_to for row_map in plan.row_maps)])
    for found, (tiles, tiles_to), (before, after) in zip(
        whole.maps, of_stages, _tile_counts(config, sizes), strict=True
    ):
        of_change, of_new = changing.repeat_interleave(before), changing.repeat_interleave(after)
        assert torch.equal(found.tiles, tiles[of_change])
        assert torch.equal(found.tiles_to, tiles_to[of_new])


def _tile_counts(config, sizes):
    counts = [torch.tensor(own) for own in zip(*(size.in_stages(config.boundaries) for size in sizes), strict=True)]
    return list(pairwise(counts))


def test_a_prompt_in_pieces_has_the_rows_of_the_whole(model, step, whole):
    """Pieces end outside of images that change; a piece without such an image needs no tiles."""
    config, length, carried = model.config, whole.length, whole.carried
    is_tile = prompt_of(config)[-1]
    inside = {row for image in whole.prompt.images for row in image[1:]}
    cuts = [0, *(row for row in range(1, length, 3) if row not in inside), length]
    pieces, used = [], 0
    for start, end in pairwise(cuts):
        own = is_tile[start:end]
        packed = step.packed[used : used + int(own.sum())]
        used += len(packed)
        tiles = unpack_tiles(config, packed, own) if len(packed) else None
        pieces.append(
            read_rows(whole.stages, config.boundaries, torch.arange(start, end), carried[start:end], tiles)[0]
        )
    for stage, wanted in enumerate(whole.rows):
        for name in ("numbers", "positions"):
            found = torch.cat([getattr(piece[stage], name) for piece in pieces])
            assert torch.equal(found, getattr(wanted, name))


def test_the_last_stage_s_rows_are_spread_over_the_long_sequence(whole):
    length, rows = whole.length, whole.rows
    spread = rows[-1].spread(rows[-1].index[:, None], length).flatten().tolist()
    here = set(rows[-1].index.tolist())
    assert spread == [max(own for own in here if own <= row) for row in range(length)]
    assert spread[-1] == length - 1
