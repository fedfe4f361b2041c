# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The settings of `internvlx train`."""

import json
import warnings
from dataclasses import MISSING, dataclass, fields

from transformers import TrainingArguments

from ..checkpoints.names import DTYPES
from ..processing.image_settings import ImageSettings
from ..processing.rules import POSITIVE, FieldRule, check_settings, choice, is_number, number, setting, whole
from ..processing.rvtc import SLICING_STRATEGIES
from .parsing import parse_arguments  # noqa: F401  for callers of this module

# of `tokens_per_tile_sampling`: all sizes that the checkpoint offers
ALL = "all"
_RATE = FieldRule("a rate in [0, 1)", lambda rate: is_number(rate) and 0 <= rate < 1)


@dataclass(frozen=True)
class ModelArguments(ImageSettings):
    """The model to train, how it is loaded, and how it reads images (default: as the checkpoint's processor does)."""

    _argument_group_name = "model"

    model_name_or_path: str = setting(
        MISSING, None, "InternVL-X checkpoint to train: a folder (made by `internvlx convert`) or a Hub id"
    )
    model_revision: str | None = setting(None, None, "branch, tag or commit on the Hub", shown="main")
    dtype: str = setting(
        "float32",
        choice((*DTYPES, "auto")),
        "the dtype of the weights in memory. With `bf16` or `fp16`, trained parameters are always in float32; "
        "'bfloat16' then halves the memory of frozen parameters",
    )
    attn_implementation: str | None = setting(
        None,
        None,
        "attention: 'sdpa', 'eager', 'flash_attention_2', 'flash_attention_3', 'flex_attention', 'varlen_sdpa' or a "
        "kernel from the Hub",
        shown="sdpa; with `packing_tokens`, the fastest on this device that needs no mask",
    )
    router_aux_loss_coef: float | None = setting(
        None,
        None,
        "weight of the routers' load-balancing loss in a mixture of experts, 0 for none",
        shown="the checkpoint's `router_aux_loss_coef` if it has `output_router_logits`, else 0",
    )


@dataclass
class DataArguments:
    """The training data, and how samples are read."""

    _argument_group_name = "data"

    train_data: str = setting(
        MISSING,
        None,
        "training data: InternVL's meta file, a JSON or JSONL file of annotations (InternVL's, LLaVA's, or "
        "`messages`), a folder that `datasets` reads, or a Hub id",
    )
    eval_data: str | None = setting(
        None, None, "evaluation data, in the formats of `train_data`", shown="no evaluation"
    )
    train_split: str = setting("train", None, "split of `train_data`, a folder or Hub id")
    eval_split: str = setting("train", None, "split of `eval_data`, a folder or Hub id")
    image_root: str | None = setting(
        None, None, "folder that relative paths of images refer to", shown="the folder of the annotations"
    )
    streaming: bool = setting(False, None, "read samples in sequence, without measuring them first; needs `max_steps`")
    shuffle_buffer: int = setting(1000, None, "number of streamed records that are shuffled among each other")
    max_length: int | None = setting(
        None, None, "largest number of tokens per sample, including images", shown="no limit"
    )
    on_too_long: str = setting(
        "truncate",
        choice(("truncate", "skip", "error")),
        "what to do with a longer sample: truncate it (never within an image), skip it, or raise an error",
    )
    on_broken: str = setting(
        "error",
        choice(("error", "skip")),
        "whether a broken sample stops the training or is skipped with a warning; both name file and line",
    )
    share_tiles: bool = setting(
        False,
        None,
        "give each of a sample's n images at most `max_patches` // n tiles, at least one, as InternVL's training does",
    )
    packing_tokens: int = setting(
        0, None, "pack samples into rows of at most this many tokens, without padding", shown="0, one row per sample"
    )
    max_mask_bytes: int = setting(
        2**30,
        None,
        "largest masks, in bytes, that 'sdpa' and 'eager' may make for a packed batch, over both stages",
        shown="2**30",
    )
    pad_to_multiple_of: int | None = setting(
        None, None, "pad rows to a multiple of this many tokens", shown="no padding beyond the longest row"
    )

    def __post_init__(self):
        check_settings(self)


