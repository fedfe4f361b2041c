"""`internvlx train` from a configuration file to a checkpoint: stages, resuming, stopping, evaluation, what it leaves."""

import json
import os
import re
import runpy
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.utils import is_flash_attn_2_available

from card_reports import REPORT
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.cli import main
from internvlx_hf.hub.model_card import write_card
from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.training.merge import merge_adapter
from internvlx_hf.training.signals import SaveOnSignal
from internvlx_hf.training.trainer import InternVLXTrainer, frozen_tower
from tiny import LVTC, tiny_model
from training_helpers import (
    changed,
    losses,
    run,
    save_checkpoint,
    saved_weights,
    write_config,
    write_data,
)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage_one")
    assert main(["train", write_config(folder, stage=1, eval_data=str(write_data(folder / "eval", 5, seed=1)))]) == 0
    return folder


@pytest.mark.slow
def test_stage_one_changes_the_projectors_alone(stage_one):
    weights = changed(saved_weights(stage_one / "base"), saved_weights(stage_one / "out"))
    assert weights == {name for name in saved_weights(stage_one / "base") if "projector" in name}
    for folder in ("out", "out/checkpoint-3"):
        assert {"modeling_internvlx.py", "processing_internvlx.py"} <= {*os.listdir(stage_one / folder)}


@pytest.mark.slow
def test_stage_two_starts_from_stage_one_and_changes_everything(stage_one, tmp_path):
    run(tmp_path, model_name_or_path=str(stage_one / "out"), stage=2, bf16=True)
    before, after = saved_weights(stage_one / "out"), saved_weights(tmp_path / "out")
    assert changed(before, after) == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


@pytest.mark.slow
def test_what_is_frozen_may_be_in_half_precision_and_what_is_trained_is_not(tmp_path):
    trainer = run(tmp_path, stage=1, dtype="bfloat16", bf16=True, learning_rate=4e-5)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "projector" in name else torch.bfloat16)
    before, after = saved_weights(tmp_path / "base"), saved_weights(tmp_path / "out")
    for name, tensor in after.items():
        if "projector" not in name:
            assert torch.equal(tensor, before[name].to(torch.bfloat16))
        else:  # steps this small are lost on numbers of 8 bits
            assert not torch.equal(tensor, before[name].to(torch.bfloat16).float())
    again = run(tmp_path, stage=2, model_name_or_path=str(tmp_path / "out"), output_dir=str(tmp_path / "two"))
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_table_is_printed_and_the_record_is_kept(stage_one, tmp_path, capsys):
    run(tmp_path, stage=2, freeze=["model.vision_tower"], max_patches=2)
    printed = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in printed if line.startswith("model.vision_tower"))
    assert (row[1], row[3]) == ("0", "0.0%")

    recipe = json.loads((stage_one / "out" / "training_recipe.json").read_text())
    base = tiny_model(**LVTC)
    assert recipe["trained_modules"] == {
        part: sum(p.numel() for p in base.get_submodule(part).parameters())
        for part in ("model.multi_modal_projector", "model.lvtc")
    }
    assert (recipe["base_model"], recipe["steps"], recipe["settings"]["stage"]) == ("base", 6, 1)
    assert recipe["tokens_per_tile"] == {"stage_one": 4, "stage_two": 16}
    assert recipe["seen"]["stage_two_tokens"] == 16 * recipe["seen"]["tiles"]
    assert recipe["metrics"]["eval_loss"] > 0
    assert str(stage_one) not in (stage_one / "out" / "training_recipe.json").read_text()
    assert "model.multi_modal_projector" in (stage_one / "out" / "README.md").read_text()
    assert InternVLXProcessor.from_pretrained(tmp_path / "out").image_processor.max_patches == 2


