"""Every parameter has a value wherever a model or a part of it is built, reset or resized, and a suitable one."""

import math

import pytest
import torch
from torch import nn

from internvlx_hf import InternVLXForConditionalGeneration, InternVLXModel
from internvlx_hf.modeling.projectors import PROJECTORS
from tiny import LVTC, VOCABULARY, tiny_config

ROUTER = {"router_relative_threshold": 0.5, "router_absolute_threshold": 0.5}
KINDS = (*PROJECTORS, "router")
CLASSES = (InternVLXModel, InternVLXForConditionalGeneration)


@pytest.fixture(autouse=True)
def unset_memory_is_nan(monkeypatch):
    """`torch.empty` returns memory of any content; here it is NaN."""
    empty = torch.empty

    def unset(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", unset)


def configuration(kind: str):
    if kind == "router":
        return tiny_config(projector_config={"projector_type": "pixel_shuffle"}, downsample_ratio=0.5, **ROUTER)
    layers = {"token_packer_layers": [1, 2]} if kind == "token_packer" else {}
    return tiny_config(projector_config={"projector_type": kind, **layers}, **LVTC)


def unset(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if not parameter.isfinite().all()]


def erase(module: nn.Module) -> None:
    """NaN everywhere, and what transformers notes of initialised modules forgotten."""
    for part in module.modules():
        part.__dict__.pop("_is_hf_initialized", None)
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
        parameter.__dict__.pop("_is_hf_initialized", None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_built_model_and_a_reset_one_have_a_value_everywhere(model_class, kind):
    model = model_class(configuration(kind))
    assert unset(model) == []
    erase(model)
    assert unset(model)
    model.initialize_weights()
    assert unset(model) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_class", CLASSES)
def test_both_classes_reset_a_projector_alike_and_as_torch_does(model_class, kind):
    model = model_class(configuration(kind))
    parts = getattr(model, "model", model)
    for projector in filter(None, (parts.multi_modal_projector, parts.lvtc, parts.tile_router)):
        erase(projector)
        projector.apply(model._init_weights)
        assert unset(projector) == []
        for layer in projector.modules():
            if type(layer) is nn.Linear:
                assert layer.weight.abs().max() <= 1 / math.sqrt(layer.in_features)  # 0.2 from a normal law exceeds it


@pytest.mark.parametrize("mean_resizing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_class", CLASSES)
def test_new_tokens_have_embeddings_of_the_size_of_the_others(model_class, tied, mean_resizing):
    config = tiny_config(tie_word_embeddings=tied, text_config={"tie_word_embeddings": tied})
    model = model_class(config)
    before = model.get_input_embeddings().weight.std().item()
    embeddings = model.resize_token_embeddings(VOCABULARY + 64, mean_resizing=mean_resizing)
    assert unset(model) == []
    if not mean_resizing:  # which draws all of them close to the mean
        new = embeddings.weight[VOCABULARY:].std().item()
        assert new == pytest.approx(before, rel=0.1)  # of 4096 draws: 0.01 off
