# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The settings of `internvlx train`."""

import json
import warnings
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments

from ..checkpoints.names import DTYPES
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_STRATEGIES
from .parsing import parse_arguments  # noqa: F401  for callers of this module

# of `tokens_per_tile_sampling`: all sizes that the checkpoint offers
ALL = "all"


@dataclass(frozen=True)
class ModelArguments(ImageSettings):
    """The model to train, how it is loaded, and how it reads images (default: as the checkpoint's processor does)."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={"help": "InternVL-X checkpoint to train: a folder (made by `internvlx convert`) or a Hub id."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit on the Hub (default: main)."}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "dtype of the weights in memory (default: float32). With `bf16` or `fp16`, trained parameters are "
            "always in float32; 'bfloat16' then halves the memory of frozen parameters.",
            "choices": (*DTYPES, "auto"),
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention: 'sdpa', 'eager', 'flash_attention_2', 'flash_attention_3', 'flex_attention', "
            "'varlen_sdpa' or a kernel from the Hub (default: sdpa; with `packing_tokens`, the fastest on this device "
            "that needs no mask)."
        },
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the routers' load-balancing loss in a mixture of experts, 0 for none (default: the "
            "checkpoint's `router_aux_loss_coef` if it has `output_router_logits`, else 0)."
        },
    )


@dataclass
class DataArguments:
    """The training data, and how samples are read."""

    _argument_group_name = "data"

    train_data: str = field(
        metadata={
            "help": "Training data: InternVL's meta file, a JSON or JSONL file of annotations (InternVL's, LLaVA's, "
            "or `messages`), a folder that `datasets` reads, or a Hub id."
        }
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "Evaluation data, in the formats of `train_data` (default: no evaluation)."}
    )
    train_split: str = field(
        default="train", metadata={"help": "Split of `train_data`, a folder or Hub id (default: train)."}
    )
    eval_split: str = field(
        default="train", metadata={"help": "Split of `eval_data`, a folder or Hub id (default: train)."}
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "Folder that relative paths of images refer to (default: the folder of the annotations)."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read samples in sequence, without measuring them first; needs `max_steps` (default: False)."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={"help": "Number of streamed records that are shuffled among each other (default: 1000)."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Largest number of tokens per sample, including images (default: no limit)."}
    )
    on_too_long: str = field(
        default="truncate",
        metadata={
            "help": "What to do with a longer sample: truncate it (never within an image), skip it, or raise an error "
            "(default: truncate).",
            "choices": ("truncate", "skip", "error"),
        },
    )
    on_broken: str = field(
        default="error",
        metadata={
            "help": "Whether a broken sample stops the training or is skipped with a warning; both name file and line "
            "(default: error).",
            "choices": ("error", "skip"),
        },
    )
    share_tiles: bool = field(
        default=False,
        metadata={
            "help": "Give each of a sample's n images at most `max_patches` // n tiles, at least one, as InternVL's "
            "training does (default: False)."
        },
    )
    packing_tokens: int = field(
        default=0,
        metadata={
            "help": "Pack samples into rows of at most this many tokens, without padding (default: 0, one row per "
            "sample)."
        },
    )
    max_mask_bytes: int = field(
        default=2**30,
        metadata={
            "help": "Largest masks, in bytes, that 'sdpa' and 'eager' may make for a packed batch, over both stages "
            "(default: 2**30)."
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={"help": "Pad rows to a multiple of this many tokens (default: no padding beyond the longest row)."},
    )


@dataclass
class LoraArguments:
    """LoRA with peft instead of full training. A rank above 0 enables it."""

    _argument_group_name = "lora"

    lora_rank: int = field(default=0, metadata={"help": "Rank of the adapters (default: 0, no LoRA)."})
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale of the adapters (default: twice the rank)."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the adapters' input (default: 0.05)."})
    lora_vision: bool = field(
        default=False, metadata={"help": "Also adapt the vision tower's linear layers (default: False)."}
    )
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression for the full names of the modules to adapt (default: every linear layer in "
            "the language model's layers, and with `lora_vision` in the vision tower)."
        },
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules to train in full and save with the adapter (default: the projectors)."},
    )

    def __post_init__(self):
        if self.lora_rank < 0:
            raise ValueError(f"`lora_rank` is {self.lora_rank}, expected a positive number, or 0 for no LoRA.")
        if not self.lora_rank and (changed := _changed(self)):
            raise ValueError(
                f"`{changed[0]}` is {getattr(self, changed[0])!r}, but `lora_rank` is 0, which trains without LoRA. "
                "Set a rank."
            )
        if self.lora_alpha is not None and not 0 < self.lora_alpha < float("inf"):
            raise ValueError(f"`lora_alpha` is {self.lora_alpha}, expected a positive number.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` is {self.lora_dropout}, expected a rate in [0, 1).")


@dataclass
class TeacherArguments:
    """Distillation: a teacher's logits as targets. The loss is (1 - w)·CE + w·T²·KL(teacher ‖ student)."""

    _argument_group_name = "teacher"

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint whose logits the model is trained on, for example the one that it was converted from, "
            "converted with `--projector keep`: a folder or a Hub id (default: no teacher)."
        },
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher on the Hub (default: main)."}
    )
    teacher_weight: float = field(
        default=0.5,
        metadata={
            "help": "w, the weight of the divergence from the teacher; the data's own answers have 1 - w (default: "
            "0.5). With 1, only the teacher counts."
        },
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "T, by which both models' logits are divided (default: 1)."}
    )
    teacher_slicing: str | None = field(
        default=None,
        metadata={
            "help": "How an image's size bounds the teacher's number of tiles (default: the teacher's).",
            "choices": SLICING_STRATEGIES,
        },
    )
    teacher_dtype: str = field(
        default="bfloat16",
        metadata={"help": "dtype in which the teacher computes (default: bfloat16).", "choices": (*DTYPES, "auto")},
    )

    def __post_init__(self):
        if not 0 < self.teacher_weight <= 1:
            raise ValueError(f"`teacher_weight` is {self.teacher_weight}, expected a number in (0, 1].")
        if not 0 < self.teacher_temperature < float("inf"):
            raise ValueError(f"`teacher_temperature` is {self.teacher_temperature}, expected a positive number.")
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

    stage: int = field(
        default=2,
        metadata={
            "help": "Stage of the paper. 1: train only the projectors; 2: train everything, or LoRA (default: 2).",
            "choices": (1, 2),
        },
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={"help": "Names of modules or parameters not to train, in addition to the stage's (default: none)."},
    )
    train: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of modules or parameters to train in addition to the stage's; overrides `freeze` (default: "
            "none)."
        },
    )
    learning_rates: dict | str | None = field(
        default=None,
        metadata={
            "help": "Learning rates by module name that differ from `learning_rate`, '{\"model.lvtc\": 2e-4}'; the "
            "last match counts (default: none)."
        },
    )
    vision_drop_path_rate: float = field(
        default=0.0,
        metadata={
            "help": "Stochastic depth of InternViT's layers in training: the rate rises linearly from 0 to this value "
            "(default: 0). It also applies to a frozen tower, as in the scripts of InternVL-X's authors."
        },
    )
    tokens_per_tile_sampling: dict | str | None = field(
        default=None,
        metadata={
            "help": "Sizes of a tile that the steps train, of those that the checkpoint offers, and how often each is "
            "drawn: '{\"64\": 3, \"256\": 1}', or 'all' for all of them, the largest drawn a third as often as each "
            "other (default: none; all steps train one size, `tokens_per_tile` or the checkpoint's first)."
        },
    )
    loss_average: str = field(
        default="step",
        metadata={
            "help": "What the loss is averaged over. 'step': the supervised tokens of a step, in all its batches and "
            "processes. 'batch': those of each batch on a device, and then over these batches, as in the code of "
            "InternVL-X's authors, so that a token counts for more in a batch of short answers (default: step).",
            "choices": ("step", "batch"),
        },
    )
    save_on_signal: bool = field(
        default=True,
        metadata={
            "help": "On SIGTERM, SIGHUP or Ctrl-C, finish the step, save a checkpoint and stop; on a second signal, "
            "stop at once. After an error, save a checkpoint of the last step (default: True)."
        },
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to resume from: 'last' for the newest in `output_dir`, or a folder (default: start "
            "anew)."
        },
    )
    output_dir: str = field(default="", metadata={"help": "Folder for checkpoints and the trained model."})
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate of AdamW (default: 4e-5)."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule of the learning rate (default: cosine)."}
    )
    warmup_steps: float = field(
        default=0.03,
        metadata={"help": "Warm-up steps: a share of all steps if below 1, else a number (default: 0.03)."},
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the data (default: 1)."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between two logs, or a share of all steps if below 1 (default: 10)."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses that are NaN or infinite out of the logged means (default: False)."},
    )
    report_to: str = field(
        default="tensorboard",
        metadata={"help": "Where to report logs: 'tensorboard', 'wandb', 'none', ... (default: tensorboard)."},
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Return only the loss from an evaluation, without logits (default: True)."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator needs all columns."}
    )
    train_sampling_strategy: str = field(
        default="group_by_cost",
        metadata={
            "help": "Order of samples: 'group_by_cost' puts samples of similar cost into a batch (without `streaming` "
            "and `packing_tokens`, which shuffle), 'sequential' keeps the order of the data (without "
            "`packing_tokens`), 'random' shuffles (default: group_by_cost).",
            "choices": ["group_by_cost", "random", "sequential"],
        },
    )

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("`output_dir` is missing: expected a folder for checkpoints and the model.")
        self.learning_rates = _parse_numbers("learning_rates", self.learning_rates, "module name")
        if self.tokens_per_tile_sampling != ALL:
            weights = _parse_numbers("tokens_per_tile_sampling", self.tokens_per_tile_sampling, "size")
            if weights and not sum(weights.values()):
                raise ValueError(f"`tokens_per_tile_sampling` is {weights}, expected a weight above 0.")
            self.tokens_per_tile_sampling = weights or None
        if not 0 <= self.vision_drop_path_rate < 1:
            raise ValueError(f"`vision_drop_path_rate` is {self.vision_drop_path_rate}, expected a rate in [0, 1).")
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