@pytest.mark.slow
def test_a_second_training_remembers_what_the_first_trained(stage_one, tmp_path):
    """A projector that was trained in stage one and is frozen in stage two counts as trained, also after LoRA and a merge."""
    base = shutil.copytree(stage_one / "out", tmp_path / "base")
    (base / "conversion_report.json").write_text(json.dumps(REPORT))
    projectors = ["model.lvtc", "model.multi_modal_projector"]
    common = {"model_name_or_path": str(base), "max_steps": 1}
    run(tmp_path, **common, output_dir=str(tmp_path / "frozen"), stage=2, freeze=projectors)
    run(tmp_path, **common, output_dir=str(tmp_path / "lora"), lora_rank=2)
    merge_adapter(tmp_path / "lora", tmp_path / "merged")
    for name in ("frozen", "merged"):
        recipe = json.loads((tmp_path / name / "training_recipe.json").read_text())
        assert recipe["trained_before"] == sorted(projectors)
        assert name == "merged" or not {*projectors} & {*recipe["trained_modules"]}
        assert "Not trained yet" not in write_card(tmp_path / name).text
    (base / "training_recipe.json").unlink()
    assert "Not trained yet" in write_card(base).text


# -- resuming


CASES = {
    "batches of like cost": {},
    "packed": {"packing_tokens": 60, "per_device_train_batch_size": 1, "num_train_epochs": 2},
    "packed stream": {"packing_tokens": 60, "per_device_train_batch_size": 1, "streaming": True},
    "streaming, skipping": {
        "streaming": True,
        "shuffle_buffer": 4,
        "max_steps": 8,
        "save_steps": 5,
        "on_broken": "skip",
    },
    "second epoch": {"max_steps": -1, "num_train_epochs": 2, "save_steps": 8},
    "end of an epoch": {"max_steps": -1, "num_train_epochs": 2, "save_steps": 6},
    "shuffled, accumulating, skipping, with learning rates": {
        "on_broken": "skip",
        "train_sampling_strategy": "random",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "learning_rates": {"model.lvtc": 5e-3, "model.vision_tower.encoder.layer.0": 1e-4},
    },
    "frozen tower": {"freeze": ["model.vision_tower"], "gradient_checkpointing": True},
    "workers": {"dataloader_num_workers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_matches_an_uninterrupted_one_bit_for_bit(case, tmp_path):
    """Dropout, stochastic depth and shuffling included."""
    settings = CASES[case]
    if "on_broken" in settings:
        write_data(tmp_path / "data")
        (tmp_path / "data" / "5.png").unlink()
    whole = run(tmp_path, **settings)
    checkpoint = tmp_path / "out" / f"checkpoint-{settings.get('save_steps', 3)}"
    resumed = run(
        tmp_path, **settings, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(checkpoint), seed=42
    )
    assert resumed.state.global_step == whole.state.global_step > int(checkpoint.name.split("-")[1])
    assert losses(resumed) == losses(whole)
    assert changed(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "resumed")) == set()
    assert changed(saved_weights(checkpoint), saved_weights(tmp_path / "out"))


@pytest.fixture
def heard_signals():
    """A test run in the background of a script would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At(TrainerCallback):
    """Does something in the middle of a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.what()


@pytest.mark.slow
def test_a_stopped_run_saves_a_checkpoint_and_resumes_from_it(heard_signals, tmp_path, monkeypatch, capsys):
    whole = run(tmp_path, save_strategy="no")
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    config = write_config(tmp_path, output_dir=str(tmp_path / "stopped"), save_strategy="no")
    with monkeypatch.context() as patch:
        callbacks = [At(3, lambda: os.kill(os.getpid(), signal.SIGINT))]
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, *callbacks])
        assert main(["train", config]) == 130
    assert "stopped after step 4 of 6; resume with --resume_from_checkpoint last" in capsys.readouterr().err
    assert {one: signal.getsignal(one) for one in handlers} == handlers
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / "stopped" / "model.safetensors").exists()

    assert main(["train", config]) == 1
    assert "already holds checkpoint-4" in capsys.readouterr().err
    assert main(["train", config, "--resume_from_checkpoint", "last"]) == 0
    assert changed(saved_weights(tmp_path / "out"), saved_weights(tmp_path / "stopped")) == set()
    assert whole.state.global_step == 6


