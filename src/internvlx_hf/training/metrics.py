# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Throughput, memory and token counts of training, added to every log of the `Trainer` and so to TensorBoard and
others.
"""

import time
from collections.abc import Callable, Sequence

import psutil
import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration

GIGABYTE = 10**9
COUNTS = ("text_tokens", "stage_one_tokens", "stage_two_tokens", "tiles", "padding", "places", "samples_past_limit")


class ThroughputCallback(TrainerCallback, ExportableState):
    """Counts the model's inputs in training and adds rates to the `Trainer`'s logs, over all processes.

    - `text_tokens_per_second`: tokens that are neither image placeholders nor padding. They pass through all layers.
    - `stage_one_tokens_per_second`: image tokens in the layers before LVTC's expansion, N₁² per tile.
    - `stage_two_tokens_per_second`: image tokens in the layers after it, N₂² per tile; without LVTC, the same N₁².
      So a layer of stage one processes text + stage one tokens, a layer of stage two text + stage two tokens.
    - `tiles_per_second`.
    - `padding_share`: share of padding in `input_ids`. (The padding of a packed row to `pad_to_multiple_of` has no
      mask and counts as text.)
    - `memory_gb`: peak memory that torch has allocated on a GPU so far, or without GPUs the current memory of a
      process; the maximum over all processes.
    - `text_tokens_seen`, `stage_one_tokens_seen`, `stage_two_tokens_seen`, `tiles_seen`: since the start of the
      training, including the steps before a resume.
    - `samples_past_limit_seen`: samples with more tokens, in either stage, than the language model has positions for.
    - `learning_rate/NAME` of each named group of parameters.

    Rates refer to the wall-clock time since the last log, without evaluating and saving. Counting copies nothing to or
    from the
    device: numbers that follow from shapes are counted on the host, sums over the batch stay on the device until the
        next log.

    A `Trainer` reports its logs before it calls the callbacks that it was created with. Use
    [`ThroughputCallback.attach`].

    Args:
        clock: returns a time in seconds (default: `time.perf_counter`).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.seen = dict.fromkeys(COUNTS, 0)
        self._logged = dict(self.seen)
        # counts of this process in this step: those known from shapes, and those computed from tensors
        self._known = [0] * len(COUNTS)
        self._found: list[torch.Tensor] = []
        self._unread_counts: torch.Tensor | None = None  # counts of all processes that are not in `seen` yet
        self._parse_rates: dict[str, float] = {}
        self._hook = None
        self._since = self._mark = self._paused = 0.0

    @classmethod
    def attach(cls, trainer: Trainer, **kwargs) -> "ThroughputCallback":
        """Add a callback that a trainer calls before it reports its logs."""
        callback = cls(**kwargs)
        trainer.callback_handler.callbacks.insert(0, callback)
        return callback

    def state(self) -> dict:
        """The state that the `Trainer` saves in a checkpoint."""
        self._read_counts()
        return {"args": {}, "attributes": {"seen": dict(self.seen)}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        name = type(self).__name__
        if state.global_step and name in state.stateful_callbacks:  # resumed
            self.seen |= state.stateful_callbacks[name]["attributes"]["seen"]
        state.stateful_callbacks[name] = self.state()
        self._logged = dict(self.seen)
        if self._hook is not None:
            self._hook.remove()
        self._hook = find_model(model).register_forward_pre_hook(self._count, with_kwargs=True)
        self._since = self._mark = self.clock()
        self._paused = 0.0

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    @torch.compiler.disable
    def _count(self, model: InternVLXForConditionalGeneration, args: tuple, kwargs: dict) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else None)
        if not model.training or inputs is None:
            return
        pixels, mask, config = kwargs.get("pixel_values"), kwargs.get("attention_mask"), model.config
        tiles, places = 0 if pixels is None else len(pixels), inputs.numel()
        sizes, default = kwargs.get("tile_sizes") if tiles else None, config.sizes[0]
        known = [places, 0, 0, tiles, 0, places, 0]
        past_limit = samples_past_limit(config, inputs, mask, kwargs.get("position_ids"), sizes)
        none = torch.zeros_like(past_limit)
        if sizes is None:
            stage_one, stage_two = (none + tiles * tokens for tokens in (default.before, default.after))
        else:
            stage_one, stage_two = (
                of_tiles(sizes, [getattr(size, name) for size in config.sizes]).sum() for name in ("before", "after")
            )
        self._known = [before + more for before, more in zip(self._known, known, strict=True)]
        padding = none if mask is None else mask.numel() - mask.sum(dtype=torch.int64)
        found = {"text_tokens": -padding - stage_one, "stage_one_tokens": stage_one, "stage_two_tokens": stage_two}
        found |= {"padding": padding, "samples_past_limit": past_limit}
        self._found.append(torch.stack([found.get(name, none) for name in COUNTS]))

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        groups = [group for group in optimizer.param_groups if "name" in group and group["params"]]
        self._parse_rates = {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups}

    def on_step_end(self, args, state, control, **kwargs):
        # filled on the device: a tensor of a list would be copied there
        known = [torch.full((), count, dtype=torch.int64, device=args.device) for count in self._known]
        counts = torch.stack([torch.stack(known), *self._found]).sum(0)
        if _distributed():  # here and not when logging: saving a checkpoint calls only one process
            torch.distributed.all_reduce(counts)
        self._unread_counts = counts if self._unread_counts is None else self._unread_counts + counts
        self._known, self._found = [0] * len(COUNTS), []
        self._mark = self.clock()

    def _read_counts(self) -> None:
        if self._unread_counts is not None:
            for name, count in zip(COUNTS, self._unread_counts.tolist(), strict=True):
                self.seen[name] += count
            self._unread_counts = None

    def on_evaluate(self, args, state, control, **kwargs):
        self._pause()

    def on_save(self, args, state, control, **kwargs):
        self._pause()

    def _pause(self) -> None:
        """Exclude the time since the last step or log from the rates."""
        now = self.clock()
        self._paused += now - self._mark
        self._mark = now

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or not ("loss" in logs or "train_runtime" in logs):
            return
        self._read_counts()
        metrics = {f"{name}_seen": self.seen[name] for name in (*COUNTS[:4], "samples_past_limit")}
        fresh = {name: self.seen[name] - self._logged[name] for name in COUNTS}
        if "loss" in logs and fresh["places"]:
            now = self.clock()
            seconds = max(now - self._since - self._paused, 1e-9)
            metrics |= {f"{name}_per_second": fresh[name] / seconds for name in COUNTS[:4]}
            metrics |= {"padding_share": fresh["padding"] / fresh["places"], "memory_gb": _memory(args.device)}
            metrics |= self._parse_rates
            self._logged = dict(self.seen)
            self._since = self._mark = now
            self._paused = 0.0
        logs.update(metrics)
        state.log_history[-1].update(metrics)


