# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx train`: trains a checkpoint on data with a `Trainer` and saves the result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging

from ..checkpoints.folders import copy_companions, find_companions, source_name
from ..checkpoints.names import RECIPE
from ..hub import write_card
from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..modeling.towers import check_tower
from ..processing import InternVLXProcessor
from .arguments import (
    DataArguments,
    InternVLXTrainingArguments,
    LoraArguments,
    ModelArguments,
    TeacherArguments,
    parse_arguments,  # noqa: F401  for callers of `train`
)
from .attention import choose_attention
from .console import ConsoleCallback
from .data_summary import data_summary
from .distillation import DistillationTrainer
from .drop_path import add_drop_path
from .loading import check_model_type, load_model, load_processor
from .lora import add_lora
from .metrics import ThroughputCallback
from .parameters import choose_trainable, half_precision_share, require_matches, trainable_table
from .recipe import COMPANIONS, modules_trained_before, training_recipe
from .resuming import check_output_folder, find_checkpoint, finished_recipe, locked_output
from .run_data import RunData, load_run_data
from .run_settings import RunSettings, check_fixed, fixed_settings, other_settings, warn_of_others
from .signals import SaveOnSignal
from .teacher import load_teacher, load_teacher_processor
from .trainer import InternVLXTrainer
from .truncation import TruncationCallback, evaluate

logger = logging.get_logger(__name__)
# the types of `train`'s arguments, in order
SETTINGS = (ModelArguments, DataArguments, LoraArguments, InternVLXTrainingArguments, TeacherArguments)


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
    teacher_arguments: TeacherArguments | None = None,
) -> InternVLXTrainer:
    """Train a checkpoint and save it, with its processor, to `arguments.output_dir`.

    Raises:
        ValueError: if settings contradict each other, or do not fit the model or the data.
        OSError: if a file cannot be read or written.
        DivergedError: if the loss or the model is no longer finite; such a model is not saved.
        BlockingIOError: if another run writes `arguments.output_dir`.
        KeyboardInterrupt: if it was stopped by a signal; a checkpoint has been saved.
    """
    with locked_output(arguments):
        return _train(
            model_arguments, data_arguments, lora_arguments, arguments, teacher_arguments or TeacherArguments()
        )


def _train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
    teacher_arguments: TeacherArguments,
) -> InternVLXTrainer:
    checkpoint = find_checkpoint(arguments)
    sources = {"model_name_or_path": model_arguments.model_name_or_path, "teacher": teacher_arguments.teacher}
    check_output_folder(arguments.output_dir, checkpoint, sources)
    find_companions(
        model_arguments.model_name_or_path, COMPANIONS
    )  # raises early for files that could not be copied at the end
    config = InternVLXConfig.from_dict(
        check_model_type(model_arguments.model_name_or_path, model_arguments.model_revision)
    )
    trained_before = modules_trained_before(model_arguments.model_name_or_path)
    settings = fixed_settings(arguments, lora_arguments, check_names(config, lora_arguments, arguments))
    if checkpoint is not None:
        check_fixed(checkpoint, settings)
    processor = load_processor(model_arguments)
    teacher_processor = None
    if teacher_arguments.teacher:
        teacher_processor = load_teacher_processor(teacher_arguments, config, processor)
    data = load_run_data(data_arguments, arguments, processor, config, teacher_processor)
    settings |= other_settings(
        model_arguments, data_arguments, lora_arguments, arguments, teacher_arguments, processor, data
    )
    if checkpoint is not None and arguments.process_index == 0:
        warn_of_others(checkpoint, settings)
    attention = choose_attention(model_arguments, data_arguments, arguments, data, config)
    teacher: dict[str, Any] = {}
    if teacher_arguments.teacher:
        teacher = {
            "teacher": load_teacher(teacher_arguments, data_arguments, arguments, attention),
            "weight": teacher_arguments.teacher_weight,
            "temperature": teacher_arguments.teacher_temperature,
        }
    model = _model_to_train(replace(model_arguments, attn_implementation=attention), lora_arguments, arguments)
    signals = SaveOnSignal()
    trainer = (DistillationTrainer if teacher else InternVLXTrainer)(
        model,
        arguments,
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        costs=data.costs,
        processing_class=processor,
        callbacks=[signals] if arguments.save_on_signal else None,
        **teacher,
    )
    trainer.add_callback(RunSettings(settings))
    trainer.add_callback(TruncationCallback(data))
    throughput = ThroughputCallback.attach(trainer)
    ConsoleCallback.attach(trainer)
    if trainer.is_world_process_zero():
        _announce(trainer, data, config, teacher_arguments, teacher_processor)
    metrics = _run(trainer, checkpoint, signals)
    metrics, truncated = _evaluate(trainer, data, checkpoint, metrics)
    if truncated and trainer.is_world_process_zero():
        numbers = ", ".join(f"{count:,} for {use}" for use, count in truncated.items())
        print(f"Truncated samples, to max_length={data_arguments.max_length}: {numbers}.", flush=True)
    recipe = training_recipe(trainer, model_arguments, lora_arguments, teacher_arguments, data, throughput, metrics)
    recipe |= {"truncated": truncated} if truncated else {}
    recipe |= {"trained_before": trained_before} if trained_before else {}
    save(trainer, model_arguments, recipe, metrics)
    return trainer


