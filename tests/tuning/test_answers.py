"""What is measured of an answer, and the tower's memory."""

import math

import pytest
import torch

from image_cases import random_image
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.tuning.answers import LIKELIEST, Asker, _common, _divergences, _likeliest
from internvlx_hf.tuning.items import load_items
from internvlx_hf.tuning.scores import anls, exact_match
from internvlx_hf.tuning.settings import OWN, Costs, Setting, merges, under
from internvlx_hf.tuning.tower import TowerMemory
from tiny import LVTC, tiny_batch, tiny_model, tiny_processor

ROUTER = {"router_relative_threshold": 0.0, "router_absolute_threshold": 0.0}


def test_common_tokens_end_at_the_first_difference():
    assert _common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert _common([1, 2], [1, 2, 3]) == 2
    assert _common([], [1]) == 0


def test_the_divergence_of_a_hand_computed_case():
    own, other = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    line = {"ids": [0], "likeliest": _likeliest(own.log())}
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert _divergences(line, [1], other.log()) == [pytest.approx(expected, abs=1e-3)]


def test_the_divergence_is_a_lower_bound_up_to_the_first_difference():
    torch.manual_seed(0)
    own, other = (torch.randn(4, 50).log_softmax(-1) for _ in range(2))
    ids = own.argmax(-1).tolist()
    found = _divergences({"ids": ids, "likeliest": _likeliest(own)}, [ids[0], (ids[1] + 1) % 50, 3, 4], other)
    whole = (own.exp() * (own - other)).sum(-1)
    assert len(found) == 2
    assert all(0 < value <= exact + 1e-3 for value, exact in zip(found, whole.tolist(), strict=False))
    assert len(_likeliest(own)[0][0]) == LIKELIEST
    same = _divergences({"ids": ids, "likeliest": _likeliest(own)}, ids, own)
    assert same == [pytest.approx(0, abs=1e-4)] * 4


@pytest.mark.parametrize("settings", [{}, LVTC], ids=["without LVTC", "with LVTC"])
def test_the_tower_encodes_a_tile_once_and_its_features_are_the_same(settings):
    model = tiny_model(**settings)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    plain = model(**batch).logits
    memory, tower = TowerMemory(model.model.vision_tower), model.model.vision_tower
    with memory.in_use():
        torch.testing.assert_close(model(**batch).logits, plain)
        swapped = batch | {"pixel_values": batch["pixel_values"].flip(0)}
        remembered = model(**swapped).logits
    assert (memory.encoded, memory.remembered) == (2, 2)
    assert memory.saved_seconds > 0
    assert "forward" not in vars(tower)
    torch.testing.assert_close(remembered, model(**swapped).logits)


def test_the_tower_forgets_the_oldest_tiles_first():
    model = tiny_model()
    tile_bytes = 65 * 32 * 4
    memory = TowerMemory(model.model.vision_tower, most_bytes=2 * tile_bytes)
    tiles = tiny_batch(model.config, [["tile"] * 3])["pixel_values"]
    with memory.in_use():
        for place in (0, 1, 2, 2, 1, 0):
            model.get_image_features(tiles[place : place + 1])
    assert (memory.encoded, memory.remembered) == (4, 2)


def test_answers_are_those_of_the_answerer(photos, tmp_path):
    model = tiny_model(**LVTC)
    answerer = Answerer(model, tiny_processor(model.config, max_patches=4, slicing="ratio"))
    items = [item for unit in load_items([photos(3, size=(70, 40))], "What?").units.values() for item in unit]
    costs, setting = Costs(answerer, items), Setting(max_patches=1)
    asker = Asker(answerer, costs, tmp_path / "answers.jsonl", {}, batch_size=2, max_new_tokens=5)
    asker.ask([setting], items, "")
    for tried, kwargs in ((OWN, {}), (setting, {"max_patches": 1})):
        plain = Answerer(model, answerer.processor, kwargs)
        for item in items:
            content = [{"type": "image", "image": item.open()[0]}, {"type": "text", "text": "What?"}]
            (expected,) = plain.answer([[{"role": "user", "content": content}]], max_new_tokens=5)
            found = asker.answer(tried, item)
            assert (found["answer"], len(found["ids"])) == (expected.text.strip(), expected.num_tokens)
    assert costs.tiles(setting, items[0]) == "1x1"
    assert asker.memory.remembered == len(items)  # the thumbnails


def test_scores():
    assert exact_match(" Forty two. ", "forty  TWO") == 1
    assert exact_match("42", "43") == 0
    assert anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert anls("cat", "dog") == 0
    assert anls("Paris", "paris.") == 1


