"""What `configs/accelerate/` asks for, held against accelerate and the models, without starting processes."""

import functools

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from paths import ROOT
from tiny import LVTC, TEXT_MODELS, tiny_model

CONFIGS = ROOT / "configs" / "accelerate"
ENGINES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}
PIXEL_SHUFFLE = {"projector_type": "pixel_shuffle"}
PVTC_INSERTED = {**LVTC, "lvtc_config": {**LVTC["lvtc_config"], "lr_projector_type": "pvtc"}}


def test_every_configuration_is_for_a_known_engine():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == ENGINES.keys()


@pytest.mark.parametrize("name", ENGINES)
def test_accelerate_knows_every_setting(name):
    """It raises for one that it does not know."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == ENGINES[name]
    assert config.mixed_precision == "bf16"
    assert config.num_machines == 1
    if config.distributed_type == DistributedType.DEEPSPEED:
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
        assert config.deepspeed_config["gradient_accumulation_steps"] == "auto"
        assert config.deepspeed_config["gradient_clipping"] == "auto"


def fsdp_units(model) -> set[str]:
    """Classes that accelerate shards one by one, with the settings of fsdp2.yaml."""
    settings = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        state_dict_type=settings["fsdp_state_dict_type"],
    )
    plugin.set_auto_wrap_policy(model)
    assert isinstance(plugin.auto_wrap_policy, functools.partial)
    return {unit.__name__ for unit in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_fsdp_shards_the_layers_of_every_backbone(text):
    model = tiny_model(text, **LVTC)
    layer = type(model.model.language_model.layers[0]).__name__
    assert fsdp_units(model) == {"InternVLVisionLayer", layer, "PVTCProjector"}


@pytest.mark.parametrize(
    ("settings", "has_pvtc"),
    [
        ({}, True),
        ({"projector_config": PIXEL_SHUFFLE}, False),
        ({**LVTC, "projector_config": PIXEL_SHUFFLE}, False),
        ({**PVTC_INSERTED, "projector_config": PIXEL_SHUFFLE}, True),
    ],
    ids=["pvtc", "pixel shuffle", "pixel shuffle with lvtc", "pvtc inserted by lvtc"],
)
def test_fsdp_shards_pvtc_where_there_is_one(settings, has_pvtc):
    """Accelerate refuses the name of a class that the model does not have."""
    assert ("PVTCProjector" in fsdp_units(tiny_model(**settings))) == has_pvtc
