# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X (arXiv 2503.21307): image tiles -> vision tower -> projectors -> language model -> logits."""

from math import isqrt
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.cache_utils import Cache
from transformers.models.internvl.modeling_internvl import InternVLPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import (
    TransformersKwargs,
    is_flash_attn_2_available,
    output_capturing,
)
from transformers.utils.generic import can_return_tuple

from .chat import ChatMixin
from .configuration_internvlx import InternVLXConfig
from .engines import find_engine, keep_whole, refuse_sizes, runs_in_engine
from .image_placeholders import NoPlaceholdersMixin, check_placeholders, warn_about_placeholders
from .layout import Layout, read_layout
from .lvtc import LVTC, layerwise_forward
from .lvtc_cache import ExpandedLength
from .lvtc_generation import LVTCGenerationMixin
from .lvtc_layout import Plan, Tiles, lay_out
from .merge_rules import find_rule
from .outputs import (
    CACHE,
    CACHE_NAMES,
    InternVLXCausalLMOutputWithPast,
    InternVLXImageFeatures,
    InternVLXModelOutputWithPast,
    deprecates_other_name,
    one_cache,
)
from .projector import Projector, project, project_tiles
from .projectors import build_projector
from .router_loss import balancing_loss
from .text_batches import TextBatchMixin
from .tile_router import TileRouter, TileRoutingMixin
from .tile_sizes import TileSize
from .tile_tokens import Tokens, of_one_size, read_image_tokens, read_sizes
from .towers import check_tower, projected_features

# Without it, transformers numbers the layers of such a list differently.
CAPTURES_SINGLE_HIDDEN_STATES = hasattr(output_capturing, "select_hidden_states")


