# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X (arXiv 2503.21307): image tiles -> vision tower -> projectors -> language model -> logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLModelOutputWithPast,
    InternVLPreTrainedModel,
)
from transformers.processing_utils import Unpack
from transformers.utils import (
    TransformersKwargs,
    is_flash_attn_2_available,
    is_tracing,
    logging,
    output_capturing,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .attention_inputs import drop_right_padding, sample_bounds
from .chat import ChatMixin
from .configuration_internvlx import InternVLXConfig
from .dense_masks import warn_of_dense_masks
from .engines import find_engine, keep_whole, runs_in_engine
from .lvtc import LVTC, layerwise_forward
from .lvtc_cache import ExpandedLength, allow_growth
from .lvtc_stages import Masks, Plan, decoding_masks, plan_forward
from .projector import Projector, project
from .projectors import build_projector
from .text_batches import TextBatchMixin
from .towers import check_tower, projected_features

logger = logging.get_logger(__name__)

# Earlier versions of transformers count the layers of such a list in another way.
CAPTURES_SINGLE_HIDDEN_STATES = hasattr(output_capturing, "select_hidden_states")


@dataclass
class InternVLXImageFeatures(BaseModelOutputWithPooling):
    """The vision tower's output with what the projectors make of it.

    Args:
        pooler_output: (tiles, N₁², D), the tokens that take the placeholders' place.
        deepstack_features: with LVTC, the tokens that are added further on: T − 1 of (tiles, N₁², D), then, with an HR
            projector, (tiles, N₂², D). `generate` repeats both for its beams.
    """

    deepstack_features: list[torch.Tensor] | None = None


class InternVLXPreTrainedModel(InternVLPreTrainedModel):
    config: InternVLXConfig  # type: ignore[assignment]
    config_class = InternVLXConfig
    input_modalities = ("image", "text")  # type: ignore[assignment]
    _no_split_modules = []

    @classmethod
    def from_pretrained(cls, *args, use_flash_attn: bool | None = None, **kwargs):
        """As transformers'; `use_flash_attn` is what InternVL's own code calls `attn_implementation`."""
        if use_flash_attn is not None:
            flash = use_flash_attn and is_flash_attn_2_available()
            kwargs.setdefault("attn_implementation", "flash_attention_2" if flash else "sdpa")
        return super().from_pretrained(*args, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        if not isinstance(attn_implementation, str):
            return super().set_attn_implementation(attn_implementation, *args, **kwargs)
        # The projectors have no choice of attention. Left in, transformers warns that no model goes with their settings.
        parts = ("projector_config", "lvtc_config")
        self.config.sub_configs = {key: kind for key, kind in self.config.sub_configs.items() if key not in parts}
        try:
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
        finally:
            del self.config.sub_configs  # the class's own show again
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
            config, config.projector_config.projector_type, config.downsample_ratio
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.lvtc = None if config.lvtc_config is None else LVTC(config, self.language_model)
        # Only classes that this model has: accelerate's FSDP refuses any other name.
        whole = (module for module in self.modules() if isinstance(module, Projector) and module.is_whole)
        self._no_split_modules = sorted({type(projector).__name__ for projector in whole})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """First values of the projectors: those of torch, to which the release leaves them. The other parts have their own."""
        reset_parameters = getattr(module, "reset_parameters", None)
        if reset_parameters is None:
            super()._init_weights(module)
        else:
            reset_parameters()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | InternVLXImageFeatures:
        """Encode tiles.

        Args:
            pixel_values: (tiles, 3, H, W), normalised; H = W = `config.tile_size`.

        Returns:
            The vision tower's output, with the projectors' tokens as `pooler_output` and `deepstack_features`.

        Raises:
            ValueError: if the tiles are not the model's size.
        """
        self._check_tiles(pixel_values)
        kwargs.pop("image_grid_thw", None)  # type: ignore[typeddict-item]  # vLLM hands on all that the processor returned
        layer, others = self.config.vision_feature_layer, self.config.projector_config.token_packer_layers or []
        wanted = sorted({*others, *([] if layer == -1 else [layer])})
        if wanted and not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = wanted if CAPTURES_SINGLE_HIDDEN_STATES else True  # type: ignore[typeddict-item]
        vision_outputs = self.vision_tower(pixel_values=pixel_values.to(self.dtype), return_dict=True, **kwargs)
        features = projected_features(self.config, vision_outputs)  # [tiles, 1 + S², C]
        layers = [vision_outputs.hidden_states[i][:, -(self.config.patch_grid**2) :] for i in others]
        return InternVLXImageFeatures(
            last_hidden_state=vision_outputs.last_hidden_state,
            pooler_output=project(self.multi_modal_projector, features, layers),
            hidden_states=vision_outputs.hidden_states,
            attentions=vision_outputs.attentions,
            deepstack_features=(self.lvtc.project(features, layers) or None) if self.lvtc is not None else None,
        )

    def _check_tiles(self, pixel_values: torch.Tensor) -> None:
        size = self.config.tile_size
        if pixel_values.ndim != 4 or not pixel_values.shape[0] or pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"`pixel_values` must be (tiles, channels, {size}, {size}) with at least one tile for this model, got "
                f"{tuple(pixel_values.shape)}. Set the image processor's `size` to {size}x{size}."
            )

    def get_placeholder_mask(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """(B, L) bool: where the prompt has image placeholders, found by id or, without ids, by their embedding."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def _check_placeholders(self, placeholders: torch.Tensor, image_tokens: torch.Tensor, chunked: bool) -> None:
        """Args: chunked: whether a single "tile" may be the tokens of several, cut up by `generate`'s chunked prefill."""
        tiles, tokens = image_tokens.shape[:2]
        counts = placeholders.sum(-1)
        matches = counts.sum() == tiles * tokens
        if tiles > 1 or not chunked:
            matches &= (counts % tokens == 0).all()
        torch_compilable_check(
            matches,
            lambda: (
                f"Image features and image tokens do not match: {tiles} tiles of {tokens} tokens need "
                f"{tiles * tokens} image placeholders, a multiple of {tokens} in every row, but the rows of the prompt have "
                f"{counts.tolist()}."
            ),
        )

    @torch.compiler.disable
    def _plan_tiles(
        self,
        placeholders: torch.Tensor,
        image_tokens: torch.Tensor,
        chunked: bool,
        inputs_embeds: torch.Tensor,
        **kwargs: Any,
    ) -> Plan:
        """Check the tiles and settle what LVTC does with them.

        The host reads the placeholders here and nowhere else, so that a compiled forward has one break for it.
        """
        self._check_placeholders(placeholders, image_tokens, chunked)
        return plan_forward(self.config, inputs_embeds, placeholders, **kwargs)

    def _warn_of_placeholders(self, input_ids: torch.Tensor | None, past_key_values: Cache | None) -> None:
        """Say once that a prompt without tiles has placeholders. Later inputs on a cache may continue an image's prompt.

        Looking waits for the device, so a training on a GPU is left alone.
        """
        layers = [] if past_key_values is None else past_key_values.layers
        seen = any(layer.is_initialized for layer in layers)  # type: ignore[union-attr]
        if input_ids is None or seen or input_ids.is_meta or is_tracing(input_ids):
            return
        if self.training and input_ids.device.type != "cpu":
            return
        if (input_ids == self.config.image_token_id).any():
            logger.warning_once(
                f"The prompt has image placeholders (token {self.config.image_token_id}), but no `pixel_values` came with "
                "it: they are read as text. Give the model all that the processor returns."
            )

    def _touch_vision(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Run the vision side on an empty tile, without effect on the result.

        Ranks must use the same parameters in every step (DDP waits for their gradients in training, FSDP and ZeRO-3 for
        their gathering in evaluation, too), also a rank whose batch happens to have text only. And where the projectors
        alone are trained, the loss of such a batch would have no gradient, which ends a training with an error.
        """
        size, channels = self.config.tile_size, getattr(self.config.vision_config, "num_channels", 3)
        tile = inputs_embeds.new_zeros(1, channels, size, size)
        images = self.get_image_features(tile, return_dict=True)
        for tokens in (images.pooler_output, *(images.deepstack_features or ())):
            # a sum may be beyond float16, and times zero NaN
            inputs_embeds = inputs_embeds + 0.0 * tokens.mean().to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, InternVLXImageFeatures] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | InternVLModelOutputWithPast:
        """
        Args:
            input_ids: (B, L); a tile takes `config.image_seq_length` placeholders `config.image_token_id`.
            pixel_values: (tiles, 3, H, W), the tiles of all placeholders in reading order. Without it, placeholders are
                ordinary text.
            attention_mask: (B, L), 1 for what may be attended to.
            inputs_embeds: (B, L, D), instead of `input_ids`.
            mm_encoder_outputs: `{"image": output of get_image_features}`, instead of `pixel_values`.

        Returns:
            `last_hidden_state` (B, L, D), `past_key_values`, `hidden_states`, `attentions`, and the tokens that took
            the placeholders' place as `image_hidden_states` (tiles, N₁², D).

        Raises:
            ValueError: if placeholders and tiles do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        images = (mm_encoder_outputs or {}).get("image")
        if images is not None and pixel_values is not None:
            raise ValueError("Give `pixel_values` or `mm_encoder_outputs['image']`, not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_tokens = later = plan = None
        if images is None and pixel_values is not None:
            images = self.get_image_features(pixel_values, return_dict=True)
        if images is not None:
            if images.pooler_output is None:
                raise ValueError(
                    "`mm_encoder_outputs['image']` has no `pooler_output`. Give what `get_image_features` returns."
                )
            image_tokens = images.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)  # [tiles, N₁², D]

        text_config = self.config.text_config
        if kwargs.get("cu_seq_lens_q") is not None:
            warn_of_dense_masks(self.config, inputs_embeds, 0 if image_tokens is None else len(image_tokens))
        if self.lvtc is None or image_tokens is None:  # LVTC itself looks at the masks of samples with tiles
            attention_mask, position_ids = drop_right_padding(  # type: ignore[assignment]
                text_config, inputs_embeds, attention_mask, position_ids, past_key_values
            )
        if kwargs.get("cu_seq_lens_q") is None:
            kwargs |= sample_bounds(text_config, inputs_embeds, attention_mask, position_ids, past_key_values)  # type: ignore[typeddict-item]
        prompt: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
        }
        trains = self.training and torch.is_grad_enabled()
        if images is not None and image_tokens is not None:
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
            chunked = pixel_values is None
            if self.lvtc is None:
                self._check_placeholders(placeholders, image_tokens, chunked)
            else:
                later = self.lvtc.split(image_tokens, images.deepstack_features)
                plan = self._plan_tiles(
                    placeholders, image_tokens, chunked, inputs_embeds, trains=trains, **prompt, **kwargs
                )
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), image_tokens)
        else:
            self._warn_of_placeholders(input_ids, past_key_values)
            in_step = _world_size() > 1 and (past_key_values is None or trains) and not runs_in_engine(self.config)
            if in_step or (trains and not inputs_embeds.requires_grad):
                inputs_embeds = self._touch_vision(inputs_embeds)

        if self.lvtc is None:
            outputs = self.language_model(inputs_embeds=inputs_embeds, **prompt, **kwargs)
        else:
            if plan is None:
                plan = plan_forward(self.config, inputs_embeds, None, trains=trains, **prompt, **kwargs)
            outputs = layerwise_forward(
                self.language_model,
                self.lvtc,
                inputs_embeds,
                plan,
                image_tokens=later,
                past_key_values=past_key_values,
                **kwargs,
            )
        return InternVLModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_tokens,
        )