def _model_to_train(
    model_arguments: ModelArguments, lora_arguments: LoraArguments, arguments: InternVLXTrainingArguments
):
    """The model, loaded and prepared; sets what DDP has to know about it."""
    model = load_model(model_arguments)
    set_seed(arguments.seed)
    model = prepare_model(model, model_arguments, lora_arguments, arguments)
    if arguments.process_index == 0:
        warn_of_half_precision(model, model_arguments.dtype)
    if arguments.ddp_find_unused_parameters is None:
        # every forward uses every parameter, except vision layers and pooling heads whose features are unused
        pools = check_tower(model.config).pooled_width is not None
        arguments.ddp_find_unused_parameters = pools or model.config.vision_feature_layer != -1
    return model


def _announce(
    trainer: InternVLXTrainer,
    data: RunData,
    config: InternVLXConfig,
    teacher_arguments: TeacherArguments,
    teacher_processor: InternVLXProcessor | None,
) -> None:
    """Print what will be trained, on what."""
    print(data_summary(data, trainer.args, config), end="\n\n", flush=True)
    print(trainable_table(trainer.model), flush=True)
    print(f"Attention: {trainer.model.config.text_config._attn_implementation}", flush=True)
    if teacher_processor is not None and teacher_arguments.teacher:
        slicing, weight = teacher_processor.image_processor.slicing, teacher_arguments.teacher_weight
        kind = f"{slicing!r} tiles, weight {weight:g}, temperature {teacher_arguments.teacher_temperature:g}"
        print(f"Teacher: {source_name(teacher_arguments.teacher)}, {kind}", flush=True)


def _run(trainer: InternVLXTrainer, checkpoint: str | None, signals: SaveOnSignal) -> dict[str, float]:
    """Train to the end; returns the metrics. Raises: KeyboardInterrupt: if a signal stopped it before."""
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        signals.restore()
    if signals.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; resume with "
            "--resume_from_checkpoint last"
        )
    return dict(result.metrics)


def _evaluate(
    trainer: InternVLXTrainer, data: RunData, checkpoint: str | None, metrics: dict[str, float]
) -> tuple[dict[str, float], dict[str, int]]:
    """The metrics of training and evaluation, and the truncated samples by use. Those of training are of the finished
    run that a checkpoint is the last of, if it is: then no step was trained, so that the loss is 0.
    """
    evaluated, truncated = evaluate(trainer, data)
    earlier = finished_recipe(trainer.args.output_dir, checkpoint, trainer.state.global_step)
    if earlier is not None:
        metrics = {name: value for name, value in metrics.items() if name.endswith("_seen")} | earlier.get(
            "metrics", {}
        )
        truncated = earlier.get("truncated", {}) | truncated
    return metrics | evaluated, truncated


def check_names(config: InternVLXConfig, lora_arguments: LoraArguments, arguments: InternVLXTrainingArguments):
    """Check the settings that name modules on a model without weights, before any slow step; returns the prepared
    model.

    Raises:
        ValueError: if one of them names a module that the model does not have, or if they contradict each other.
    """
    with torch.device("meta"):
        model = InternVLXForConditionalGeneration(config)
    model = prepare_model(model, ModelArguments(""), lora_arguments, arguments)
    require_matches(model, arguments.learning_rates or (), "learning_rates")
    return model


def prepare_model(
    model: InternVLXForConditionalGeneration,
    model_arguments: ModelArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
):
    """Choose the parameters to train; returns the model, wrapped by peft if there are adapters."""
    if arguments.vision_drop_path_rate:
        add_drop_path(model, model.config, arguments.vision_drop_path_rate)
    if lora_arguments.lora_rank:
        if arguments.stage == 1 or arguments.freeze or arguments.train:
            raise ValueError(
                f"LoRA (`lora_rank`={lora_arguments.lora_rank}) determines what is trained: leave `stage` at 2 and "
                "`freeze` and `train` unset, and use the `lora_...` settings."
            )
        model = add_lora(model, lora_arguments, model_arguments.model_revision)
    else:
        choose_trainable(model, arguments.stage, arguments.freeze, arguments.train)
    if arguments.bf16 or arguments.fp16:
        # steps of 4e-5 would be lost by rounding to 8 bits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    return model


def warn_of_half_precision(model: torch.nn.Module, dtype: str) -> None:
    """Warn of trained parameters in half precision, to which most steps of common learning rates are lost."""
    if share := half_precision_share(model):
        logger.warning(
            f"{share:.1%} of the trained parameters are stored in half precision (`dtype` {dtype}), where rounding "
            "loses most of the small steps of training. Set `bf16` or `fp16`, which keep trained parameters in "
            "float32, or `dtype` float32."
        )


def save(trainer: InternVLXTrainer, model_arguments: ModelArguments, recipe: dict, metrics: dict[str, float]) -> None:
    """Save the trained model, or adapter, with its processor and the record of its training."""
    trainer.save_model()
    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    if trainer.is_world_process_zero():
        out = Path(trainer.args.output_dir)
        (out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        copy_companions(find_companions(model_arguments.model_name_or_path, COMPANIONS), out)
        if not hasattr(trainer.model, "peft_config"):  # peft writes an adapter's card
            write_card(out)
    if trainer.args.push_to_hub:
        # `save_model` pushed neither the recipe nor the card made from it
        trainer.push_to_hub()
