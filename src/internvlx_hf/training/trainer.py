# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A `Trainer` with the features of the two stages: learning rates by module, batches of similar cost, and a frozen
vision tower in evaluation mode. It saves no model that has diverged, and the steps of a run that fails."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..data import CostGroupedSampler, PackedStream, StreamingTrainingData
from ..hub import PushesCheckpoint
from ..processing import InternVLXProcessor
from .arguments import InternVLXTrainingArguments
from .divergence import DivergedError, DivergenceCheck, damaged_parameters
from .failures import LastWholeStep, save_after_failure
from .metrics import find_model
from .parameters import set_learning_rates
from .signals import in_any_process
from .size_sampling import size_of_step, size_weights, take_size


class InternVLXTrainer(PushesCheckpoint, Trainer):  # type: ignore[misc]
    """A `Trainer` for [`InternVLXTrainingArguments`]. A plain `Trainer` with the collator can train the model as well.

    Args:
        costs: cost of each sample, for `train_sampling_strategy="group_by_cost"`.
        kwargs: as for the `Trainer`.
    """

    args: InternVLXTrainingArguments
    model: PreTrainedModel  # or a `PeftModel` around it
    processing_class: InternVLXProcessor

    def __init__(self, *args, costs: Sequence[float] | np.ndarray | None = None, **kwargs):
        self.costs = costs
        super().__init__(*args, **kwargs)
        self.size_weights = size_weights(self.args, find_model(self.model).config)  # type: ignore[arg-type]
        self.add_callback(SetSamplerEpoch())
        self.divergence, self.last_whole_step = DivergenceCheck(), LastWholeStep()
        self.add_callback(self.last_whole_step)

    def train(self, *args, **kwargs):
        """As in `Trainer`; if it fails, the steps so far are saved (unless `save_on_signal` is off).

        Raises:
            DivergedError: if the loss is not finite in three steps in a row, or a model to be saved is not.
        """
        try:
            return super().train(*args, **kwargs)
        except DivergedError:
            raise
        except Exception as error:
            if self.args.save_on_signal:
                save_after_failure(self, error)
            raise

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.divergence.add(loss)
        if self.accelerator.sync_gradients:  # the step's last batch
            self.divergence.end_step(self)
        return loss

    def _maybe_log_save_evaluate(self, tr_loss, *args, **kwargs) -> None:
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            tr_loss.zero_()  # the `Trainer` subtracts it from itself, and NaN would stay in all later logs

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The step's batches. If one process cannot read its own, all of them stop here, where they can save
        together.
        """
        batches, error = [], None
        try:
            batches += islice(epoch_iterator, num_batches)
        except Exception as caught:
            error = caught
        if in_any_process(error is not None, device):
            self.last_whole_step.is_common = True
            raise error or RuntimeError("another process could not read its samples.")
        if self.size_weights:
            size = size_of_step(self.size_weights, self._data_seed, self.state.global_step)
            batches = [take_size(batch, size) for batch in batches]
        batches, num_items = super().get_batch_samples(iter(batches), num_batches, device)
        # without the number of a step's tokens, the model averages over a batch, and the `Trainer` over batches
        return batches, None if self.args.loss_average == "batch" else num_items

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, but a model that has diverged replaces none.

        Raises:
            DivergedError: if a trained parameter is not finite.
        """
        if damaged := damaged_parameters(self):
            raise DivergedError(
                f"The training has diverged: after step {self.state.global_step}, {damaged} are NaN or infinite. "
                "Nothing was saved. Resume from an earlier checkpoint, or lower the learning rate."
            )
        super().save_model(output_dir, _internal_call)

    def _get_train_sampler(self, train_dataset=None):
        if self.costs is None:
            return super()._get_train_sampler(train_dataset)
        return CostGroupedSampler(self.costs, self._train_batch_size * self.args.world_size, self._data_seed)

    def get_train_dataloader(self) -> DataLoader:
        """The `Trainer`'s loader, but with a stream split by process, so that each process reads only its own
        shard.
        """
        if self.args.world_size == 1 or not isinstance(self.train_dataset, StreamingTrainingData | PackedStream):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset.shard(self.args.world_size, self.args.process_index),
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _run_epoch(self, *args, **kwargs) -> None:
        # resumed from its last step within an epoch, the `Trainer` would train a step beyond `max_steps`
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer, rates = super().create_optimizer(model), self.args.learning_rates
        if rates and isinstance(rates, dict):
            set_learning_rates(optimizer, self.model if model is None else model, rates)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The `Trainer`'s loss, with a frozen vision tower in evaluation mode (unless drop path is set), and without
        logits beyond the loss in an evaluation."""
        inputs = {name: value for name, value in inputs.items() if name != "of_sizes"}
        if model.training:
            self.set_tower_mode()
        elif self.args.prediction_loss_only:
            inputs |= {"logits_to_keep": 1}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def set_tower_mode(self) -> None:
        """Put a frozen vision tower in evaluation mode, unless drop path is set."""
        if not self.args.vision_drop_path_rate and (tower := frozen_tower(self.model)) is not None:
            tower.eval()


def frozen_tower(model: nn.Module) -> nn.Module | None:
    """The vision tower, if all of it is frozen."""
    tower = next((module for name, module in model.named_modules() if name.endswith("model.vision_tower")), None)
    if tower is None or any(parameter.requires_grad for parameter in tower.parameters()):
        return None
    return tower


class SetSamplerEpoch(TrainerCallback):
    """Sets the epoch of the training data's sampler inside accelerate's wrappers.

    If several processes resume in the middle of an epoch, the `Trainer` reaches only the wrappers, and the rest of the
    epoch would have the order of the first epoch.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while (inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)) is not None:
            sampler = inner
        if set_epoch := getattr(sampler, "set_epoch", None):
            set_epoch(int(state.epoch or 0))
