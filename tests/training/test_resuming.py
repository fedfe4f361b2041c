"""The folder that a run writes, the checkpoint that it resumes from, and settings that differ from the checkpoint's."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from internvlx_hf.cli import main
from internvlx_hf.training.resuming import check_output_folder, find_checkpoint
from internvlx_hf.training.run_settings import saved_settings
from training_helpers import changed, run, saved_weights, write_config, write_data


@pytest.mark.parametrize("steps", [(500, 1000), (1000, 500), (9, 10, 100), (99, 100, 1000, 998)])
def test_the_last_checkpoint_is_the_one_of_the_most_steps(steps, tmp_path):
    for step in steps:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
    arguments = SimpleNamespace(resume_from_checkpoint="last", output_dir=str(tmp_path))
    assert find_checkpoint(arguments) == str(tmp_path / f"checkpoint-{max(steps)}")
    arguments.resume_from_checkpoint = None
    with pytest.raises(ValueError, match=f"already holds checkpoint-{max(steps)}"):
        find_checkpoint(arguments)


@pytest.mark.parametrize(
    ("out", "file", "message"),
    [
        ("base", None, r"`model_name_or_path` is .*base, which is in `output_dir` .*base, where the trained model is"),
        (".", None, r"`model_name_or_path` is .*base, which is in `output_dir`"),
        (
            "out",
            "model-00001-of-00002.safetensors",
            r"`output_dir` .*out already holds a model \(model-00001-of-00002",
        ),
        (
            "out",
            "adapter_model.safetensors",
            r"already holds a model \(adapter_model.safetensors\), which this run would",
        ),
        ("out", "config.json", r"\(config.json\), .* Choose another `output_dir`, .* with `resume_from_checkpoint`"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--lora_rank", "2")], ids=["full", "LoRA"])
def test_a_run_does_not_replace_a_model_without_being_asked(out, file, message, flags, tmp_path, capsys):
    for folder in ("base", "out"):
        (tmp_path / folder).mkdir()
    if file:
        (tmp_path / out / file).write_text("{}")
    settings = ("--model_name_or_path", str(tmp_path / "base"), "--train_data", "nowhere.json", "--use_cpu", *flags)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *settings, "--output_dir", str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_may_replace_the_model_that_it_resumes_and_no_other(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("")
    out, sources = str(tmp_path / "out"), {"model_name_or_path": "you/model", "teacher": None}
    check_output_folder(out, str(tmp_path / "out" / "checkpoint-3"), sources)
    with pytest.raises(ValueError, match=r"already holds a model \(model.safetensors\)"):
        check_output_folder(out, str(tmp_path / "other" / "checkpoint-3"), sources)


# -- settings that differ from the checkpoint's


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs of one step, full and LoRA, with a checkpoint; what is resumed from it is refused or goes on for a step."""
    folder = tmp_path_factory.mktemp("stopped")
    common = {"max_steps": 1, "save_steps": 1, "learning_rates": {"model.lvtc": 2e-3}}
    run(folder, **common, freeze=["model.language_model.layers.0"], output_dir=str(folder / "full"))
    run(folder, **common, lora_rank=2, lora_alpha=4.0, output_dir=str(folder / "lora"))
    return folder


