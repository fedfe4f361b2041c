# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Preparing a conversion: everything that is decided before the first value is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import CHAT_TEMPLATE_FILE

from ..checkpoints.errors import CheckpointError, blaming
from ..checkpoints.json_files import read_json
from ..checkpoints.names import LLAVA, NATIVE, OURS
from ..checkpoints.weights import HEAD, Weights
from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor, InternVLXProcessor, InternVLXVideoProcessor
from ..processing.image_settings import IMAGE_PROCESSOR, PROCESSOR
from ..processing.template_limits import TemplateLimitError
from .field_rules import GENERATION_RULES, check_token_ids, check_values
from .joined_weights import JoinedWeights
from .llava import require_llava
from .native import native_names, require_native
from .options import ConversionOptions
from .plan import EMBEDDING, Plan, make_plan
from .sources import Source, Tiling, read_source
from .target_settings import fit_settings
from .templates import adapt_template, rendered
from .tensor_tables import Rule, source_table
from .tokenizers import convert_tokenizer
from .upgrades import Upgrade, build_upgrade


@dataclass
class Conversion:
    """Everything that is decided about a conversion before the first value is read."""

    options: ConversionOptions
    source: Source
    weights: Weights | JoinedWeights
    config: InternVLXConfig
    upgrade: Upgrade
    plan: Plan
    tokenizer: PreTrainedTokenizerFast
    image_processor: InternVLXImageProcessor
    generation_config: GenerationConfig
    rename: Callable[[str], str]

    @property
    def num_parameters(self) -> int:
        groups = [*self.plan.groups.values(), self.plan.new]
        return sum(info.meta().numel() for group in groups for info in group.values())

    @property
    def is_exact(self) -> bool:
        """Whether the model gives the same answers as the source."""
        return not self.plan.new and not self.plan.derived

    @property
    def starts_as_source(self) -> bool:
        """Whether the model gives the same answers as the source before any training, as with a warm PVTC."""
        before, after = (config.sizes[0] for config in (self.source.config, self.config))
        adds_lvtc = self.options.lvtc and (self.config.tokens_per_tile is None or after.has_lvtc)
        changes_tokens = adds_lvtc or before.before != after.before
        return self.is_exact or (self.options.init == "warm" and not changes_tokens)

    def processor(self) -> InternVLXProcessor:
        return InternVLXProcessor(
            self.image_processor,
            self.tokenizer,
            self.config.image_seq_length,
            self.tokenizer.chat_template,
            InternVLXVideoProcessor.like(self.image_processor, **self.source.tiling.video),
            wrap_images=hasattr(self.tokenizer, "start_image_token"),
            offered_sizes=self.config.tokens_per_tile,
            **self.source.tiling.settings.of(PROCESSOR),
        )


def prepare(folder: Path, options: ConversionOptions) -> Conversion:
    """Prepare a conversion without reading weight values, except to compare tied embeddings.

    Raises:
        CheckpointError: if the checkpoint is of an unknown kind, damaged or inconsistent.
        ValueError: if an option does not fit the checkpoint.
    """
    weights = Weights(folder)
    source = read_source(folder, weights.tensors)
    tokenizer = convert_tokenizer(folder)
    if source.layout == LLAVA:
        _complete(tokenizer, source)
    _resolve_image_token(source, tokenizer)
    table = resolve_tied_embeddings(source, weights, source_table(source))
    config, upgrade = build_upgrade(source.config, options)
    source.tiling.change(**options.given)
    if (options.max_patches or 1) > 1:
        source.tiling.crop_to_patches = True
    max_tiles = image_processor(source.tiling).tiling_rule().max_tiles
    fit_settings(source, options, max_tiles)
    if options.slicing is not None and max_tiles == 1:
        source.notes.append(
            f"slicing={options.slicing!r} has no effect on one tile per image. For more tiles, set max_patches "
            "(--max-patches 6)."
        )
    rename = str if options.to == OURS else native_names
    if options.to != OURS and config.tokens_per_tile is not None:
        raise ValueError(
            f"to={options.to!r} has one number of tokens per tile, but the model offers tokens_per_tile="
            f"{config.tokens_per_tile}. "
            + ("Drop its router (router='drop')." if config.has_router else "Convert the checkpoint it was made from.")
        )
    if options.to == NATIVE:
        require_native(config)
    elif options.to == LLAVA:
        require_llava(config)
    return assemble(options, source, weights, source.config, config, upgrade, table, tokenizer, rename)