def samples_past_limit(
    config: InternVLXConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    tile_sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Number of samples in (B, L) rows, packed or not, that take more positions than the limit in one of the stages.

    Args:
        tile_sizes: (tiles,), the model's (default: the first for all).
    """
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    starts[:, 0] = True
    if attention_mask is None and position_ids is not None:
        starts[:, 1:] = position_ids.diff(dim=-1) != 1
    sample = starts.flatten().cumsum(0) - 1
    filled = torch.ones_like(input_ids)
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        filled = attention_mask.to(input_ids.dtype)
    is_placeholder = filled * (input_ids == config.image_token_id)
    before: int = config.image_seq_length
    gains: int | torch.Tensor = config.tile_positions - before
    place = is_placeholder.flatten().cumsum(0) - 1  # among the placeholders
    if tile_sizes is not None:  # tiles of other sizes begin elsewhere
        counts = of_tiles(tile_sizes, [size.before for size in config.sizes])
        ends = counts.cumsum(0)
        tile = torch.bucketize(place.clamp(min=0), ends, right=True).clamp(max=len(ends) - 1)
        is_first = place == (ends - counts)[tile]
        gains = of_tiles(tile_sizes, [size.positions - size.before for size in config.sizes])[tile]
    else:
        is_first = place % before == 0
    gained = filled.flatten() + is_placeholder.flatten() * is_first * gains
    return (torch.zeros_like(sample).index_add(0, sample, gained) > config.position_limit).sum()


def of_tiles(tile_sizes: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """(tiles,), the value of each tile's size. A tensor of `values` would be copied to the device."""
    return sum((tile_sizes == index) * value for index, value in enumerate(values))  # type: ignore[return-value]


def find_model(model: nn.Module) -> nn.Module:
    """The InternVL-X model with its head, inside any wrappers."""
    for module in model.modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type == InternVLXConfig.model_type and "lm_head" in module._modules:
            return module
    raise ValueError(f"{type(model).__name__} holds no InternVL-X model, so its tokens cannot be counted.")


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _memory(device: torch.device) -> float:
    """Gigabytes, the maximum over all processes: the peak allocated on a GPU, or without GPUs the process's current
    memory.
    """
    on_gpu = device.type == "cuda"
    used = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
    most = torch.tensor(used, device=device)
    if _distributed():
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return most.item() / GIGABYTE
