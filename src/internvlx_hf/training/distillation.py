# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training on a teacher's logits.

TRL's trainers for distillation give both models the same `input_ids`. Here a sample has a different number of image
tokens for each, so that only the supervised rows correspond.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from ..modeling import InternVLXConfig
from ..processing.processing_internvlx import IGNORE_INDEX
from .metrics import samples_past_limit
from .trainer import InternVLXTrainer

logger = logging.get_logger(__name__)


def next_labels(labels: torch.Tensor) -> torch.Tensor:
    """(B, L) labels, each at the row that predicts it."""
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]


def token_losses(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Two sums over (rows, vocabulary) logits, in float32: cross entropy with the (rows,) labels, and the divergence
    KL(teacher ‖ student) of both models' distributions at the temperature."""
    logits, teacher_logits = logits.float(), teacher_logits.float()
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1),
        F.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return torch.stack([F.cross_entropy(logits, labels, reduction="sum"), divergence])


def batch_losses(
    model: nn.Module, teacher: nn.Module, inputs: dict, temperature: float
) -> tuple[torch.Tensor, ModelOutput]:
    """The two sums of `token_losses` over a batch's supervised rows, and the model's outputs, with the logits of these
    rows.

    Both models form the logits of these rows only. The nth supervised row of the student corresponds to the teacher's
    nth.

    Args:
        inputs: a batch with `labels`, and as `teacher` the teacher's batch.
    """
    student = {name: value for name, value in inputs.items() if name not in ("labels", "teacher")}
    taught = {name: value for name, value in inputs["teacher"].items() if name != "labels"} | {"use_cache": False}
    labels, teacher_labels = next_labels(inputs["labels"]), next_labels(inputs["teacher"]["labels"])
    rows = labels != IGNORE_INDEX
    with torch.no_grad():
        teacher_logits = teacher(**taught, logits_to_keep=teacher_labels != IGNORE_INDEX).logits
    outputs = model(**student, logits_to_keep=rows)
    return token_losses(outputs.logits, teacher_logits, labels[rows], temperature), outputs


class DistillationTrainer(InternVLXTrainer):
    """An [`InternVLXTrainer`] whose loss is (1 - w)·CE + w·T²·KL(teacher ‖ student), the mean over the supervised
    tokens of a step's batches in all processes, or as `loss_average` says. The routers' loss of a mixture of experts
    is added as without a teacher.

    Batches hold the teacher's inputs as `teacher`, see [`~internvlx_hf.training.InternVLXDataCollator`]. The logs have
    `ce_loss` and `teacher_kl`, the two means without their factors, and `teacher_samples_past_limit`, the samples
    since the last log that are longer than the teacher's positions. A batch without `teacher`, and every evaluation,
    has the plain loss.

    Args:
        teacher: a model with the same vocabulary, in evaluation mode. It is neither trained nor saved.
        weight: w, from 0 to 1 (default: 0.5).
        temperature: T (default: 1).
        kwargs: as for the [`InternVLXTrainer`].
    """

    def __init__(self, *args, teacher: PreTrainedModel, weight: float = 0.5, temperature: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = place_teacher(teacher, self.accelerator)
        self.weight = weight
        self.temperature = temperature
        self._parts: list[torch.Tensor] = []  # [CE, KL] of each batch since the last log
        self._past_limit: list[torch.Tensor] = []  # the teacher's samples past its positions, of the same batches
        self._first_step = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "teacher" not in inputs or not model.training:
            inputs = {name: value for name, value in inputs.items() if name != "teacher"}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.set_tower_mode()
        sums, outputs = batch_losses(model, self.teacher, inputs, self.temperature)
        means = sums / (len(outputs.logits) if num_items_in_batch is None else num_items_in_batch)
        loss = (1 - self.weight) * means[0] + self.weight * self.temperature**2 * means[1]
        if (aux_loss := getattr(outputs, "aux_loss", None)) is not None:  # of a mixture of experts
            loss = loss + self.model.config.text_config.router_aux_loss_coef * aux_loss
        scale, share = 1, 1.0
        if num_items_in_batch is None:
            share = 1 / getattr(
                self, "current_gradient_accumulation_steps", 1
            )  # the `Trainer` divides the loss likewise
        elif self.args.average_tokens_across_devices:
            scale = self.accelerator.num_processes  # over which gradients are averaged
        if not self._parts:
            self._first_step = self.state.global_step
        self._parts.append(scale * share * means.detach())
        seen = inputs["teacher"]
        masks = (seen.get(name) for name in ("attention_mask", "position_ids", "tile_sizes"))
        self._past_limit.append(samples_past_limit(self.teacher.config, seen["input_ids"], *masks))
        loss = scale * loss
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The `Trainer`'s, with `ce_loss`, `teacher_kl` and `teacher_samples_past_limit` beside `loss`."""
        if "loss" in logs and self._parts:
            steps = max(self.state.global_step - self._first_step, 1)
            means = self.accelerator.reduce(torch.stack(self._parts).sum(0) / steps, "mean")
            logs |= dict(zip(("ce_loss", "teacher_kl"), means.tolist(), strict=True))
            config: InternVLXConfig = self.teacher.config  # type: ignore[assignment]
            past = int(self.accelerator.reduce(torch.stack(self._past_limit).sum(), "sum"))
            logs["teacher_samples_past_limit"] = past
            if past:
                logger.warning_once(
                    f"Samples take more than the {config.position_limit} positions of the teacher's language model, "
                    "so it may teach poor answers: `teacher_samples_past_limit` counts them. Lower `max_length` or "
                    "the tiles per image."
                )
            self._parts, self._past_limit = [], []
        super().log(logs, start_time)


def place_teacher(teacher: PreTrainedModel, accelerator) -> nn.Module:
    """The teacher on this process's device, or sharded over all processes with FSDP2.

    Raises:
        ValueError: with FSDP1 and DeepSpeed's ZeRO-3, which shard only the model that they train.
    """
    plugin, deepspeed = (getattr(accelerator.state, name, None) for name in ("fsdp_plugin", "deepspeed_plugin"))
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(
            "`teacher` does not work with DeepSpeed's ZeRO-3. Use FSDP2 (configs/accelerate/fsdp2.yaml) or ZeRO-2."
        )
    if plugin is None:
        return teacher.to(accelerator.device)
    if plugin.fsdp_version != 2:
        raise ValueError(f"`teacher` works with `fsdp_version: 2`, got {plugin.fsdp_version}.")
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    # accelerate stores the names of the first model's layers, which may not be those of the student's
    before = plugin.transformer_cls_names_to_wrap, plugin.auto_wrap_policy
    try:
        return fsdp2_prepare_model(accelerator, teacher)
    finally:
        plugin.transformer_cls_names_to_wrap, plugin.auto_wrap_policy = before
