"""The projectors: PVTC against the released numbers and its plain form, and what all five types have in common."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from internvlx_hf import InternVLXConfig
from internvlx_hf.modeling.pixel_shuffle import InternVL2MLP, partition_windows, pixel_shuffle
from internvlx_hf.modeling.projectors import PROJECTORS, build_projector
from internvlx_hf.modeling.pvtc import PVTCAttention, PVTCProjector
from paths import GOLDEN
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


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights away from any initial value: norms around 1, matrices that keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return module


def tiny_projector(kind: str, side: int, *, heads: int = 6, width: int = 48, **projector_config) -> nn.Module:
    """8x8 patches of width 36; six heads are more than PVTC has in flight at once."""
    config = tiny_config(
        "llama",
        vision_config={"hidden_size": 36},
        text_config={"hidden_size": width},
        projector_config={"projector_type": kind, "num_heads": heads, **projector_config},
        downsample_ratio=1 / side,
    )
    return randomize(build_projector(config, kind, 1 / side)).eval()


def tiny_features(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1 + 8 * 8, 36, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("branch", ["local", "global"])
@torch.no_grad()
def test_each_branch_of_pvtc_gives_the_released_numbers(released, branch):
    projector, tensors = released
    seen = []
    layer = getattr(projector, f"{branch}_layers")[0]
    hook = layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    projector(tensors["input"])
    hook.remove()
    ((query, output),) = seen
    torch.testing.assert_close(query, tensors[f"debug.{branch}_query"].squeeze(1), **RELEASED_TOLERANCE)
    torch.testing.assert_close(output, tensors[f"debug.{branch}_output"].squeeze(1), **RELEASED_TOLERANCE)


def test_tolerance_of_the_released_numbers_notices_a_wrong_epsilon(released):
    projector, tensors = released
    eps = [module for module in projector.modules() if hasattr(module, "variance_epsilon")]
    assert eps
    for module in eps:
        module.variance_epsilon *= 10
    with torch.no_grad():
        output = projector(tensors["input_small"])
    for module in eps:
        module.variance_epsilon /= 10
    assert not torch.allclose(output, tensors["output_small"].flatten(1, 2), **RELEASED_TOLERANCE)


# -- golden/pixel_shuffle


def pixel_shuffle_cases():
    with safe_open(GOLDEN / "pixel_shuffle/cases.safetensors", "pt") as file:
        for name, case in json.loads(file.metadata()["cases"]).items():
            tensors = [file.get_tensor(f"{name}.{end}") for end in ("input", "output")]
            yield pytest.param(*tensors, case, id=name)


@pytest.mark.parametrize(("patches", "expected", "case"), list(pixel_shuffle_cases()))
def test_pixel_shuffle_is_internvl_s_exactly(patches, expected, case):
    output = pixel_shuffle(patches, round(1 / case["scale_factor"]))
    if case["ps_version"] == "v1":  # v1 is v2 with the two axes of the grid swapped
        output = output.transpose(1, 2)
    assert torch.equal(output, expected)


def test_windows_and_their_patches_are_in_raster_order():
    row, column = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    windows = partition_windows((10 * row + column)[None, ..., None], 2)
    assert windows.shape == (1, 3, 2, 4, 1)
    assert windows[0, 0, 1, :, 0].tolist() == [2, 3, 12, 13]
    assert windows[0, 2, 0, :, 0].tolist() == [40, 41, 50, 51]


# -- PVTC's fast form against its plain one


def plain_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    exact = x.float()
    return norm.weight * (exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def plain_embedding(embedding: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.silu(plain_norm(embedding.norm, x) @ embedding.linear.weight.T)


def plain_attention(attention: PVTCAttention, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Softmax attention with the keys and values of all M² patches of the window: (n, D), (n, M², D) -> (n, D)."""
    heads = attention.num_heads
    q = (query @ attention.query.weight.T).unflatten(-1, (heads, -1)).unsqueeze(2)  # [n, H, 1, d]
    k = (patches @ attention.key.T).unflatten(-1, (heads, -1)).transpose(1, 2)  # [n, H, M², d]
    v = (patches @ attention.value.T).unflatten(-1, (heads, -1)).transpose(1, 2)  # [n, H, M², d]
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # [n, H, 1, M²]
    seen = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v  # [n, H, 1, d]
    return seen.flatten(1) @ attention.output.weight.T


