"""Projectors with random weights, and features for them."""

import torch
from torch import nn

from internvlx_hf.modeling.projectors import build_projector
from tiny import tiny_config


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
