"""Vision towers with and without a CLS token: what projectors get of them, and what does not fit, said at construction."""

import json
import sys

import pytest
import torch
from transformers import MODEL_MAPPING, PreTrainedModel, SiglipVisionConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import BaseModelOutputWithPooling

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.modeling import towers
from internvlx_hf.modeling.projectors import PROJECTORS
from internvlx_hf.modeling.setting_checks import window_size
from internvlx_hf.modeling.towers import check_tower, probe
from internvlx_hf.training.arguments import LoraArguments
from internvlx_hf.training.lora import add_lora
from internvlx_hf.training.parameters import choose_trainable
from tiny import tiny_batch, tiny_config, tiny_model

# what the tower's configuration says, rows before the patches, and what the global feature can be, the default first
TOWERS = {
    "internvl": ({"model_type": "internvl_vision"}, 1, ["cls", "mean"]),
    "clip": ({"model_type": "clip_vision_model"}, 1, ["cls", "pooled", "mean"]),
    "siglip": ({"model_type": "siglip_vision_model"}, 0, ["pooled", "mean"]),
    "siglip without head": ({"model_type": "siglip_vision_model", "vision_use_head": False}, 0, ["mean"]),
    "dinov2": ({"model_type": "dinov2"}, 1, ["cls", "pooled", "mean"]),
    "dinov2 with registers": (
        {"model_type": "dinov2_with_registers", "num_register_tokens": 4},
        5,
        ["cls", "pooled", "mean"],
    ),
    "dinov3": ({"model_type": "dinov3_vit", "num_register_tokens": 3}, 4, ["cls", "pooled", "mean"]),
    "vit": ({"model_type": "vit"}, 1, ["cls", "pooled", "mean"]),
    "ijepa": ({"model_type": "ijepa"}, 0, ["mean"]),
}
QUERIES = [(name, query) for name, (_, _, queries) in TOWERS.items() for query in queries]
# 27x27 patches as of SigLIP so400m at 384 pixels: no whole number of patches in the tile
ODD = {"model_type": "siglip_vision_model", "image_size": 55, "patch_size": 2}
LAYOUTS = [[3, "tile", 5], [7], [2, "tile", "tile", 4]]


def tower_model(name: str, **kwargs):
    return tiny_model("llama", vision_config=TOWERS[name][0], **kwargs)


every_tower = pytest.mark.parametrize("name", TOWERS)


# -- the global feature


@pytest.mark.slow
@pytest.mark.parametrize("layer", [-1, -3, 0, 2])
@pytest.mark.parametrize(("name", "query"), QUERIES)
@torch.no_grad()
def test_projectors_get_the_global_feature_and_the_patches_of_the_layer(name, query, layer):
    model = tower_model(name, vision_feature_layer=layer, projector_config={"global_query": query})
    pixels = tiny_batch(model.config, [["tile", "tile"]])["pixel_values"]
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.get_image_features(pixels)
    outputs = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
    rows = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    patches = rows[:, TOWERS[name][1] :]
    assert patches.shape == (2, 64, 32)
    whole = {"cls": lambda: rows[:, 0], "pooled": lambda: outputs.pooler_output, "mean": lambda: patches.mean(1)}
    assert torch.equal(seen[0], torch.cat([whole[query]()[:, None], patches], dim=1))


@every_tower
def test_default_is_what_the_tower_has_and_is_saved(name, tmp_path):
    vision, extra, queries = TOWERS[name]
    config = tiny_config("llama", vision_config=vision)
    assert config.projector_config.global_query is None  # until the tower is looked at
    tower = check_tower(config)
    assert (tower.extra_tokens, list(tower.global_queries)) == (extra, queries)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["projector_config"]["global_query"] == queries[0]


def test_configuration_without_the_setting_means_the_cls_token():
    values = tiny_config().to_dict()
    del values["projector_config"]["global_query"]
    model = InternVLXForConditionalGeneration(InternVLXConfig.from_dict(values))
    assert model.config.projector_config.global_query == "cls"


# -- the probe


def test_a_probe_runs_one_layer_without_memory_and_random_numbers(monkeypatch):
    vision = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800}
    config, state = InternVLXConfig(vision_config=vision), torch.get_rng_state()
    run, ran = towers._run, []
    monkeypatch.setattr(
        towers, "_run", lambda tower, device: (ran.append((tower.num_hidden_layers, device)), run(tower, device))[1]
    )
    towers._probe.cache_clear()
    check_tower(config)  # 6 billion parameters
    assert ran == [(1, "meta")]
    assert torch.equal(torch.get_rng_state(), state)
    assert probe(config.vision_config) is probe(InternVLXConfig(vision_config=vision).vision_config)


