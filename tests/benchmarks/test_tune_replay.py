"""The replay of tunings: it counts what the bound promises, and what it saves."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from benchmark_scripts import FOLDER, importable
from internvlx_hf.tuning.settings import OWN

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]


@pytest.fixture
def replay():
    with importable(FOLDER / "tune", also=("pages",)):
        yield import_module("replay")


class StoredCosts:
    axes = {"max_patches": [3, 2, 1]}

    def flops(self, setting):
        return setting.max_patches or 4

    def all_tiles(self, setting):
        return self.flops(setting)

    def cheaper(self, start, axis, seen=()):
        found = [replace(start, **{axis: value}) for value in sorted(self.axes[axis])]
        return [each for each in found if self.flops(each) < self.flops(start) and self.flops(each) not in seen]


def pool(module, shares, pages=200):
    """Pages of which a share keeps its answer under at most 3, 2 and 1 tiles."""
    found = object.__new__(module.Pool)
    found.costs, found.items = StoredCosts(), list(range(pages))
    found.tried = {OWN: np.ones(pages, bool)}
    for tiles, share in zip((3, 2, 1), shares, strict=True):
        found.tried[replace(OWN, max_patches=tiles)] = np.arange(pages) < share * pages
    return found


def test_the_certified_share_holds_as_often_as_promised(replay):
    row = pool(replay, (0.99, 0.93, 0.5)).replay(120, 0.9, 400)
    assert row["certified"] + row["cannot_tell"] + row["nothing_to_save"] == pytest.approx(1)
    assert row["bound_holds"] >= 0.93  # 0.95 in expectation, of 400
    assert row["wrongly_certified"] == 0
    assert 0.25 <= row["saved_when_certified"] <= 0.5


def test_a_setting_below_the_promise_is_rarely_certified(replay):
    row = pool(replay, (0.89, 0.89, 0.89)).replay(298, 0.9, 400)
    assert row["wrongly_certified"] <= 0.05
    assert row["bound_holds"] >= 0.93


def test_where_every_answer_changes_there_is_nothing_to_save(replay):
    changing = pool(replay, (0.5, 0.4, 0.1))
    row = changing.replay(60, 0.9, 50)
    assert row["nothing_to_save"] == 1
    assert row["bound_holds"] is row["saved_when_certified"] is None
    assert changing.most_saved(0.9) == 0
    assert pool(replay, (1, 0.95, 0.4)).most_saved(0.9) == pytest.approx(0.5)


def test_pages_are_the_same_whenever_they_are_drawn(replay):
    for kind in replay.KINDS:
        one, other = (replay.draw(kind, "test", 3) for _ in range(2))
        assert one.text == other.text
        assert one.image.tobytes() == other.image.tobytes()
        assert one.image.tobytes() != replay.draw(kind, "train", 3).image.tobytes()