def plain_branch(layers: nn.ModuleList, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        query = query + plain_attention(
            layer.attention, plain_norm(layer.query_norm, query), plain_norm(layer.patch_norm, patches)
        )
        x, mlp = plain_norm(layer.mlp_norm, query), layer.mlp
        query = query + (F.silu(x @ mlp.gate.weight.T) * (x @ mlp.up.weight.T)) @ mlp.down.weight.T
    return query


def plain_pvtc(projector: PVTCProjector, features: torch.Tensor) -> torch.Tensor:
    """PVTC as the paper and the release describe it, tile by tile, with the projector's weights."""
    side, grid = projector.side, int((features.shape[1] - 1) ** 0.5)
    corners = [(row, column) for row in range(0, grid, side) for column in range(0, grid, side)]
    tiles = []
    for tile in features:
        cls, patches = tile[0], tile[1:].unflatten(0, (grid, grid))
        windows = [patches[row : row + side, column : column + side].flatten(0, 1) for row, column in corners]
        windows = torch.stack(windows)  # [N², M², C]
        seen = plain_embedding(projector.patch_embedding, windows)
        tokens = 0
        if hasattr(projector, "local_layers"):
            tokens = tokens + plain_branch(projector.local_layers, plain_local_query(projector, windows), seen)
        if hasattr(projector, "global_layers"):
            query = plain_embedding(projector.global_query, cls).repeat(len(windows), 1)
            if projector.cls_scale is not None:
                query = query * projector.cls_scale
            tokens = tokens + plain_branch(projector.global_layers, query, seen)
        tiles.append(tokens)
    return torch.stack(tiles)


def plain_local_query(projector: PVTCProjector, windows: torch.Tensor) -> torch.Tensor:
    x, mlp = windows.flatten(1), projector.local_query
    if not isinstance(mlp, InternVL2MLP):
        return plain_embedding(mlp, x)
    x = F.layer_norm(x, x.shape[-1:], mlp.layer_norm.weight, mlp.layer_norm.bias)
    return F.linear(
        F.gelu(F.linear(x, mlp.linear_1.weight, mlp.linear_1.bias)), mlp.linear_2.weight, mlp.linear_2.bias
    )


def values_and_gradients(form, projector: nn.Module, features: torch.Tensor) -> dict[str, torch.Tensor]:
    features = features.clone().requires_grad_()
    projector.zero_grad()
    output = form(features)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    output.backward(weights)
    gradients = {name: parameter.grad.clone() for name, parameter in projector.named_parameters()}
    return {"output": output.detach(), "input": features.grad, **gradients}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the size of the other."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


VARIANTS = {
    "released": {},
    "local only": {"use_global": False},
    "global only": {"use_local": False},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "no CLS scale": {"use_cls_scale": False},
    "query of InternVL2": {"query_mlp": "internvl2"},
    "query of InternVL2, local only": {"query_mlp": "internvl2", "use_global": False, "num_layers": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_fast_pvtc_equals_its_plain_form_in_values_and_gradients(side, variant):
    """Relative error 1e-5: float32 rounds at 6e-8, and sums of at most 16·36 terms and three layers add up to 1e-6."""
    projector, features = tiny_projector("pvtc", side, **VARIANTS[variant]), tiny_features()
    fast = values_and_gradients(projector, projector, features)
    plain = values_and_gradients(lambda x: plain_pvtc(projector, x), projector, features)
    assert fast["output"].shape == (2, (8 // side) ** 2, 48)
    far = {name: distance(fast[name], plain[name]) for name in plain}
    # with one patch a window the softmax is 1 whatever the query: the gradients of what forms the scores are zero
    zero = {name for name in plain if not plain[name].any()}
    assert bool(zero) == (side == 1)
    assert all(fast[name].abs().max() < 1e-5 for name in zero)
    assert {name: error for name, error in far.items() if name not in zero and not error < 1e-5} == {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_fast_pvtc_in_bfloat16_is_as_near_to_float32_as_the_plain_form(side, variant):
    """The two forms round in different places, so each is held to float32. One rounding of bfloat16 is 2⁻⁹ = 0.2 %, and
    a dozen or two in a row make 1 to 4 %; the fast form may have up to twice the plain one's, and 1 % for chance."""
    projector, features = tiny_projector("pvtc", side, **VARIANTS[variant]), tiny_features()
    exact = values_and_gradients(lambda x: plain_pvtc(projector, x), projector, features)
    projector, features = projector.bfloat16(), features.bfloat16()
    fast = values_and_gradients(projector, projector, features)
    plain = values_and_gradients(lambda x: plain_pvtc(projector, x), projector, features)
    assert {tensor.dtype for tensor in fast.values()} == {torch.bfloat16}
    errors = {name: (distance(fast[name], exact[name]), distance(plain[name], exact[name])) for name in exact}
    nonzero = [name for name in exact if exact[name].any()]
    assert {name: errors[name] for name in nonzero if not errors[name][0] < 0.01 + 2 * errors[name][1]} == {}
    assert errors["output"][0] < 0.03


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU; the CPU tests above are its counterpart"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_pvtc_equals_its_plain_form_on_a_gpu(dtype):
    """As above; bfloat16 within 3 %."""
    projector = tiny_projector("pvtc", 4).to("cuda", dtype)
    features = tiny_features().to("cuda", dtype)
    with torch.no_grad():
        assert distance(projector(features), plain_pvtc(projector, features)) < (0.03 if dtype.itemsize == 2 else 1e-4)


# -- stochastic depth


def test_stochastic_depth_leaves_branches_out_window_by_window_and_keeps_the_mean():
    projector = tiny_projector("pvtc", 2, drop_path_rate=0.25)
    layer = projector.local_layers[0].train()
    nn.init.zeros_(layer.mlp.down.weight)  # the attention branch alone
    query, patches = torch.randn(4000, 48), torch.randn(4000, 4, 48)
    torch.manual_seed(0)
    with torch.no_grad():
        added = layer(query, patches) - query
        branch = layer.attention(layer.query_norm(query), layer.patch_norm(patches))
    dropped = added.abs().amax(-1) == 0
    torch.testing.assert_close(added[~dropped], branch[~dropped] / 0.75, atol=1e-4, rtol=1e-4)
    # a share of 0.25 of 4000 windows has a standard deviation of 0.007
    assert abs(dropped.float().mean().item() - 0.25) < 0.03


def test_stochastic_depth_draws_anew_for_each_of_the_two_branches_of_a_layer():
    layer = tiny_projector("pvtc", 2, drop_path_rate=0.5).local_layers[0].train()
    torch.manual_seed(0)
    query, patches = torch.randn(1000, 48), torch.randn(1000, 4, 48)
    draws = []
    layer.drop_path.register_forward_pre_hook(lambda module, branch: torch.ones_like(branch[0]))
    layer.drop_path.register_forward_hook(lambda module, branch, dropped: draws.append(dropped))
    layer(query, patches)
    attention, mlp = (draw[:, 0] > 0 for draw in draws)
    assert 0.4 < (attention == mlp).float().mean() < 0.6


def test_stochastic_depth_acts_in_training_only():
    projector, features = tiny_projector("pvtc", 2, drop_path_rate=0.5), tiny_features()
    without = tiny_projector("pvtc", 2, drop_path_rate=0.0)
    with torch.no_grad():
        assert torch.equal(projector(features), without(features))
        assert torch.equal(without.train()(features), without.eval()(features))
        projector.train()
        assert not torch.equal(projector(features), projector(features))


# -- what all types have in common

KINDS = [(kind, side) for kind in PROJECTORS for side in ((1,) if kind == "linear" else (1, 2, 4, 8))]


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


def test_a_fresh_pvtc_asks_for_something_else_at_every_position():
    projector = tiny_model("llama", text_config={"hidden_size": 256}).model.multi_modal_projector
    with torch.no_grad():
        queries = projector.global_query(torch.randn(1, 1, 32)) * projector.cls_scale
    directions = nn.functional.normalize(queries[0], dim=-1)
    cosines = (directions @ directions.T).fill_diagonal_(0)
    # SiLU leaves few of the 256 numbers large, so that unrelated queries are at some ± 0.1; with scales around 1 it is 1.0
    assert cosines.abs().mean() < 0.2


def test_what_switches_dropout_off_switches_stochastic_depth_off():
    projector, features = tiny_projector("pvtc", 2, drop_path_rate=0.5).train(), tiny_features()
    for module in projector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        assert torch.equal(projector(features), projector.eval()(features))


class SoftmaxTypes(TorchDispatchMode):
    """The dtypes that softmax gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._softmax.default:
            self.seen.append(result.dtype)
        return result


def test_pvtc_attends_in_float32_under_bfloat16():
    """By dtype: a CPU's bfloat16 softmax adds up in float32 too, and its numbers are the same."""
    config = tiny_config()
    projector = build_projector(config, "pvtc", 0.5).bfloat16()
    with torch.no_grad(), SoftmaxTypes() as types:
        projector(torch.randn(1, 65, config.vision_config.hidden_size, dtype=torch.bfloat16))
    assert types.seen == [torch.float32] * 2  # local and global


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


@pytest.mark.parametrize("side", [2, 4])
def test_token_packer_asks_with_the_middle_of_each_window(side):
    """Halving bilinearly is the mean of four neighbours: of the window's middle four."""
    projector, features, grid = plain_projector("token_packer", side)
    middle = slice(side // 2 - 1, side // 2 + 1)
    tokens = []
    with torch.no_grad():
        for window in windows_of(grid, side):
            coarse = window.unflatten(1, (side, side))[:, middle, middle].mean((1, 2))
            query = projector.query(projector.query_norm(projector.query_mlp(coarse)))
            key = projector.key(projector.key_norm(projector.key_mlp(window)))
            value = projector.value(projector.value_norm(projector.value_mlp(window)))
            query, key, value = (x.unflatten(-1, (projector.num_heads, -1)) for x in (query, key, value))
            scores = torch.einsum("bhd,bkhd->bhk", query, key) / query.shape[-1] ** 0.5
            seen = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), value).flatten(1)
            tokens.append(projector.mlp(projector.output(seen)))
        torch.testing.assert_close(projector(features), torch.stack(tokens, 1), atol=1e-4, rtol=1e-4)
