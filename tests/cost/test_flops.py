"""Cost before paying: FLOPs are what torch's counter counts, module by module, and keys and values what a cache holds."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.cost.flops import decode_flops, prefill_flops, stages
from internvlx_hf.cost.measure import measure
from internvlx_hf.cost.memory import cache_bytes
from tiny import LVTC, TEXT_MODELS, tiny_batch, tiny_config

MULTI_LVTC = {**LVTC, "lvtc_config": {**LVTC["lvtc_config"], "expand_layer": 3, "num_lr_projectors": 3}}
FORWARD_COMPRESSION = {
    "downsample_ratio": 0.5,
    "lvtc_config": {"downsample_ratio": 0.25, "hr_projector_type": None, "num_lr_projectors": 1},
}
IMAGES = [7, "tile", 3, "tile", "tile", "tile", 5]  # one image of one tile, one of three


def counted(config, layout, steps: int = 0) -> tuple[dict[str, int], int, int]:
    """FLOPs by module and of `steps` greedy steps, and the bytes of the cache, as torch counts them."""
    torch.manual_seed(0)
    model = InternVLXForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    batch = tiny_batch(config, [layout])
    # torch has no formulas for grouped matrix products and the CPU's fused attention; their plain forms are matrix products
    model.set_experts_implementation("eager")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, depth=None) as counter:
            output = model(**batch, logits_to_keep=1, use_cache=True)
        cache, decoded = output.cache, 0
        for _ in range(steps):
            ids = output.logits[:, -1:].argmax(-1)
            with FlopCounterMode(display=False, depth=None) as step_counter:
                output = model(input_ids=ids, cache=cache, use_cache=True)
            decoded += _total(step_counter)
    size = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    return _by_module(counter, config), decoded, size


def _counts(counter) -> dict[str, int]:
    """By module. The angles of rotary embeddings, a matrix product in some versions of transformers, do not count."""
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    prefix = "InternVLXForConditionalGeneration."
    return {name.removeprefix(prefix): count for name, count in flops.items()}


def _total(counter) -> int:
    flops = _counts(counter)
    return flops["Global"] - sum(count for name, count in flops.items() if "rotary_emb" in name)


def _by_module(counter, config) -> dict[str, int]:
    flops = _counts(counter)
    modules = {name.removeprefix("model."): count for name, count in flops.items()}
    found = {name: modules.get(name, 0) for name in measure(config).tile_flops}
    for stage, layers in stages(config).items():
        found[stage] = sum(modules[f"language_model.layers.{i}"] for i in layers)
    found["lm_head"] = modules["lm_head"]
    assert sum(found.values()) == _total(counter)  # no module is left out
    return found


def expected(config, layout, steps: int = 0) -> tuple[dict[str, int], int, int]:
    tiles, text = layout.count("tile"), sum(part for part in layout if part != "tile")
    lengths = (text + tiles * config.image_seq_length, text + tiles * config.expanded_image_seq_length)
    sizes = measure(config)
    flops = {name: tiles * count for name, count in sizes.tile_flops.items()}
    size = cache_bytes(sizes, tuple(length + steps for length in lengths), element_size=4)
    return flops | prefill_flops(sizes, lengths), decode_flops(sizes, lengths, steps), size


def check(config, layout=IMAGES, steps: int = 0) -> None:
    assert counted(config, layout, steps) == expected(config, layout, steps)


@pytest.mark.slow
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_every_backbone_costs_what_is_computed(text, lvtc):
    check(tiny_config(text, **lvtc), steps=3)


@pytest.mark.parametrize("layout", [[6], ["tile", 1], [2, *["tile"] * 7, 9]], ids=["text", "a tile", "tiles"])
def test_every_number_of_tiles_costs_what_is_computed(layout):
    check(tiny_config(**LVTC), layout, steps=1)


PROJECTORS = {
    **{name: {"projector_config": {"projector_type": name}} for name in ("pixel_shuffle", "ldpv2", "token_packer")},
    "token_packer of three layers": {
        "projector_config": {"projector_type": "token_packer", "token_packer_layers": [0, 1, 2]}
    },
    "linear": {"projector_config": {"projector_type": "linear"}, "downsample_ratio": 1.0},
    "pvtc M=4": {"downsample_ratio": 0.25},
    "pvtc M=8": {"downsample_ratio": 0.125},
    "pvtc of 2 layers": {"projector_config": {"num_layers": 2}},
    "pvtc with InternVL2's query": {"projector_config": {"query_mlp": "internvl2"}},
    "pvtc, local only": {"projector_config": {"use_global": False}},
    "pvtc, global only": {"projector_config": {"use_local": False, "use_cls_scale": False}},
    "pvtc, one head, other MLP": {"projector_config": {"num_heads": 1, "mlp_ratio": 2.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("projector", PROJECTORS)
def test_every_projector_costs_what_is_computed(projector):
    check(tiny_config(**PROJECTORS[projector]))


VARIANTS = {
    "several LR projectors": MULTI_LVTC,
    "another type of LR and HR projectors": {
        **LVTC,
        "lvtc_config": {**LVTC["lvtc_config"], "lr_projector_type": "pvtc", "hr_projector_type": "token_packer"},
    },
    "no HR projector": {**LVTC, "lvtc_config": {**LVTC["lvtc_config"], "hr_projector_type": None}},
    "bilinear upsampling": {**LVTC, "lvtc_config": {**LVTC["lvtc_config"], "upsample_mode": "bilinear"}},
    "forward compression": FORWARD_COMPRESSION,
    "tied embeddings": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
    "as many key/value heads as heads": {"text_config": {"num_key_value_heads": 4}},
    "wide heads": {"text": "mistral", "text_config": {"head_dim": 32}},
    "biases": {"text": "llama", "text_config": {"attention_bias": True, "mlp_bias": True}},
    "a tower with RMSNorm on queries and keys": {
        "vision_config": {"attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"}
    },
    "features of an inner layer": {"vision_feature_layer": -2},
    "partial rotation": {
        "text": "phi3",
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_costs_what_is_computed(variant):
    check(tiny_config(**VARIANTS[variant]), steps=2)


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
def test_a_sliding_window_keeps_and_sees_fewer_tokens_in_decoding(lvtc):
    check(tiny_config("mistral", text_config={"sliding_window": 9}, **lvtc), steps=3)
    # 16 tokens, then 24 of a window of 24: some steps before it is full
    check(tiny_config("mistral", text_config={"sliding_window": 34}, **lvtc), [20, "tile"], steps=6)


OTHER_TOWERS = {
    "clip": {"model_type": "clip_vision_model", "projection_dim": 16, "intermediate_size": 48},
    "siglip of 27x27 patches": {"model_type": "siglip_vision_model", "image_size": 55, "patch_size": 2},
    "siglip without head": {"model_type": "siglip_vision_model", "vision_use_head": False},
    "registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("tower", OTHER_TOWERS.values(), ids=OTHER_TOWERS)
def test_another_vision_tower_is_measured(tower):
    check(tiny_config(vision_config=tower, downsample_ratio=1 / 3 if "image_size" in tower else 0.5))


def test_features_that_are_put_together_anew_take_their_memory():
    def tile_bytes(**tower):
        return measure(tiny_config(vision_config=tower)).tile_bytes[4][0]

    pixels, row, tokens = 4 * 3 * 32**2, 4 * 32, 4 * 16 * 64
    assert tile_bytes(model_type="dinov2") == pixels + 65 * row + tokens
    assert tile_bytes(model_type="siglip_vision_model") == pixels + (64 + 65) * row + tokens
    registers = tile_bytes(model_type="dinov2_with_registers", num_register_tokens=4)
    assert registers == pixels + (69 + 65) * row + tokens
