# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Record where a model looks while it answers a question: PVTC's queries, and both stages of the language model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt

import PIL.Image
import torch
from einops import rearrange

from ..cost.flops import stages
from ..cost.request_budget import RequestBudget
from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..modeling.pvtc import PVTCAttention, PVTCProjector
from ..modeling.tile_sizes import TileSize
from ..processing import InternVLXProcessor
from ..processing.image_files import open_image
from ..processing.image_sources import PillowSource
from ..processing.messages import question_about
from ..processing.rvtc import TilePlan


@dataclass
class Attention:
    """The attention recorded while an answer was generated, for n tiles with S patches, N₁ and N₂ tokens per side.

    Args:
        image: the image as the processor reads it: upright, unless `do_exif_transpose=False`.
        plan: its grid of tiles. The thumbnail is the last tile.
        question: the question's text.
        answer: the answer's text.
        tokens: the text of each token of the answer.
        finish_reason: "length" if the answer is cut off at `max_new_tokens`, else "stop".
        queries: PVTC's `"local"` and `"global"` attention: (n, S, S), the weight of each patch in its window, where 1
            is an even share; the mean over heads in the last layer of each branch. Empty without PVTC.
        stages: the attention in each stage of the language model: (tokens, n, N₁, N₁) and, with LVTC, (tokens, n, N₂,
            N₂), the share that goes to each visual token when each of `tokens` is predicted; the mean over heads and
            the stage's layers.
        layers: the layers of each stage.
    """

    image: PIL.Image.Image
    plan: TilePlan
    question: str
    answer: str
    tokens: list[str]
    finish_reason: str
    queries: dict[str, torch.Tensor]
    stages: dict[str, torch.Tensor]
    layers: dict[str, range]


@torch.no_grad()
def attend(
    model: InternVLXForConditionalGeneration,
    processor: InternVLXProcessor,
    image: str | os.PathLike | PIL.Image.Image,
    question: str,
    max_new_tokens: int = 64,
    budget: RequestBudget | None = None,
) -> Attention:
    """Ask a question about an image, answer it greedily, and record the attention.

    The prompt without its last token runs with the model's own attention implementation. From the last token on, each
    token runs with eager attention, whose weights for a single token are small even for long prompts.

    Raises:
        ValueError: if the image cannot be read, the question contains an image token, `max_new_tokens` is not
            positive, or the prompt and its answer exceed the budget (default: none).
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}, expected at least 1.")
    seen_by = processor.image_processor
    image = open_upright(image, seen_by.alpha, bool(seen_by.do_exif_transpose))
    content = [{"type": "image", "image": image}, {"type": "text", "text": question_about(question, images=1)}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids, pixels = inputs["input_ids"].to(model.device), inputs["pixel_values"].to(model.device)
    tile_sizes = inputs.get("tile_sizes")
    if budget is not None:
        budget.new_tokens(model.config, ids.shape[1], len(pixels), max_new_tokens, tile_sizes)
    indices = {0} if tile_sizes is None else {*tile_sizes.tolist()}
    if len(indices) > 1:
        names = ", ".join(processor.sizes[index] for index in sorted(indices))
        raise ValueError(
            f"The tiles have several sizes, {names}, expected one tokens_per_tile for a picture of attention."
        )
    size = model.config.sizes[indices.pop()]
    with record_queries(model) as queries:
        outputs = model(
            input_ids=ids[:, :-1], pixel_values=pixels, tile_sizes=tile_sizes, use_cache=True, logits_to_keep=1
        )
    written, ended, rows = _answer(model, ids[:, -1:], outputs.cache, max_new_tokens, _end_ids(model, processor))
    tokenizer = processor.tokenizer
    return Attention(
        image=image,
        plan=processor.tiling_rules([image.size])[0].plan(*image.size),
        question=question,
        answer=tokenizer.decode(written, skip_special_tokens=True).strip(),
        tokens=[tokenizer.decode([token]) for token in written],
        finish_reason="stop" if ended else "length",
        queries={name: _on_patches(weights, model.config, size) for name, weights in queries.items()},
        stages=_on_tiles(rows, ids[0], model.config, size),
        layers={stage: layers for stage, layers in stages(model.config).items() if layers},
    )


def open_upright(
    image: str | os.PathLike | PIL.Image.Image, alpha: str = "white", upright: bool = True
) -> PIL.Image.Image:
    """Open an image as the image processor does: in RGB, and upright.

    Args:
        alpha: as for `InternVLXImageProcessor`.
        upright: the image processor's `do_exif_transpose`.

    Raises:
        ValueError: if the image is corrupt, empty or too large.
    """
    if not isinstance(image, PIL.Image.Image):
        image = open_image(image)
    source = PillowSource(image, upright=upright, convert_rgb=True, alpha=alpha)
    pixels = source.read(0, 0, source.width, source.height)
    return PIL.Image.fromarray(pixels.movedim(0, -1).numpy())


@contextmanager
def record_queries(model: InternVLXForConditionalGeneration) -> Iterator[dict[str, torch.Tensor]]:
    """Record PVTC's attention in forward calls within the context, as (tiles·N², M²) by branch. Empty without PVTC."""
    weights: dict[str, torch.Tensor] = {}
    projector, hooks = model.model.multi_modal_projector, []
    if isinstance(projector, PVTCProjector):
        for branch in ("local", "global"):
            layers = getattr(projector, f"{branch}_layers", None)
            if layers is not None:
                hooks.append(layers[-1].attention.register_forward_pre_hook(partial(_record, weights, branch)))
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def _record(weights: dict[str, torch.Tensor], branch: str, attention: PVTCAttention, inputs: tuple) -> None:
    weights[branch] = window_weights(attention, *inputs).cpu()


