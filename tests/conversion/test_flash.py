"""InternVL3.5-Flash: a converted checkpoint routes tiles as its formulas say, or takes all tokens of every tile.

The formulas are those of the released `modeling_internvl_chat.py`, computed here tensor by tensor. 1e-4 on logits of size 1.
"""

import PIL.Image
import pytest
import torch
from torch.nn import functional as F

from conversion_geometry import raw_config, write_checkpoint
from conversion_helpers import edit_config, load, not_converted
from internvlx_hf import InternVLXProcessor
from internvlx_hf.checkpoints.weights import Weights
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.slow_reference import SlowReference
from json_files import json_of

THRESHOLDS = {"flash_relative_threshold": 0.3, "flash_absolute_threshold": 0.4}
TILES, WIDTH, HEADS = 6, 32, 16


@pytest.fixture(scope="module")
def flash(tmp_path_factory):
    raw = raw_config(
        (WIDTH, 2, 4, 64, False), "Qwen3ForCausalLM", 48, 2, 4, 2, 64, 572, tile=112, dtype="float32", head_dim=16
    )
    return write_checkpoint(tmp_path_factory.mktemp("flash") / "source", raw | {"flash_mode": True} | THRESHOLDS)


@pytest.fixture(scope="module")
def converted(flash, tmp_path_factory):
    out = tmp_path_factory.mktemp("flash") / "out"
    report = convert_checkpoint(flash, out, verify=True)
    assert report.exact
    assert report.checks["reference"].startswith("matches the source computed independently")
    return out


class SlowFlash(SlowReference):
    """The router, for one tile of (1 + S², C) features at a time."""

    def attend(self, name, query, patches):
        weights = self.read(f"{name}.in_proj_weight").chunk(3)
        biases = self.read(f"{name}.in_proj_bias").chunk(3)
        q, k, v = (x @ w.T + b for x, w, b in zip((query, patches, patches), weights, biases, strict=True))
        size, heads = WIDTH // HEADS, []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            heads.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1) @ v[:, part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, -1))

    def probability(self, features):
        pooling = "pooling_before_gating"
        x = self.read(f"{pooling}.query_token")
        for i in (1, 2, 2, 2):
            x = self.layer_norm(f"{pooling}.norm{i}", self.attend(f"{pooling}.attn{i}", x, features[1:]), 1e-5)
        for i in (1, 2, 3, 4):
            hidden = self.linear(f"gating.block{i}.3", F.gelu(self.linear(f"gating.block{i}.0", x)))
            x = x + self.layer_norm(f"gating.block{i}.5", hidden, 1e-5)
        return self.linear("gating.gate.1", self.layer_norm("gating.gate.0", x, 1e-5)).softmax(-1)[0, 0]

    def compress(self, features):
        grid = int((len(features) - 1) ** 0.5)
        patches = features[1:].reshape(grid, grid, -1)
        windows = [patches[r : r + 4, c : c + 4].flatten() for r in range(0, grid, 4) for c in range(0, grid, 4)]
        x = self.linear("mlp2.1", self.layer_norm("mlp2.0", torch.stack(windows), 1e-5))
        return self.linear("mlp2.7", F.gelu(self.linear("mlp2.4", F.gelu(x))))


def expected_logits(folder, ids, image_token, pixels, routes=True):
    """Logits of the last position, and the number of compressed tiles."""
    weights = Weights(folder)
    raw = json_of(folder / "config.json")
    slow = SlowFlash(lambda name: weights.read(name).float(), raw, set(weights.tensors))
    features = [slow.features(tile) for tile in pixels]
    scores = torch.stack([slow.probability(tile) for tile in features])
    least = torch.quantile(scores, raw["flash_relative_threshold"])
    chosen = [routes and bool(score > least) and bool(score >= raw["flash_absolute_threshold"]) for score in scores]
    tokens = [slow.compress(f) if short else slow.project(f) for f, short in zip(features, chosen, strict=True)]
    per_tile, kept, seen = len(slow.project(features[0])), [], 0
    for token in ids.tolist():
        if token == image_token:
            tile, place = divmod(seen, per_tile)
            seen += 1
            if place >= len(tokens[tile]):
                continue
        kept.append(token)
    return slow.logits(torch.tensor(kept), image_token, torch.cat(tokens)), sum(chosen)