def resume(folder, kind, tmp_path, checkpoint=None, **settings):
    own = {"lora_rank": 2, "lora_alpha": 4.0} if kind == "lora" else {"freeze": ["model.language_model.layers.0"]}
    common = {
        "max_steps": 2,
        "save_steps": 5,
        "learning_rates": {"model.lvtc": 2e-3},
        "output_dir": str(tmp_path / "out"),
    }
    settings = common | own | {"resume_from_checkpoint": str(checkpoint or folder / kind / "checkpoint-1")} | settings
    return write_config(folder, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("full", {"learning_rate": 5.0}, r"cannot change on resuming: `learning_rate` was 0.001, is 5.0. Set them as"),
        (
            "full",
            {"learning_rates": {"model.lvtc": 1.0}, "weight_decay": 0.5, "adam_beta1": 0.1},
            r"`learning_rates` was {'model.lvtc': 0.002}, is {'model.lvtc': 1.0}, "
            r"`weight_decay` was 0.0, is 0.5, `adam_beta1` was 0.9, is 0.1\.",
        ),
        (
            "full",
            {"freeze": ["model.language_model.layers.3"]},
            r"`freeze` was \['model.language_model.layers.0'\], is \['model.language_model.layers.3'\]",
        ),
        ("lora", {"lora_alpha": 400.0}, r"`lora_alpha` was 4.0, is 400.0"),
        ("lora", {"lora_rank": 4}, r"`lora_rank` was 2, is 4"),
        ("lora", {"lora_rank": 0, "lora_alpha": None}, r"`lora_rank` was 2, is 0, `lora_alpha` was 4.0, is None"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_change_on_resuming_are_refused(
    kind, settings, message, stopped, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("internvlx_hf.training.train.load_run_data", None)  # before any data are read
    assert main(["train", resume(stopped, kind, tmp_path, **settings)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_settings_that_change_on_resuming_are_warned_of_by_name(stopped, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("internvlx_hf.training.run_settings.logger.warning", seen.append)
    unremarkable = {"freeze": ["model.language_model.layers.0.*"], "logging_steps": 2, "dataloader_num_workers": 1}
    assert main(["train", resume(stopped, "full", tmp_path, **unremarkable)]) == 0
    assert seen == []
    more = write_data(tmp_path / "more", 5).rename(tmp_path / "more" / "more.jsonl")
    new = {"train_data": str(more), "max_patches": 1, "seed": 7, "per_device_train_batch_size": 1}
    config = resume(stopped, "full", tmp_path, **new, output_dir=str(tmp_path / "two"))
    assert main(["train", config]) == 0
    (message,) = seen
    assert "`max_patches` was 3, is 1" in message
    assert "`train_data` was ['data.jsonl, 12 records, repeated 1 x'], is ['more.jsonl, 5 records," in message
    assert "`seed` was 42, is 7" in message
    assert "`samples or rows per step` was 2, is 1" in message
    assert message.count("` was ") == 4, message


@pytest.mark.slow
def test_a_checkpoint_without_the_optimizer_or_of_an_earlier_version_resumes_with_other_settings(
    stopped, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr("internvlx_hf.training.run_settings.logger.warning", seen.append)
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(stopped / "full" / "checkpoint-1", checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert saved_settings(str(checkpoint))["learning_rate"] == 1e-3
    del state["stateful_callbacks"]["RunSettings"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    config = resume(stopped, "full", tmp_path, checkpoint, learning_rate=5e-3, save_steps=1)
    assert main(["train", config]) == 0
    assert saved_settings(str(tmp_path / "out" / "checkpoint-2"))["learning_rate"] == 5e-3

    assert seen == []

    without = tmp_path / "without"
    shutil.copytree(stopped / "full" / "checkpoint-1", without)
    for name in ("optimizer.pt", "scheduler.pt"):
        (without / name).unlink()
    config = resume(stopped, "full", tmp_path, without, learning_rate=5e-3, output_dir=str(tmp_path / "two"))
    assert main(["train", config]) == 0
    assert "apply from there on: `learning_rate` was 0.001, is 0.005." in seen[0]


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_step_and_keeps_its_metrics(stopped, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(stopped / "full", out)
    config = resume(stopped, "full", tmp_path, max_steps=1, save_steps=1, resume_from_checkpoint="last")
    evaluation = ("--eval_data", str(write_data(tmp_path / "eval", 4)))
    before = json.loads((out / "training_recipe.json").read_text())
    assert main(["train", config, *evaluation]) == 0
    after = json.loads((out / "training_recipe.json").read_text())
    assert after["metrics"]["eval_loss"] > 0
    assert changed(saved_weights(stopped / "full"), saved_weights(out)) == set()
    assert not (out / "checkpoint-2").exists()
    assert after["metrics"].items() >= before["metrics"].items()
    assert after["metrics"]["train_loss"] > 0
    assert f"| `train_loss` | {before['metrics']['train_loss']:.4g}" in (out / "README.md").read_text()
    assert re.search(r"trained 0 steps in [\d.e-]+ s\n", capsys.readouterr().out)

    (out / "training_recipe.json").unlink()
    assert main(["train", config]) == 0
    assert "train_loss" not in json.loads((out / "training_recipe.json").read_text())["metrics"]
