# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL3.5-Flash: a router chooses the size of each tile in `generate`, unless the request does.

The model offers two sizes, with windows of m² and of M² patches, M = m² (256 and 64 tokens). The router gives each
tile the probability that the smaller one suffices. A tile is compressed if the probability is at least
`router_absolute_threshold` and above the quantile `router_relative_threshold` of the sample's tiles; the sample's
least compressible tile never is. As in the release, only `generate` compresses: `forward` takes N₁² tokens of every
tile, and the router is not trained.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin

from .configuration_internvlx import ROUTER_HEADS, InternVLXConfig
from .image_placeholders import check_placeholders
from .outputs import CACHE, one_cache
from .pixel_shuffle import patch_windows
from .tile_tokens import read_image_tokens

# The pooling has two attentions, of which the second runs three times.
POOLING = (0, 1, 1, 1)


class RouterBlock(nn.Module):
    """A residual MLP, (..., C) -> (..., C)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled + self.norm(self.linear_2(F.gelu(self.linear_1(pooled))))


class CompressedProjector(nn.Module):
    """(tiles, 1 + S², C) features, CLS first -> (tiles, (S / M)², D): pixel shuffle and a three-layer MLP."""

    def __init__(self, config: InternVLXConfig):
        super().__init__()
        self.side = config.router_side
        in_features, width = config.vision_config.hidden_size * self.side**2, config.text_config.hidden_size
        self.layer_norm = nn.LayerNorm(in_features)
        self.linear_1 = nn.Linear(in_features, 2 * width)
        self.linear_2 = nn.Linear(2 * width, 2 * width)
        self.linear_3 = nn.Linear(2 * width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        windows = patch_windows(features, self.side).flatten(-2)
        hidden = F.gelu(self.linear_1(self.layer_norm(windows)))
        return self.linear_3(F.gelu(self.linear_2(hidden)))


class TileRouter(nn.Module):
    """(tiles, S², C) patches -> (tiles,) probability that a tile can be compressed."""

    def __init__(self, config: InternVLXConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.relative_threshold = config.router_relative_threshold
        self.absolute_threshold = config.router_absolute_threshold
        self.query = nn.Parameter(torch.empty(1, width))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, ROUTER_HEADS, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.blocks = nn.ModuleList(RouterBlock(width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 2)
        self.projector = CompressedProjector(config)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        pooled = self.query.expand(len(patches), 1, -1)
        for index in POOLING:
            attended, _ = self.attentions[index](pooled, patches, patches, need_weights=False)
            pooled = self.norms[index](attended)
        for block in self.blocks:
            pooled = block(pooled)
        return self.score(self.norm(pooled[:, 0])).softmax(-1)[:, 0]

    def choose(self, probabilities: torch.Tensor, tiles_per_sample: list[int]) -> torch.Tensor:
        """(tiles,) the index of each tile's size, 1 for those to compress."""
        chosen = []
        for sample in probabilities.float().split(tiles_per_sample):
            if len(sample):
                least = sample.quantile(self.relative_threshold)
                chosen.append((sample > least) & (sample >= self.absolute_threshold))
        return torch.cat(chosen).long()


class TileRoutingMixin(GenerationMixin):
    """`generate` with compressed tiles for a model that may have a router as `model.tile_router`."""

    config: Any
    model: Any

    def routes_tiles(self, inputs: Mapping) -> bool:
        """Whether `generate(**inputs)` lets a router choose the sizes of tiles.

        It then passes the language model embeddings of a shorter prompt, so that criteria get generated tokens only.
        """
        is_asked = inputs.get("pixel_values") is not None and inputs.get("tile_sizes") is None
        return is_asked and self.model.tile_router is not None

    @torch.no_grad()
    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **kwargs
    ):
        """As in transformers; a cache may be given as `cache` or `past_key_values`.

        If a router chooses sizes, the prompt that the language model reads is shorter than `input_ids`. `max_length`
        and `min_length` count all of `input_ids`.

        Raises:
            ValueError: if a router chooses sizes, with a cache or embeddings instead of the whole prompt.
        """
        cache = one_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None), kwargs)
        if cache is not None:
            kwargs[CACHE] = cache
        if not self.routes_tiles(kwargs):
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        for name in (CACHE, "inputs_embeds", "mm_encoder_outputs", "position_ids"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`generate` takes no `{name}` with images and a tile router (InternVL3.5-Flash), which shortens "
                    "the prompt. Pass the whole prompt as `input_ids`, or convert the model with `router='drop'`."
                )
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        pixel_values, attention_mask = kwargs.pop("pixel_values"), kwargs.pop("attention_mask", None)
        prompt = route_prompt(self.model, input_ids, attention_mask, pixel_values)
        removed = input_ids.shape[1] - prompt["attention_mask"].shape[1]
        config = GenerationConfig() if generation_config is None else deepcopy(generation_config)
        config.update(**self.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
        kwargs = config.update(**kwargs)
        for name in ("max_length", "min_length"):
            if (length := getattr(config, name)) is not None:
                setattr(config, name, max(length - removed, 0))
        output: Any = super().generate(None, config, *args, **(prompt | kwargs))  # type: ignore[misc]
        answers = output if isinstance(output, torch.Tensor) else output.sequences
        before = input_ids.repeat_interleave(len(answers) // len(input_ids), dim=0)
        sequences = torch.cat([before.to(answers.device), answers], dim=1)
        if isinstance(output, torch.Tensor):
            return sequences
        # the cache is shorter than the sequences, so nobody can continue on it
        output.sequences = sequences
        setattr(output, CACHE, None)
        return output


def route_prompt(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Embeddings (B, L', D) and mask (B, L') of a prompt whose compressed tiles have fewer rows, padded at the left.

    Args:
        model: an `InternVLXModel` with a router.
        input_ids, attention_mask: (B, L), N₁² placeholders per tile.
        pixel_values: (tiles, 3, H, W).

    Raises:
        ValueError: if placeholders and tiles do not match.
    """
    config: InternVLXConfig = model.config
    embeddings = model.get_input_embeddings()(input_ids)
    placeholders = model.get_placeholder_mask(input_ids, embeddings)
    check_placeholders(placeholders, [config.image_seq_length] * len(pixel_values), is_chunked=False)
    tiles_per_sample = (placeholders.sum(1) // config.image_seq_length).tolist()
    images = model.get_image_features(pixel_values, tiles_per_sample=tiles_per_sample, return_dict=True)
    tokens = read_image_tokens(config, images, embeddings)
    counts = torch.tensor(tokens.counts, device=placeholders.device)
    is_kept = torch.arange(config.image_seq_length, device=counts.device) < counts[:, None]
    rows = torch.ones_like(placeholders).masked_scatter(placeholders, is_kept)
    embeddings = embeddings.masked_scatter((placeholders & rows).unsqueeze(-1), tokens.rows)
    if attention_mask is not None:
        rows &= attention_mask.to(rows.device).bool()
    samples = [sample[kept] for sample, kept in zip(embeddings, rows, strict=True)]
    masks = [torch.ones(len(sample), dtype=torch.long, device=rows.device) for sample in samples]
    return {
        "inputs_embeds": pad_sequence(samples, batch_first=True, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
    }
