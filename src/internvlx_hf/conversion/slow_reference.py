# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""An independent implementation of `internvl_chat` checkpoints, formula by formula, to verify conversions against.

It shares nothing with the conversion's tables or with transformers' models. It runs one sample without a cache in
float32 and reads each tensor when it is needed.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

Read = Callable[[str], torch.Tensor]


class SlowReference:
    """The source model.

    Args:
        read: returns a source tensor by name, in float32.
        raw: the source's config.json.
        names: names of the source's tensors.
    """

    def __init__(self, read: Read, raw: dict, names: set[str]):
        self.read, self.raw, self.names = read, raw, names

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.read(f"{name}.weight").T
        return y + self.read(f"{name}.bias") if f"{name}.bias" in self.names else y

    def rms_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.read(f"{name}.weight")

    def layer_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x * self.read(f"{name}.weight") + self.read(f"{name}.bias")

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, H, H) -> (1 + S², C): the hidden state that the projector sees."""
        raw = self.raw["vision_config"]
        patch, width, eps = raw["patch_size"], raw["hidden_size"], raw.get("layer_norm_eps", 1e-6)
        grid = pixels.shape[-1] // patch
        cut = pixels.reshape(3, grid, patch, grid, patch).permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        x = cut @ self.read("vision_model.embeddings.patch_embedding.weight").reshape(width, -1).T
        x = x + self.read("vision_model.embeddings.patch_embedding.bias")
        x = torch.cat((self.read("vision_model.embeddings.class_embedding")[0], x)) + self.positions(grid)
        norm = self.rms_norm if raw["norm_type"] == "rms_norm" else self.layer_norm
        select = self.raw.get("select_layer", -1)
        layers = raw["num_hidden_layers"]
        for i in range(select if select >= 0 else layers + 1 + select):
            name = f"vision_model.encoder.layers.{i}"
            x = x + self.vision_attention(name, norm(f"{name}.norm1", x, eps), raw) * self.read(f"{name}.ls1")
            hidden = F.gelu(self.linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x, eps)))
            x = x + self.linear(f"{name}.mlp.fc2", hidden) * self.read(f"{name}.ls2")
        return x

    def positions(self, grid: int) -> torch.Tensor:
        stored = self.read("vision_model.embeddings.position_embedding")[0]
        side = math.isqrt(len(stored) - 1)
        if side == grid:
            return stored
        square = stored[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        return torch.cat((stored[:1], resized.reshape(-1, grid * grid).T))

    def vision_attention(self, name: str, x: torch.Tensor, raw: dict) -> torch.Tensor:
        query, key, value = self.linear(f"{name}.attn.qkv", x).chunk(3, -1)
        if raw["qk_normalization"]:
            query, key = (self.rms_norm(f"{name}.attn.{n}_norm", y, 1e-6) for n, y in (("q", query), ("k", key)))
        heads = raw["num_attention_heads"]
        seen = _attention(*(y.unflatten(-1, (heads, -1)).transpose(0, 1) for y in (query, key, value)))
        return self.linear(f"{name}.attn.proj", seen.transpose(0, 1).flatten(1))

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """(1 + S², C) -> (N², D) by InternVL2's projector."""
        grid, side = math.isqrt(len(features) - 1), round(1 / self.raw["downsample_ratio"])
        patches = features[1:].reshape(grid, grid, -1)
        windows = [
            patches[row : row + side, column : column + side].flatten()
            for row in range(0, grid, side)
            for column in range(0, grid, side)
        ]
        x = self.layer_norm("mlp1.0", torch.stack(windows), 1e-5)
        return self.linear("mlp1.3", F.gelu(self.linear("mlp1.1", x)))

    def logits(self, ids: torch.Tensor, image_token: int, image_tokens: torch.Tensor) -> torch.Tensor:
        """(L,) ids, with (n, D) `image_tokens` in place of their placeholders -> (vocabulary,) logits of the last
        position.
        """
        raw = self.raw["llm_config"]
        internlm2 = raw["architectures"][0] == "InternLM2ForCausalLM"
        embedding = "language_model.model." + ("tok_embeddings" if internlm2 else "embed_tokens")
        x = self.read(f"{embedding}.weight")[ids]
        x[ids == image_token] = image_tokens
        norms = ("attention_norm", "ffn_norm") if internlm2 else ("input_layernorm", "post_attention_layernorm")
        eps = raw["rms_norm_eps"]
        for i in range(raw["num_hidden_layers"]):
            name = f"language_model.model.layers.{i}"
            x = x + self.text_attention(name, self.rms_norm(f"{name}.{norms[0]}", x, eps), raw, internlm2)
            normed = self.rms_norm(f"{name}.{norms[1]}", x, eps)
            is_routed = f"{name}.mlp.gate.weight" in self.names
            x = x + (self.experts(name, normed, raw) if is_routed else self.text_mlp(name, normed, internlm2))
        x = self.rms_norm("language_model.model.norm", x[-1], eps)
        head = "language_model.output" if internlm2 else "language_model.lm_head"
        return self.linear(head if f"{head}.weight" in self.names else embedding, x)

    def text_attention(self, name: str, x: torch.Tensor, raw: dict, internlm2: bool) -> torch.Tensor:
        heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
        size = raw.get("head_dim") or raw["hidden_size"] // heads
        rows = [self.head_rows(name, x, head, heads, kv_heads, size, internlm2) for head in range(heads)]
        query, key, value = map(torch.stack, zip(*rows, strict=True))
        if raw["architectures"][0] in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"):
            query, key = (
                self.rms_norm(f"{name}.self_attn.{n}_norm", y, raw["rms_norm_eps"])
                for n, y in (("q", query), ("k", key))
            )
        turned = rotations(len(x), size, raw)
        seen = _attention(_rotate(query, *turned), _rotate(key, *turned), value, causal=True)
        output = "attention.wo" if internlm2 else "self_attn.o_proj"
        return self.linear(f"{name}.{output}", seen.transpose(0, 1).flatten(1))

    def head_rows(
        self, name: str, x: torch.Tensor, head: int, heads: int, kv_heads: int, size: int, internlm2: bool
    ) -> list[torch.Tensor]:
        """Query, key and value of one query head, from their rows in the fused or separate matrices."""
        group = heads // kv_heads
        kv = head // group
        if internlm2:
            start = kv * (group + 2) + head % group, kv * (group + 2) + group, kv * (group + 2) + group + 1
            fused = [f"{name}.attention.wqkv"] * 3
        elif f"{name}.self_attn.qkv_proj.weight" in self.names:
            start, fused = (head, heads + kv, heads + kv_heads + kv), [f"{name}.self_attn.qkv_proj"] * 3
        else:
            start, fused = (head, kv, kv), [f"{name}.self_attn.{n}_proj" for n in "qkv"]
        return [self.some_rows(matrix, x, first * size, size) for matrix, first in zip(fused, start, strict=True)]

    def some_rows(self, name: str, x: torch.Tensor, first: int, count: int) -> torch.Tensor:
        rows = slice(first, first + count)
        y = x @ self.read(f"{name}.weight")[rows].T
        return y + self.read(f"{name}.bias")[rows] if f"{name}.bias" in self.names else y

    def text_mlp(self, name: str, x: torch.Tensor, internlm2: bool) -> torch.Tensor:
        if internlm2:
            gate, up, down = (f"{name}.feed_forward.{w}" for w in ("w1", "w3", "w2"))
            return self.linear(down, F.silu(self.linear(gate, x)) * self.linear(up, x))
        if f"{name}.mlp.gate_up_proj.weight" in self.names:
            gated, passed = self.linear(f"{name}.mlp.gate_up_proj", x).chunk(2, -1)
        else:
            gated, passed = self.linear(f"{name}.mlp.gate_proj", x), self.linear(f"{name}.mlp.up_proj", x)
        return self.linear(f"{name}.mlp.down_proj", F.silu(gated) * passed)

    def experts(self, name: str, x: torch.Tensor, raw: dict) -> torch.Tensor:
        """(L, D) -> (L, D): the sum of each row's best experts, weighted by their probabilities."""
        weights, chosen = self.linear(f"{name}.mlp.gate", x).softmax(-1).topk(raw["num_experts_per_tok"])
        if raw["norm_topk_prob"]:
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            mlp, weight = f"{name}.mlp.experts.{expert}", (weights * (chosen == expert)).sum(-1, keepdim=True)
            hidden = F.silu(self.linear(f"{mlp}.gate_proj", x)) * self.linear(f"{mlp}.up_proj", x)
            y = y + weight * self.linear(f"{mlp}.down_proj", hidden)
        return y


