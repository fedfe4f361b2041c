"""Baselines with as many tokens as the projectors: average pooling, pruning, and the downsampled image."""

import zlib

import torch
from torch import nn

from internvlx_hf import InternVLXConfig
from internvlx_hf.modeling.pixel_shuffle import PixelShuffleProjector, partition_windows, patch_windows


class AveragePooling(nn.Module):
    """The mean of each window, then a two-layer MLP: (B, 1 + S², C), CLS first -> (B, N², D)."""

    def __init__(self, config: InternVLXConfig, tower: nn.Module, seed: int):
        super().__init__()
        self.side = round(1 / config.downsample_ratio)
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = patch_windows(features, self.side).mean(2)
        return self.linear_2(nn.functional.gelu(self.linear_1(pooled)))


class Pruning(nn.Module):
    """The 4N² tokens of a pixel shuffle with half the window, of which the N² with the highest scores stay, in their order.

    (B, 1 + S², C), CLS first -> (B, N², D). A token's score is the sum of its patches' scores, which a hook on the tower
    leaves in `scores`, (B, S²).
    """

    def __init__(self, config: InternVLXConfig, tower: nn.Module, seed: int):
        super().__init__()
        self.side = round(1 / config.downsample_ratio) // 2
        self.projector = PixelShuffleProjector(config, self.side)
        self.scores = torch.empty(0)
        self.watch(tower, seed)

    def watch(self, tower: nn.Module, seed: int) -> None:
        raise NotImplementedError

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self.projector(features)
        grid = int(self.scores.shape[1] ** 0.5)
        scores = partition_windows(self.scores.view(-1, grid, grid, 1), self.side).sum((-2, -1)).flatten(1)  # (B, 4N²)
        kept = scores.topk(tokens.shape[1] // 4).indices.sort().values
        return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class CLSPruning(Pruning):
    """Scores are the CLS token's attention in the tower's last layer, the mean over heads."""

    def watch(self, tower: nn.Module, seed: int) -> None:
        tower.set_attn_implementation("eager")  # the only one that returns attention weights
        tower.encoder.layer[-1].attention.register_forward_hook(self.keep_scores)

    def keep_scores(self, attention: nn.Module, inputs: tuple, outputs: tuple) -> None:
        self.scores = outputs[1][:, :, 0, 1:].mean(1).detach()


class RandomPruning(Pruning):
    """Scores are random, fixed for each tile and seed."""

    def watch(self, tower: nn.Module, seed: int) -> None:
        self.seed = seed
        tower.embeddings.register_forward_pre_hook(self.keep_scores)

    def keep_scores(self, embeddings: nn.Module, inputs: tuple) -> None:
        patches = embeddings.patch_embeddings.num_patches
        streams = [torch.Generator().manual_seed(zlib.crc32(tile.numpy().tobytes(), self.seed)) for tile in inputs[0]]
        self.scores = torch.stack([torch.rand(patches, generator=stream) for stream in streams])


BASELINES = {"average": AveragePooling, "cls_pruning": CLSPruning, "random_pruning": RandomPruning}


def resized_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings (1, 1 + S², C), CLS first, interpolated to a grid of `grid` patches a side, as InternVL does."""
    side = int((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
