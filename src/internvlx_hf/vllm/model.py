# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X for vLLM: this package's vision tower and projectors, and vLLM's language model with LVTC's two stages.

Symbols are those of `modeling/lvtc.py`. A step has n rows of the long sequence, m of which belong to stage one; D is the width.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers.initialization import no_init_weights
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..modeling import InternVLXConfig, InternVLXModel
from ..modeling.lvtc_rows import RowMap
from ..processing.literals import IMG_CONTEXT_TOKEN
from .kv_groups import StageOneSpec, StageTwoSpec, use_spec
from .language_models import LANGUAGE_MODELS
from .processing import InternVLXDummyInputs, InternVLXMultiModalProcessor, InternVLXProcessingInfo
from .stage_one import (
    Rows,
    find_rows,
    position_channels,
    position_delta,
    read_rows,
    stage_one_attention,
    stage_one_backend,
    step_metadata,
)


class VisionSide(InternVLXModel):
    """The vision tower and all projectors."""

    def __init__(self, config: InternVLXConfig):
        with no_init_weights():
            super().__init__(config)
        del self.language_model
        if self.lvtc is not None:
            del self.lvtc.rotary_embs

    def build_language_model(self, config: InternVLXConfig) -> Any:
        with torch.device("meta"):
            return super().build_language_model(config)


