# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X (arXiv 2503.21307) in one file, to be read beside sections 3.1 to 3.3 of the paper, whose symbols it uses.

    python examples/internvlx_in_one_file.py CHECKPOINT IMAGE QUESTION --max-new-tokens 32

It loads a folder that `internvlx convert` wrote and prints the greedy answer, in float32. Everything is in its plain form: one
image and one question, no cache, no padding, no fast path. The tests tie the package to this file, in values and gradients.
Vision tower, decoder layers and tokenizer are those of transformers.

S is the number of patches along a tile's side, M of those along a window's, N = S / M the number of tokens along a tile's
side; C and D are the widths of the vision tower and the language model.
"""

import argparse
import json
import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, GenerationConfig, PreTrainedTokenizerFast
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

# Section 3.1, PVTC: each window of M x M patches becomes one token.


def windows_of(patches: torch.Tensor, m: int) -> torch.Tensor:
    """(tiles, S², C) -> (tiles, N², M², C), windows and the patches of a window in raster order."""
    side = math.isqrt(patches.shape[1]) // m
    return rearrange(patches, "t (h mh w mw) c -> t (h w) (mh mw) c", h=side, mh=m, w=side, mw=m)


class Embedding(nn.Module):
    """The paper's "MLP layer" to the language model's width, as released: (..., in) -> (..., D)."""

    def __init__(self, p: SimpleNamespace, in_features: int):
        super().__init__()
        self.norm = LlamaRMSNorm(in_features, eps=p.rms_norm_eps)
        self.linear = nn.Linear(in_features, p.d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.linear(self.norm(x)))


class WindowMLP(nn.Module):
    """InternVL2's projector of a window's patches, (..., M²·C) -> (..., D). LLaVA's is the same without the norm."""

    def __init__(self, p: SimpleNamespace, m: int, has_norm: bool):
        super().__init__()
        self.m, self.act = m, ACT2FN[p.hidden_act]
        self.layer_norm = nn.LayerNorm(p.c * m**2) if has_norm else nn.Identity()
        self.linear_1, self.linear_2 = nn.Linear(p.c * m**2, p.d), nn.Linear(p.d, p.d)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(self.layer_norm(windows))))