class InternVLXForConditionalGeneration(InternVLXPreTrainedModel, ChatMixin, TextBatchMixin, GenerationMixin):
    """InternVL-X with its language modelling head: what the Auto classes load, to chat with and to fine-tune."""

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
        """As transformers'; a serving engine gets the base model, [`InternVLXModel`].

        Raises:
            ValueError: an engine asks for a model with LVTC.
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

    def create_masks_for_generate(
        self,
        config: InternVLXConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> torch.Tensor | Masks | None:
        """Masks that `generate` makes ahead of a compiled step. With LVTC the prompt's forward, which is not compiled,
        makes its own: those of stage two follow from where the images are."""
        if self.model.lvtc is None:
            return create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, **kwargs)
        if is_first_iteration:
            return attention_mask
        return decoding_masks(config, inputs_embeds, attention_mask, past_key_values)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs):  # type: ignore[override]
        has_features = (model_kwargs.get("mm_encoder_outputs") or {}).get("image") is not None
        # before transformers 5.18, which encodes images ahead of the prompt
        has_pixels = model_kwargs.get("pixel_values") is not None
        is_unfit = has_pixels or (has_features and self.model.lvtc is not None)
        if is_unfit and generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"`prefill_chunk_size`={generation_config.prefill_chunk_size} would cut tiles up, which LVTC cannot "
                "expand then, and transformers before 5.18 not encode. Leave it unset for prompts with images."
            )
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]

    def _prepare_static_cache(self, *args, max_cache_len: int, **kwargs) -> Cache:  # type: ignore[override]
        cache = super()._prepare_static_cache(*args, max_cache_len=max_cache_len, **kwargs)  # type: ignore[misc]
        if self.model.lvtc is not None:
            expand_layer = self.config.lvtc_config.expand_layer
            allow_growth(cache, self.config.text_config, expand_layer, max_cache_len, self._expanded_cache_length)
        return cache

    @can_return_tuple
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | InternVLCausalLMOutputWithPast:
        """
        Args:
            labels: (B, L), -100 where there is no loss; the rows of image placeholders never have any.
            logits_to_keep: logits of the last so many positions only, or of the positions in a tensor; 0: of all. In
                training with labels the logits of supervised positions are formed for the loss alone, and `logits` is
                None unless this asks for some: a 92,553-wide vocabulary over thousands of image rows is gigabytes.

        The other arguments are those of [`InternVLXModel.forward`].

        Returns:
            `loss` (scalar, with labels), `logits` (B, L, vocabulary) and the fields of [`InternVLXModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        shift_labels = kwargs.pop("shift_labels", None)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        if shift_labels is not None and outputs.image_hidden_states is not None:
            placeholders = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            shift_labels = shift_labels.masked_fill(nn.functional.pad(placeholders, (0, 1))[..., 1:], -100)

        asked = isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0
        loss = logits = None
        if asked or shift_labels is None or not self.training:
            logits = self.lm_head(_keep_positions(hidden_states, logits_to_keep))
        if shift_labels is not None:
            loss_logits, loss_labels = logits, shift_labels
            if logits is None or asked:
                rows = (shift_labels != -100).flatten().nonzero().squeeze(1)  # read from the device once
                loss_logits = self.lm_head(hidden_states.flatten(0, 1)[rows])
                loss_labels = shift_labels.flatten()[rows]
            loss = self.loss_function(
                logits=loss_logits,
                labels=None,
                shift_labels=loss_labels.contiguous(),
                vocab_size=self.config.text_config.vocab_size,
                **kwargs,
            )
        return InternVLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _keep_positions(hidden_states: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """The last `keep` positions of (B, L, D), all for 0, or those of a tensor: (n,) and (B, n) indices, (B, L) mask."""
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
