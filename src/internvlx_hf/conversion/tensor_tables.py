# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Tables that map source tensors to target tensors, one per part of a model.

In names, `{i}` stands for a number, `{kind}` for weight or bias, `{rest}` for anything. An operation takes the source
tensor and returns one tensor per target. It changes values only if its docstring says so.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional as F
from transformers import PretrainedConfig

from ..checkpoints.errors import CheckpointError
from ..checkpoints.names import LLAVA
from .sources import Source

Operation = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

PLACEHOLDERS = {"i": r"\d+", "kind": "weight|bias", "rest": ".+"}
PROJECTOR = "model.multi_modal_projector"


def keep(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (tensor,)


@dataclass(frozen=True)
class Rule:
    """A rule of a table: source name, target names (none if the tensor is dropped, for `reason`), operation."""

    source: str
    targets: tuple[str, ...] = ()
    operation: Operation = keep
    reason: str = ""

    def matches(self, name: str) -> bool:
        """Whether this rule applies to a source tensor."""
        return _regex(self.source).fullmatch(name) is not None

    def targets_of(self, name: str) -> tuple[str, ...]:
        """Target names of a source tensor; none if this rule does not apply to it."""
        found = _regex(self.source).fullmatch(name)
        return () if found is None else tuple(target.format(**found.groupdict()) for target in self.targets)

    def source_of(self, target: str) -> str | None:
        """Name of the source tensor that this rule would turn into a target, None if the target is not one of its
        own.
        """
        for pattern in self.targets:
            if found := _regex(pattern).fullmatch(target):
                return self.source.format(**found.groupdict())
        return None


@cache
def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", pattern)
    literal, names = parts[::2], parts[1::2]
    groups = [f"(?P<{name}>{PLACEHOLDERS[name]})" for name in names] + [""]
    return re.compile("".join(re.escape(text) + group for text, group in zip(literal, groups, strict=True)))


def split_in_three(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(3C, ...) rows in the order q, k, v -> three tensors (C, ...)."""
    return tensor.chunk(3)


def split_query_groups(query_heads: int, kv_heads: int) -> Operation:
    """InternLM2's `wqkv`, grouped by key/value head: (kv · (g + 2) · d, ...) -> q (kv · g · d, ...), k and v (kv · d,
    ...).

    A group has g + 2 slices: g queries, then the key, then the value.
    """
    group = query_heads // kv_heads

    def split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        groups = tensor.unflatten(0, (kv_heads, group + 2, -1))
        return tuple(groups[:, part].flatten(0, 2) for part in (slice(group), slice(-2, -1), slice(-1, None)))

    return split


def resize_positions(old_grid: int, new_grid: int) -> Operation:
    """(1, 1 + old², C) position embeddings, CLS first -> (1, 1 + new², C), resized bicubically as InternVL does at run
    time.
    """

    def resize(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if old_grid == new_grid:
            return (tensor,)
        grid = tensor[:, 1:].unflatten(1, (old_grid, old_grid)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(grid, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
        patches = resized.permute(0, 2, 3, 1).flatten(1, 2).to(tensor.dtype)
        return (torch.cat((tensor[:, :1], patches), 1),)

    return resize


def flatten_grid(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(1, N, N, D) -> (N², D)."""
    return (tensor.flatten(0, 2),)


def vision_table(old_grid: int, new_grid: int) -> list[Rule]:
    """InternViT -> transformers' `InternVLVisionModel`. `old_grid`, `new_grid`: sides of the stored positions' and the
    patch grid."""
    ours, theirs = "model.vision_tower", "vision_model"
    layer, their_layer = ours + ".encoder.layer.{i}", theirs + ".encoder.layers.{i}"
    attention = layer + ".attention"
    positions = resize_positions(old_grid, new_grid)
    return [
        Rule(f"{theirs}.embeddings.class_embedding", (f"{ours}.embeddings.cls_token",)),
        Rule(f"{theirs}.embeddings.position_embedding", (f"{ours}.embeddings.position_embeddings",), positions),
        Rule(
            theirs + ".embeddings.patch_embedding.{kind}", (ours + ".embeddings.patch_embeddings.projection.{kind}",)
        ),
        Rule(f"{theirs}.embeddings.position_ids", reason="positions are counted, not stored"),
        Rule(
            their_layer + ".attn.qkv.{kind}",
            tuple(f"{attention}.{x}_proj." + "{kind}" for x in "qkv"),
            split_in_three,
        ),
        Rule(their_layer + ".attn.q_norm.weight", (attention + ".q_norm.weight",)),
        Rule(their_layer + ".attn.k_norm.weight", (attention + ".k_norm.weight",)),
        Rule(their_layer + ".attn.proj.{kind}", (attention + ".projection_layer.{kind}",)),
        Rule(their_layer + ".norm1.{kind}", (layer + ".layernorm_before.{kind}",)),
        Rule(their_layer + ".norm2.{kind}", (layer + ".layernorm_after.{kind}",)),
        Rule(their_layer + ".ls1", (layer + ".lambda_1",)),
        Rule(their_layer + ".ls2", (layer + ".lambda_2",)),
        Rule(their_layer + ".mlp.fc1.{kind}", (layer + ".mlp.fc1.{kind}",)),
        Rule(their_layer + ".mlp.fc2.{kind}", (layer + ".mlp.fc2.{kind}",)),
    ]


# InternVL2's projector
PIXEL_SHUFFLE_TABLE = [
    Rule("mlp1.0.{kind}", (PROJECTOR + ".layer_norm.{kind}",)),
    Rule("mlp1.1.{kind}", (PROJECTOR + ".linear_1.{kind}",)),
    Rule("mlp1.3.{kind}", (PROJECTOR + ".linear_2.{kind}",)),
]


ROUTER = "model.tile_router"
ROUTER_SOURCES = ("mlp2.", "pooling_before_gating.", "gating.")


def router_table() -> list[Rule]:
    """InternVL3.5-Flash's router and its projector of compressed tiles."""
    pooling = "pooling_before_gating"
    rules = [
        Rule(f"{pooling}.query_token", (f"{ROUTER}.query",)),
        Rule(f"{pooling}.norm1.{{kind}}", (f"{ROUTER}.norms.0.{{kind}}",)),
        Rule(f"{pooling}.norm2.{{kind}}", (f"{ROUTER}.norms.1.{{kind}}",)),
        Rule(f"{pooling}.attn1.{{rest}}", (f"{ROUTER}.attentions.0.{{rest}}",)),
        Rule(f"{pooling}.attn2.{{rest}}", (f"{ROUTER}.attentions.1.{{rest}}",)),
        Rule(f"{pooling}.{{rest}}", reason="InternVL3.5-Flash's code never uses it"),
        Rule("gating.gate.0.{kind}", (f"{ROUTER}.norm.{{kind}}",)),
        Rule("gating.gate.1.{kind}", (f"{ROUTER}.score.{{kind}}",)),
    ]
    for block in range(4):
        for theirs, ours in ((0, "linear_1"), (3, "linear_2"), (5, "norm")):
            rules.append(
                Rule(f"gating.block{block + 1}.{theirs}.{{kind}}", (f"{ROUTER}.blocks.{block}.{ours}.{{kind}}",))
            )
    for theirs, ours in ((0, "layer_norm"), (1, "linear_1"), (4, "linear_2"), (7, "linear_3")):
        rules.append(Rule(f"mlp2.{theirs}.{{kind}}", (f"{ROUTER}.projector.{ours}.{{kind}}",)))
    return rules


UNUSED_ROUTER = [
    Rule(f"{name}{{rest}}", reason="flash_mode is off, so the router is not used") for name in ROUTER_SOURCES
]


def _pvtc_branch(theirs: str, ours: str) -> list[Rule]:
    theirs, ours = f"projector.{theirs}", f"{PROJECTOR}.{ours}.0"
    names = {
        "attn.norm1": "query_norm.weight",
        "attn.norm2": "patch_norm.weight",
        "attn.q": "attention.query.weight",
        "attn.k": "attention.key",
        "attn.v": "attention.value",
        "attn.proj": "attention.output.weight",
        "mlp.norm": "mlp_norm.weight",
        "mlp.w1": "mlp.gate.weight",
        "mlp.w3": "mlp.up.weight",
        "mlp.w2": "mlp.down.weight",
    }
    return [Rule(f"{theirs}.{their_name}.weight", (f"{ours}.{our_name}",)) for their_name, our_name in names.items()]


# the InternVL-X release's projector
PVTC_TABLE = [
    Rule("projector.mlp1.0.weight", (f"{PROJECTOR}.local_query.norm.weight",)),
    Rule("projector.mlp1.1.weight", (f"{PROJECTOR}.local_query.linear.weight",)),
    Rule("projector.mlp2.0.weight", (f"{PROJECTOR}.global_query.norm.weight",)),
    Rule("projector.mlp2.1.weight", (f"{PROJECTOR}.global_query.linear.weight",)),
    Rule("projector.mlp3.0.weight", (f"{PROJECTOR}.patch_embedding.norm.weight",)),
    Rule("projector.mlp3.1.weight", (f"{PROJECTOR}.patch_embedding.linear.weight",)),
    Rule("projector.cls_scale", (f"{PROJECTOR}.cls_scale",), flatten_grid),
    *_pvtc_branch("attn_local", "local_layers"),
    *_pvtc_branch("attn_global", "global_layers"),
]

# Llama, Mistral, Phi3, Qwen2, Qwen3 and Qwen3-MoE have transformers' own names inside the wrapper
TEXT_TABLE = [
    Rule("language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq", reason="follows from rope_parameters"),
    Rule("language_model.model.rotary_emb.inv_freq", reason="follows from rope_parameters"),
    Rule("language_model.model.{rest}", ("model.language_model.{rest}",)),
    Rule("language_model.lm_head.weight", ("lm_head.weight",)),
]


def internlm2_table(text: PretrainedConfig) -> list[Rule]:
    """InternLM2 -> transformers' Llama with the configuration `text`."""
    split = split_query_groups(text.num_attention_heads, text.num_key_value_heads)
    ours, theirs = "model.language_model.layers.{i}", "language_model.model.layers.{i}"
    return [
        Rule("language_model.model.tok_embeddings.weight", ("model.language_model.embed_tokens.weight",)),
        Rule("language_model.model.norm.weight", ("model.language_model.norm.weight",)),
        Rule("language_model.output.weight", ("lm_head.weight",)),
        Rule(theirs + ".attention.rotary_emb.inv_freq", reason="follows from rope_parameters"),
        Rule(theirs + ".attention.wqkv.{kind}", tuple(f"{ours}.self_attn.{x}_proj." + "{kind}" for x in "qkv"), split),
        Rule(theirs + ".attention.wo.{kind}", (ours + ".self_attn.o_proj.{kind}",)),
        Rule(theirs + ".feed_forward.w1.weight", (ours + ".mlp.gate_proj.weight",)),
        Rule(theirs + ".feed_forward.w3.weight", (ours + ".mlp.up_proj.weight",)),
        Rule(theirs + ".feed_forward.w2.weight", (ours + ".mlp.down_proj.weight",)),
        Rule(theirs + ".attention_norm.weight", (ours + ".input_layernorm.weight",)),
        Rule(theirs + ".ffn_norm.weight", (ours + ".post_attention_layernorm.weight",)),
    ]


# transformers' native InternVL, with the names in files (older and newer) and of modules
NATIVE_TABLE = [
    Rule("language_model.lm_head.weight", ("lm_head.weight",)),
    Rule("language_model.model.{rest}", ("model.language_model.{rest}",)),
    Rule("vision_tower.{rest}", ("model.vision_tower.{rest}",)),
    Rule("multi_modal_projector.{rest}", ("model.multi_modal_projector.{rest}",)),
    Rule("model.{rest}", ("model.{rest}",)),
    Rule("lm_head.weight", ("lm_head.weight",)),
]

# transformers' LLaVA, whose older files wrap the tower's modules in one of the name `vision_model`
LLAVA_TABLE = [
    *(rule for rule in TEXT_TABLE if rule.reason),
    *(
        rule
        for tower in (
            "vision_tower.vision_model",
            "model.vision_tower.vision_model",
            "vision_tower",
            "model.vision_tower",
        )
        for rule in (
            Rule(f"{tower}.embeddings.position_ids", reason="positions are counted, not stored"),
            Rule(tower + ".{rest}", ("model.vision_tower.{rest}",)),
        )
    ),
    *(rule for rule in NATIVE_TABLE if not rule.source.startswith("vision_tower.")),
]


def source_table(source: Source) -> list[Rule]:
    """Rules from a checkpoint's tensors to those of an `InternVLXForConditionalGeneration` with `source.config`."""
    if source.layout == LLAVA:
        return LLAVA_TABLE
    if source.layout != "internvl_chat":
        return NATIVE_TABLE
    config = source.config
    text = internlm2_table(config.text_config) if source.architecture == "InternLM2ForCausalLM" else TEXT_TABLE
    released = config.projector_config.projector_type == "pvtc"
    vision = vision_table(source.position_grid, config.patch_grid)
    router = router_table() if config.has_router else UNUSED_ROUTER
    return [*vision, *(PVTC_TABLE if released else PIXEL_SHUFFLE_TABLE), *router, *text]


def apply(rule: Rule, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a rule's operation. On the meta device, this computes the shapes only.

    Raises:
        CheckpointError: if the tensor's shape does not allow the operation.
    """
    try:
        parts = rule.operation(tensor)
    except (RuntimeError, IndexError, ValueError) as error:
        raise CheckpointError(f"{name} of shape {tuple(tensor.shape)} cannot be split or resized: {error}") from error
    if len(parts) != len(rule.targets):
        raise CheckpointError(f"{name} of shape {tuple(tensor.shape)} cannot be split into {len(rule.targets)} parts.")
    return parts
