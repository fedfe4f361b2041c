"""Fine-tuning with the HF `Trainer`, and with peft."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from data_parallel import Samples, collate
from tiny import LVTC, tiny_batch, tiny_model

MIXED = [[3, "tile", 5], [9], [2, "tile", "tile", 6], [12], ["tile", 4], [2, "tile", 9], [7], [4, "tile"]]


def trainer_for(model, folder, layouts=MIXED, **kwargs) -> Trainer:
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **kwargs,
    }
    dataset = Samples(model.config, layouts)
    return Trainer(
        model,
        TrainingArguments(folder, **arguments),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=collate,
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_text_only_batch_is_no_error_where_the_projectors_alone_are_trained(tmp_path):
    model = tiny_model(**LVTC)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("projector" in name)
    before = weights(model)
    trainer_for(model, tmp_path, [[5], [9], [3], [12]], weight_decay=0.0, max_steps=2).train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_image_tokens_whose_sum_is_beyond_16_bits_do_not_spoil_the_loss_of_a_text_only_batch():
    model = tiny_model().half().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("projector" in name)
    batch = tiny_batch(model.config, [[5], [7]])
    expected = model.eval()(**batch, labels=batch["input_ids"]).loss
    seen = []
    model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, tokens: seen.append(tokens + 1e3) or seen[0]
    )
    loss = model.train()(**batch, labels=batch["input_ids"]).loss
    assert seen[0].isfinite().all()
    assert seen[0].sum().isinf()
    torch.testing.assert_close(loss, expected)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Halves with different numbers of supervised tokens and of tiles. 1e-5: the same sums in another order."""
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = tiny_model(projector_config={"drop_path_rate": 0.0})
        trainer = trainer_for(
            model,
            tmp_path / str(batch_size),
            max_steps=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        found.append((losses(trainer), weights(model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], weight, atol=1e-5, rtol=1e-4)
