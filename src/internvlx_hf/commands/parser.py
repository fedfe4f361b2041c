# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The parser of the commands' options."""

import argparse

from ..processing.rules import nearest


class CommandParser(argparse.ArgumentParser):
    """Options cannot be abbreviated; the error for an unknown one names the nearest."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        self._refuse_unknown(args)
        return self._checked(super().parse_args(args, namespace))

    def parse_intermixed_args(self, args=None, namespace=None):
        self._refuse_unknown(args)
        return self._checked(super().parse_intermixed_args(args, namespace))

    def _checked(self, options: argparse.Namespace) -> argparse.Namespace:
        """The options, each of which keeps its rule. Raises: ValueError: if one does not."""
        for action in self._actions:
            value, rule = getattr(options, action.dest, None), getattr(action, "rule", None)
            if rule is not None and value is not None:
                rule.check(action.option_strings[0], value)
        return options

    def _refuse_unknown(self, arguments: list[str]) -> None:
        for argument in arguments[: arguments.index("--") if "--" in arguments else None]:
            name, known = argument.partition("=")[0], self._option_string_actions
            if name.startswith("--") and name not in known:
                meant = nearest(name, known)
                self.error(f"there is no option {name}." + f" Did you mean {meant}?" * bool(meant))
