"""What of a folder is counted, and limits at their exact value."""

from PIL import Image

from internvlx_hf import cost
from internvlx_hf.cost import CostModel
from internvlx_hf.cost.images import ImageSizes
from internvlx_hf.cost.report import Report
from internvlx_hf.cost.setups import ModelSetup
from internvlx_hf.processing.rvtc import TilingRule
from tiny import tiny_config


def test_hidden_images_of_a_folder_are_not_counted(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.png", ".hidden.png", "below/b.png", "below/.c.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    assert [name.removeprefix(f"{tmp_path}/") for name in cost.find_images([tmp_path]).names] == [
        "a.png",
        "below/b.png",
    ]


def test_a_model_s_name_is_not_broken_at_its_hyphens():
    name = "one-of-the-models-whose-folder-has-a-long-name"
    setting = ModelSetup(name, tiny_config(), TilingRule(32, 32))
    assert f"{name}:" in Report(ImageSizes(["a"], [(32, 32)]), [CostModel(setting)], width=40).to_text()