@dataclass
class LoraArguments:
    """LoRA with peft instead of full training. A rank above 0 enables it."""

    _argument_group_name = "lora"

    lora_rank: int = setting(0, whole(0), "rank of the adapters", shown="0, no LoRA")
    lora_alpha: float | None = setting(None, POSITIVE, "scale of the adapters", shown="twice the rank")
    lora_dropout: float = setting(0.05, _RATE, "dropout of the adapters' input")
    lora_vision: bool = setting(False, None, "also adapt the vision tower's linear layers")
    lora_target_modules: str | None = setting(
        None,
        None,
        "regular expression for the full names of the modules to adapt",
        shown="every linear layer in the language model's layers, and with `lora_vision` in the vision tower",
    )
    lora_modules_to_save: list[str] | None = setting(
        None, None, "modules to train in full and save with the adapter", shown="the projectors"
    )

    def __post_init__(self):
        check_settings(self)
        if not self.lora_rank and (changed := _changed(self)):
            raise ValueError(
                f"`{changed[0]}` is {getattr(self, changed[0])!r}, but `lora_rank` is 0, which trains without LoRA. "
                "Set a rank."
            )


@dataclass
class TeacherArguments:
    """Distillation: a teacher's logits as targets. The loss is (1 - w)·CE + w·T²·KL(teacher ‖ student)."""

    _argument_group_name = "teacher"

    teacher: str | None = setting(
        None,
        None,
        "checkpoint whose logits the model is trained on, for example the one that it was converted from, converted "
        "with `--projector keep`: a folder or a Hub id",
        shown="no teacher",
    )
    teacher_revision: str | None = setting(None, None, "branch, tag or commit of the teacher on the Hub", shown="main")
    teacher_weight: float = setting(
        0.5,
        number(0, 1, above=True),
        "weight of the divergence from the teacher, w; the data's own answers have 1 - w. With 1, only the teacher "
        "counts",
    )
    teacher_temperature: float = setting(1.0, POSITIVE, "temperature T, by which both models' logits are divided")
    teacher_slicing: str | None = setting(
        None,
        choice(SLICING_STRATEGIES),
        "how an image's size bounds the teacher's number of tiles",
        shown="the teacher's",
    )
    teacher_dtype: str = setting("bfloat16", choice((*DTYPES, "auto")), "the dtype in which the teacher computes")

    def __post_init__(self):
        check_settings(self)
        if not self.teacher and (changed := [name for name in _changed(self) if name != "teacher"]):
            raise ValueError(f"`{changed[0]}` is {getattr(self, changed[0])!r}, but no `teacher` is given.")


def _changed(settings) -> list[str]:
    """Names of a dataclass's settings that differ from their defaults."""
    return [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]


