# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Console output of training: a readable line per log, and on a terminal a progress bar below them."""

import shutil
import sys
import time
from collections.abc import Callable

from transformers import PrinterCallback, ProgressCallback, Trainer

from ..checkpoints.numbers import duration, number, thousands

# endings of logged values that a line omits
_OMITTED = ("_runtime", "_steps_per_second", "_samples_per_second", "_seen", "epoch", "total_flos")
# parts of a line that are omitted first on a narrow terminal
_OMITTED_IF_NARROW = ("grad", "each", "text")


class ConsoleCallback(ProgressCallback):
    """Prints a line for each log of the `Trainer`, from the first process only.

        step 120/5,000  loss 1.2345  lr 3.98e-05  grad 0.81  text 1.2k/s  image 3.4k → 13.6k/s  1.31 s/step  1:46:35
        left

    `text` and `image` are tokens per second, from [`ThroughputCallback`]. With LVTC, `image` shows the image tokens of
    both stages. The progress bar is on stderr, if that is a terminal and `disable_tqdm` is not set; lines go to
    stdout.

    Args:
        show_bar: show a progress bar (default: False).
        clock: returns a time in seconds (default: `time.monotonic`).
    """

    def __init__(self, show_bar: bool = False, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.show_bar = show_bar
        self.clock = clock
        self._start = self._since = (0, 0.0)  # step and time of the start and of the last log

    @classmethod
    def attach(cls, trainer: Trainer) -> "ConsoleCallback | None":
        """Replace the `Trainer`'s console output; None if it has another kind, as in a notebook."""
        replaced = [
            each for each in trainer.callback_handler.callbacks if type(each) in (PrinterCallback, ProgressCallback)
        ]
        if not replaced:
            return None
        for each in replaced:
            trainer.remove_callback(each)
        callback = cls(show_bar=sys.stderr.isatty() and not trainer.args.disable_tqdm)
        trainer.add_callback(callback)
        return callback

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = self._since = (state.global_step, self.clock())
        if self.show_bar:
            super().on_train_begin(args, state, control, **kwargs)
            self._advance(state)  # a resumed run starts at a later step

    def on_step_end(self, args, state, control, **kwargs):
        self._advance(state)

    def _advance(self, state) -> None:
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.current_step)
            self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.show_bar:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        line = self._line(state, logs)
        bar = self.prediction_bar if self.training_bar is None else self.training_bar
        if bar is None:
            print(line, flush=True)
        else:
            bar.write(line)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _line(self, state, logs: dict) -> str:
        step = f"step {state.global_step:>{len(f'{state.max_steps:,}')},}/{state.max_steps:,}"
        if "loss" in logs:
            return fitted({"step": step, **self._parts(state, logs)}, line_width())
        if "train_runtime" in logs:
            steps, seconds = state.global_step - self._start[0], logs["train_runtime"]
            mean = f", mean loss {number(logs.get('train_loss', 0.0))}" if steps else ""
            return f"trained {steps:,} steps in {duration(seconds)}{mean}"
        values = {name: value for name, value in logs.items() if not name.endswith(_OMITTED)}
        seconds = next((value for name, value in logs.items() if name.endswith("_runtime")), None)
        took = [] if seconds is None else [f"in {duration(seconds)}"]
        return "  ".join([step, *(f"{name} {number(value)}" for name, value in values.items()), *took])

    def _parts(self, state, logs: dict) -> dict[str, str]:
        """The parts of a line by name, in order."""
        parts = {"loss": f"loss {number(logs['loss'])}"}
        for name, key in (("ce", "ce_loss"), ("kl", "teacher_kl")):
            if key in logs:
                parts[name] = f"{name} {number(logs[key])}"
        if "learning_rate" in logs:
            parts["rate"] = f"lr {logs['learning_rate']:.2e}"
        if "grad_norm" in logs:
            parts["grad"] = f"grad {number(logs['grad_norm'])}"
        text, one, two = (logs.get(f"{name}_tokens_per_second") for name in ("text", "stage_one", "stage_two"))
        if text is not None and one is not None and two is not None:
            parts["text"] = f"text {thousands(text)}/s"
            parts["image"] = f"image {thousands(one)}" + (f" → {thousands(two)}" if two != one else "") + "/s"
        now = self.clock()
        (first, start), (last, since) = self._start, self._since
        if state.global_step > last:
            parts["each"] = f"{(now - since) / (state.global_step - last):.3g} s/step"
            left = (now - start) / (state.global_step - first) * (state.max_steps - state.global_step)
            parts["left"] = f"{duration(left)} left"
        self._since = (state.global_step, now)
        return parts


def line_width() -> int | None:
    """Width of the terminal in characters; None for files and pipes, whose lines have no limit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(parts: dict[str, str], width: int | None) -> str:
    """The parts joined to a line; the least important are omitted if it would be longer than `width`."""
    parts = dict(parts)
    for name in _OMITTED_IF_NARROW:
        if width is not None and len("  ".join(parts.values())) > width:
            parts.pop(name, None)
    return "  ".join(parts.values())
