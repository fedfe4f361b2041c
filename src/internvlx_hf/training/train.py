# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx train`: a checkpoint, data and settings in, a trained checkpoint out; a plain `Trainer` between them."""

from pathlib import Path

import torch
from datasets import load_dataset
from transformers import PretrainedConfig, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..processing import InternVLXProcessor
from .arguments import DataArguments, InternVLXTrainingArguments, LoraArguments, ModelArguments
from .collator import InternVLXDataCollator
from .lora import add_lora
from .metrics import ThroughputCallback
from .parameters import choose_trainable, trainable_table
from .signals import SaveOnSignal
from .trainer import InternVLXTrainer


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
) -> InternVLXTrainer:
    """Train a checkpoint and save it, with its processor, to `arguments.output_dir`.

    Raises:
        ValueError: settings contradict themselves, or do not fit the model or the data.
        OSError: something cannot be read or written.
        KeyboardInterrupt: it was asked to stop; the last checkpoint has been saved.
    """
    checkpoint = find_checkpoint(arguments)
    check_model_type(model_arguments)
    processor = load_processor(model_arguments)
    train_dataset = load_dataset("json", data_files=data_arguments.train_data, split="train")
    model = load_model(model_arguments)
    set_seed(arguments.seed)
    model = prepare_model(model, model_arguments, lora_arguments, arguments)
    if arguments.ddp_find_unused_parameters is None:
        # every forward uses every parameter, but for vision layers whose features nobody takes
        arguments.ddp_find_unused_parameters = model.config.vision_feature_layer != -1
    signals = SaveOnSignal()
    trainer = InternVLXTrainer(
        model,
        arguments,
        data_collator=InternVLXDataCollator(processor),
        train_dataset=train_dataset,
        processing_class=processor,
        callbacks=[signals] if arguments.save_on_signal else None,
    )
    ThroughputCallback.attach(trainer)
    if trainer.is_world_process_zero():
        print(trainable_table(model), flush=True)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if signals.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; go on with "
            "--resume_from_checkpoint last"
        )
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    return trainer


def find_checkpoint(arguments: InternVLXTrainingArguments) -> str | None:
    """Where to resume from: `resume_from_checkpoint` may be a folder, or "last" for the newest of the output folder.

    Raises:
        ValueError: there is no such checkpoint; or there are some, and nothing was said about resuming.
    """
    asked, out = arguments.resume_from_checkpoint, arguments.output_dir
    last = get_last_checkpoint(out) if Path(out).is_dir() else None
    if asked is None or str(asked).lower() in ("", "false", "none"):
        if last is not None:
            raise ValueError(
                f"{out} holds {Path(last).name} already. Go on from it with `resume_from_checkpoint: last`, or choose "
                "another `output_dir`."
            )
        return None
    if str(asked).lower() in ("last", "true"):
        if last is None:
            raise ValueError(f"`resume_from_checkpoint` is {asked}, but {out} holds no checkpoint to resume from.")
        return last
    if not (Path(asked) / "trainer_state.json").is_file():
        raise ValueError(f"`resume_from_checkpoint` is {asked}, which is no checkpoint of a training.")
    return str(asked)


def check_model_type(arguments: ModelArguments) -> None:
    """Raise `ValueError` for what is no InternVL-X checkpoint."""
    config, _ = PretrainedConfig.get_config_dict(arguments.model_name_or_path, revision=arguments.model_revision)
    if config.get("model_type") != InternVLXConfig.model_type:
        raise ValueError(
            f"{arguments.model_name_or_path} is a model of type {config.get('model_type')!r}, expected "
            f"{InternVLXConfig.model_type!r}. Convert it first: internvlx convert {arguments.model_name_or_path} OUT"
        )


def load_processor(arguments: ModelArguments) -> InternVLXProcessor:
    """The checkpoint's processor, with the tiling that the settings ask for. It is saved with what is trained."""
    processor = InternVLXProcessor.from_pretrained(arguments.model_name_or_path, revision=arguments.model_revision)
    image_processor = processor.image_processor
    for name in ("slicing", "min_patches", "max_patches"):
        if (value := getattr(arguments, name)) is not None:
            setattr(image_processor, name, value)
    type(image_processor)(**image_processor.to_dict())  # raises where the settings contradict themselves
    return processor


def load_model(arguments: ModelArguments) -> InternVLXForConditionalGeneration:
    """The checkpoint's model.

    Raises:
        ValueError: the checkpoint lacks weights.
    """
    model, loading = InternVLXForConditionalGeneration.from_pretrained(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{arguments.model_name_or_path} lacks {len(missing)} weights, {missing[0]} first. Convert it again."
        )
    return model


def prepare_model(
    model: InternVLXForConditionalGeneration,
    model_arguments: ModelArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
):
    """Settle what is trained; the model, wrapped by peft if there are adapters."""
    if lora_arguments.lora_rank:
        if arguments.stage == 1 or arguments.freeze or arguments.train:
            raise ValueError(
                f"LoRA (`lora_rank`={lora_arguments.lora_rank}) says itself what is trained: leave `stage` at 2, `freeze` "
                "and `train` unset, and choose with the `lora_...` settings."
            )
        model = add_lora(model, lora_arguments, model_arguments.model_revision)
    else:
        choose_trainable(model, arguments.stage, arguments.freeze, arguments.train)
    if arguments.bf16 or arguments.fp16:
        # steps of 4e-5 would be lost in the rounding of 8 bits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    return model
