"""PVTC: its fast form against its plain one, stochastic depth, the dtype it attends in, and the memory it trains in."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from internvlx_hf.modeling.pixel_shuffle import InternVL2MLP
from internvlx_hf.modeling.projector import MLP
from internvlx_hf.modeling.projectors import build_projector
from internvlx_hf.modeling.pvtc import PVTCAttention, PVTCProjector
from live_bytes import LiveBytes
from projector_cases import tiny_features, tiny_projector
from tiny import tiny_config

VARIANTS = {
    "released": {},
    "local only": {"use_global": False},
    "global only": {"use_local": False},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "no CLS scale": {"use_cls_scale": False},
    "query of InternVL2": {"query_mlp": "internvl2"},
    "query of LLaVA": {"query_mlp": "llava"},
    "query of InternVL2, local only": {"query_mlp": "internvl2", "use_global": False, "num_layers": 2},
}


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
    if not isinstance(mlp, InternVL2MLP | MLP):
        return plain_embedding(mlp, x)
    if isinstance(mlp, InternVL2MLP):
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


@pytest.mark.slow
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


def kept_bytes(projector: nn.Module, tiles: int) -> int:
    """Bytes that a forward under autocast leaves alive for its backward pass."""
    with LiveBytes(projector) as live, torch.autocast("cpu", torch.bfloat16):
        tokens = projector(tiny_features(tiles))
        return live.live - tokens.nbytes


@pytest.mark.parametrize("side", [2, 4])
def test_pvtc_keeps_two_copies_of_the_patches_and_one_a_layer_for_its_backward_pass(side):
    """By tile, under autocast. Under gradient checkpointing, a layer keeps its inputs alone."""
    projector = tiny_projector("pvtc", side, drop_path_rate=0.1).train()
    patches, tokens, c, d = 64, 64 // side**2, 36, 48
    two, four = 2, 4  # bytes
    inputs = patches * c * (four + four + two + two)  # features, windows, and these normed for patches and local query
    embedded = 2 * two * patches * d + 4 * four * tokens * d  # before and after SiLU; queries
    a_layer = (
        two * (patches * d + 4 * tokens * 4 * d) + 7 * four * tokens * d + 4 * four * tokens
    )  # normed; MLP; (n, D)
    kept = kept_bytes(projector, 3) - kept_bytes(projector, 2)
    assert kept <= inputs + embedded + 2 * a_layer
    for layer in (*projector.local_layers, *projector.global_layers):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    assert kept_bytes(projector, 3) - kept_bytes(projector, 2) <= inputs + embedded
