"""Fine-tuning with the HF `Trainer`, and with peft."""

import re

import pytest
import torch
from transformers import Trainer, TrainingArguments

from data_parallel import Samples, collate
from internvlx_hf import InternVLXForConditionalGeneration
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


@pytest.mark.slow
@pytest.mark.parametrize("layouts", [MIXED, [[5], [9], [3], [12]]], ids=["images and text", "text only"])
def test_trainer_lowers_the_loss(layouts, tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, tmp_path, layouts, max_steps=40, learning_rate=3e-3)
    trainer.train()
    curve = losses(trainer)
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])


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


@pytest.mark.slow
def test_trainer_learns_what_is_on_the_tiles(tmp_path):
    """Samples of the same text that differ in their tile alone: without looking, half of the answers are right."""
    torch.manual_seed(0)
    model = tiny_model(text_config={"initializer_range": 0.05})
    ids = torch.tensor([11] + [5] * 16 + [12])
    samples = [
        {
            "input_ids": torch.cat([ids, torch.tensor([20 + bright])]),
            "labels": torch.tensor([-100] * 18 + [20 + bright]),
            "pixel_values": torch.full((1, 3, 32, 32), 2.0 * bright - 1) + 0.1 * torch.randn(1, 3, 32, 32),
        }
        for bright in (0, 1)
        for _ in range(4)
    ]
    trainer = trainer_for(model, tmp_path, max_steps=40, learning_rate=3e-3)
    trainer.train_dataset = samples
    trainer.train()
    model.eval()
    batch = collate(samples)
    labels = batch.pop("labels")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[:, -2].argmax(-1), labels[:, -1])


@pytest.mark.slow
def test_resumed_training_repeats_the_uninterrupted_one_bit_by_bit(tmp_path):
    """Also PVTC's stochastic depth: the checkpoint restores the state of the random numbers."""
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    settings = {"projector_config": {"drop_path_rate": 0.5}}
    whole = trainer_for(tiny_model(**settings), tmp_path / "whole", **options)
    whole.train()

    resumed = trainer_for(tiny_model(seed=1, **settings), tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(resumed) == losses(whole)
    expected = weights(whole.model)
    assert [name for name, weight in weights(resumed.model).items() if not torch.equal(weight, expected[name])] == []

    # the counterpart: without its random numbers, stochastic depth takes another course
    (tmp_path / "whole" / "checkpoint-4" / "rng_state.pth").unlink()
    torch.manual_seed(99)
    other = trainer_for(tiny_model(seed=1, **settings), tmp_path / "other", **options, seed=7, data_seed=42)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(other)[4:] != losses(whole)[4:]


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


def test_trainer_evaluates_batches_with_and_without_images(tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, tmp_path, per_device_eval_batch_size=1)
    prediction = trainer.predict(trainer.eval_dataset)
    model.eval()
    with torch.no_grad():
        outputs = [model(**collate([sample])) for sample in trainer.eval_dataset]
    mean = sum(output.loss.item() for output in outputs) / len(outputs)
    assert prediction.metrics["test_loss"] == pytest.approx(mean, abs=1e-4)
    for row, output in zip(prediction.predictions, outputs, strict=True):
        logits = output.logits[0].numpy()
        assert row[: len(logits)] == pytest.approx(logits, abs=1e-4)


# -- peft


LORA = {
    "r": 4,
    "lora_alpha": 16,
    "init_lora_weights": False,
    "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "modules_to_save": ["multi_modal_projector"],
}


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_lora_with_the_projector_is_trained_saved_reloaded_and_merged(checkpointing, tmp_path):
    """1e-4 on logits of size 1: merging adds the low-rank product to the weight instead of to the result."""
    peft = pytest.importorskip("peft")
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    before = weights(base)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("vision_tower" in name for name in trainable)
    projector = {name for name in trainable if "multi_modal_projector.modules_to_save" in name}
    assert len(projector) == len(list(base.model.multi_modal_projector.original_module.parameters()))
    assert trainable - projector == {name for name in trainable if "language_model" in name and "lora_" in name}

    trainer_for(model, tmp_path / "run", max_steps=3, learning_rate=1e-2, gradient_checkpointing=checkpointing).train()
    batch = tiny_batch(base.config, [[3, "tile", 5], [7]])
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "adapter")

    fresh = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "base")
    unadapted = logits(fresh, batch)
    assert (unadapted - expected).abs().max() > 0.1
    reloaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(reloaded, batch), expected, atol=1e-4, rtol=0)
    merged = reloaded.merge_and_unload()
    assert type(merged) is InternVLXForConditionalGeneration
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-4, rtol=1e-4)

    merged.save_pretrained(tmp_path / "merged")
    again = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, batch), expected, atol=1e-4, rtol=1e-4)
    after = weights(again)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    targets = re.compile(LORA["target_modules"] + r"\.weight|.*\.multi_modal_projector\..*")
    assert changed == {name for name in after if targets.fullmatch(name)}
