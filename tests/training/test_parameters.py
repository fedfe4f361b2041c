"""What is trained, frozen, and at which rate, by the names of modules."""

import re

import pytest
import torch
from transformers import Trainer, TrainingArguments

from internvlx_hf.training.arguments import InternVLXTrainingArguments, LoraArguments, ModelArguments
from internvlx_hf.training.parameters import (
    choose_trainable,
    matches,
    part_sizes,
    plain_name,
    set_learning_rates,
    trainable_table,
)
from internvlx_hf.training.train import prepare_model, warn_of_half_precision
from tiny import LVTC, TEXT_MODELS, tiny_model

TOWER, TEXT, HEAD = "model.vision_tower", "model.language_model", "lm_head"


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model, *parts) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{part}." for part in parts))}


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_stage_one_trains_all_projectors_and_nothing_else(text):
    model = tiny_model(text, **LVTC)
    choose_trainable(model, stage=1)
    assert trained(model) == names(
        model, "model.multi_modal_projector", "model.lvtc.hr_projector", "model.lvtc.lr_projectors"
    )
    plain = tiny_model(text)
    choose_trainable(plain, stage=1)
    assert trained(plain) == names(plain, "model.multi_modal_projector")


def test_stage_two_trains_everything_but_what_is_frozen():
    model = tiny_model(**LVTC)
    choose_trainable(model, stage=2)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    choose_trainable(model, stage=2, freeze=[TOWER, "model.language_model.layers.0-1"])
    frozen = names(model, TOWER, f"{TEXT}.layers.0", f"{TEXT}.layers.1")
    assert trained(model) == {name for name, _ in model.named_parameters()} - frozen


def test_train_overrides_freeze():
    model = tiny_model(**LVTC)
    choose_trainable(model, stage=1, train=[f"{TEXT}.layers.2-3.self_attn.*_proj", HEAD])
    extra = trained(model) - names(model, "model.multi_modal_projector", "model.lvtc")
    attention = {name for name in names(model, f"{TEXT}.layers.2", f"{TEXT}.layers.3") if "self_attn" in name}
    assert extra == {name for name in attention if "_proj." in name} | {"lm_head.weight"}
    choose_trainable(model, stage=2, freeze=[TEXT], train=[f"{TEXT}.layers.*.input_layernorm"])
    kept = {name for name in names(model, TEXT) if "input_layernorm" in name}
    assert len(kept) == 4
    assert trained(model) == {name for name, _ in model.named_parameters()} - names(model, TEXT) | kept


def test_a_tied_tensor_matches_both_of_its_names():
    model = tiny_model(text_config={"tie_word_embeddings": True})
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    choose_trainable(model, stage=2, freeze=[HEAD])
    assert not model.lm_head.weight.requires_grad
    choose_trainable(model, stage=1, train=[HEAD])
    assert model.model.language_model.embed_tokens.weight.requires_grad
    choose_trainable(model, stage=2, freeze=[TEXT], train=[HEAD])
    assert model.lm_head.weight.requires_grad
    assert sum(size.total for size in part_sizes(model)) == model.num_parameters()


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("model.lvtc", "model.lvtc.hr_projector.norm.weight", True),
        ("model.lvtc", "model.lvtc2.weight", False),
        ("model", "lm_head.weight", False),
        ("lm_head.weight", "lm_head.weight", True),
        ("lm_head.weight.x", "lm_head.weight", False),
        ("a.layers.2-11", "a.layers.2.b", True),
        ("a.layers.2-11", "a.layers.11.b", True),
        ("a.layers.2-11", "a.layers.12.b", False),
        ("a.layers.2-11", "a.layers.1.b", False),
        ("a.*.b", "a.x.b", True),
        ("a.*.b", "a.x.y.b", False),
        ("a.*_proj", "a.q_proj.weight", True),
        ("a.[qk]_proj", "a.k_proj.weight", True),
        ("a.[qk]_proj", "a.v_proj.weight", False),
    ],
)
def test_a_pattern_stands_for_a_module_and_all_in_it(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_peft_s_parameters_have_the_name_of_their_module():
    assert plain_name("base_model.model.model.lvtc.modules_to_save.default.hr_projector.norm.weight") == (
        "model.lvtc.hr_projector.norm.weight"
    )
    layer = "model.language_model.layers.0.self_attn.q_proj"
    for inner in ("lora_A.default", "lora_B.default", "base_layer"):
        assert plain_name(f"base_model.model.{layer}.{inner}.weight") == f"{layer}.weight"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"freeze": ["model.vision_towr"]}, r"`freeze` names 'model.vision_towr', .*Did you mean model.vision_tower"),
        ({"train": ["model.language_model.layers.4-9"]}, r"`train` names .*layers.4-9', which matches no parameter"),
        ({"train": ["q_proj"]}, r"`train` names 'q_proj', which matches no parameter"),
        ({"freeze": ["xyz"]}, r"The model has model.vision_tower, model.multi_modal_projector, .*lm_head"),
        ({"freeze": ["model", "lm_head"]}, r"Nothing is left to train: stage 2 with freeze=\['model', 'lm_head'\]"),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_with_what_is_near(choice, message):
    with pytest.raises(ValueError, match=message):
        choose_trainable(tiny_model(**LVTC), stage=2, **choice)


