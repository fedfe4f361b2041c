"""InternVL2's published geometries, on the meta device: every name maps, every target is filled, the sizes are right."""

import pytest

from conversion_geometry import PUBLISHED, published_config, shapes, tensors_of
from internvlx_hf.conversion import ConversionOptions
from internvlx_hf.conversion.plan import make_plan, target_tensors
from internvlx_hf.conversion.sources import read_source
from internvlx_hf.conversion.tensor_tables import source_table
from internvlx_hf.conversion.upgrades import build_upgrade
from json_files import write_json

# each kind of language model, and both vision towers: the other sizes go the same ways
UPGRADED = ("InternVL2-1B", "InternVL2-2B", "InternVL2-4B", "InternVL2-40B", "InternVL3_5-30B-A3B")


def dry_source(tmp_path, name: str):
    raw = published_config(name)
    write_json(tmp_path / "config.json", raw)
    return raw, read_source(tmp_path, tensors_of(raw))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_geometry_maps_and_every_target_is_filled(tmp_path, name):
    raw, source = dry_source(tmp_path, name)
    plan = make_plan(source_table(source), source.config, tensors_of(raw))
    assert plan.steps.keys() == shapes(raw).keys()
    assert not plan.dropped
    assert not plan.new
    targets = target_tensors(source.config)
    filled = {target: info.shape for group in plan.groups.values() for target, info in group.items()}
    assert filled == {target: info.shape for target, info in targets.items()}
    # as many parameters as the model's page says: tests/cost/test_presets.py
    assert sum(info.meta().numel() for info in targets.values()) == sum(
        info.meta().numel() for info in tensors_of(raw).values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", UPGRADED)
def test_a_published_geometry_can_be_upgraded_at_full_size(tmp_path, name):
    raw, source = dry_source(tmp_path, name)
    after, upgrade = build_upgrade(source.config, ConversionOptions(projector="pvtc", lvtc=True))
    plan = make_plan(source_table(source), source.config, tensors_of(raw), upgrade=upgrade, after=after)
    filled = {target for group in plan.groups.values() for target in group}
    assert filled | plan.new.keys() == target_tensors(after).keys()
    assert after.projector_config.num_heads == 16
