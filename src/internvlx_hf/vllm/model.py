# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X for vLLM: this package's vision tower and projectors, and vLLM's language model in stages.

Symbols are those of `modeling/lvtc.py`. A step has n rows of the long sequence, m of which belong to a stage; D is the
width.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
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
from ..modeling.merge_mean import merge_mean
from ..modeling.tile_tokens import read_image_tokens
from ..processing.literals import IMG_CONTEXT_TOKEN
from .kv_groups import spec_of, use_spec
from .language_models import LANGUAGE_MODELS
from .packing import pack_tiles, unpack_tiles
from .processing import InternVLXDummyInputs, InternVLXMultiModalProcessor, InternVLXProcessingInfo
from .stage_attention import stage_attention, stage_backend, step_metadata
from .tile_rows import StepTiles, find_stages, read_prompt, read_rows


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
        self.step_tiles: StepTiles | None = None  # from `embed_input_ids` to `forward`
        self.stages = find_stages(self.config)
        self.layer_names = self._split_stages() if self.config.boundaries else []

    def _stage_layers(self) -> list[tuple[int, int]]:
        """The first layer of each stage, and the one after its last."""
        return list(pairwise([0, *self.config.boundaries, len(self.language_model.model.layers)]))

    def _split_stages(self) -> list[list[str]]:
        """Give the attention layers of each stage separate blocks; return for each stage the names of those whose rows
        are its own.
        """
        names: list[list[str]] = []
        for stage, (start, end) in zip(self.stages, self._stage_layers(), strict=True):
            names.append([])
            modules = (module for layer in self.language_model.model.layers[start:end] for module in layer.modules())
            for attention in (module for module in modules if isinstance(module, Attention)):
                if not stage.is_long:
                    attention.attn_backend = stage_backend(attention.attn_backend, stage)
                    names[-1].append(attention.layer_name)
                use_spec(attention, spec_of(stage))
        return names

    def get_model_state_cls(self) -> type:
        """For Model Runner V2."""
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        from .model_state import StagesState

        return StagesState if self.config.boundaries else DefaultModelState

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list) -> tuple[torch.Tensor, int]:
        """What vLLM carries for each row of a prompt, see `tile_rows.py`. It calls this only where tokens change
        between layers.
        """
        carried, delta = read_prompt(len(input_tokens), mm_features, self.config).carried(self.stages[0].radix)
        return carried.expand(3, -1), delta

    def embed_multimodal(self, **kwargs) -> list[torch.Tensor]:
        """The embeddings of each image's placeholders, with LVTC's other tokens and the tiles' sizes, see
        `packing.py`.
        """
        if kwargs.get("pixel_values") is None:
            return []
        pixel_values, tiles = kwargs["pixel_values"], kwargs["num_patches"].flatten().tolist()
        images = self.vision.get_image_features(pixel_values, kwargs.get("tile_sizes"), return_dict=True)
        packed = iter(pack_tiles(self.config, read_image_tokens(self.config, images, pixel_values)))
        return [torch.cat([next(packed) for _ in range(number)]) for number in tiles]

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings=None,
        *,
        is_multimodal: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(n,) -> (n, D): embeddings of text, with HR tokens, or tokens of tiles that do not grow, at the
        placeholders.
        """
        embeds, self.step_tiles = self.language_model.model.embed_tokens(input_ids), None
        if multimodal_embeddings is None or not len(multimodal_embeddings):
            return embeds
        rows = torch.cat(list(multimodal_embeddings)).to(embeds.dtype)
        is_multimodal = is_multimodal.to(embeds.device)  # type: ignore[union-attr]
        embeds[is_multimodal] = rows[:, : embeds.shape[-1]]
        if self.config.boundaries:
            self.step_tiles = unpack_tiles(self.config, rows, is_multimodal)
        return embeds

    def forward(
        self,
        input_ids: Any,
        positions: torch.Tensor,
        intermediate_tensors=None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if not self.config.boundaries:
            return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        tiles, self.step_tiles = self.step_tiles, None
        return self._run_stages(inputs_embeds, positions, tiles)

    def _run_stages(
        self, inputs_embeds: torch.Tensor, channels: torch.Tensor, tiles: StepTiles | None
    ) -> torch.Tensor:
        """Run all stages (Algorithm 1 of the paper).

        Args:
            inputs_embeds: (n, D), see `embed_input_ids`.
            channels: (3, n), all the same, see `tile_rows.py`.
            tiles: the step's tiles whose tokens change; None if there are none.
        """
        boundaries, length = self.config.boundaries, len(inputs_embeds)
        common = step_metadata(next(filter(None, self.layer_names)))
        numbers = channels[0].clamp(min=0) if common is None else common.positions[:length]
        rows, maps = read_rows(self.stages, boundaries, numbers, channels[0], tiles)
        hidden_states = rows[0].take(inputs_embeds)
        if tiles is not None:
            hidden_states[maps[0].tiles] = tiles.tokens.rows
        for stage, (start, end) in enumerate(self._stage_layers()):
            if stage and tiles is not None:
                row_map = maps[stage - 1]
                places = torch.zeros_like(row_map.tiles)
                expanded, _ = self.vision.lvtc.expand(  # type: ignore[union-attr]
                    hidden_states[row_map.tiles], places, tiles.tokens, stage, merge_mean
                )
                hidden_states = row_map.place(hidden_states, expanded)[0]
            if len(hidden_states):  # a step may have nothing but dropped tokens
                with stage_attention(self.layer_names[stage], rows[stage]):
                    added = self._added(tiles, maps, stage)
                    hidden_states = self._run_layers(start, end, hidden_states, rows[stage].positions, added)
        return rows[-1].spread(self.language_model.model.norm(hidden_states), length)

    def _added(self, tiles: StepTiles | None, maps: list[RowMap], stage: int) -> dict[int, tuple[torch.Tensor, ...]]:
        """LR tokens that are added in a stage: before which layer, to which rows, and the tokens."""
        if tiles is None or not tiles.tokens.lr or stage >= len(maps):
            return {}
        layers, rows = self.config.lvtc_config.insertion_layers, maps[stage].tiles
        return {
            layer: (rows, tiles.tokens.in_stage(number, stage, self.config.boundaries))
            for number, layer in enumerate(layers)
        }

    def _run_layers(
        self,
        start: int,
        end: int,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        added: dict[int, tuple[torch.Tensor, ...]],
    ) -> torch.Tensor:
        """(m, D) -> (m, D), the layers of a stage."""
        residual = None
        for index, layer in enumerate(self.language_model.model.layers[start:end], start):
            if index in added:
                rows, tokens = added[index]
                hidden_states = _summed(hidden_states, residual).index_add(0, rows, tokens)
                residual = None
            hidden_states, residual = layer(positions, hidden_states, residual)
        return _summed(hidden_states, residual)

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