class InternVLXPreTrainedModel(InternVLPreTrainedModel):
    config: InternVLXConfig  # type: ignore[assignment]
    config_class = InternVLXConfig
    input_modalities = ("image", "text")  # type: ignore[assignment]
    _no_split_modules = []
    _skip_keys_device_placement = list(CACHE_NAMES)

    @classmethod
    def from_pretrained(cls, *args, use_flash_attn: bool | None = None, **kwargs):
        """As in transformers; `use_flash_attn` is the name that InternVL's own code gives `attn_implementation`."""
        if use_flash_attn is not None:
            flash = use_flash_attn and is_flash_attn_2_available()
            kwargs.setdefault("attn_implementation", "flash_attention_2" if flash else "sdpa")
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise projectors as torch does, like the release; embeddings and the head as transformers does."""
        reset_parameters = getattr(module, "reset_parameters", None)
        if reset_parameters is None or isinstance(module, nn.Embedding) or module is self.get_output_embeddings():
            super()._init_weights(module)
        else:
            reset_parameters()

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        if not isinstance(attn_implementation, str):
            return super().set_attn_implementation(attn_implementation, *args, **kwargs)
        # The projectors have no choice of attention; transformers would warn that no model belongs to their
        # configurations.
        parts = ("projector_config", "lvtc_config")
        self.config.sub_configs = {key: kind for key, kind in self.config.sub_configs.items() if key not in parts}
        try:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
        finally:
            del self.config.sub_configs  # uncovers the class's own
        for part in filter(None, (getattr(self.config, name) for name in parts)):
            part._attn_implementation = self.config._attn_implementation


class InternVLXModel(InternVLXPreTrainedModel):
    """The vision tower, the projector and the language model, without a language modelling head."""

    def __init__(self, config: InternVLXConfig):
        super().__init__(config)
        config.check_geometry()
        check_tower(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(
            config,
            config.projector_config.projector_type,
            config.downsample_ratio,
            config.other_sides("multi_modal_projector"),
        )
        self.language_model = self.build_language_model(config)
        # an engine serves the default size, which does not change
        changes = config.boundaries and not runs_in_engine(config)
        self.lvtc = LVTC(config, self.language_model) if changes else None
        self.tile_router = TileRouter(config).requires_grad_(False) if config.has_router else None
        # only classes that this model has, since accelerate's FSDP refuses any other name
        unsplit = (module for module in self.modules() if isinstance(module, Projector) and module.is_whole)
        self._no_split_modules = sorted({type(projector).__name__ for projector in unsplit})
        self.post_init()

    def build_language_model(self, config: InternVLXConfig) -> Any:
        return AutoModel.from_config(config.text_config)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        tile_sizes: torch.Tensor | None = None,
        tiles_per_sample: list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | InternVLXImageFeatures:
        """Encode tiles.

        Args:
            pixel_values: (tiles, 3, H, W), normalised; H = W = `config.tile_size`.
            tile_sizes: (tiles,), for each tile the index of its size in `config.tokens_per_tile` (default: the first).
            tiles_per_sample: lets the tile router choose the sizes instead, among the tiles of each sample.

        Returns:
            The vision tower's output, with the projectors' tokens as `pooler_output` and `deepstack_features`.

        Raises:
            ValueError: if the tiles do not have the model's size, or there is no such size.
        """
        self._check_tiles(pixel_values)
        kwargs.pop("image_grid_thw", None)  # type: ignore[typeddict-item]  # vLLM passes everything that the processor returned
        layer, others = self.config.vision_feature_layer, self.config.projector_config.token_packer_layers or []
        wanted = sorted({*others, *([] if layer == -1 else [layer])})
        if wanted and not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = wanted if CAPTURES_SINGLE_HIDDEN_STATES else True  # type: ignore[typeddict-item]
        vision_outputs = self.vision_tower(pixel_values=pixel_values.to(self.dtype), return_dict=True, **kwargs)
        features = projected_features(self.config, vision_outputs)  # [tiles, 1 + S², C]
        layers = [vision_outputs.hidden_states[i][:, -(self.config.patch_grid**2) :] for i in others]
        if tiles_per_sample is not None:
            router: Any = self.tile_router
            tile_sizes = router.choose(router(features[:, 1:]), tiles_per_sample)
        has_sizes, sizes = self.config.tokens_per_tile is not None, None
        if has_sizes or tile_sizes is not None:
            sizes = read_sizes(self.config, tile_sizes, len(pixel_values))
        tokens, later = self._project(features, layers, sizes)
        if has_sizes and tile_sizes is not None:
            later.append(torch.as_tensor(tile_sizes, device=features.device))
        return InternVLXImageFeatures(
            last_hidden_state=vision_outputs.last_hidden_state,
            pooler_output=tokens,  # type: ignore[arg-type]
            hidden_states=vision_outputs.hidden_states,
            attentions=vision_outputs.attentions,
            deepstack_features=later or None,
        )

    def _project(
        self, features: torch.Tensor, layers: list[torch.Tensor], sizes: list[TileSize] | None
    ) -> tuple[Tokens, list[Tokens]]:
        """The first projector's tokens, and those of LVTC's.

        In a step of a training, each projector also runs for the sizes that no tile has, on one tile, of whose tokens
        zero times the mean is added: other processes may use their parameters in the same step, see
        [`_add_dummy_tile`].

        Args:
            features, layers: (tiles, 1 + S², C) and (tiles, S², C) each.
            sizes: the tiles'; None for the only one.
        """
        if sizes is None:
            later = [] if self.lvtc is None else self.lvtc.project(features, layers, self.config.sizes)
            return project(self.multi_modal_projector, features, layers), later
        config, tiles = self.config, len(sizes)
        others: list[TileSize] = []
        if (self.training and torch.is_grad_enabled()) or (_world_size() > 1 and not runs_in_engine(config)):
            # sizes that merge have no parameters of their own
            named = {(size.before, size.has_lvtc): size for size in config.sizes}
            others = [size for key, size in named.items() if key not in {(own.before, own.has_lvtc) for own in sizes}]
        if others:
            index = [*range(tiles), *[0] * len(others)]
            features, layers = features[index], [layer[index] for layer in layers]
        sides = [config.patch_grid // isqrt(size.before) for size in [*sizes, *others]]
        small = {} if self.tile_router is None else {config.router_side: self.tile_router.projector}
        first = project_tiles(self.multi_modal_projector, features, layers, sides, small)
        later = [] if self.lvtc is None else self.lvtc.project(features, layers, [*sizes, *others])
        if not others:
            return first, later
        # the mean, see `_add_dummy_tile`
        nothing = sum(0.0 * own.mean() for tokens in (first, *later) for own in tokens[tiles:] if len(own))
        first, *later = (of_one_size(tokens[:tiles]) for tokens in (first, *later))
        first = first + nothing if isinstance(first, torch.Tensor) else [first[0] + nothing, *first[1:]]
        return first, later if any(size.has_lvtc for size in sizes) else []

    def _check_tiles(self, pixel_values: torch.Tensor) -> None:
        size = self.config.tile_size
        if pixel_values.ndim != 4 or not pixel_values.shape[0] or pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"`pixel_values` must be (tiles, channels, {size}, {size}) with at least one tile for this model, got "
                f"{tuple(pixel_values.shape)}. Set the image processor's `size` to {size}x{size}."
            )

    def get_placeholder_mask(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """(B, L) bool, where the prompt has image placeholders: found by id or, without ids, by their embedding."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    @torch.compiler.disable
    def _plan_tiles(
        self,
        layout: Layout,
        placeholders: torch.Tensor,
        sizes: list[TileSize],
        num_tiles: int,
        cache: Cache | None,
        trains: bool,
        use_cache: bool | None = None,
        **_,
    ) -> Plan:
        """Check the placeholders and plan how the tiles' tokens change between layers.

        The host reads the placeholders only here, so that a compiled forward has a single graph break.
        """
        sizes = sizes if len(sizes) > 1 else sizes * num_tiles
        check_placeholders(placeholders, [size.before for size in sizes], is_chunked=False)
        tiles = Tiles(placeholders, sizes)
        use_cache = getattr(self.config.text_config, "use_cache", True) if use_cache is None else use_cache
        pads_left = cache is not None or (bool(use_cache) and not trains)
        return lay_out(self.config, layout, tiles, cache, pads_left)

    def _encode_images(
        self,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, InternVLXImageFeatures] | None,
        tile_sizes: torch.Tensor | None,
    ) -> InternVLXImageFeatures | None:
        """Tiles -> vision tower -> projectors; or what an earlier call to `get_image_features` returned."""
        images = (mm_encoder_outputs or {}).get("image")
        if pixel_values is None:
            if images is not None and images.pooler_output is None:
                raise ValueError(
                    "`mm_encoder_outputs['image']` has no `pooler_output`. Pass what `get_image_features` returns."
                )
            return images
        if images is not None:
            raise ValueError("Give `pixel_values` or `mm_encoder_outputs['image']`, not both.")
        return self.get_image_features(pixel_values, tile_sizes, return_dict=True)  # type: ignore[return-value]

    def _embed_without_tiles(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, cache: Cache | None, trains: bool
    ) -> torch.Tensor:
        """Embeddings (B, L, D) of a batch of text, tied to the vision parameters where other ranks or the loss need
        that.
        """
        warn_about_placeholders(input_ids, self.config.image_token_id, cache, self.training)
        in_step = _world_size() > 1 and (cache is None or trains) and not runs_in_engine(self.config)
        if in_step or (trains and not inputs_embeds.requires_grad):
            return self._add_dummy_tile(inputs_embeds)
        return inputs_embeds

    def _add_dummy_tile(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Encode an empty tile and add zero times its tokens, which leaves the embeddings as they are.

        All ranks must use the same parameters in every step, even a rank whose batch holds only text: DDP waits for
        their gradients in training, FSDP and ZeRO-3 for gathering them in evaluation too. And where only the
        projectors are trained, the loss of a text batch would have no gradient, which ends a training run with an
        error.
        """
        size, channels = self.config.tile_size, getattr(self.config.vision_config, "num_channels", 3)
        tile = inputs_embeds.new_zeros(1, channels, size, size)
        images = self.get_image_features(tile, return_dict=True)
        for tokens in (images.pooler_output, *(images.deepstack_features or ())):
            # the mean, since a sum may overflow float16, and infinity times zero is NaN
            inputs_embeds = inputs_embeds + 0.0 * tokens.mean().to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds

    @can_return_tuple
    @deprecates_other_name
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, InternVLXImageFeatures] | None = None,
        cache: Cache | None = None,
        tile_sizes: torch.Tensor | None = None,
        merge_rule: str = "mean",
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | InternVLXModelOutputWithPast:
        """
        Args:
            input_ids: (B, L); a tile has `config.image_seq_length` placeholders `config.image_token_id`, or as many as
                its size has tokens before the boundary.
            pixel_values: (tiles, 3, H, W), the tiles of all placeholders in reading order. Without it, placeholders
                are read as text.
            attention_mask: (B, L), 1 for what may be attended to.
            position_ids: (B, L). Where they restart, the next packed sample begins, if there is neither an
                `attention_mask` nor a cache. With `position_ids`, `use_cache` is False by default in training and if
                `config.use_cache` is.
            inputs_embeds: (B, L, D), instead of `input_ids`.
            past_key_values, cache: two names of the key/value cache.
            mm_encoder_outputs: `{"image": output of get_image_features}`, instead of `pixel_values`.
            tile_sizes: (tiles,), for each of `pixel_values` the index of its size in `config.tokens_per_tile`
                (default: the first). The processor gives it where a request asks for another size.
            merge_rule: how tiles are merged whose size shrinks, a name in `merge_rules.py`.

        Returns:
            `last_hidden_state` (B, L, D), `cache` (or `past_key_values`), `hidden_states`, `attentions`, and as
            `image_outputs` what `get_image_features` returned. With `output_router_logits` (default: the language
            model's setting), a mixture of experts' `router_logits` and `aux_loss`.

        Raises:
            ValueError: if placeholders and tiles do not match, or there is no such size or rule.
        """
        find_rule(merge_rule)
        past_key_values = one_cache(past_key_values, cache, kwargs)  # type: ignore[arg-type]
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        # With any cache, even an empty one, transformers does not detect packed samples. The `Trainer` sets
        # `use_cache`.
        is_uncached = self.training or getattr(self.config, "use_cache", None) is False
        if is_uncached and position_ids is not None and past_key_values is None and kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        images = image_tokens = None
        if pixel_values is not None or mm_encoder_outputs:  # a branch, because llm-compressor does not trace branches
            images = self._encode_images(pixel_values, mm_encoder_outputs, tile_sizes)
        if images is not None:
            image_tokens = read_image_tokens(self.config, images, inputs_embeds)
            if self.lvtc is None and image_tokens.changes:
                refuse_sizes(self.config)
        # without it, tiles are rows like any others
        will_expand = (self.lvtc is not None and image_tokens is not None) and (
            self.config.tokens_per_tile is None or image_tokens.changes
        )
        layout = read_layout(
            self.config, inputs_embeds, attention_mask, position_ids, past_key_values, kwargs, will_expand
        )
        trains = self.training and torch.is_grad_enabled()
        plan = None
        if image_tokens is None:
            inputs_embeds = self._embed_without_tiles(input_ids, inputs_embeds, past_key_values, trains)
        else:
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)  # [B, L]
            if will_expand:
                tiles = image_tokens.sizes, len(image_tokens.counts)
                plan = self._plan_tiles(layout, placeholders, *tiles, past_key_values, trains, **kwargs)
            else:
                check_placeholders(placeholders, image_tokens.counts, is_chunked=pixel_values is None)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), image_tokens.rows)  # [B, L, D]

        if self.lvtc is None:
            prompt = {CACHE: past_key_values, "attention_mask": layout.mask, "position_ids": layout.positions}
            outputs = self.language_model(inputs_embeds=inputs_embeds, **{**prompt, **kwargs, **layout.bounds})
        else:
            if plan is None:
                plan = lay_out(self.config, layout, None, past_key_values)
            outputs = layerwise_forward(
                self.language_model,
                self.lvtc,
                inputs_embeds,
                plan,
                image_tokens=image_tokens if will_expand else None,
                past_key_values=past_key_values,
                merge_rule=merge_rule,
                **kwargs,
            )
        aux_loss, router_logits = None, outputs.get("router_logits")
        if router_logits:
            aux_loss = balancing_loss(self.config, self.language_model.layers, outputs, attention_mask, plan)
        return InternVLXModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: getattr(outputs, CACHE)},  # type: ignore[arg-type]
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=images,
            router_logits=router_logits,
            aux_loss=aux_loss,
        )


class InternVLXForConditionalGeneration(
    InternVLXPreTrainedModel,
    ChatMixin,
    TextBatchMixin,
    TileRoutingMixin,
    NoPlaceholdersMixin,
    LVTCGenerationMixin,
    GenerationMixin,
):
    """InternVL-X with a language modelling head. The Auto classes load it, for chat and fine-tuning."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: InternVLXConfig):
        super().__init__(config)
        self.model = InternVLXModel(config)
        self._expanded_cache_length = ExpandedLength()
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _from_config(cls, config: InternVLXConfig, **kwargs) -> InternVLXPreTrainedModel:
        """As in transformers, except that a serving engine gets the base model, [`InternVLXModel`].

        Raises:
            ValueError: if an engine asks for a model with LVTC.
        """
        if find_engine(config) is None:
            return super()._from_config(config, **kwargs)
        model = InternVLXModel._from_config(config, **kwargs)
        keep_whole(model.vision_tower)
        keep_whole(model.multi_modal_projector)
        return model

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | InternVLXImageFeatures:
        """See [`InternVLXModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    @deprecates_other_name
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, InternVLXImageFeatures] | None = None,
        cache: Cache | None = None,
        tile_sizes: torch.Tensor | None = None,
        merge_rule: str = "mean",
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | InternVLXCausalLMOutputWithPast:
        """
        Args:
            labels: (B, L), -100 for rows without loss; rows of image placeholders never have loss.
            logits_to_keep: number of last positions, or tensor of positions, to return logits for (default 0: all). In
                training with labels, logits are computed for labelled positions only and `logits` is None unless this
                is set: for a vocabulary of 92,553 and thousands of image rows they would take gigabytes.

        The other arguments are those of [`InternVLXModel.forward`].

        Returns:
            `loss` (scalar, with labels), `logits` (B, L, vocabulary) and the fields of [`InternVLXModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            tile_sizes=tile_sizes,
            merge_rule=merge_rule,
            **{CACHE: one_cache(past_key_values, cache, kwargs), **kwargs},  # type: ignore[arg-type]
        )
        hidden_states = outputs.last_hidden_state
        shift_labels = kwargs.pop("shift_labels", None)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        if shift_labels is not None and outputs.image_outputs is not None:
            placeholders = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            shift_labels = shift_labels.masked_fill(nn.functional.pad(placeholders, (0, 1))[..., 1:], -100)

        has_selection = isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0
        loss = logits = None
        if has_selection or shift_labels is None or not self.training:
            logits = self.lm_head(_keep_positions(hidden_states, logits_to_keep))
        if shift_labels is not None:
            loss = self._labelled_loss(hidden_states, None if has_selection else logits, shift_labels, **kwargs)
            if outputs.aux_loss is not None:
                loss = loss + self.config.text_config.router_aux_loss_coef * outputs.aux_loss.to(loss.device)
        return InternVLXCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},  # type: ignore[arg-type]
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=outputs.image_outputs,
            router_logits=outputs.router_logits,
            aux_loss=outputs.aux_loss,
        )

    def _labelled_loss(
        self, hidden_states: torch.Tensor, logits: torch.Tensor | None, shift_labels: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """Loss of (B, L, D) states under (B, L) labels; without the logits of all rows, those of labelled rows are
        formed.
        """
        if logits is None:
            rows = (shift_labels != -100).flatten().nonzero().squeeze(1)  # read from the device once
            logits = self.lm_head(hidden_states.flatten(0, 1)[rows])
            shift_labels = shift_labels.flatten()[rows]
        return self.loss_function(
            logits=logits,
            labels=None,
            shift_labels=shift_labels.contiguous(),
            vocab_size=self.config.text_config.vocab_size,
            **kwargs,
        )


def _keep_positions(hidden_states: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """The last `keep` positions of (B, L, D), all for 0, or those of a tensor: (n,) or (B, n) indices or a (B, L)
    mask.
    """
    if isinstance(keep, torch.Tensor):
        if keep.dtype == torch.bool:
            return hidden_states[keep]
        if keep.ndim == 2:
            return torch.take_along_dim(hidden_states, keep.unsqueeze(-1), dim=1)
        return hidden_states[:, keep]
    return hidden_states[:, -keep:] if keep else hidden_states


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


__all__ = ["InternVLXForConditionalGeneration", "InternVLXModel", "InternVLXPreTrainedModel"]