def prompt(model, tiles=TILES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(10, 300, (7,), generator=generator)
    image = torch.full((tiles * model.config.image_seq_length,), model.config.image_token_id)
    ids = torch.cat([text[:3], image, text[3:]])
    return ids[None], torch.randn(tiles, 3, 112, 112, generator=generator)


def first_logits(model, ids, pixels):
    settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(input_ids=ids, pixel_values=pixels, **settings)
    assert torch.equal(output.sequences[:, :-1], ids)
    return output.logits[0][0]


@pytest.mark.parametrize("tiles", [1, 2, TILES])
def test_generate_routes_tiles_as_the_formulas_say(flash, converted, tiles):
    model = load(converted)
    ids, pixels = prompt(model, tiles)
    expected, compressed = expected_logits(flash, ids[0], model.config.image_token_id, pixels)
    assert compressed == 0 if tiles == 1 else 0 < compressed < tiles
    torch.testing.assert_close(first_logits(model, ids, pixels), expected, atol=1e-4, rtol=1e-4)
    unrouted, _ = expected_logits(flash, ids[0], model.config.image_token_id, pixels, routes=False)
    torch.testing.assert_close(model(input_ids=ids, pixel_values=pixels).logits[0, -1], unrouted, atol=1e-4, rtol=1e-4)
    if compressed:
        assert (expected - unrouted).abs().max() > 1e-2


def test_the_processor_offers_both_sizes(converted):
    processor = InternVLXProcessor.from_pretrained(converted)
    image = PIL.Image.new("RGB", (224, 112))
    large, small = processor.sizes
    assert int(large) == 4 * int(small) == load(converted).config.image_seq_length
    for given, tokens in (
        ({}, large),
        ({"tokens_per_tile": small}, small),
        ({"max_image_tokens": 3 * int(small)}, small),
    ):
        inputs = processor(image, "<IMG_CONTEXT> What is it?", max_patches=2, return_tensors="pt", **given)
        tiles = len(inputs["pixel_values"])
        assert (inputs["input_ids"] == processor.image_token_id).sum() == tiles * int(tokens)
        assert ("tile_sizes" in inputs) == (tokens == small)


def test_without_its_router_a_model_takes_all_tokens_of_every_tile(flash, out):
    report = convert_checkpoint(flash, out, router="drop")
    assert set(report.dropped_tensors.values()) == {"router='drop'", "InternVL3.5-Flash's code never uses it"}
    model = load(out)
    assert model.model.tile_router is None
    ids, pixels = prompt(model)
    expected, _ = expected_logits(flash, ids[0], model.config.image_token_id, pixels, routes=False)
    torch.testing.assert_close(first_logits(model, ids, pixels), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_that_does_not_route_loses_the_router(flash, tmp_path, out):
    raw = json_of(flash / "config.json")
    source = write_checkpoint(tmp_path / "source", raw | {"flash_mode": False})
    report = convert_checkpoint(source, out)
    assert "flash_mode is off, so the router is not used" in report.dropped_tensors.values()
    assert load(out).model.tile_router is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lvtc": True}, "fits only the projector … --router drop"),
        ({"projector": "pvtc"}, "fits only the projector … --router drop"),
        ({"to": "internvl"}, "the model offers … Drop its router (router='drop')"),
    ],
)
def test_what_a_router_cannot_do_is_named(flash, options, said):
    not_converted(flash, said, ValueError, **options)


def test_a_router_can_be_dropped_for_an_upgrade(flash, out):
    convert_checkpoint(flash, out, router="drop", projector="pvtc", lvtc=True)
    assert load(out).config.lvtc_config is not None


def test_missing_thresholds_and_routers_are_named(flash, tmp_path):
    source = write_checkpoint(tmp_path / "source", json_of(flash / "config.json"))
    edit_config(source, lambda raw: raw.pop("flash_relative_threshold"))
    not_converted(source, "lacks 'flash_relative_threshold', which flash_mode requires")
    edit_config(source, lambda raw: raw.update(flash_mode=False))
    not_converted(source, "router='drop' … the checkpoint has no router", ValueError, router="drop")
