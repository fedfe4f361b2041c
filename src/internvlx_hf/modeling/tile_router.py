# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL3.5-Flash: a router lets `generate` use fewer tokens for a tile whose content allows it.

The router gives each tile the probability that windows of M² patches suffice instead of m², with M = m² (64 tokens
instead of 256). A tile is compressed if the probability is at least `router_absolute_threshold` and above the quantile
`router_relative_threshold` of the sample's tiles; the sample's least compressible tile never is. As in the release,
only `generate` compresses: `forward` takes N₁² tokens of every tile, and the router is not trained.
"""

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
from .pixel_shuffle import pixel_shuffle

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
    """(tiles, S², C) patches -> (tiles, (S / M)², D): pixel shuffle and a three-layer MLP."""

    def __init__(self, config: InternVLXConfig):
        super().__init__()
        self.side = config.patch_grid // config.compressed_token_grid
        in_features, width = config.vision_config.hidden_size * self.side**2, config.text_config.hidden_size
        self.layer_norm = nn.LayerNorm(in_features)
        self.linear_1 = nn.Linear(in_features, 2 * width)
        self.linear_2 = nn.Linear(2 * width, 2 * width)
        self.linear_3 = nn.Linear(2 * width, width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        grid = int(patches.shape[1] ** 0.5)
        windows = pixel_shuffle(patches.unflatten(1, (grid, grid)), self.side).flatten(1, 2)
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
        """(tiles,) bool, which tiles to compress."""
        chosen = []
        for sample in probabilities.float().split(tiles_per_sample):
            if len(sample):
                least = sample.quantile(self.relative_threshold)
                chosen.append((sample > least) & (sample >= self.absolute_threshold))
        return torch.cat(chosen)


class TileRoutingMixin(GenerationMixin):
    """`generate` with compressed tiles for a model that may have a router as `model.tile_router`."""

    config: Any
    model: Any

    @torch.no_grad()
    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **kwargs
    ):
        """As in transformers; a cache may be given as `cache` or `past_key_values`.

        With a router, the prompt that the language model reads is shorter than `input_ids`. `max_length` and
        `min_length` count all of `input_ids`.

        Raises:
            ValueError: if there are tiles, a router, and a cache or embeddings instead of the whole prompt.
        """
        cache = one_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None), kwargs)
        if cache is not None:
            kwargs[CACHE] = cache
        if self.model.tile_router is None or kwargs.get("pixel_values") is None:
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
        generation_config, kwargs = self._without_removed_rows(removed, generation_config, kwargs)
        output: Any = super().generate(None, generation_config, *args, **(prompt | kwargs))  # type: ignore[misc]
        answers = output if isinstance(output, torch.Tensor) else output.sequences
        before = input_ids.repeat_interleave(len(answers) // len(input_ids), dim=0)
        sequences = torch.cat([before.to(answers.device), answers], dim=1)
        if isinstance(output, torch.Tensor):
            return sequences
        # the cache is shorter than the sequences, so nobody can continue on it
        output.sequences = sequences
        setattr(output, CACHE, None)
        return output

    def _without_removed_rows(
        self, removed: int, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig | None, dict[str, Any]]:
        """A copy of the settings with the lengths that count the prompt reduced by its removed rows."""
        changed, kwargs = deepcopy(generation_config), dict(kwargs)
        for name in ("max_length", "min_length"):
            # transformers' order of precedence
            sources = kwargs.get(name), getattr(changed, name, None), getattr(self.generation_config, name)
            length = next((each for each in sources if each is not None), None)
            if length is None:
                continue
            if changed is None or kwargs.get(name) is not None:
                kwargs[name] = max(length - removed, 0)
            else:
                setattr(changed, name, max(length - removed, 0))
        return changed, kwargs


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
    images = model.get_image_features(pixel_values, return_dict=True)
    embeddings = model.get_input_embeddings()(input_ids)
    placeholders = model.get_placeholder_mask(input_ids, embeddings)
    check_placeholders(placeholders, [config.image_seq_length] * len(pixel_values), is_chunked=False)
    patches = images.last_hidden_state[:, -(config.patch_grid**2) :]
    before, after = config.image_seq_length, config.compressed_token_grid**2
    tiles_per_sample = (placeholders.sum(1) // before).tolist()
    is_compressed = model.tile_router.choose(model.tile_router(patches), tiles_per_sample)

    is_kept = torch.ones(len(patches), before, dtype=torch.bool, device=patches.device)
    is_kept[is_compressed, after:] = False
    tokens = images.pooler_output.clone()
    tokens[is_compressed, :after] = model.tile_router.projector(patches[is_compressed]).to(tokens.dtype)
    tokens, is_kept = tokens.to(embeddings.device, embeddings.dtype), is_kept.to(embeddings.device)
    embeddings = embeddings.masked_scatter(placeholders.unsqueeze(-1), tokens)
    rows = torch.ones_like(placeholders).masked_scatter(placeholders, is_kept)
    if attention_mask is not None:
        rows &= attention_mask.to(rows.device).bool()
    samples = [sample[kept] for sample, kept in zip(embeddings, rows, strict=True)]
    masks = [torch.ones(len(sample), dtype=torch.long, device=rows.device) for sample in samples]
    return {
        "inputs_embeds": pad_sequence(samples, batch_first=True, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
    }