def test_an_ignored_signal_stays_ignored(heard_signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    callback = SaveOnSignal()
    callback.on_train_begin(None, None, None)
    os.kill(os.getpid(), signal.SIGINT)
    callback.on_train_end(None, None, None)
    assert callback.received is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_second_signal_stops_at_once(heard_signals):
    callback, before = SaveOnSignal(), signal.getsignal(signal.SIGINT)
    callback.on_train_begin(None, None, None)
    os.kill(os.getpid(), signal.SIGINT)
    assert callback.received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_record_names_the_data(tmp_path):
    first, second = write_data(tmp_path / "first", 4), write_data(tmp_path / "second", 6)
    second = second.rename(second.with_name("more.jsonl"))
    meta = {
        "a": {"annotation": str(first), "repeat_time": 2},
        "b": {"root": str(tmp_path / "second"), "annotation": str(second), "max_dynamic_patch": 2},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    trainer = run(tmp_path, train_data=str(tmp_path / "meta.json"), eval_data=str(first), max_steps=-1)
    assert trainer.state.global_step == (2 * 4 + 6) / 2
    recipe = json.loads((tmp_path / "out" / "training_recipe.json").read_text())
    assert recipe["data"] == [
        {"name": "data.jsonl", "samples": 4, "repeat_time": 2},
        {"name": "more.jsonl", "samples": 6, "repeat_time": 1},
    ]
    assert recipe["evaluation_data"] == [{"name": "data.jsonl", "samples": 4, "repeat_time": 1}]
    assert "more.jsonl" in (tmp_path / "out" / "README.md").read_text()
    assert recipe["settings"]["samples_per_step"] == 2
    assert "packing_tokens" not in recipe["settings"]
    assert recipe["settings"]["attn_implementation"] == "sdpa"

    run(tmp_path, output_dir=str(tmp_path / "packed"), max_steps=1, packing_tokens=60, max_length=50)
    settings = json.loads((tmp_path / "packed" / "training_recipe.json").read_text())["settings"]
    assert (settings["packing_tokens"], settings["max_length"], settings["rows_per_step"]) == (60, 50, 2)
    assert settings["attn_implementation"] == "varlen_sdpa"
    assert "samples_per_step" not in settings  # a row holds as many as fit


@pytest.mark.slow
@pytest.mark.parametrize("packing_tokens", [0, 60], ids=["padded", "packed"])
def test_broken_samples_are_skipped_if_set_and_named(packing_tokens, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "5.png").write_bytes(b"no picture")
    seen = []
    for name in ("data.encoding", "training.run_data"):
        logger = f"internvlx_hf.{name}.logger.warning"
        monkeypatch.setattr(logger, lambda message, *args: seen.append(message % args if args else message))
    settings = {"packing_tokens": packing_tokens, "eval_data": str(data)}
    with pytest.raises(ValueError, match=r"data.jsonl, line 6"):
        run(tmp_path, **settings)
    assert not (tmp_path / "out").exists()
    trainer = run(tmp_path, **settings, on_broken="skip")
    assert any("data.jsonl, line 6" in message for message in seen)
    assert "1 of 12 samples are skipped: they are broken or too long." in seen
    assert trainer.state.log_history[-1]["eval_loss"] > 0


# -- the frozen tower, evaluation


@pytest.mark.slow
def test_only_a_frozen_tower_has_no_dropout_in_training(tmp_path):
    seen = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen[args.stage] = {name: module.training for name, module in model.named_modules()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, Look()])
        for stage in (1, 2):
            trainer = run(tmp_path, output_dir=str(tmp_path / str(stage)), stage=stage, max_steps=1)
            assert isinstance(trainer, InternVLXTrainer)
            assert (frozen_tower(trainer.model) is not None) == (stage == 1)
        in_stage_1 = seen[1]
        run(tmp_path, output_dir=str(tmp_path / "drop"), stage=1, max_steps=1, vision_drop_path_rate=0.1)
        assert all(seen[1].values())
        seen[1] = in_stage_1
    in_tower = {name for name in seen[1] if name.startswith("model.vision_tower")}
    assert {name for name, training in seen[1].items() if not training} == in_tower
    assert all(seen[2].values())


def test_evaluation_returns_the_mean_loss_without_other_logits(tmp_path):
    data = write_data(tmp_path / "eval", 5, seed=3)
    shapes = []
    trainer = run(
        tmp_path, eval_data=str(data), eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2, max_steps=3
    )
    trainer.model.lm_head.register_forward_hook(lambda _, args, output: shapes.append(output.shape[:-1].numel()))
    loss = trainer.evaluate()["eval_loss"]
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged[0] == pytest.approx(loss)

    samples = [json.loads(line) for line in data.read_text().splitlines()]
    collate = InternVLXDataCollator(InternVLXProcessor.from_pretrained(tmp_path / "base"))
    batches = [collate(samples[start : start + 2]) for start in (0, 2, 4)]
    model = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = [model(**batch).loss.item() for batch in batches]
    # the Trainer weighs batches by their samples
    assert loss == pytest.approx((2 * expected[0] + 2 * expected[1] + expected[2]) / 5, abs=1e-4)
    supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    # per batch: the supervised rows, and each sample's last
    assert sum(shapes) == supervised + 5


# -- bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_name_or_path": "native"},
            r"native is a model of type 'internvl', expected 'internvl_x'. Convert it first",
        ),
        ({"model_name_or_path": "old"}, r"old is a model of type 'internvl_chat'.* internvlx convert .*old OUT"),
        ({"model_name_or_path": "damaged"}, r"damaged lacks 1 weights, model.lvtc.hr_projector"),
        ({"model_name_or_path": "nowhere"}, r"nowhere"),
        ({"model_revision": "v2"}, r"revision='v2' is one of a repository on the Hub, but .* is a folder here"),
        ({"teacher": "base", "teacher_revision": "v2"}, r"revision='v2' .*, but .*base is a folder here"),
        ({"train_data": "nowhere.json"}, r"nowhere.json"),
        ({"min_patches": 5, "max_patches": 2}, r"min_patches"),
        pytest.param(
            {"attn_implementation": "flash_attention_2"},
            r"`attn_implementation` is 'flash_attention_2': .* 'sdpa' needs no package",
            marks=pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed"),
        ),
        ({"attn_implementation": "fast"}, r"fast"),
        (
            {"packing_tokens": 60, "attn_implementation": "sdpa", "max_mask_bytes": 1000},
            r"dense masks of 0.0 MiB, more than `max_mask_bytes`=1000",
        ),
        ({"streaming": True, "max_steps": -1}, r"`streaming` data have an unknown number of samples: set `max_steps`"),
        (
            {"train_data": "you/data", "eval_data": "you/data"},
            r"`eval_split` 'train', which is also the training data",
        ),
        ({"freeze": ["model.vision"]}, r"`freeze` names 'model.vision'"),
        ({"learning_rates": {"model.lvt": 1e-3}}, r"`learning_rates` names 'model.lvt'"),
        ({"resume_from_checkpoint": "last"}, r"`resume_from_checkpoint` is last, but .*out holds no checkpoint"),
        (
            {"resume_from_checkpoint": "nowhere"},
            r"`resume_from_checkpoint` is nowhere, which is not a training checkpoint",
        ),
    ],
)
def test_errors_are_printed_in_one_line_before_anything_is_written(settings, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, model_type in (("native", "internvl"), ("old", "internvl_chat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings.get("model_name_or_path") == "damaged":
        save_checkpoint(tmp_path / "damaged")
        weights = saved_weights(tmp_path / "damaged")
        weights.pop(next(name for name in weights if "hr_projector" in name))
        save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    assert main(["train", write_config(tmp_path, **settings)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("status", "inherited", "open_after"), [(0, False, False), (1, False, True), (0, True, True)])
def test_the_module_ends_the_process_group_of_a_training_that_ended_well(status, inherited, open_after, monkeypatch):
    """Others may be in the middle of an exchange when a training fails; a group that was there before is not its own."""

    def start() -> None:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    monkeypatch.setattr("internvlx_hf.cli.main", lambda arguments: status if inherited else start() or status)
    monkeypatch.setattr(sys, "argv", ["training", "run.yaml"])
    if inherited:
        start()
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_module("internvlx_hf.training", run_name="__main__")
        assert (end.value.code, torch.distributed.is_initialized()) == (status, open_after)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_run_warns_of_what_it_trains_in_half_precision(tmp_path, caplog):
    run(tmp_path, stage=1, dtype="bfloat16", bf16=False, max_steps=1)
    assert "100.0% of the trained parameters are stored in half precision (`dtype` bfloat16)" in caplog.text
