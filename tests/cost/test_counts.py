"""What of a folder is counted, and limits at their exact value."""

import pytest
from PIL import Image

from internvlx_hf import cost
from internvlx_hf.cost import CostModel
from internvlx_hf.cost.images import ImageSizes
from internvlx_hf.cost.report import Report
from internvlx_hf.cost.request_budget import RequestBudget
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.processing.rvtc import TilingRule
from tiny import LVTC, tiny_config


def test_hidden_images_of_a_folder_are_not_counted(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.png", ".hidden.png", "below/b.png", "below/.c.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    assert [name.removeprefix(f"{tmp_path}/") for name in cost.find_images([tmp_path]).names] == [
        "a.png",
        "below/b.png",
    ]


def test_a_request_at_its_limits_passes_and_one_past_them_does_not():
    budget = RequestBudget(
        max_images=2, max_pixels=100, max_total_pixels=150, max_stop_strings=1, max_stop_characters=3
    )
    budget.check_sizes([(10, 10), (5, 10)])
    budget.check_stop_strings(["abc"])
    for sizes in ([(1, 1)] * 3, [(101, 1)], [(10, 10), (51, 1)]):
        with pytest.raises(ValueError, match=r"max_images|max_pixels|max_total_pixels"):
            budget.check_sizes(sizes)


def test_an_answer_has_the_positions_that_prompt_and_tiles_leave():
    config = tiny_config(**LVTC)  # 1024 positions; 4 tokens a tile in the prompt, 16 after the expansion
    budget = RequestBudget()
    assert budget.new_tokens(config, 1000, tiles=1) == 1024 - 1000 - 12
    assert budget.new_tokens(config, 1000, tiles=1, requested=12) == 12
    for requested, tiles in ((13, 1), (None, 2)):
        with pytest.raises(ValueError, match="together at most 1024"):
            budget.new_tokens(config, 1000, tiles=tiles, requested=requested)


def test_a_model_s_name_is_not_broken_at_its_hyphens():
    name = "one-of-the-models-whose-folder-has-a-long-name"
    setting = ModelSetup(name, tiny_config(), TilingRule(32, 32))
    assert f"{name}:" in Report(ImageSizes(["a"], [(32, 32)]), [CostModel(setting)], width=40).to_text()
