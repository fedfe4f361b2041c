# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What `internvlx train` can be told, and how it is read: a YAML file, then flags, which win."""

import argparse
import difflib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..checkpoints.names import DTYPES
from ..processing.rvtc import SLICING_STRATEGIES


@dataclass
class ModelArguments:
    """Which model is trained, and how it is loaded."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={"help": "An InternVL-X checkpoint: a folder (as `internvlx convert` makes them) or a Hub id."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights in memory. With `bf16` or `fp16`, parameters that are trained are in float32 "
            "whatever is said here; 'bfloat16' then halves the memory of those that are not.",
            "choices": (*DTYPES, "auto"),
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "'sdpa', 'eager', 'flash_attention_2', 'flash_attention_3', 'flex_attention', 'varlen_sdpa' or a kernel of "
            "the Hub; unset: sdpa, and with `packing_tokens` the fastest here that needs no mask."
        },
    )
    slicing: str | None = field(
        default=None,
        metadata={
            "help": "How a picture's size bounds its tiles (RVTC); unset: as the checkpoint.",
            "choices": SLICING_STRATEGIES,
        },
    )
    min_patches: int | None = field(default=None, metadata={"help": "Fewest tiles of a picture (checkpoint's)."})
    max_patches: int | None = field(default=None, metadata={"help": "Most tiles of a picture (checkpoint's)."})


@dataclass
class DataArguments:
    """What is learned from."""

    _argument_group_name = "data"

    train_data: str = field(
        metadata={
            "help": "InternVL's meta file, a JSON or JSONL file of annotations (InternVL's, LLaVA's, or `messages`), a folder "
            "that `datasets` reads, or an id on the Hub."
        }
    )
    eval_data: str | None = field(default=None, metadata={"help": "As `train_data`, for evaluation."})
    train_split: str = field(default="train", metadata={"help": "Of a folder or Hub id."})
    eval_split: str = field(default="train", metadata={"help": "Of a folder or Hub id."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that images' paths count from; unset: that of the annotations."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read samples as they come, without measuring them first; wants `max_steps`."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Streamed records that are shuffled among each other."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of a sample, images included."})
    on_too_long: str = field(
        default="truncate",
        metadata={
            "help": "What becomes of a longer one: cut (never through an image), left out, or an error.",
            "choices": ("truncate", "skip", "error"),
        },
    )
    on_broken: str = field(
        default="error",
        metadata={
            "help": "Whether a broken sample ends the training, or is left out with a warning. Both name file and line.",
            "choices": ("error", "skip"),
        },
    )
    share_tiles: bool = field(
        default=False,
        metadata={
            "help": "Each of a sample's n images takes at most `max_patches` // n tiles, at least one, as InternVL's own "
            "training has it."
        },
    )
    packing_tokens: int = field(
        default=0,
        metadata={"help": "Fill each row with samples up to so many tokens, without padding; 0: a row a sample."},
    )
    max_mask_bytes: int = field(
        default=2**30,
        metadata={"help": "Most bytes of the masks that 'sdpa' and 'eager' make of a packed batch, in both stages."},
    )
    pad_to_multiple_of: int | None = field(default=None, metadata={"help": "Make rows a multiple of so many tokens."})


@dataclass
class LoraArguments:
    """Low-rank adapters instead of full training, through peft. Switched on by a rank."""

    _argument_group_name = "lora"

    lora_rank: int = field(default=0, metadata={"help": "0: no LoRA."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scale; unset: twice the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Of the adapters' input."})
    lora_vision: bool = field(default=False, metadata={"help": "Adapt the vision tower's linear layers too."})
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "A regular expression for the full names of the modules to adapt; unset: all linear layers of the "
            "language model's layers, and with `lora_vision` those of the vision tower."
        },
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved with the adapter; unset: the projectors."},
    )


@dataclass
class InternVLXTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's settings as defaults, and what the two stages need.

    Its `learning_rate`, schedule, optimizer and one epoch are the paper's (section 4). The warm-up is InternVL's.
    """

    _argument_group_name = "training"
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rates"]

    stage: int = field(
        default=2,
        metadata={"help": "1: the projectors alone are trained. 2: everything (or LoRA).", "choices": (1, 2)},
    )
    freeze: list[str] | None = field(
        default=None, metadata={"help": "Names of modules or parameters that are not trained, beyond the stage's."}
    )
    train: list[str] | None = field(
        default=None,
        metadata={"help": "Names of modules or parameters that are trained after all; wins over `freeze`."},
    )
    learning_rates: dict | str | None = field(
        default=None,
        metadata={
            "help": "Other learning rates by module name, '{\"model.lvtc\": 2e-4}'. The last that matches wins."
        },
    )
    vision_drop_path_rate: float = field(
        default=0.0,
        metadata={
            "help": "Stochastic depth of InternViT's layers in training, rising evenly from 0 to this rate. A frozen tower "
            "has it too, as in the scripts of InternVL-X's authors."
        },
    )
    save_on_signal: bool = field(
        default=True,
        metadata={
            "help": "On SIGTERM or Ctrl-C finish the step, save a checkpoint and stop. A second one stops at once."
        },
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "'last': go on from the newest checkpoint of `output_dir`; or a checkpoint's folder."},
    )
    output_dir: str = field(default="", metadata={"help": "Where checkpoints and the trained model go."})
    learning_rate: float = field(default=4e-5, metadata={"help": "AdamW's, at its highest."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    warmup_steps: float = field(default=0.03, metadata={"help": "A share of all steps below 1, a number from there."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs, or a share of all."})
    report_to: str = field(default="tensorboard", metadata={"help": "'none', 'wandb', ..."})
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Evaluation gives a loss, and keeps no logits."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: the collator needs all."})
    train_sampling_strategy: str = field(
        default="group_by_cost",
        metadata={
            "help": "'group_by_cost' puts samples of like cost into a batch; the others are transformers'.",
            "choices": ["group_by_cost", "random", "sequential"],
        },
    )

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("`output_dir` is missing: expected the folder where checkpoints and the model go.")
        self.learning_rates = _rates(self.learning_rates)
        if not 0 <= self.vision_drop_path_rate < 1:
            raise ValueError(f"`vision_drop_path_rate` is {self.vision_drop_path_rate}, expected a rate in [0, 1).")
        with warnings.catch_warnings():
            # its new name is not known to the oldest transformers that we support
            warnings.filterwarnings(
                "ignore", message="`gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is True, expected False: the collator reads all of a sample.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}, expected 0: in training the model forms the "
                "logits of supervised tokens for its own loss only."
            )
        if self.accelerator_config.dispatch_batches is None:
            # accelerate's way with streams cuts every tensor of a batch to the number of rows, the tiles too
            self.accelerator_config.dispatch_batches = False


def _rates(rates: dict | str | None) -> dict[str, float]:
    """Numbers by pattern. (YAML takes 2e-4 for a string: it wants a dot, 2.0e-4.)"""
    if isinstance(rates, str):
        try:
            rates = json.loads(rates)
        except ValueError as error:
            raise ValueError(
                f"`learning_rates` is {rates!r}, expected JSON of numbers by module name: {error}"
            ) from error
    rates = rates or {}
    if not isinstance(rates, dict):
        raise ValueError(f"`learning_rates` is {rates!r}, expected numbers by module name.")
    try:
        numbers = {str(pattern): float(rate) for pattern, rate in rates.items()}
    except (TypeError, ValueError):
        raise ValueError(f"`learning_rates` is {rates!r}, expected numbers by module name.") from None
    if wrong := {pattern: rate for pattern, rate in numbers.items() if not rate >= 0}:
        raise ValueError(f"`learning_rates` must not be negative, got {wrong}.")
    return numbers


# of the many training settings, those that a person looks for first: the rest are mostly transformers' own
_FIRST = (
    "output_dir",
    "stage",
    "freeze",
    "train",
    "learning_rates",
    "vision_drop_path_rate",
    "resume_from_checkpoint",
    "save_on_signal",
)


class _Help(argparse.HelpFormatter):
    """Tells what is ours before what is transformers', and each setting in one of the spellings that are read."""

    def add_arguments(self, actions) -> None:
        super().add_arguments(sorted(actions, key=lambda action: (*_FIRST, action.dest).index(action.dest)))

    def _format_action_invocation(self, action) -> str:
        if len(action.option_strings) < 2 or action.dest == "help":
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{action.option_strings[0]} {values}".rstrip()


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(arguments: list[str], types: tuple[type, ...], prog: str = "internvlx train") -> tuple:
    """Read a configuration file and flags.

    Args:
        arguments: an optional first YAML or JSON file, then flags `--name value`, which win over the file.
        types: dataclasses whose fields are the settings.
        prog: how the command is called, for its help.

    Returns:
        An object of each type.

    Raises:
        ValueError: for a setting that does not exist, naming it and the nearest that does; for a value of the wrong type.
        OSError: if the file cannot be read.
    """
    parser = _Parser(
        types,  # type: ignore[arg-type]
        prog=prog,
        usage=f"{prog} [CONFIG.yaml] [--setting value ...]",
        allow_abbrev=False,
        formatter_class=_Help,
    )
    if arguments and not arguments[0].startswith("-"):
        _set_defaults(parser, _read(Path(arguments[0])), arguments[0])
        arguments = arguments[1:]
    *objects, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(_unknown(unknown[0].split("=")[0].lstrip("-"), parser, "the command line"))
    return tuple(objects)


def _read(path: Path) -> dict:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, expected settings by name.")
    return settings


def _set_defaults(parser: argparse.ArgumentParser, settings: dict, source: str) -> None:
    """Let a file's settings be the parser's defaults. Numbers go in as text, so that flags and file mean the same."""
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    for name, value in settings.items():
        if name not in actions:
            raise ValueError(_unknown(name, parser, source))
        action = actions[name]
        action.required = False
        if action.choices is not None and str(value) not in map(str, action.choices):
            choices = ", ".join(map(str, action.choices))
            raise ValueError(f"{source} sets `{name}` to {value!r}, expected one of {choices}.")
        parser.set_defaults(**{name: _default(action, value)})


def _default(action: argparse.Action, value):
    """A value as the parser reads it: text where it converts text, a list where it wants one."""
    if value is None:
        return None
    if action.nargs == "+":
        return value if isinstance(value, list) else [value]
    if action.type in (int, float) or (action.type is string_to_bool and not isinstance(value, bool)):
        return str(value)
    return value


# what other trainers and InternVL's scripts call some settings, too unlike their names here to be found by likeness
_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "bs": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "scheduler": "lr_scheduler_type",
    "model": "model_name_or_path",
    "data": "train_data",
    "dataset": "train_data",
    "meta_path": "train_data",
    "out": "output_dir",
    "lora": "lora_rank",
    "lora_r": "lora_rank",
    "use_llm_lora": "lora_rank",
    "use_backbone_lora": "lora_vision",
    "max_seq_length": "max_length",
    "max_dynamic_patch": "max_patches",
    "drop_path_rate": "vision_drop_path_rate",
    "min_dynamic_patch": "min_patches",
    "resume": "resume_from_checkpoint",
    "workers": "dataloader_num_workers",
}


def _unknown(name: str, parser: argparse.ArgumentParser, source: str) -> str:
    nearest = _nearest(name.replace("-", "_").lower(), {action.dest for action in parser._actions})
    hint = f" Did you mean `{nearest}`?" if nearest else ""
    return f"There is no setting `{name}`, which {source} gives.{hint}"


def _nearest(name: str, known: set[str]) -> str | None:
    names = {dest: dest for dest in sorted(known)} | {
        other: dest for other, dest in _ELSEWHERE.items() if dest in known
    }
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return names[near[0]] if near else None
