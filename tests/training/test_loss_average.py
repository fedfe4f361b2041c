"""What the loss of a step is averaged over, by hand: answers of 2 and 60 tokens, alone and together."""

import pytest
import torch
import torch.nn.functional as F

from data_parallel import Samples, collate
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.trainer import InternVLXTrainer
from tiny import tiny_model

LAYOUTS = [["tile", 2], [60], [5, "tile"], [2, "tile", 30]]
RATE = 1e-3


def gradient_of_a_step(folder, average, batch_size):
    """The gradient of one step on all samples, from what plain descent does to the weights, and the logged loss."""
    model = tiny_model(projector_config={"drop_path_rate": 0.0})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    arguments = InternVLXTrainingArguments(
        str(folder),
        loss_average=average,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=len(LAYOUTS) // batch_size,
        train_sampling_strategy="sequential",
        max_steps=1,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Samples(model.config, LAYOUTS)
    trainer = InternVLXTrainer(model, arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    moved = [(old - new.detach()) / RATE for old, new in zip(before, model.parameters(), strict=True)]
    return torch.cat([each.flatten() for each in moved]), trainer.state.log_history[0]["loss"]


def gradient_by_hand(average, batch_size):
    model = tiny_model(projector_config={"drop_path_rate": 0.0})
    data, sums, counts = Samples(model.config, LAYOUTS), [], []
    for start in range(0, len(LAYOUTS), batch_size):
        losses, tokens = [], 0
        for sample in (data[i] for i in range(start, start + batch_size)):
            batch = collate([sample])
            labels = batch.pop("labels")[0, 1:]
            losses.append(F.cross_entropy(model(**batch).logits[0, :-1], labels, reduction="sum"))
            tokens += int((labels != -100).sum())
        sums.append(sum(losses))
        counts.append(tokens)
    if average == "step":
        loss = sum(sums) / sum(counts)
    else:
        loss = sum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([each.flatten() for each in gradients]), loss.item()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("average", ["step", "batch"])
def test_a_step_s_gradient_is_that_of_the_mean_by_hand(average, batch_size, tmp_path):
    """Relative to the norm: weights of float32 that move by a thousandth of their gradient keep three digits of it."""
    gradient, logged = gradient_of_a_step(tmp_path, average, batch_size)
    expected, loss = gradient_by_hand(average, batch_size)
    assert (gradient - expected).norm() <= 2e-3 * expected.norm()
    assert logged == pytest.approx(loss, abs=1e-4)


def test_the_two_means_differ_by_most_of_their_size_for_answers_of_unequal_length():
    by_step, by_batch = (gradient_by_hand(average, 1)[0] for average in ("step", "batch"))
    assert (by_step - by_batch).norm() > 0.3 * by_step.norm()
