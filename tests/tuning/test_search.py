"""The search finds the cheapest setting that passes, and asks little."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from internvlx_hf.tuning.search import halve, most_changed, rungs, search
from internvlx_hf.tuning.settings import OWN, named
from internvlx_hf.tuning.settings import Setting as setting


class TableCosts:
    """Settings on a grid of two axes, each value cheaper than the one before."""

    axes = {"max_patches": [1, 2, 3], "min_patches": [1, 2]}

    def flops(self, each):
        return 100 - 10 * (each.max_patches or 0) - 4 * (each.min_patches or 0)

    def all_tiles(self, each):
        return each

    def cheaper(self, start, axis, seen=()):
        found = [replace(start, **{axis: value}) for value in self.axes[axis]]
        found = [each for each in found if self.flops(each) < self.flops(start) and each not in seen]
        return sorted(found, key=self.flops)


class Table:
    """Which of some images change under each setting; `asked` counts answers."""

    def __init__(self, changes, count):
        self.changes, self.count, self.seen = changes, count, set()

    def measure(self, settings, count):
        self.seen |= {(each, place) for each in settings for place in range(count)}
        return [int(self.changes(each)[:count].sum()) for each in settings]


def where(count, *places):
    changed = np.zeros(count, bool)
    changed[list(places)] = True
    return changed


def test_rungs_double_and_end_with_all_images():
    assert rungs(100) == [8, 16, 32, 64, 100]
    assert rungs(8) == [8]
    assert rungs(5) == [5]


def test_the_choosing_half_may_change_as_much_as_the_certificate_allows():
    assert most_changed(149, 149, 0.98) == 0
    assert most_changed(12, 12, 0.9) == 1  # cannot be certified: the estimate
    assert most_changed(12, 12, 0.98) == 0
    assert most_changed(148, 149, 0.98) == 0  # the other half is one larger


@pytest.mark.parametrize("seed", range(20))
def test_halving_finds_what_trying_all_finds(seed):
    rng = np.random.default_rng(seed)
    settings = [setting(max_patches=number) for number in range(1, 10)]
    changed = {each: rng.random(60) < rng.choice([0.0, 0.01, 0.05, 0.3]) for each in settings}
    passing = [each for each in settings if changed[each].sum() <= 1]
    table = Table(changed.get, 60)
    assert halve(settings, 60, 1, table.measure) == (passing[0] if passing else None)


def test_settings_that_fail_early_are_not_tried_on_all_images():
    settings = [setting(max_patches=number) for number in range(1, 9)]
    table = Table(lambda each: where(64, *(() if each == settings[-1] else range(8))), 64)
    assert halve(settings, 64, 0, table.measure) == settings[-1]
    assert len(table.seen) == 8 * 8 + (64 - 8)


def test_the_search_combines_settings():
    def changes(each):
        return where(40, *(range(5) if each.max_patches == 3 else ()))

    table = Table(changes, 40)
    assert search(TableCosts(), 40, 0, table.measure) == setting(max_patches=2, min_patches=2)


def test_where_nothing_cheaper_passes_the_model_s_own_settings_are_chosen():
    table = Table(lambda each: where(40, 3, 4), 40)
    assert search(TableCosts(), 40, 1, table.measure) == OWN
    grid = list(itertools.product(*TableCosts.axes.values()))
    assert len({each for each, _ in table.seen}) < len(grid)


def test_a_setting_s_name_has_slicing_first():
    assert named(setting(max_patches=3, slicing="edge")) == "slicing=edge, max_patches=3"
    assert named(setting(tokens_per_tile="64:0", merge_layer=3)) == "tokens_per_tile=64:0, merge_layer=3"
    assert named(OWN) == "the model's own"
