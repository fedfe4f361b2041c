# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The settings of a run in its checkpoints, and their comparison with those of a run that resumes from one."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..checkpoints.folders import source_name
from ..processing import InternVLXProcessor
from .arguments import DataArguments, InternVLXTrainingArguments, LoraArguments, ModelArguments, TeacherArguments
from .lora import lora_scale
from .run_data import RunData
from .teacher import teacher_record

logger = logging.get_logger(__name__)

# the optimizer's state holds them, and replaces the settings
_IN_OPTIMIZER = (
    "learning_rate",
    "learning_rates",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
# the adapter's weights were trained for them
_IN_ADAPTER = ("lora_rank", "lora_alpha")
# they choose the trained parameters
_CHOOSING = ("stage", "freeze", "train", "lora_rank", "lora_vision", "lora_target_modules", "lora_modules_to_save")
# further settings that affect the result; they take effect from the checkpoint on
_ARGUMENTS = (
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_grad_norm",
    "bf16",
    "fp16",
    "vision_drop_path_rate",
    "tokens_per_tile_sampling",
    "train_sampling_strategy",
    "seed",
    "data_seed",
)
_MODEL = ("model_revision", "dtype", "router_aux_loss_coef")
_DATA = ("train_split", "max_length", "on_too_long", "share_tiles", "packing_tokens", "streaming")


class RunSettings(TrainerCallback, ExportableState):
    """Keeps the settings of a run in its checkpoints.

    Args:
        settings: plain values by name.
    """

    def __init__(self, settings: dict | None = None):
        self.settings = settings or {}

    def state(self) -> dict:
        """The state that the `Trainer` saves in a checkpoint."""
        return {"args": {}, "attributes": {"settings": self.settings}}

    def on_train_begin(self, args, state, control, **kwargs):
        state.stateful_callbacks[type(self).__name__] = self.state()


def fixed_settings(arguments: InternVLXTrainingArguments, lora_arguments: LoraArguments, model: nn.Module) -> dict:
    """The settings that must stay when a run resumes, with those that choose what is trained.

    Args:
        model: the model with its trained parameters chosen; needs no weights.
    """
    settings = {name: getattr(arguments, name) for name in (*_IN_OPTIMIZER, *_CHOOSING[:3])}
    settings |= {name: getattr(lora_arguments, name) for name in _CHOOSING[3:]}
    settings["lora_alpha"] = lora_scale(lora_arguments) if lora_arguments.lora_rank else None
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    settings["trained_parameters"] = hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16]
    return _plain(settings)


def other_settings(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    lora_arguments: LoraArguments,
    arguments: InternVLXTrainingArguments,
    teacher_arguments: TeacherArguments,
    processor: InternVLXProcessor,
    data: RunData,
) -> dict:
    """The other settings that affect the result, and the data, without paths."""
    settings: dict[str, Any] = {"model_name_or_path": source_name(model_arguments.model_name_or_path)}
    settings |= {name: getattr(model_arguments, name) for name in _MODEL}
    settings |= asdict(processor.image_settings)
    settings["train_data"] = [_described(source) for source in data.sources]
    settings |= {name: getattr(data_arguments, name) for name in _DATA}
    settings["shuffle_buffer"] = data_arguments.shuffle_buffer if data_arguments.streaming else None
    settings |= {name: getattr(arguments, name) for name in _ARGUMENTS}
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    settings["samples or rows per step"] = per_step
    settings["lora_dropout"] = lora_arguments.lora_dropout if lora_arguments.lora_rank else None
    settings |= dict.fromkeys(vars(TeacherArguments())) | teacher_record(teacher_arguments)
    return _plain(settings)


def _described(source: dict) -> str:
    if "samples" not in source:  # a stream
        return source["name"]
    return f"{source['name']}, {source['samples']} records, repeated {source['repeat_time']:g} x"


def check_fixed(checkpoint: str, settings: dict) -> None:
    """Check the result of `fixed_settings` against the checkpoint's.

    Raises:
        ValueError: if settings differ that could not take effect, or that do not fit the checkpoint's weights and
            optimizer.
    """
    old = saved_settings(checkpoint)
    differing = _differing(old, settings)
    wrong = [name for name in _IN_ADAPTER if name in differing]
    if _has_optimizer(checkpoint):
        wrong += [name for name in _IN_OPTIMIZER if name in differing]
    if "trained_parameters" in differing:
        wrong += [name for name in _CHOOSING if name in differing and name not in wrong]
        wrong = wrong or ["trained_parameters"]
    if wrong:
        raise ValueError(
            f"{checkpoint} was saved with other settings, which cannot change on resuming: "
            f"{_listed(wrong, old, settings)}. Set them as they were, or start a new run from the checkpoint with "
            "`model_name_or_path` and another `output_dir`."
        )


def warn_of_others(checkpoint: str, settings: dict) -> None:
    """Warn of settings that differ from the checkpoint's and take effect.

    Args:
        settings: the results of `fixed_settings` and `other_settings`.
    """
    old = saved_settings(checkpoint)
    fixed: tuple[str, ...] = (*_IN_ADAPTER, *_CHOOSING, "trained_parameters")
    if _has_optimizer(checkpoint):
        fixed += _IN_OPTIMIZER
    if differing := [name for name in _differing(old, settings) if name not in fixed]:
        logger.warning(
            f"{checkpoint} was saved with other settings; the new ones apply from there on: "
            f"{_listed(differing, old, settings)}."
        )


def saved_settings(checkpoint: str) -> dict:
    """The settings that a checkpoint keeps; empty for those of earlier versions."""
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    saved = (state.get("stateful_callbacks") or {}).get(RunSettings.__name__) or {}
    return saved.get("attributes", {}).get("settings", {})


def _has_optimizer(checkpoint: str) -> bool:
    """Whether the optimizer's state is there, by the names that torch, FSDP and DeepSpeed give it."""
    return any(any(Path(checkpoint).glob(pattern)) for pattern in ("optimizer*", "global_step*"))


def _plain(settings: dict) -> dict:
    """The settings as they are read back from JSON."""
    return json.loads(json.dumps(settings))


def _differing(old: dict, new: dict) -> list[str]:
    # the order of `learning_rates` counts
    return [
        name
        for name, value in new.items()
        if name in old and (old[name] != value or (isinstance(value, dict) and list(old[name]) != list(value)))
    ]


def _listed(names: list[str], old: dict, new: dict) -> str:
    return ", ".join(_change(name, old[name], new[name]) for name in names)


def _change(name: str, old, new) -> str:
    if name == "trained_parameters":
        return "other parameters are trained"
    if isinstance(old, list) and isinstance(new, list) and set(old) != set(new):
        old, new = [each for each in old if each not in new], [each for each in new if each not in old]
    return f"`{name}` was {old!r}, is {new!r}"