def rotations(length: int, size: int, raw: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (L, size / 2) of the configured rotary embedding.

    Raises:
        NotImplementedError: if the kind of rope scaling is not one that InternVL2's families use.
    """
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    base, limit, gain = raw.get("rope_theta", 10000.0), raw["max_position_embeddings"], 1.0
    positions, half = torch.arange(length).double(), torch.arange(0, size, 2).double()
    factor = torch.ones(1).double()
    if kind == "linear":
        positions = positions / scaling["factor"]
    elif kind == "dynamic" and length > limit:
        grown = scaling["factor"] * length / limit - (scaling["factor"] - 1)
        base = base * grown ** (size / (size - 2))
    elif kind in ("su", "longrope"):
        original = raw.get("original_max_position_embeddings") or scaling["original_max_position_embeddings"]
        factor = torch.tensor(scaling["long_factor" if length > original else "short_factor"]).double()
        gain = math.sqrt(1 + math.log(limit / original) / math.log(original)) if limit > original else 1.0
    elif kind not in ("default", "dynamic"):
        raise NotImplementedError(f"rope scaling {kind!r}")
    angles = positions[:, None] / (factor * base ** (half / size))
    return (angles.cos() * gain).float(), (angles.sin() * gain).float()


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """(heads, L, size) each -> (heads, L, size)."""
    weights = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if causal:
        weights = weights.masked_fill(torch.ones_like(weights[0], dtype=torch.bool).triu(1), -math.inf)
    return weights.softmax(-1) @ value