@dataclass
class InternVLXTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's settings as defaults, and the settings of the two stages.

    `learning_rate`, schedule, optimizer and number of epochs are the paper's (section 4). The warm-up is InternVL's.
    """

    _argument_group_name = "training"
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rates", "tokens_per_tile_sampling"]

    stage: int = setting(
        2,
        FieldRule("1 or 2", lambda stage: stage in (1, 2), (1, 2)),
        "stage of the paper. 1: train only the projectors; 2: train everything, or LoRA",
    )
    freeze: list[str] | None = setting(
        None, None, "names of modules or parameters not to train, in addition to the stage's"
    )
    train: list[str] | None = setting(
        None, None, "names of modules or parameters to train in addition to the stage's; overrides `freeze`"
    )
    learning_rates: dict | str | None = setting(
        None,
        None,
        "learning rates by module name that differ from `learning_rate`, '{\"model.lvtc\": 2e-4}'; the last match "
        "counts",
        type=str,
    )
    vision_drop_path_rate: float = setting(
        0.0,
        _RATE,
        "stochastic depth of InternViT's layers in training: the rate rises linearly from 0 to this value. It also "
        "applies to a frozen tower, as in the scripts of InternVL-X's authors",
    )
    tokens_per_tile_sampling: dict | str | None = setting(
        None,
        None,
        "sizes of a tile that the steps train, of those that the checkpoint offers, and how often each is drawn: "
        "'{\"64\": 3, \"256\": 1}', or 'all' for all of them, equally often",
        shown="none; all steps train one size, `tokens_per_tile` or the checkpoint's first",
        type=str,
    )
    loss_average: str = setting(
        "step",
        choice(("step", "batch")),
        "what the loss is averaged over. 'step': the supervised tokens of a step, in all its batches and processes. "
        "'batch': those of each batch on a device, and then over these batches, as in the code of InternVL-X's "
        "authors, so that a token counts for more in a batch of short answers",
    )
    save_on_signal: bool = setting(
        True,
        None,
        "on SIGTERM, SIGHUP or Ctrl-C, finish the step, save a checkpoint and stop; on a second signal, stop at once. "
        "After an error, save a checkpoint of the last step",
    )

    resume_from_checkpoint: str | None = setting(
        None, None, "checkpoint to resume from: 'last' for the newest in `output_dir`, or a folder", shown="start anew"
    )
    output_dir: str = setting("", None, "folder for checkpoints and the trained model", shown="")
    learning_rate: float = setting(4e-5, None, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("cosine", None, "schedule of the learning rate")
    warmup_steps: float = setting(0.03, None, "warm-up steps: a share of all steps if below 1, else a number")
    num_train_epochs: float = setting(1.0, None, "number of passes over the data")
    logging_steps: float = setting(10, None, "steps between two logs, or a share of all steps if below 1")
    logging_nan_inf_filter: bool = setting(
        False, None, "leave losses that are NaN or infinite out of the logged means"
    )
    report_to: str = setting("tensorboard", None, "where to report logs: 'tensorboard', 'wandb', 'none', ...")
    prediction_loss_only: bool = setting(True, None, "return only the loss from an evaluation, without logits")
    remove_unused_columns: bool = setting(False, None, "must stay False: the collator needs all columns")
    train_sampling_strategy: str = setting(
        "group_by_cost",
        choice(["group_by_cost", "random", "sequential"]),
        "order of samples: 'group_by_cost' puts samples of similar cost into a batch (without `streaming` and "
        "`packing_tokens`, which shuffle), 'sequential' keeps the order of the data (without `packing_tokens`), "
        "'random' shuffles",
    )

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("`output_dir` is missing: expected a folder for checkpoints and the model.")
        check_settings(self)
        self.learning_rates = _parse_numbers("learning_rates", self.learning_rates, "module name")
        if self.tokens_per_tile_sampling != ALL:
            weights = _parse_numbers("tokens_per_tile_sampling", self.tokens_per_tile_sampling, "size")
            if weights and not sum(weights.values()):
                raise ValueError(f"`tokens_per_tile_sampling` is {weights}, expected a weight above 0.")
            self.tokens_per_tile_sampling = weights or None
        with warnings.catch_warnings():
            # the oldest supported transformers does not have its new name
            warnings.filterwarnings(
                "ignore", message="`gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is True, expected False: the collator reads all of a sample.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}, expected 0: in training, the model "
                "computes the logits of supervised tokens only, for its own loss."
            )
        if self.accelerator_config.dispatch_batches is None:
            # accelerate would slice every tensor of a stream's batch to the number of rows, including the tiles
            self.accelerator_config.dispatch_batches = False


def _parse_numbers(setting: str, given: dict | str | None, key: str) -> dict[str, float]:
    """Numbers by pattern or size. (YAML reads 2e-4 as a string, and 2.0e-4 as a number.)"""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"`{setting}` is {given!r}, expected JSON of numbers by {key}: {error}") from error
    given = given or {}
    if not isinstance(given, dict):
        raise ValueError(f"`{setting}` is {given!r}, expected numbers by {key}.")
    try:
        numbers = {str(pattern): float(number) for pattern, number in given.items()}
    except (TypeError, ValueError):
        raise ValueError(f"`{setting}` is {given!r}, expected numbers by {key}.") from None
    if wrong := {pattern: number for pattern, number in numbers.items() if not number >= 0}:
        raise ValueError(f"`{setting}` must not be negative, got {wrong}.")
    return numbers
