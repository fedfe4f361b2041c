"""Costs where the stages have unequal numbers of layers, and sizes that are measured again when a setting changes them."""

import numpy as np
import pytest

from data_cases import CONFIG, record, write_lines
from internvlx_hf.data import load_training_data
from internvlx_hf.data.sizes import SampleSizes, fingerprint, tile_cost
from tiny import tiny_config, tiny_processor


def test_each_stage_counts_by_its_own_share_of_the_layers():
    """Stage one is one of four layers at 4 tokens a tile, stage two three of four at 16."""
    lvtc = {"expand_layer": 1, "downsample_ratio": 0.5, "num_lr_projectors": 1}
    config = tiny_config(downsample_ratio=0.25, lvtc_config=lvtc)
    sizes = SampleSizes(np.array([10, 14]), np.array([0, 1]))
    in_layers = sizes.costs(config) - sizes.tiles * tile_cost(config)
    np.testing.assert_allclose(in_layers, [10, (14 + 3 * 26) / 4])


CHANGES = {
    "share_tiles": lambda data: setattr(data.encoder, "share_tiles", not data.encoder.share_tiles),
    "max_length": lambda data: setattr(data.encoder, "max_length", 99),
    "the budget": lambda data: setattr(data.encoder.processor, "max_image_tokens", 400),
    "the tokenizer": lambda data: setattr(data.encoder.processor.tokenizer.backend_tokenizer, "normalizer", lower()),
    "the tiles": lambda data: setattr(data.encoder.processor.image_processor, "max_patches", 2),
    "the choice of records": lambda data: setattr(data, "records", data.records[::-1].copy()),
}


def lower():
    from tokenizers.normalizers import Lowercase

    return Lowercase()


@pytest.mark.parametrize("change", CHANGES)
def test_sizes_of_other_settings_are_not_used(change, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [record(0), record(1)])
    data = load_training_data(file, tiny_processor(CONFIG))
    before = fingerprint(data)
    assert before == fingerprint(data)
    CHANGES[change](data)
    assert fingerprint(data) != before