class ZeroInit:
    """Stands in for DeepSpeed's module: remembers when its context was left and entered again."""

    def __init__(self):
        self.calls = []

    def shutdown_init_context(self):
        self.calls.append("shutdown")

    def restore_init_context(self):
        self.calls.append("restore")


def test_a_probe_is_outside_of_zero_3(monkeypatch):
    partition = ZeroInit()
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero.partition_parameters", partition)
    check_tower(tiny_config(vision_config={"hidden_size": 36}))
    assert partition.calls == ["shutdown", "restore"]


# -- what does not fit


MISFITS = {
    "CLS asked of a tower without": (
        {"model_type": "siglip_vision_model"},
        {"projector_config": {"global_query": "cls"}},
        r"'cls' does not fit the vision tower SiglipVisionModel: a tile has 64 features for 8x8=64 patches, a pooled "
        r"output of shape \(32,\) and the width 32. Set 'pooled' or 'mean'",
    ),
    "pooled output asked of a tower without": (
        {"model_type": "internvl_vision"},
        {"projector_config": {"global_query": "pooled"}},
        r"'pooled' does not fit .* InternVLVisionModel: a tile has 65 .* no pooled output .* Set 'cls' or 'mean'",
    ),
    "too few patches": (
        {"model_type": "vit_mae"},
        {},
        r"ViTMAEModel returns features of shape \(2, 17, 32\) .* 8x8 patches, so n at least 64",
    ),
    "tiles that are joined": (
        {"model_type": "pixtral"},
        {},
        r"PixtralVisionModel returns .*\(1, 128, 32\) for 2 tiles",
    ),
    "a map instead of rows": ({"model_type": "vitdet"}, {}, r"VitDetModel returns features of shape \(2, 32, 8, 8\)"),
    "more than pixels": (
        {"model_type": "siglip2_vision_model"},
        {},
        r"'siglip2_vision_model' cannot encode .*spatial_shapes",
    ),
    "wrong layer": (
        {"model_type": "siglip_vision_model"},
        {"vision_feature_layer": 3},
        r"`vision_feature_layer` must be in -3\.\.\.2 .* got 3",
    ),
}


@pytest.mark.parametrize(("vision", "kwargs", "message"), MISFITS.values(), ids=MISFITS)
def test_a_tower_that_does_not_fit_raises_at_construction(vision, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("llama", vision_config=vision, **kwargs)


class OverlappingConfig(SiglipVisionConfig):
    """Of a tower whose patches overlap by half."""

    model_type = "overlapping"


class Overlapping(PreTrainedModel):
    config: OverlappingConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size // 2)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        return BaseModelOutputWithPooling(self.embedding(pixel_values).flatten(2).transpose(1, 2))


def test_more_patches_than_expected_are_not_taken_for_registers(monkeypatch):
    monkeypatch.setitem(MODEL_MAPPING._extra_content, OverlappingConfig, Overlapping)
    vision = OverlappingConfig(hidden_size=32, num_hidden_layers=2, image_size=32, patch_size=4)
    config = InternVLXConfig(vision_config=vision)
    with pytest.raises(ValueError, match=r"Overlapping returns 225 .* 32x32 .* 289 .* 36x36.* 8x8 and 9x9 patches"):
        check_tower(config)


# -- windows of 3x3 and 9x9 patches


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 7, 9, 27, 49, 98])
def test_one_over_m_is_read_as_m_also_from_json(side):
    assert window_size(json.loads(json.dumps(1 / side)), 27 * 98 * 5, "downsample_ratio") == side
    assert window_size(torch.tensor(1 / side).item(), 27 * 98 * 5, "downsample_ratio") == side


@pytest.mark.parametrize(("ratio", "near"), [(0.333, r"1/3 = 0\.33333"), (0.11, r"1/9 = 0\.1111"), (0.7, "1/1 = 1")])
def test_a_rounded_ratio_raises_and_names_the_one_near_it(ratio, near):
    with pytest.raises(ValueError, match=rf"`downsample_ratio` must be 1 / M .* got {ratio}\. Did you mean {near}"):
        tiny_config("llama", vision_config=ODD, downsample_ratio=ratio)