def test_the_table_shows_what_is_trained():
    model = tiny_model(**LVTC)
    choose_trainable(model, stage=1)
    rows = {line.split()[0]: line.split()[1:] for line in trainable_table(model).splitlines()}
    assert list(rows)[1:-2] == [TOWER, "model.multi_modal_projector", TEXT, "model.lvtc"]
    for part, row in rows.items():
        if part not in ("module", "all"):
            of = sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{part}."))
            trained = of if part in ("model.multi_modal_projector", "model.lvtc") else 0
            assert row == [f"{trained:,}", f"{of:,}", f"{trained / of:.1%}"]
    assert rows["all"][1] == f"{model.num_parameters():,}"


# -- learning rates


def optimizer_of(model, rates, tmp_path, **kwargs) -> torch.optim.Optimizer:
    arguments = TrainingArguments(
        str(tmp_path), learning_rate=1e-3, weight_decay=0.1, report_to="none", use_cpu=True, **kwargs
    )
    optimizer = Trainer(model, arguments).create_optimizer()
    set_learning_rates(optimizer, model, rates)
    return optimizer


def test_every_parameter_keeps_its_decay_and_gets_the_rate_of_the_last_pattern(tmp_path):
    model = tiny_model(**LVTC)
    plain = optimizer_of(model, {}, tmp_path)
    rates = {"model.lvtc": 2e-3, "model.lvtc.hr_projector": 4e-3, "model.vision_tower.encoder.layer.0": 1e-5}
    split = optimizer_of(model, rates, tmp_path)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    decays = {name_of[p]: group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    assert set(decays.values()) == {0.0, 0.1}
    found = {}
    for group in split.param_groups:
        for parameter in group["params"]:
            name = name_of[parameter]
            assert name not in found
            assert group["weight_decay"] == decays[name]
            found[name] = group["lr"]
    assert found.keys() == decays.keys()
    for name, rate in found.items():
        expected = [r for pattern, r in rates.items() if matches(pattern, name)] or [1e-3]
        assert rate == expected[-1]


def test_a_rate_for_nothing_that_is_trained_is_an_error(tmp_path):
    model = tiny_model(**LVTC)
    with pytest.raises(ValueError, match=r"`learning_rates` names 'model.lvtcc', .*Did you mean model.lvtc"):
        optimizer_of(model, {"model.lvtcc": 1e-3}, tmp_path)
    choose_trainable(model, stage=1)
    with pytest.raises(
        ValueError, match=r"`learning_rates` names model.vision_tower, but no parameter of it is trained"
    ):
        optimizer_of(model, {"model.vision_tower": 1e-3}, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "lora_rank", "bf16", "is_warned"),
    [
        ("bfloat16", 0, False, True),
        ("float16", 0, False, True),
        ("bfloat16", 2, False, True),  # peft keeps its own weights in float32, but not the projectors that it saves
        ("bfloat16", 0, True, False),
        ("bfloat16", 2, True, False),
        ("float32", 0, False, False),
    ],
)
def test_trained_parameters_in_half_precision_are_warned_of(dtype, lora_rank, bf16, is_warned, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("internvlx_hf.training.train.logger.warning", seen.append)
    arguments = InternVLXTrainingArguments(str(tmp_path), bf16=bf16, use_cpu=True)
    model = tiny_model(**LVTC).to(getattr(torch, dtype))
    model = prepare_model(model, ModelArguments(""), LoraArguments(lora_rank=lora_rank), arguments)
    warn_of_half_precision(model, dtype)
    assert len(seen) == is_warned
    if is_warned:
        assert re.match(rf"\d+\.\d% of the trained .* \(`dtype` {dtype}\).* Set `bf16`", seen[0])
        assert seen[0].startswith("100.0%") == (lora_rank == 0)