@MULTIMODAL_REGISTRY.register_processor(
    InternVLXMultiModalProcessor, info=InternVLXProcessingInfo, dummy_inputs=InternVLXDummyInputs
)
class InternVLXForVLLM(nn.Module, SupportsMultiModal, SupportsMRoPE, SupportsLoRA):
    """The vLLM model of a checkpoint of `InternVLXForConditionalGeneration`."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.": "vision.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return IMG_CONTEXT_TOKEN

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: InternVLXConfig = vllm_config.model_config.hf_config
        self.before, self.after = self.config.image_seq_length, self.config.expanded_image_seq_length
        self.vision = VisionSide(self.config).to(vllm_config.model_config.dtype)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model: Any = init_vllm_registered_model(
                vllm_config,
                hf_config=self.config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[LANGUAGE_MODELS[self.config.text_config.model_type]],
            )
        self.packed_modules_mapping = self.language_model.packed_modules_mapping
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self.step_tiles: torch.Tensor | None = None  # [tiles, T, N₁², D], from `embed_input_ids` to `forward`
        if self.config.lvtc_config is not None:
            self.stage_one_layers = self._split_stages(self.config.lvtc_config.expand_layer)

    def _split_stages(self, expand_layer: int) -> list[str]:
        """Give the attention layers of each stage separate blocks, and return the names of stage one's."""
        names = []
        for index, layer in enumerate(self.language_model.model.layers):
            for attention in (module for module in layer.modules() if isinstance(module, Attention)):
                if index < expand_layer:
                    attention.attn_backend = stage_one_backend(attention.attn_backend)
                    names.append(attention.layer_name)
                use_spec(attention, StageOneSpec if index < expand_layer else StageTwoSpec)
        return names

    def get_model_state_cls(self) -> type:
        """For Model Runner V2."""
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        from .model_state import StageOneState

        return DefaultModelState if self.config.lvtc_config is None else StageOneState

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list) -> tuple[torch.Tensor, int]:
        """Positions of a prompt, see `stage_one.py`. vLLM calls this only with LVTC."""
        is_tile, in_stage_one = find_rows(len(input_tokens), mm_features, self.before, self.after)
        return position_channels(is_tile, in_stage_one), position_delta(in_stage_one)

    def embed_multimodal(self, **kwargs) -> list[torch.Tensor]:
        """The embeddings of each image's placeholders: (tiles·N₂², D), with LVTC (tiles·N₂², D·(1 + c)).

        vLLM keeps one row per placeholder. With LVTC, a row has an HR token and c LR tokens, which fill the rows from the first
        one.
        """
        if kwargs.get("pixel_values") is None:
            return []
        pixel_values, tiles = kwargs["pixel_values"], kwargs["num_patches"].flatten().tolist()
        images = self.vision.get_image_features(pixel_values, return_dict=True)
        tokens = images.pooler_output
        if self.vision.lvtc is not None:
            later = self.vision.lvtc.split(tokens, images.deepstack_features)
            tokens = self._pack(torch.stack([tokens, *later.lr], dim=1), later.hr)
        return [image.flatten(0, 1) for image in tokens.split(tiles)]

    def _pack(self, lr: torch.Tensor, hr: torch.Tensor | None) -> torch.Tensor:
        """(tiles, T, N₁², D) and (tiles, N₂², D) -> (tiles, N₂², D·(1 + c))."""
        tokens = lr.flatten(1, 2)
        columns = -(-tokens.shape[1] // self.after)
        tokens = F.pad(tokens, (0, 0, 0, columns * self.after - tokens.shape[1]))
        if hr is None:
            hr = tokens.new_zeros(len(tokens), self.after, tokens.shape[-1])
        return torch.cat([hr, rearrange(tokens, "t (c n) d -> t n (c d)", c=columns)], dim=-1)

    def _unpack(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """(tiles·N₂², D·c) -> (tiles, T, N₁², D)."""
        tokens = rearrange(rows, "(t n) (c d) -> t (c n) d", n=self.after, d=width)
        projectors = 1 + len(self.config.lvtc_config.insertion_layers)
        return tokens[:, : projectors * self.before].unflatten(1, (projectors, self.before))

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings=None,
        *,
        is_multimodal: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(n,) -> (n, D): embeddings of text, with HR tokens (without LVTC, the image's tokens) at the placeholders."""
        embeds, self.step_tiles = self.language_model.model.embed_tokens(input_ids), None
        if multimodal_embeddings is None or not len(multimodal_embeddings):
            return embeds
        rows = torch.cat(list(multimodal_embeddings)).to(embeds.dtype)
        width = embeds.shape[-1]
        embeds[is_multimodal.to(embeds.device)] = rows[:, :width]  # type: ignore[union-attr]
        if self.vision.lvtc is not None:
            if len(rows) % self.after:
                raise RuntimeError(f"A step has {len(rows)} image tokens, expected whole tiles of {self.after}.")
            self.step_tiles = self._unpack(rows[:, width:], width)
        return embeds

    def forward(
        self,
        input_ids: Any,
        positions: torch.Tensor,
        intermediate_tensors=None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if self.config.lvtc_config is None:
            return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        tiles, self.step_tiles = self.step_tiles, None
        return self._run_stages(inputs_embeds, positions, tiles)

    def _run_stages(
        self, inputs_embeds: torch.Tensor, channels: torch.Tensor, tiles: torch.Tensor | None
    ) -> torch.Tensor:
        """Run both stages (Algorithm 1 of the paper).

        Args:
            inputs_embeds: (n, D), with HR tokens at the placeholders.
            channels: (3, n), see `stage_one.py`.
            tiles: (tiles, T, N₁², D), the LR tokens of the step's tiles; None without images.
        """
        model, lvtc = self.language_model.model, self.config.lvtc_config
        sizes = (
            () if tiles is None else [torch.full((len(tiles),), n, device="cpu") for n in (self.before, self.after)]
        )
        rows = read_rows(channels, sizes)
        common = step_metadata(self.stage_one_layers)
        if lvtc.expanded_positions == "kept":
            positions = self._keep_positions(channels, rows)
        else:
            positions = channels[0].clamp(min=0) if common is None else common.positions[: len(inputs_embeds)]

        hidden_states, residual = rows.take(inputs_embeds), None
        if tiles is not None and rows.row_map is not None:
            hidden_states[rows.row_map.tiles] = tiles[:, 0].flatten(0, 1)
        with stage_one_attention(self.stage_one_layers, rows):
            for index, layer in enumerate(model.layers[: lvtc.expand_layer]):
                if tiles is not None and rows.row_map is not None and index in lvtc.insertion_layers:
                    hidden_states, residual = _summed(hidden_states, residual), None
                    added = tiles[:, 1 + lvtc.insertion_layers.index(index)].flatten(0, 1)
                    hidden_states = hidden_states.index_add(0, rows.row_map.tiles, added)
                hidden_states, residual = layer(rows.positions, hidden_states, residual)

        hidden_states, residual = _summed(hidden_states, residual), None
        if rows.row_map is not None:
            hidden_states = self._expand(hidden_states, inputs_embeds, rows.row_map)
        for layer in model.layers[lvtc.expand_layer :]:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return model.norm(hidden_states, residual)[0]

    def _keep_positions(self, channels: torch.Tensor, rows: Rows) -> torch.Tensor:
        """(n,) positions in stage two that are those of stage one."""
        positions, row_map = channels[0].clamp(min=0), rows.row_map
        if row_map is None:
            return positions
        return positions.index_copy(0, row_map.tiles_to, rows.positions[row_map.parents])

    def _expand(self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor, row_map: RowMap) -> torch.Tensor:
        """Expand the tiles: (m, D) -> (n, D)."""
        lvtc: Any = self.vision.lvtc
        hr = None
        if lvtc.hr_projector is not None:
            hr = inputs_embeds[row_map.tiles_to].unflatten(0, (-1, self.after))
        return lvtc.expand(hidden_states[None], row_map, hr)[0]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:  # as it is on all ranks but the first
            # an answer has no placeholders; -inf among a prompt's log probabilities would not be JSON
            logits[..., self.config.image_token_id] = torch.finfo(logits.dtype).min
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="vision.multi_modal_projector",
            tower_model="vision.vision_tower",
        )


def _summed(hidden_states: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    return hidden_states if residual is None else hidden_states + residual
