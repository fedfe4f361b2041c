"""TRL's trainers with our model and processor as they are, on samples with images."""

import importlib.util
import math

import pytest
import torch
from PIL import Image

from tiny import LVTC, tiny_model, tiny_processor
from versions import needs_transformers

if importlib.util.find_spec("trl") is None:
    pytest.skip("needs TRL", allow_module_level=True)

import trl
from datasets import Dataset
from packaging.version import Version
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

if Version(trl.__version__) < Version("1.15"):
    pytest.skip("earlier TRL has no loss on the assistant's turns alone with pictures", allow_module_level=True)

pytestmark = needs_transformers("5.18", "TRL has no loss on the assistant's turns alone with images")
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
TWO_CASES = pytest.mark.parametrize("settings", [{}, LVTC], ids=["lvtc off", "lvtc on"])


def conversations() -> Dataset:
    """Questions of one wording, whose answers are on the pictures; the second of each pair has two pictures."""
    samples = []
    for colour, rgb in COLOURS.items():
        for count in (1, 2):
            messages = [
                {"role": "user", "content": "What is on the picture?"},
                {"role": "assistant", "content": f"{colour}."},
                {"role": "user", "content": "Read the digits."},
                {"role": "assistant", "content": f"None, {colour}."},
            ]
            samples.append({"messages": messages, "images": [Image.new("RGB", (40, 30), rgb)] * count})
    return Dataset.from_list(samples)


def prompts() -> Dataset:
    samples = [
        {
            "prompt": [{"role": "user", "content": "What is on the picture?"}],
            "completion": [{"role": "assistant", "content": f"{colour}."}],
            "images": [Image.new("RGB", (40, 30), rgb)],
        }
        for colour, rgb in COLOURS.items()
    ]
    return Dataset.from_list(samples)


ARGUMENTS = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def trainer_for(model, processor, dataset: Dataset, folder, **kwargs) -> SFTTrainer:
    arguments = ARGUMENTS | kwargs
    return SFTTrainer(model, SFTConfig(str(folder), **arguments), train_dataset=dataset, processing_class=processor)


def supervised(trainer: SFTTrainer) -> list[str]:
    """What carries loss in each row of the first batch, as text."""
    batch = next(iter(trainer.get_train_dataloader()))
    tokenizer = trainer.processing_class.tokenizer
    return sorted(tokenizer.decode(row[row != -100]) for row in batch["labels"])


@pytest.mark.slow
def test_sft_learns_what_is_on_the_images(tmp_path):
    model = tiny_model(**LVTC)
    trainer = trainer_for(
        model, tiny_processor(model.config), conversations(), tmp_path, max_steps=20, assistant_only_loss=True
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.1 * logs[0]["loss"]
    assert logs[-1]["mean_token_accuracy"] == 1.0
    assert 0 < logs[-1]["entropy"] < logs[0]["entropy"]


def test_assistant_only_labels_are_the_assistant_s_text(tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, tiny_processor(model.config), conversations(), tmp_path, assistant_only_loss=True)
    said = [f"{colour}.<|im_end|>None, {colour}.<|im_end|>" for colour in COLOURS for _ in range(2)]
    assert supervised(trainer) == sorted(said)


def test_the_loss_is_the_model_s_own(tmp_path):
    """With labels on the assistant's turns alone, TRL's fused head and our supervised rows say the same."""
    model = tiny_model(projector_config={"drop_path_rate": 0.0})
    trainer = trainer_for(model, tiny_processor(model.config), conversations(), tmp_path, assistant_only_loss=True)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    with torch.no_grad():
        expected = model(**batch, use_cache=False).loss
        found = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def saved_model(settings, folder):
    """A model that drops branches in training, from a folder: the reference model is loaded from there too."""
    model = tiny_model(projector_config={"drop_path_rate": 0.5}, **settings)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder), tiny_processor(model.config)


@TWO_CASES
def test_dpo_starts_at_the_reference_and_prefers_what_is_chosen(settings, tmp_path):
    model, processor = saved_model(settings, tmp_path / "model")
    samples = [
        {
            "prompt": [{"role": "user", "content": "What is on the image?"}],
            "chosen": [{"role": "assistant", "content": f"{colour}."}],
            "rejected": [{"role": "assistant", "content": "green."}],
            "images": [Image.new("RGB", (40, 30), rgb)],
        }
        for colour, rgb in COLOURS.items()
    ]
    arguments = ARGUMENTS | {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path / "out"), max_length=None, **arguments),
        train_dataset=Dataset.from_list(samples),
        processing_class=processor,
    )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    # of two models that are the same, in float32
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] < first["loss"]
    assert second["rewards/margins"] > 0


@TWO_CASES
def test_grpo_s_policy_starts_as_its_own_reference(settings, tmp_path):
    model, processor = saved_model(settings, tmp_path / "model")
    prompts = [
        {"prompt": [{"role": "user", "content": "What is on the image?"}], "image": Image.new("RGB", (40, 30), rgb)}
        for rgb in COLOURS.values()
    ]

    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    arguments = ARGUMENTS | {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    sampling = {"num_generations": 2, "max_completion_length": 6, "beta": 0.1}
    trainer = GRPOTrainer(
        model,
        length,
        args=GRPOConfig(str(tmp_path / "out"), disable_dropout=True, **sampling, **arguments),
        train_dataset=Dataset.from_list(prompts),
        processing_class=processor,
    )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    # of two models that are the same, in float32
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert math.isfinite(second["kl"])