def test_the_ratio_named_fits_the_grid():
    with pytest.raises(ValueError, match=r"Did you mean 1/4 = 0\.25"):
        window_size(0.333, 32, "downsample_ratio")


def test_a_tile_s_last_pixels_may_belong_to_no_patch():
    config = InternVLXConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
        downsample_ratio=1 / 3,
    )
    assert (config.tile_size, config.patch_grid, config.image_seq_length) == (384, 27, 81)
    check_tower(config)
    with pytest.raises(ValueError, match="windows of 2x2 patches, which do not divide the 27x27 grid"):
        tiny_config("llama", vision_config=ODD, downsample_ratio=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("side", [3, 9])
@torch.no_grad()
def test_every_projector_takes_windows_of_odd_sides(kind, side):
    model = tiny_model(
        "llama", vision_config=ODD, projector_config={"projector_type": kind}, downsample_ratio=1 / side
    )
    batch = tiny_batch(model.config, LAYOUTS)
    tokens = model.get_image_features(batch["pixel_values"]).pooler_output
    assert tokens.shape == (3, (27 // side) ** 2, 64)
    assert model(**batch).logits.isfinite().all()


def test_lvtc_expands_odd_grids():
    lvtc = {"expand_layer": 2, "downsample_ratio": 1 / 3, "num_lr_projectors": 2}
    model = tiny_model("llama", vision_config=ODD, downsample_ratio=1 / 9, lvtc_config=lvtc)
    assert (model.config.image_seq_length, model.config.expanded_image_seq_length) == (9, 81)
    batch = tiny_batch(model.config, LAYOUTS)
    answer = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert answer.shape == (3, batch["input_ids"].shape[1] + 3)


# -- all that a model does


@pytest.mark.slow
@every_tower
def test_it_is_trained_generates_is_saved_and_loaded(name, tmp_path, monkeypatch):
    model = tower_model(name, vision_feature_layer=-1)
    batch = tiny_batch(model.config, LAYOUTS)
    train = {**batch, "labels": batch["input_ids"].where(batch["attention_mask"].bool(), -100)}

    model.train()
    model.model.multi_modal_projector.eval()  # no stochastic depth
    torch.manual_seed(0)  # DINOv3 varies the positions in training
    model(**train).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("vision_tower" in name for name in gradients)
    unused = [name for name, _ in model.named_parameters() if name not in gradients]
    assert not unused or check_tower(model.config).pooled_width is not None  # when DDP looks for unused parameters
    model.zero_grad()
    torch.manual_seed(0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**train).loss.backward()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(parameter).grad, gradient, atol=1e-5, rtol=1e-4)
    model.gradient_checkpointing_disable()
    torch.optim.SGD(model.parameters(), 0.01).step()
    model.zero_grad()
    choose_trainable(model, stage=1)
    model(**train).loss.backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {
        "multi_modal_projector"
    }

    model.eval()
    with torch.no_grad():
        logits, text = model(**batch).logits, batch["attention_mask"].bool()
        model.set_attn_implementation("eager")
        assert model.model.vision_tower.config._attn_implementation == "eager"
        torch.testing.assert_close(model(**batch).logits[text], logits[text], atol=1e-4, rtol=1e-4)
        model.set_attn_implementation("sdpa")
    answer = model.generate(**batch, max_new_tokens=3, do_sample=False)

    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    remote = get_class_from_dynamic_module(
        "modeling_internvlx.InternVLXForConditionalGeneration", str(tmp_path / "model")
    )
    for kind in (InternVLXForConditionalGeneration, remote):
        loaded = kind.from_pretrained(tmp_path / "model")
        assert loaded.config.projector_config.global_query == TOWERS[name][2][0]
        with torch.no_grad():
            torch.testing.assert_close(loaded(**batch).logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(loaded.generate(**batch, max_new_tokens=3, do_sample=False), answer)


def test_adapters_of_a_tower_that_pools_all_learn():
    adapted = add_lora(tower_model("siglip"), LoraArguments(lora_rank=2, lora_vision=True))
    batch = tiny_batch(adapted.config, LAYOUTS)
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    idle = [
        name for name, p in adapted.named_parameters() if "vision_tower" in name and p.requires_grad and p.grad is None
    ]
    assert idle == []
    assert any(".mlp.fc1.lora_A" in name and ".head." in name for name, _ in adapted.named_parameters())
