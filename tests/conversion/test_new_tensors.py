"""What a conversion starts anew, what it carries over, and which of two files settles the pixels."""

import json

import torch

from conversion_helpers import copy_of
from internvlx_hf.checkpoints.names import PROCESSOR_FILES
from internvlx_hf.checkpoints.weights import TensorInfo
from internvlx_hf.conversion.convert import convert_checkpoint
from internvlx_hf.conversion.pixels import pixel_settings
from internvlx_hf.conversion.upgrades import InitialValues, Upgrade
from tiny import LVTC, tiny_config

LAYER = "model.multi_modal_projector.local_layers.0.mlp"
ALIKE = f"{LAYER}.gate.weight", f"{LAYER}.up.weight"  # but for their values


def values(seed: int, *names: str) -> list[torch.Tensor]:
    initial = InitialValues(tiny_config(**LVTC), Upgrade(), seed)
    return [initial(name, TensorInfo((4, 64), torch.float32)) for name in names]


def test_each_new_tensor_is_drawn_from_the_seed_and_its_name():
    before = torch.random.get_rng_state()
    first, second = values(7, *ALIKE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert torch.equal(values(7, ALIKE[0])[0], first)
    assert not torch.equal(values(8, ALIKE[0])[0], first)


def test_licences_and_generation_settings_come_along(tmp_path):
    source = copy_of("internvl2_qwen2", tmp_path / "source")
    (source / "LICENSE").write_text("Mine.")
    (source / "training_recipe.json").write_text("{}")
    convert_checkpoint(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "Mine."
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert not (tmp_path / "out" / "training_recipe.json").exists()  # of weights that were not trained here


def test_the_first_of_two_files_settles_the_pixels(tmp_path):
    """As in transformers, where processor_config.json holds the settings of all parts."""
    for file in PROCESSOR_FILES:
        settings = {"image_mean": [0.1 * (1 + PROCESSOR_FILES.index(file))] * 3, "image_std": [1.0, 1.0, 1.0]}
        nested = {"image_processor": settings} if file == "processor_config.json" else settings
        (tmp_path / file).write_text(json.dumps(nested))
    found, note = pixel_settings(tmp_path, "siglip")
    assert (found["image_mean"], note) == ([0.1, 0.1, 0.1], None)


def test_a_tower_of_a_second_generation_is_normalised_as_the_first(tmp_path):
    first, second, other = (
        pixel_settings(tmp_path, kind)[0] for kind in ("siglip_vision", "siglip2_vision", "dinov2")
    )
    assert first["image_mean"] == second["image_mean"] == [0.5, 0.5, 0.5]
    assert other["image_mean"] != first["image_mean"]
