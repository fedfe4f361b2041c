"""The projectors: PVTC against the released numbers and its plain form, and what all five types have in common."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from internvlx_hf import InternVLXConfig
from internvlx_hf.modeling.pixel_shuffle import partition_windows
from internvlx_hf.modeling.projectors import PROJECTORS, build_projector
from paths import GOLDEN
from projector_cases import tiny_features, tiny_projector
from tiny import tiny_config, tiny_model

PVTC_CASES = {case["name"]: case for case in json.loads((GOLDEN / "pvtc/index.json").read_text())}

# part of the released names -> part of ours, in order
RELEASED_NAMES = {
    "mlp1.0.": "local_query.norm.",
    "mlp1.1.": "local_query.linear.",
    "mlp2.0.": "global_query.norm.",
    "mlp2.1.": "global_query.linear.",
    "mlp3.0.": "patch_embedding.norm.",
    "mlp3.1.": "patch_embedding.linear.",
    "attn_local.": "local_layers.0.",
    "attn_global.": "global_layers.0.",
    "attn.q.": "attention.query.",
    "attn.k.weight": "attention.key",
    "attn.v.weight": "attention.value",
    "attn.proj.": "attention.output.",
    "attn.norm1": "query_norm",
    "attn.norm2": "patch_norm",
    "mlp.norm": "mlp_norm",
    "mlp.w1": "mlp.gate",
    "mlp.w3": "mlp.up",
    "mlp.w2": "mlp.down",
}


def released_weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in tensors.items():
        if not name.startswith("weights."):
            continue
        name = name.removeprefix("weights.")
        for theirs, ours in RELEASED_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = tensor.flatten(0, 2) if name == "cls_scale" else tensor
    return weights


# -- golden/pvtc


@pytest.fixture(params=PVTC_CASES, scope="module")
def released(request):
    case = PVTC_CASES[request.param]
    config = InternVLXConfig(
        vision_config={"hidden_size": case["vit_hidden_size"], "image_size": 2 * case["grid"], "patch_size": 2},
        text_config={
            "model_type": "llama",
            "hidden_size": case["llm_hidden_size"],
            "vocab_size": 50,
            "num_attention_heads": 2,
        },
        image_token_id=3,
        downsample_ratio=case["downsample_ratio"],
    )
    tensors = load_file(GOLDEN / "pvtc" / case["file"])
    projector = build_projector(config, "pvtc", case["downsample_ratio"]).eval()
    projector.load_state_dict(released_weights(tensors))
    return projector, tensors


# 1e-4 is the tolerance that the data come with: an independent implementation differed by 1e-5, a wrong eps by 1e-4
# on `output` and by 1 on `output_small`.
RELEASED_TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("scale", ["", "_small"])
@torch.no_grad()
def test_pvtc_gives_the_released_numbers(released, scale):
    projector, tensors = released
    output = projector(tensors[f"input{scale}"])
    torch.testing.assert_close(output, tensors[f"output{scale}"].flatten(1, 2), **RELEASED_TOLERANCE)


# -- golden/pixel_shuffle


def pixel_shuffle_cases():
    with safe_open(GOLDEN / "pixel_shuffle/cases.safetensors", "pt") as file:
        for name, case in json.loads(file.metadata()["cases"]).items():
            tensors = [file.get_tensor(f"{name}.{end}") for end in ("input", "output")]
            yield pytest.param(*tensors, case, id=name)


@pytest.mark.parametrize(("patches", "expected", "case"), list(pixel_shuffle_cases()))
def test_pixel_shuffle_is_internvl_s_exactly(patches, expected, case):
    output = partition_windows(patches, round(1 / case["scale_factor"])).flatten(-2)
    if case["ps_version"] == "v1":  # v1 is v2 with the two axes of the grid swapped
        output = output.transpose(1, 2)
    assert torch.equal(output, expected)


def test_windows_and_their_patches_are_in_raster_order():
    row, column = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    windows = partition_windows((10 * row + column)[None, ..., None], 2)
    assert windows.shape == (1, 3, 2, 4, 1)
    assert windows[0, 0, 1, :, 0].tolist() == [2, 3, 12, 13]
    assert windows[0, 2, 0, :, 0].tolist() == [40, 41, 50, 51]


# -- what all types have in common

KINDS = [(kind, side) for kind in PROJECTORS for side in (1, 2, 4, 8)]


@pytest.mark.parametrize(("kind", "side"), KINDS)
def test_every_projector_gives_a_token_a_window_and_gradients_to_all_of_its_weights(kind, side):
    projector = tiny_projector(kind, side)
    tokens = projector(tiny_features(batch=3))
    assert tokens.shape == (3, (8 // side) ** 2, 48)
    tokens.square().sum().backward()
    without = {name for name, parameter in projector.named_parameters() if parameter.grad is None}
    assert without == set()
    if side > 1:  # with one patch a window, attention is 1 whatever the query
        assert {name for name, parameter in projector.named_parameters() if not parameter.grad.any()} == set()


@pytest.mark.parametrize("options", [{}, {"query_mlp": "internvl2"}, {"query_mlp": "llava"}])
@pytest.mark.parametrize(("kind", "side"), [case for case in KINDS if case[1] <= 2])
def test_no_linear_layer_gets_more_than_three_dimensions(kind, side, options):
    """8-bit layers take no more."""

    def refuse(module, inputs):
        assert inputs[0].ndim <= 3

    projector = tiny_projector(kind, side, **options)
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(refuse)
    projector(tiny_features())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_gradient_checkpointing_of_a_trained_projector_alone_keeps_its_gradients(kind, reentrant):
    """Stochastic depth included: what is computed anew draws the same."""
    config = {"projector_type": kind, "drop_path_rate": 0.5}
    model = tiny_model(projector_config=config).train()
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    linear = [module for name, module in projector.named_modules() if isinstance(module, nn.Linear)][-1]
    pixels, passes = torch.randn(2, 3, 32, 32), []
    linear.register_forward_pre_hook(lambda *_: passes.append(1))

    def gradients():
        torch.manual_seed(0)
        projector.zero_grad()
        model.get_image_features(pixels).pooler_output.square().sum().backward()
        return {name: parameter.grad for name, parameter in projector.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-5)
    assert len(passes) == 3
    model.gradient_checkpointing_disable()
    gradients()
    assert len(passes) == 4


def changed_tokens(projector: nn.Module, features: torch.Tensor, place: int) -> set[int]:
    """Tokens of tile 0 that change when feature `place` of tile 1 and, by as much, of tile 0 changes."""
    changed = features.clone()
    changed[0, place] += 1
    with torch.no_grad():
        difference = (projector(changed) - projector(features)).abs().amax(-1)
    assert not difference[1].any(), "a tile changed with another tile"
    return set(difference[0].nonzero().flatten().tolist())


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (5, 2), (7, 7)])
@pytest.mark.parametrize(("kind", "side"), [case for case in KINDS if case[0] != "ldpv2"])
def test_a_patch_reaches_the_token_of_its_own_window_only(kind, side, row, column):
    expected = {(row // side) * (8 // side) + column // side}
    assert changed_tokens(tiny_projector(kind, side), tiny_features(), 1 + 8 * row + column) == expected


@pytest.mark.parametrize("side", [1, 2, 4])
def test_linear_projector_is_llava_s_mlp_of_each_window(side):
    projector, features = tiny_projector("linear", side), tiny_features()
    windows = partition_windows(features[:, 1:].unflatten(1, (8, 8)), side).flatten(1, 2).flatten(-2)
    hidden = nn.functional.gelu(windows @ projector.linear_1.weight.T + projector.linear_1.bias)
    expected = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    torch.testing.assert_close(projector(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (7, 7)])
def test_ldpv2_s_convolution_reaches_the_neighbouring_windows_too(row, column):
    near = {
        4 * r + c
        for r in range(max(0, row // 2 - 1), min(4, row // 2 + 2))
        for c in range(max(0, column // 2 - 1), min(4, column // 2 + 2))
    }
    assert changed_tokens(tiny_projector("ldpv2", 2), tiny_features(), 1 + 8 * row + column) == near


@pytest.mark.parametrize(
    ("kind", "options", "tokens"),
    [
        ("pvtc", {}, 16),
        ("pvtc", {"use_local": False, "use_cls_scale": False}, 16),
        ("pvtc", {"use_global": False}, 0),
        ("pixel_shuffle", {}, 0),
        ("token_packer", {}, 0),
        ("ldpv2", {}, 0),
    ],
)
def test_cls_reaches_all_tokens_through_pvtc_s_global_branch_and_none_otherwise(kind, options, tokens):
    assert len(changed_tokens(tiny_projector(kind, 2, **options), tiny_features(), 0)) == tokens


def test_cls_scale_tells_the_places_of_a_uniform_tile_apart():
    uniform = torch.ones(1, 65, 36) * torch.linspace(-1, 1, 36)
    with torch.no_grad():
        scaled = tiny_projector("pvtc", 2, use_local=False)(uniform)[0]
        unscaled = tiny_projector("pvtc", 2, use_local=False, use_cls_scale=False)(uniform)[0]
    assert len({tuple(token.tolist()) for token in scaled}) == 16
    torch.testing.assert_close(unscaled, unscaled[:1].expand(16, -1))


def test_projectors_start_as_torch_s_layers_do_whatever_the_language_model_s_initializer_range():
    """The release leaves PVTC to torch: U(±1/√n) of n inputs, and N(0, 1) for the scales of CLS."""
    projector = tiny_model(
        "llama", text_config={"hidden_size": 128, "initializer_range": 0.05}
    ).model.multi_modal_projector
    attention = projector.local_layers[0].attention
    linears = [module.weight for module in projector.modules() if isinstance(module, nn.Linear)]
    for weight in (attention.key, attention.value, *linears):
        bound = weight.shape[1] ** -0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        # the fewest, 128·32 samples, tell the standard deviation to two per cent
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    # 16·128 samples
    assert projector.cls_scale.mean().item() == pytest.approx(0, abs=0.08)
    assert projector.cls_scale.std().item() == pytest.approx(1, rel=0.06)
    assert torch.equal(projector.patch_embedding.norm.weight, torch.ones(32))


def test_what_switches_dropout_off_switches_stochastic_depth_off():
    projector, features = tiny_projector("pvtc", 2, drop_path_rate=0.5).train(), tiny_features()
    for module in projector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        assert torch.equal(projector(features), projector.eval()(features))


def plain_projector(kind: str, side: int):
    """A projector with random weights, features with CLS, and their 8x8 patches by row and column."""
    config = tiny_config("llama", projector_config={"projector_type": kind}, downsample_ratio=1 / side)
    torch.manual_seed(side)
    projector = build_projector(config, kind, 1 / side)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, 65, config.vision_config.hidden_size)
    return projector, features, features[:, 1:].unflatten(1, (8, 8))


def windows_of(grid: torch.Tensor, side: int) -> list[torch.Tensor]:
    """(2, side², C) patches of each window in raster order."""
    starts = [(row, column) for row in range(0, 8, side) for column in range(0, 8, side)]
    return [grid[:, r : r + side, c : c + side].flatten(1, 2) for r, c in starts]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_ldpv2_is_the_mean_of_each_window_plus_a_convolution_of_the_means(side):
    projector, features, grid = plain_projector("ldpv2", side)
    with torch.no_grad():
        means = torch.stack([window.mean(1) for window in windows_of(projector.mlp(grid), side)], 1)
        n = 8 // side
        grid_of_means = means.unflatten(1, (n, n)).permute(0, 3, 1, 2)
        expected = means + projector.position(grid_of_means).flatten(2).transpose(1, 2)
        torch.testing.assert_close(projector(features), expected, atol=1e-4, rtol=1e-4)