def test_a_size_of_the_dial_has_its_own_answer_and_shares_the_tower(photos, tmp_path):
    model = tiny_model("llama", tokens_per_tile=["16", "4", "16:4"], merge_layer=3)
    processor = tiny_processor(model.config, max_patches=4, slicing="ratio")
    processor.offered_sizes = model.config.tokens_per_tile
    answerer = Answerer(model, processor)
    items = [item for unit in load_items([photos(2, size=(70, 40))], "What?").units.values() for item in unit]
    costs, smaller = Costs(answerer, items), [Setting(tokens_per_tile=size) for size in ("4", "16:4", "16+4")]
    merged = [Setting(tokens_per_tile=size, merge_layer=k) for k in (2, 3) for size in ("16:0", "16:4")]
    assert costs.cheaper(OWN, "tokens_per_tile") == [smaller[0], *merged[:3], smaller[1]]  # the last is its own layer
    assert costs.tiles(merged[0], items[0]) == "2x1+1 of 16:0 at layer 2"
    assert [costs.tiles(each, items[0]) for each in (OWN, *smaller)] == [
        *("2x1+1", "2x1+1 of 4", "2x1+1 of 16:4", "2x1+1 of 16+4")
    ]
    asker = Asker(answerer, costs, tmp_path / "answers.jsonl", {}, batch_size=2, max_new_tokens=5)
    asker.ask(smaller, items, "")
    assert (asker.asked, asker.memory.encoded) == (8, 6)
    asker.ask(merged, items, "")
    again = Asker(answerer, costs, tmp_path / "answers.jsonl", {}, batch_size=2, max_new_tokens=5)
    again.ask([*smaller, *merged], items, "")
    assert (asker.asked, asker.memory.encoded, again.asked) == (16, 6, 0)  # no tile is encoded for another layer
    for tried in smaller:
        plain = Answerer(model, processor, tried.given)
        for item in items:
            content = [{"type": "image", "image": item.open()[0]}, {"type": "text", "text": "What?"}]
            (expected,) = plain.answer([[{"role": "user", "content": content}]], max_new_tokens=5)
            assert asker.answer(tried, item)["answer"] == expected.text.strip()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("16:4", 2), ("16:4", 3), ("16:0", 2), ("16:0", 3)]),
        ({"text_config": {"num_hidden_layers": 12}}, [(f"16:{n}", k) for n in (4, 0) for k in (6, 9, 10)]),
        ({"text_config": {"num_hidden_layers": 1}}, []),
        ({"downsample_ratio": 1 / 8}, [("1:0", 2), ("1:0", 3)]),
        (
            {"tokens_per_tile": ["16", "16:1"], "merge_layer": 2},
            [("16:1", 3), *(("16:4", k) for k in (2, 3)), *(("16:0", k) for k in (2, 3))],
        ),
        (ROUTER, []),
    ],
    ids=["plain", "12 layers", "1 layer", "1 token", "a size", "router"],
)
def test_fewer_tokens_are_tried_from_half_of_the_layers_on(settings, expected):
    assert list(merges(tiny_model(**settings).config)) == expected


@pytest.mark.parametrize(
    "settings",
    [{}, LVTC, {"tokens_per_tile": ["16", "16:4"], "merge_layer": 1}],
    ids=["plain", "LVTC", "another layer"],
)
def test_a_model_under_a_setting_is_the_one_that_a_conversion_saves(settings, photos, tmp_path):
    model = tiny_model("llama", **settings)
    processor = tiny_processor(model.config, slicing="ratio")
    processor.offered_sizes = model.config.tokens_per_tile
    model.save_pretrained(tmp_path / "source")
    processor.save_pretrained(tmp_path / "source")
    answerer, own = Answerer(model, processor), model.config.sizes[0].before
    size = f"{own}:{own // 4}"
    content = [{"type": "image", "image": random_image(60, 40)}, {"type": "text", "text": "What?"}]

    def logits(one: Answerer) -> torch.Tensor:
        with torch.no_grad():
            return one.model(**one.inputs([[{"role": "user", "content": content}]])).logits

    before = logits(answerer)
    with under(Setting(tokens_per_tile=size, merge_layer=2), answerer) as changed:
        found = logits(changed)
    assert not torch.equal(found, before)
    sizes = list(dict.fromkeys([*map(str, model.config.sizes), size]))
    convert_checkpoint(tmp_path / "source", tmp_path / "out", tokens_per_tile=sizes, merge_at=2, size=size)
    saved = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "out")
    again = Answerer(saved, InternVLXProcessor.from_pretrained(tmp_path / "out"))
    assert torch.equal(found, logits(again))
    items = [item for unit in load_items([photos(2, size=(70, 40))], "What?").units.values() for item in unit]
    assert Costs(answerer, items).flops(Setting(tokens_per_tile=size, merge_layer=2)) == Costs(again, items).flops(OWN)
    with pytest.raises(KeyError), under(Setting(tokens_per_tile=size, merge_layer=2), answerer):
        raise KeyError
    assert torch.equal(logits(answerer), before)


def test_a_checkpoint_takes_another_of_its_sizes_by_default(tmp_path):
    model = tiny_model("llama", tokens_per_tile=["16", "4", "16:4"], merge_layer=3)
    model.save_pretrained(tmp_path / "source")
    processor = tiny_processor(model.config)
    processor.offered_sizes = model.config.tokens_per_tile
    processor.save_pretrained(tmp_path / "source")
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out", notes=["Measured."], size="16:4")
    assert "Measured." in report.notes
    saved = InternVLXProcessor.from_pretrained(tmp_path / "out")
    assert (saved.sizes, saved.tokens_per_tile) == (["16", "4", "16:4"], "16:4")
    assert "Measured." in (tmp_path / "out/README.md").read_text()