def window_weights(attention: PVTCAttention, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """(n, D) queries and (n, M², D) patches -> (n, M²), the mean over heads of the weights that `PVTCAttention`
    uses.
    """
    queries = (attention.query(query) * attention.scaling).unflatten(-1, (attention.num_heads, -1))  # [n, H, d]
    keys = attention.key.unflatten(0, (attention.num_heads, -1))  # [H, d, D]
    total = patches.new_zeros(patches.shape[:2], dtype=torch.float32)
    for head in range(attention.num_heads):
        on_patches = queries[:, head] @ keys[head]  # [n, D]
        total += torch.bmm(patches, on_patches[:, :, None])[:, :, 0].softmax(-1, dtype=torch.float32)
    return total / attention.num_heads


def _on_patches(weights: torch.Tensor, config: InternVLXConfig, size: TileSize) -> torch.Tensor:
    grid = isqrt(size.before)
    side = config.patch_grid // grid
    maps = rearrange(weights, "(t h w) (mh mw) -> t (h mh) (w mw)", h=grid, w=grid, mh=side)
    return maps * side**2


def _end_ids(model: InternVLXForConditionalGeneration, processor: InternVLXProcessor) -> set[int]:
    """Ids of the tokens that end an answer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return {*configured, processor.tokenizer.eos_token_id} - {None}


def _answer(
    model, token: torch.Tensor, cache, max_new_tokens: int, end_ids: set[int]
) -> tuple[list[int], bool, list[dict]]:
    """The ids of the answer, whether it ended, and the attention with which each was predicted: (columns,) by
    stage.
    """
    language_model = model.model.language_model
    own = language_model.config._attn_implementation
    written: list[int] = []
    ended, rows = False, []
    model.set_attn_implementation({"text_config": "eager"})
    try:
        while len(written) < max_new_tokens:
            outputs = model(input_ids=token, cache=cache, use_cache=True, output_attentions=True)
            outputs.logits[..., model.config.image_token_id] = -torch.inf  # as in `generate`
            token = outputs.logits[:, -1:].argmax(-1)
            ended = bool(written) and token.item() in end_ids
            if ended:
                break
            written.append(int(token))
            rows.append({stage: _mean(outputs.attentions, layers) for stage, layers in stages(model.config).items()})
    finally:
        model.set_attn_implementation({"text_config": own})
    return written, ended, rows


def _mean(attentions: tuple[torch.Tensor, ...], layers: range) -> torch.Tensor | None:
    """(columns,), the mean over heads and layers. A layer with a sliding window has only the last columns; others are
    0.
    """
    if not layers:
        return None
    found = [attentions[layer][0, :, -1].float().mean(0).cpu() for layer in layers]
    columns = max(len(row) for row in found)
    return torch.stack([torch.nn.functional.pad(row, (columns - len(row), 0)) for row in found]).mean(0)


def _on_tiles(rows: list[dict], ids: torch.Tensor, config: InternVLXConfig, size: TileSize) -> dict[str, torch.Tensor]:
    """Select the attention to visual tokens from the attention to all columns of each stage."""
    before, maps = size.before, {}
    starts = (ids == config.image_token_id).nonzero()[::before, 0].cpu()
    for stage, count in zip(stages(config), size.in_stages(config.boundaries), strict=False):
        first = starts + torch.arange(len(starts)) * (count - before)
        length = len(ids) + len(starts) * (count - before)
        if not count:
            continue
        columns = first[:, None] + torch.arange(count)
        # a sliding window that has passed the prompt's start has no first columns
        found = []
        for step, row in enumerate(rows):
            padded = torch.nn.functional.pad(row[stage], (length + step - len(row[stage]), 0))
            found.append(padded[columns])
        maps[stage] = torch.stack(found).unflatten(-1, (int(count**0.5), -1))
    return maps