def assemble(
    options: ConversionOptions,
    source: Source,
    weights: Weights | JoinedWeights,
    before: InternVLXConfig,
    config: InternVLXConfig,
    upgrade: Upgrade,
    table: list[Rule],
    tokenizer: PreTrainedTokenizerFast,
    rename: Callable[[str], str] = str,
) -> Conversion:
    """Make the plan, and determine the dtype and the files to save besides the weights.

    Args:
        before: configuration of the model whose tensors the source has.
        config: configuration of the new model; its dtype is set.
        table: rules for the source's tensors.

    Raises:
        CheckpointError: if the tensors do not fit the configuration.
        ValueError: if the budget of visual tokens has no room for an image.
    """
    dtype = None if options.dtype_name is None else getattr(torch, options.dtype_name)
    plan = make_plan(table, before, weights.tensors, upgrade=upgrade, after=config, dtype=dtype)
    config.dtype = config.text_config.dtype = config.vision_config.dtype = plan.dtype
    config.architectures = ["InternVLXForConditionalGeneration"]
    conversion = Conversion(
        options=options,
        source=source,
        weights=weights,
        config=config,
        upgrade=upgrade,
        plan=plan,
        tokenizer=tokenizer,
        image_processor=image_processor(source.tiling),
        generation_config=generation_config(source, tokenizer),
        rename=rename,
    )
    if source.tiling.settings.max_image_tokens is not None:
        conversion.processor().tiling_rules([(1, 1)])  # a budget must have room for an image
    return conversion


def _complete(tokenizer: PreTrainedTokenizerFast, source: Source) -> None:
    """Give a LLaVA's tokenizer what its processor may have lacked.

    Raises:
        CheckpointError: if it has no chat template, or none that writes images.
    """
    remedy = f"Put the model's chat template into {source.folder / CHAT_TEMPLATE_FILE}."
    if not tokenizer.chat_template:
        raise CheckpointError(f"{source.folder} has no chat template. {remedy}")
    adapt_template(tokenizer, str(source.folder), source.notes, remedy)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if stop_token(tokenizer) is None:
        source.notes.append(
            f"The chat template writes no end marker after an answer. For training, end the answers of the data with "
            f"{tokenizer.eos_token}."
        )


def _resolve_image_token(source: Source, tokenizer: PreTrainedTokenizerFast) -> None:
    token: int = tokenizer.convert_tokens_to_ids(tokenizer.context_image_token)  # type: ignore[assignment]
    vocabulary = source.config.text_config.vocab_size
    if source.layout != "internvl_chat" and token != source.config.image_token_id:
        raise CheckpointError(
            f"config.json says image_token_id={source.config.image_token_id}, but the tokenizer's "
            f"{tokenizer.context_image_token} is {token}."
        )
    if token >= vocabulary:
        raise CheckpointError(
            f"The tokenizer's {tokenizer.context_image_token} is {token}, outside the model's vocabulary of "
            f"{vocabulary}."
        )
    source.config.image_token_id = token


def resolve_tied_embeddings(source: Source, weights: Weights | JoinedWeights, table: list[Rule]) -> list[Rule]:
    """Determine from the stored tensors whether output and input embeddings are tied, since configs may be wrong."""
    config = source.config
    names = {target: name for name in weights.tensors for rule in table for target in rule.targets_of(name)}
    if config.tie_word_embeddings and HEAD in names and EMBEDDING in names:
        head, embedding = names[HEAD], names[EMBEDDING]
        config.tie_word_embeddings = torch.equal(weights.read(head), weights.read(embedding))
        if config.tie_word_embeddings:
            table = [Rule(head, reason=f"equal to {embedding}, to which the config ties it"), *table]
        else:
            source.notes.append(
                "The config ties the output to the input embeddings, but the stored ones differ: both are kept."
            )
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    return table


def image_processor(tiling: Tiling) -> InternVLXImageProcessor:
    """The image processor for a tiling.

    Raises:
        ValueError: if the tiling's settings contradict each other.
    """
    return InternVLXImageProcessor(
        size={"height": tiling.tile_size, "width": tiling.tile_size},
        **tiling.settings.of(IMAGE_PROCESSOR),
        crop_to_patches=tiling.crop_to_patches,
        image_mean=tiling.image_mean,
        image_std=tiling.image_std,
        **({"alpha": "drop"} | tiling.others),  # InternVL ignores transparency
    )


def generation_config(source: Source, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The source's generation settings, with the chat template's end marker added to the stop tokens.

    Raises:
        CheckpointError: if a setting is invalid.
    """
    path = source.folder / "generation_config.json"
    if raw := read_json(path):
        with blaming(path):
            check_values(raw, GENERATION_RULES)
            check_token_ids(raw, source.config.text_config.vocab_size)
            config = GenerationConfig.from_dict(raw)
            config.validate(strict=True)
    else:
        config = GenerationConfig.from_model_config(source.config)
    config._from_model_config = False
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [stop for stop in [*stops, stop_token(tokenizer)] if stop is not None]
    config.eos_token_id = list(dict.fromkeys(stops))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def stop_token(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token with which the chat template ends the assistant's turn, None if it ends otherwise."""
    texts, special = {"user": "question", "assistant": "answer"}, set(tokenizer.added_tokens_decoder)
    for as_parts in (False, True):
        contents = {role: [{"type": "text", "text": text}] if as_parts else text for role, text in texts.items()}
        turns: Any = [{"role": role, "content": content} for role, content in contents.items()]
        try:
            prompt = rendered(tokenizer, turns)
        except TemplateLimitError:
            raise
        except Exception:  # a template may raise any error for the other form of contents
            continue
        _, answer, end = prompt.rpartition(texts["assistant"])
        ids = [token for token in tokenizer(end, add_special_tokens=False)["input_ids"] if token in special]
        if answer:
            return ids[-1] if ids else None
    return None
