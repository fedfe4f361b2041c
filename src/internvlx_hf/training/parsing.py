# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading settings from a configuration file and from flags."""

import argparse
from copy import copy
from dataclasses import Field
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..checkpoints.options import CommandParser, option_help, option_type
from ..processing.rules import nearest

# the settings of `--help`
_NEEDED_FIRST = (
    "model_name_or_path",
    "train_data",
    "output_dir",
    "stage",
    "lora_rank",
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "bf16",
    "resume_from_checkpoint",
)
# the training settings that `--help-all` lists first; most others are those of transformers
_LISTED_FIRST = (
    "output_dir",
    "stage",
    "freeze",
    "train",
    "learning_rates",
    "vision_drop_path_rate",
    "tokens_per_tile_sampling",
    "resume_from_checkpoint",
    "save_on_signal",
)
# names of settings in other trainers and InternVL's scripts -> their names here, if these are too different to be
# matched
_OTHER_NAMES = {
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


class _HelpFormatter(argparse.HelpFormatter):
    """Lists this package's settings before those of transformers, and one spelling of each."""

    def add_arguments(self, actions) -> None:
        super().add_arguments(sorted(actions, key=lambda action: (*_LISTED_FIRST, action.dest).index(action.dest)))

    def _get_help_string(self, action) -> str | None:
        is_opposite = isinstance(action, argparse._StoreFalseAction)
        return f"Set `{action.dest}` to False." if is_opposite else super()._get_help_string(action)

    def _format_action_invocation(self, action) -> str:
        if len(action.option_strings) < 2 or action.dest == "help":
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{action.option_strings[0]} {values}".rstrip()


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(HfArgumentParser.format_help(parser), end="")
        parser.exit()


class _Parser(CommandParser, HfArgumentParser):
    """The parser of all commands, with the settings of transformers' dataclasses and other words for errors."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse._ActionsContainer, field: Field) -> None:
        """Add a setting as transformers does; one that [`setting`] made with its help and choices."""
        if "rule" in field.metadata:
            help = option_help(field, "the checkpoint's" if field.metadata.get("owner") else None)
            texts = {"help": f"{help[0].upper()}{help[1:]}."}
            if (rule := field.metadata["rule"]) and rule.choices:
                texts["choices"] = rule.choices
            field, kind = copy(field), option_type(field)
            field.type, field.metadata = kind | None, texts  # type: ignore[assignment]
        HfArgumentParser._parse_dataclass_field(parser, field)  # type: ignore[arg-type]

    def format_help(self) -> str:
        """The help on the settings that people need first."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.start_section("settings to begin with")
        for name in _NEEDED_FIRST:
            formatter.add_argument(self._option_string_actions[f"--{name}"])
        formatter.end_section()
        groups = ", ".join(str(group.title) for group in self._action_groups[2:])
        formatter.add_text(
            "CONFIG.yaml has settings by name, as those in configs/; options override it. `--help-all` lists all "
            f"settings, by group: {groups}."
        )
        return formatter.format_help()

    def unknown(self, name: str, source: str = "the command line") -> str:
        name = name.lstrip("-").replace("-", "_")
        known = {action.dest: action.dest for action in self._actions}
        names = known | {other: dest for other, dest in _OTHER_NAMES.items() if dest in known}
        meant = nearest(name, names)
        hint = f" Did you mean `{names[meant]}`?" if meant else ""
        return f"There is no setting `{name}`, which {source} gives.{hint}"

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(arguments: list[str], types: tuple[type, ...], prog: str = "internvlx train") -> tuple:
    """Read a configuration file and flags.

    Args:
        arguments: an optional first YAML or JSON file, then flags `--name value`, which override the file.
        types: dataclasses whose fields are the settings.
        prog: name of the command in its help.

    Returns:
        An object of each type.

    Raises:
        ValueError: if a setting does not exist (the message suggests the nearest one), or a value has the wrong type.
        OSError: if the file cannot be read.
    """
    usage = f"{prog} [CONFIG.yaml] [--setting value ...]"
    parser = _Parser(prog, dataclass_types=types, usage=usage, formatter_class=_HelpFormatter)
    hidden = argparse.SUPPRESS
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, dest=hidden, default=hidden, help="list all settings")
    if arguments and not arguments[0].startswith("-"):
        _set_defaults(parser, _read_settings(Path(arguments[0])), arguments[0])
        arguments = arguments[1:]
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a name that occurs twice in a mapping, of which PyYAML keeps the last value."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                mark = key.start_mark
                raise ValueError(
                    f"{mark.name}, line {mark.line + 1}: `{key.value}` is set twice, expected each name once."
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _read_settings(path: Path) -> dict:
    try:
        with path.open(encoding="utf-8") as file:
            settings = yaml.load(file, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, expected settings by name.")
    return settings


def _set_defaults(parser: _Parser, settings: dict, source: str) -> None:
    """Make a file's settings the parser's defaults. Numbers are passed as text, so that flags and file are read
    alike.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    for name, value in settings.items():
        if name not in actions:
            parser.error(parser.unknown(name, source))
        action = actions[name]
        action.required = False
        if action.choices is not None and str(value) not in map(str, action.choices):
            choices = ", ".join(map(str, action.choices))
            raise ValueError(f"{source} sets `{name}` to {value!r}, expected one of {choices}.")
        parser.set_defaults(**{name: _default(action, value)})


def _default(action: argparse.Action, value):
    """A value as the parser expects it: text if it converts text, a list if it takes several values."""
    if value is None:
        return None
    if action.nargs == "+":
        return value if isinstance(value, list) else [value]
    if action.type in (int, float) or (action.type is string_to_bool and not isinstance(value, bool)):
        return str(value)
    return value