class PointToRegionAttention(nn.Module):
    """Each window's query attends to the M² patches of that window: (t, N², D) and (t, N², M², D) -> (t, N², D)."""

    def __init__(self, p: SimpleNamespace):
        super().__init__()
        self.num_heads = p.num_heads
        self.query, self.output = nn.Linear(p.d, p.d, bias=False), nn.Linear(p.d, p.d, bias=False)
        self.key, self.value = nn.Parameter(torch.empty(p.d, p.d)), nn.Parameter(torch.empty(p.d, p.d))

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        q = rearrange(self.query(query), "t n (h d) -> t n h 1 d", h=self.num_heads)
        k, v = (F.linear(patches, weight) for weight in (self.key, self.value))
        k, v = (rearrange(x, "t n m (h d) -> t n h m d", h=self.num_heads) for x in (k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # [t, N², h, 1, M²]
        return self.output(rearrange(weights @ v, "t n h 1 d -> t n (h d)"))


class AttentionLayer(nn.Module):
    """One of the L layers of a branch: pre-norm cross-attention and SwiGLU, both residual."""

    def __init__(self, p: SimpleNamespace):
        super().__init__()
        self.query_norm, self.patch_norm, self.mlp_norm = (LlamaRMSNorm(p.d, eps=p.rms_norm_eps) for _ in range(3))
        self.attention, inner = PointToRegionAttention(p), int(p.d * p.mlp_ratio)
        sizes = {"gate": (p.d, inner), "up": (p.d, inner), "down": (inner, p.d)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        query = query + self.attention(self.query_norm(query), self.patch_norm(patches))
        x = self.mlp_norm(query)
        return query + self.mlp["down"](F.silu(self.mlp["gate"](x)) * self.mlp["up"](x))


class PVTC(nn.Module):
    """F_CLS (t, 1, C) and the windows of F_V (t, N², M², C) -> F_C (t, N², D)."""

    def __init__(self, p: SimpleNamespace, m: int):
        super().__init__()
        self.m, self.patch_embedding, self.global_query = m, Embedding(p, p.c), Embedding(p, p.c)
        if p.query_mlp == "released":
            self.local_query: nn.Module = Embedding(p, p.c * m**2)
        else:  # the projector that the checkpoint had before PVTC
            self.local_query = WindowMLP(p, m, has_norm=p.query_mlp == "internvl2")
        self.cls_scale = nn.Parameter(torch.ones((p.s // m) ** 2, p.d))
        self.local_layers = nn.ModuleList(AttentionLayer(p) for _ in range(p.num_layers))
        self.global_layers = nn.ModuleList(AttentionLayer(p) for _ in range(p.num_layers))

    def forward(self, f_cls: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        f_kv = self.patch_embedding(windows)  # [t, N², M², D]
        f_l = self.local_query(windows.flatten(2))  # F_LQ: the M² patches side by side, through the MLP
        f_g = self.global_query(f_cls) * self.cls_scale  # F_GQ: the same at every position, times CLS scale
        for layer in self.local_layers:
            f_l = layer(f_l, f_kv)
        for layer in self.global_layers:
            f_g = layer(f_g, f_kv)
        return f_l + f_g


def build_projector(p: SimpleNamespace, kind: str, m: int) -> nn.Module:
    has_norm = {"pixel_shuffle": True, "linear": False}
    return PVTC(p, m) if kind == "pvtc" else WindowMLP(p, m, has_norm[kind])


def project(projector: nn.Module, v: torch.Tensor) -> torch.Tensor:
    """F_CLS and F_V, (t, 1 + S², C) -> (t, N², D)."""
    windows = windows_of(v[:, 1:], projector.m)
    return projector(v[:, :1], windows) if isinstance(projector, PVTC) else projector(windows.flatten(2))


# Section 3.2, LVTC: N₁² tokens per tile in the first k layers of the language model, N₂² in the others.


class LVTC(nn.Module):
    """LRProjs 1 to T - 1 (the model's own projector is the first) and HRProj."""

    def __init__(self, p: SimpleNamespace, settings: dict, m1: int, m2: int):
        super().__init__()
        kinds, hr = (
            [settings["lr_projector_type"]] * (settings["num_lr_projectors"] - 1),
            settings["hr_projector_type"],
        )
        self.lr_projectors = nn.ModuleList(build_projector(p, kind, m1) for kind in kinds)
        self.hr_projector = build_projector(p, hr, m2) if hr else None


def upsample2d(tile: torch.Tensor, n1: int, n2: int, mode: str) -> torch.Tensor:
    """(N₁², D) -> (N₂², D). For N₂ < N₁, Table 4's 1024 to 256 tokens, each block becomes its mean."""
    grid = rearrange(tile, "(h w) d -> h w d", h=n1)
    if n2 < n1:
        return reduce(grid, "(h a) (w b) d -> (h w) d", "mean", h=n2, w=n2)
    if mode == "bilinear":
        grid = F.interpolate(rearrange(grid, "h w d -> 1 d h w"), (n2, n2), mode="bilinear")
        return rearrange(grid, "1 d h w -> (h w) d")
    return repeat(grid, "h w d -> (h a w b) d", a=n2 // n1, b=n2 // n1)


def expand(x: torch.Tensor, is_visual: list, n1: int, n2: int, mode: str, vhr: Iterable) -> tuple:
    """X = concat(upsample2d(X[vis_pos]) + VHR, X[!vis_pos]), with every tile at its place in the text.

    Returns:
        The rows (n₂, D) of the deeper layers, and for each the number of the (first) row that it was made of.
    """
    line, rows, sources, at, vhr = torch.arange(n2) * n1 // n2, [], [], 0, iter(vhr)
    while at < len(x):
        if is_visual[at]:
            rows.append(upsample2d(x[at : at + n1**2], n1, n2, mode) + next(vhr))
            sources.append((at + line[:, None] * n1 + line).flatten())
        else:
            rows.append(x[at : at + 1])
            sources.append(torch.tensor([at]))
        at += n1**2 if is_visual[at] else 1
    return torch.cat(rows), torch.cat(sources)


# Section 3.3, RVTC: the image's resolution bounds its number of tiles R.


def grid_of(width: int, height: int, settings: dict, most: int) -> tuple[int, int]:
    """(columns, lines) of the tiles of an image of that many pixels, without the thumbnail."""
    tile, least = settings["size"]["height"], settings["min_patches"]
    bound = {
        "edge": math.ceil(width / tile) * math.ceil(height / tile),  # R_W · R_H
        "area": math.ceil(width * height / tile**2),
        "ratio": most,  # InternVL2's, without RVTC
    }
    r = max(least, min(most, bound[settings["slicing"]]))
    grids = {g for n in range(least, r + 1) for g in product(range(1, n + 1), repeat=2) if least <= math.prod(g) <= r}
    best, nearest = (1, 1), math.inf
    # InternVL2's "optimal match": the nearest ratio; of equally near grids the larger, if the image fills half of it
    for columns, lines in sorted(grids, key=math.prod):
        difference = abs(width / height - columns / lines)
        fills_half = width * height > 0.5 * tile**2 * columns * lines
        if difference < nearest or (difference == nearest and fills_half):
            best, nearest = (columns, lines), difference
    return best


def resize(levels: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """8-bit levels (3, H, W) -> (3, height, width). The axis that Pillow resamples first is resampled first."""
    mode = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}[resample]
    lost_height, lost_width = levels.shape[1] - height, levels.shape[2] - width
    if lost_height > max(0, 2 * lost_width):
        levels = F.interpolate(levels[None], (height, levels.shape[2]), mode=mode, antialias=True)[0]
    return F.interpolate(levels[None], (height, width), mode=mode, antialias=True)[0]


def tiles_of(image: Image.Image, settings: dict, most_tiles: float = math.inf) -> torch.Tensor:
    """An opaque image, and settings of an image processor -> normalised tiles (t, 3, H, W), the thumbnail last."""
    image = ImageOps.exif_transpose(image) if settings["do_exif_transpose"] else image
    levels = rearrange(torch.from_numpy(np.array(image.convert("RGB"))), "h w c -> c h w")
    tile, grids = settings["size"]["height"], [(1, 1)]
    if settings["crop_to_patches"]:
        grids = [grid_of(*image.size, settings, settings["max_patches"])]
        while math.prod(grids[0]) > 1 and math.prod(grids[0]) + settings["use_thumbnail"] > most_tiles:
            grids = [grid_of(*image.size, settings, math.prod(grids[0]) - 1)]
        grids += [(1, 1)] * (settings["use_thumbnail"] and grids != [(1, 1)])
    resized = [resize(levels, lines * tile, columns * tile, settings["resample"]) for columns, lines in grids]
    tiles = torch.cat([rearrange(part, "k (r h) (c w) -> (r c) k h w", h=tile, w=tile) for part in resized])
    mean, std = (torch.tensor(settings[f"image_{name}"], dtype=torch.float64) for name in ("mean", "std"))
    scale, shift = (x.float()[:, None, None] for x in (settings["rescale_factor"] / std, -mean / std))
    return tiles * scale + shift


# The model: vision tower, projector, language model.


class InternVLX(nn.Module):
    """Modules are named as in the checkpoints. `config`: the contents of config.json."""

    def __init__(self, config: dict):
        super().__init__()
        vision, text = (CONFIG_MAPPING[config[k]["model_type"]](**config[k]) for k in ("vision_config", "text_config"))
        size, patch = (int(np.ravel(x)[0]) for x in (vision.image_size, vision.patch_size))
        self.config, self.s, settings = config, size // patch, config["lvtc_config"]
        m1, m2 = (round(1 / part["downsample_ratio"]) for part in (config, settings or config))
        self.n1, self.n2 = self.s // m1, self.s // m2
        p = SimpleNamespace(**config["projector_config"], c=vision.hidden_size, d=text.hidden_size, s=self.s)
        self.vision_tower, self.language_model = AutoModel.from_config(vision), AutoModel.from_config(text)
        self.multi_modal_projector = build_projector(p, p.projector_type, m1)
        self.lvtc = LVTC(p, settings, m1, m2) if settings else None
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (t, 3, H, W) -> F_CLS and F_V, (t, 1 + S², C). A tower without CLS has another global feature."""
        layer, query = self.config["vision_feature_layer"], self.config["projector_config"]["global_query"]
        outputs = self.vision_tower(pixel_values=tiles, output_hidden_states=True)
        features = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
        patches = features[:, -(self.s**2) :]
        f_cls = features[:, :1] if query == "cls" else patches.mean(1, keepdim=True)
        if query == "pooled":
            f_cls = outputs.pooler_output[:, None]
        return torch.cat([f_cls, patches], dim=1)

    def forward(self, ids: torch.Tensor, v: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Algorithm 1, whose lines the comments quote; without LVTC, plain decoder layers.

        Args:
            ids: (n,), with N₁² placeholders per tile.
            v: what `encode` returned for the tiles, in reading order; None if the prompt has none.

        Returns:
            The normed rows (n₂, D) after the last layer, and for each the number of the row of `ids` that it is from.
        """
        x, is_visual, lvtc = self.language_model.embed_tokens(ids), ids == self.config["image_token_id"], self.lvtc
        vis_pos, vlr, vhr, settings = is_visual.nonzero()[:, 0], [], [], self.config["lvtc_config"] or {}
        if v is not None:
            x = x.index_copy(0, vis_pos, project(self.multi_modal_projector, v).flatten(0, 1))  # X = concat(VLR[0], T)
            if lvtc is not None:
                vlr = [project(proj, v) for proj in lvtc.lr_projectors]
                vhr = project(lvtc.hr_projector, v) if lvtc.hr_projector else [0] * len(v)
        k, s, i = (settings.get(name) for name in ("expand_layer", "insert_start", "insert_interval"))
        positions = sources = torch.arange(len(x))
        for idx, layer in enumerate(self.language_model.layers):
            if idx == k:
                x, sources = expand(x, is_visual.tolist(), self.n1, self.n2, settings["upsample_mode"], vhr)
                positions = sources if settings["expanded_positions"] == "kept" else torch.arange(len(x))
            elif vlr and s <= idx < s + i * len(vlr) and (idx - s) % i == 0:
                x = x.index_add(0, vis_pos, vlr[(idx - s) // i].flatten(0, 1))  # X[vis_pos] += VLR[(idx - s) // i]
            x = self.run_layer(idx, layer, x, positions)  # X = layer(X)
        return self.language_model.norm(x), sources

    def run_layer(self, idx: int, layer: nn.Module, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(n, D) -> (n, D), causally: without a mask, or with that of a sliding window."""
        text, mask = self.language_model.config, None
        rotary = type(self.language_model.rotary_emb)(text)  # a new one, because some remember the longest prompt
        types = getattr(text, "layer_types", None) or ["sliding_attention"] * len(self.language_model.layers)
        if (window := getattr(text, "sliding_window", None)) is not None and types[idx] == "sliding_attention":
            distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
            mask = ((distance >= 0) & (distance < window))[None, None]
        angles = rotary(x[None], position_ids=positions[None])
        return layer(x[None], attention_mask=mask, position_embeddings=angles, position_ids=positions[None])[0]


def load(folder: Path) -> InternVLX:
    """The model of a folder that `internvlx convert` wrote. With other modules, such as a router, it is a RuntimeError."""
    with torch.device("meta"):
        model = InternVLX(json.loads((folder / "config.json").read_text()))
    files = (load_file(path) for path in folder.glob("*.safetensors"))
    tensors = {name.removeprefix("model."): tensor.float() for file in files for name, tensor in file.items()}
    tensors.setdefault("lm_head.weight", tensors["language_model.embed_tokens.weight"])
    for name in ("vision_tower", "language_model"):
        part, start = getattr(model, name), f"{name}."
        own = {key.removeprefix(start): tensors.pop(key) for key in [*tensors] if key.startswith(start)}
        part = type(part).from_pretrained(None, config=part.config, state_dict=own, dtype=torch.float32)
        setattr(model, name, part)
        tensors |= part.state_dict(prefix=start)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@torch.no_grad()
def answer(folder: Path, image: Image.Image, question: str, max_new_tokens: int) -> str:
    """The greedy answer, as `generate` gives it for the processor's inputs."""
    model, tokenizer = load(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    saved, stops = json.loads((folder / "processor_config.json").read_text()), GenerationConfig.from_pretrained(folder)
    tiles = tiles_of(image, saved["image_processor"], (saved["max_image_tokens"] or math.inf) // model.n1**2)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    placeholder = tokenizer.convert_ids_to_tokens(model.config["image_token_id"])
    visual = placeholder * len(tiles) * model.n1**2
    if saved["wrap_images"]:  # LLaVA's prompts do not
        visual = tokenizer.start_image_token + visual + tokenizer.end_image_token
    has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    ids = tokenizer(prompt.replace(placeholder, visual, 1), add_special_tokens=not has_bos)["input_ids"]
    features, start = model.encode(tiles), len(ids)
    while len(ids) < start + max_new_tokens and (len(ids) == start or ids[-1] not in np.ravel(stops.eos_token_id)):
        rows, _ = model(torch.tensor(ids), features)
        logits = model.lm_head(rows[-1])
        logits[model.config["image_token_id"]] = -math.inf  # an answer has no image
        ids.append(int(logits.argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask an InternVL-X checkpoint about an image.")
    parser.add_argument("checkpoint", type=Path, help="a folder that `internvlx convert` wrote")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    print(answer(options.checkpoint, Image.open(options.image), options.question, options.max_new_tokens))
