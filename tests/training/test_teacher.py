"""`internvlx train` with a teacher: what it logs, saves, resumes and refuses."""

import json
import re

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from internvlx_hf import InternVLXProcessor
from internvlx_hf.cli import main
from internvlx_hf.training.distillation import DistillationTrainer
from tiny import tiny_model, tiny_processor
from training_helpers import (
    RANDOM,
    changed,
    losses,
    run,
    save_checkpoint,
    save_dial,
    saved_weights,
    write_config,
    write_data,
)

ALIKE = {
    "projector_config": {"drop_path_rate": 0.0},
    "text_config": {"initializer_range": 0.05},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint with four times the tokens per tile and another slicing."""
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny_model(seed=1, projector_config={"projector_type": "pixel_shuffle"})
    model.save_pretrained(folder)
    tiny_processor(model.config, max_patches=4, slicing="ratio").save_pretrained(folder)
    return folder


def settings_for(teacher, **settings):
    return {
        "teacher": str(teacher),
        "teacher_dtype": "float32",
        "teacher_weight": 0.25,
        "teacher_temperature": 2.0,
    } | settings


class Look(TrainerCallback):
    """What a trainer holds in its last step."""

    seen: dict = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.seen["parameters"] = sum(len(group["params"]) for group in optimizer.param_groups)
        self.seen["own"] = sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_a_run_logs_both_losses_and_saves_the_student_alone(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, Look()])
    data = {"eval_data": str(write_data(tmp_path / "eval", 5, seed=3)), "logging_steps": 2}
    trainer = run(tmp_path, **settings_for(teacher, **data))
    assert isinstance(trainer, DistillationTrainer)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["loss"] == pytest.approx(0.75 * entry["ce_loss"] + 0.25 * 4 * entry["teacher_kl"], rel=1e-5)
    printed = capsys.readouterr().out
    assert re.search(r"step 2/6  loss \S+  ce \S+  kl \S+  lr", printed)
    assert f"Teacher: {teacher.name}, 'ratio' tiles, weight 0.25, temperature 2\n" in printed
    assert Look.seen["parameters"] == Look.seen["own"] == len(list(trainer.model.parameters()))
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    assert not trainer.teacher.training
    taught = saved_weights(teacher)
    assert all(
        torch.equal(weight, taught[name]) for name, weight in trainer.teacher.state_dict().items() if name in taught
    )
    for saved in (tmp_path / "out", tmp_path / "out" / "checkpoint-6"):
        assert saved_weights(saved).keys() == saved_weights(tmp_path / "base").keys()
    assert InternVLXProcessor.from_pretrained(tmp_path / "out").image_processor.slicing == "edge"

    text = (tmp_path / "out" / "training_recipe.json").read_text()
    recipe = json.loads(text)
    own = {name: value for name, value in recipe["settings"].items() if name.startswith("teacher")}
    assert own == settings_for(teacher.name)
    assert str(teacher) not in text + (tmp_path / "out" / "README.md").read_text()
    plain = run(
        tmp_path,
        model_name_or_path=str(tmp_path / "out"),
        output_dir=str(tmp_path / "plain"),
        max_steps=1,
        **data,
        learning_rate=0.0,
    )
    assert recipe["metrics"]["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        {"gradient_checkpointing": True, "vision_drop_path_rate": 0.2, "packing_tokens": 60},
        {"lora_rank": 2, "lora_modules_to_save": ["multi_modal_projector"], "streaming": True},
        {"tokens_per_tile_sampling": "all", "streaming": True},
    ],
    ids=["packed, checkpointing, drop path", "LoRA, stream", "sizes, stream"],
)
def test_a_resumed_run_matches_bit_for_bit(extra, teacher, tmp_path):
    settings = settings_for(teacher, **extra)
    if "tokens_per_tile_sampling" in extra:
        save_dial(tmp_path / "base", RANDOM)
    whole = run(tmp_path, **settings)
    resumed = run(
        tmp_path,
        **settings,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"),
    )
    assert losses(resumed) == losses(whole)
    assert changed(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "resumed")) == set()
    kls = [entry["teacher_kl"] for entry in whole.state.log_history if "teacher_kl" in entry]
    assert len(set(kls)) == 6


def test_a_teacher_that_is_the_base_has_nothing_to_teach_an_adapter_at_first(tmp_path):
    """It is loaded apart from the student, whose weights then leave it."""
    save_checkpoint(tmp_path / "base", **ALIKE)
    settings = settings_for(tmp_path / "base", lora_rank=2, lora_dropout=0.0)
    trainer = run(tmp_path, **settings, max_steps=2, learning_rate=0.1, warmup_steps=0)
    first, second = [entry["teacher_kl"] for entry in trainer.state.log_history if "teacher_kl" in entry]
    assert first == pytest.approx(0, abs=1e-5)
    assert second > 1e-3


# -- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"teacher": "native"},
            r"native is a model of type 'internvl', .* internvlx convert .*native OUT --projector keep",
        ),
        ({"teacher": "nowhere"}, r"nowhere is neither the folder of a checkpoint"),
        (
            {"teacher": "out/teacher"},
            r"`teacher` is .*teacher, which is in `output_dir` .*out, where the trained model is",
        ),
        ({"teacher": "bare"}, r"`teacher` is .*bare, whose processor cannot be loaded"),
        ({"teacher": "larger"}, r"`teacher` is .*larger, which has logits of 330 tokens, expected the student's 320"),
        ({"teacher": "renamed"}, r"another vocabulary: its token \d+ is 'new', expected no token, as in the student"),
        ({"teacher": "swapped"}, r"has the image tokens .*, expected the student's"),
        (
            {"teacher": "other"},
            r"of a short conversation, its \d+ supervised tokens for the student are not the \d+ for",
        ),
        ({"teacher": "taught", "teacher_weight": 0}, r"teacher_weight=0.*, expected a number above 0 and up to 1"),
        ({"teacher": "taught", "teacher_temperature": 0}, r"teacher_temperature=0.*, expected a positive number"),
        ({"teacher_slicing": "ratio"}, r"`teacher_slicing` is 'ratio', but no `teacher` is given"),
        ({"teacher": "taught", "teacher_slicing": "rato"}, r"rato"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(
    settings, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make_teacher(tmp_path, settings.get("teacher"))
    before = sorted(tmp_path.glob("out/**/*"))
    monkeypatch.setattr("internvlx_hf.training.train.load_model", None)  # before any weights are read
    assert main(["train", write_config(tmp_path, **settings)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert sorted(tmp_path.glob("out/**/*")) == before


def make_teacher(root, name):
    """A folder that is no teacher for the reason of its name."""
    if name in (None, "nowhere"):
        return
    folder = root / name
    if name == "native":
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "internvl"}))
        return
    size = 330 if name == "larger" else 320
    model = tiny_model(text_config={"vocab_size": size})
    model.save_pretrained(folder)
    if name == "bare":
        return
    processor = tiny_processor(model.config)
    if name == "renamed":
        processor.tokenizer.add_tokens(["new"])
    if name == "swapped":
        processor.tokenizer.start_image_token, processor.tokenizer.end_image_token = "</img>", "<img>"
        processor = type(processor)(processor.image_processor, processor.tokenizer, image_seq_length=16)
    if name == "other":
        template = processor.resolve_chat_template()
        processor.chat_template = template.replace("{%- endgeneration", "{{- '!' -}}{%- endgeneration")
    processor.save_pretrained(folder)
