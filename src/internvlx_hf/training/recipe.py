# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`training_recipe.json`: a record of a training run, for the model card and for repeating the run."""

from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..checkpoints.folders import source_name
from ..checkpoints.names import LICENCES, REPORT
from ..hub.model_card import CardFacts
from .arguments import LoraArguments, ModelArguments, TeacherArguments
from .metrics import ThroughputCallback
from .parameters import part_sizes
from .run_data import RunData
from .teacher import teacher_record
from .trainer import InternVLXTrainer

# training arguments that affect the result
SETTINGS = (
    "stage",
    "freeze",
    "train",
    "learning_rate",
    "learning_rates",
    "vision_drop_path_rate",
    "loss_average",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "bf16",
    "fp16",
    "train_sampling_strategy",
    "seed",
)
PACKAGES = ("transformers", "torch", "accelerate", "peft", "datasets")
# files of the original checkpoint that also apply to the trained one
COMPANIONS = (REPORT, *LICENCES)


def training_recipe(
    trainer: InternVLXTrainer,
    model_arguments: ModelArguments,
    lora_arguments: LoraArguments,
    teacher_arguments: TeacherArguments,
    data: RunData,
    throughput: ThroughputCallback,
    metrics: dict[str, float],
) -> dict:
    """The record of a training run, as plain values. Folders are recorded by name, without their path.

    Args:
        trainer: the trainer after training.
        model_arguments, lora_arguments, teacher_arguments: settings of the run.
        data: data of training and evaluation.
        throughput: the counts of the run.
        metrics: results of training and evaluation.
    """
    arguments, config = trainer.args, trainer.model.config
    seen = throughput.seen
    settings = {name: _plain(getattr(arguments, name)) for name in SETTINGS}
    settings |= trainer.processing_class.image_settings.given
    settings |= {"dtype": model_arguments.dtype, "world_size": arguments.world_size}
    settings |= {"attn_implementation": config.text_config._attn_implementation}
    if getattr(config.text_config, "output_router_logits", False):
        settings["router_aux_loss_coef"] = config.text_config.router_aux_loss_coef
    settings |= data.settings
    settings["tokens_per_tile_sampling"] = arguments.tokens_per_tile_sampling
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    settings["rows_per_step" if data.collator.packing else "samples_per_step"] = per_step
    if lora_arguments.lora_rank:
        settings |= asdict(lora_arguments)
    settings |= teacher_record(teacher_arguments)
    return {
        "base_model": source_name(model_arguments.model_name_or_path),
        "revision": model_arguments.model_revision,
        "data": data.sources,
        "evaluation_data": data.evaluation_sources,
        "trained_modules": {size.part: size.trained for size in part_sizes(trainer.model) if size.trained},
        "settings": {name: value for name, value in settings.items() if value not in (None, {}, [], False, -1)},
        "tokens_per_tile": {"stage_one": config.image_seq_length, "stage_two": config.expanded_image_seq_length},
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens": seen["text_tokens"] + seen["stage_one_tokens"],
        "seen": {name: seen[name] for name in ("text_tokens", "stage_one_tokens", "stage_two_tokens", "tiles")},
        "metrics": {name: value for name, value in metrics.items() if not name.endswith("_seen")},
        "versions": {"internvlx_hf": __version__} | {name: version(name) for name in PACKAGES if find_spec(name)},
    }


def modules_trained_before(base: str) -> list[str]:
    """Modules that earlier trainings, since its conversion, trained of the model in a folder.

    Raises:
        ValueError: if one of its records is damaged.
    """
    folder = Path(base).expanduser()
    return sorted(CardFacts(folder).trained_since) if folder.is_dir() else []


def _plain(value):
    return getattr(value, "value", value)  # the value of an enumeration
