"""A YAML file and flags become settings; what is wrong with them is said before anything is read."""

import re
import warnings

import pytest
import yaml

from internvlx_hf.cli import main
from internvlx_hf.training.arguments import DataArguments, LoraArguments, ModelArguments
from internvlx_hf.training.train import SETTINGS, parse_arguments
from paths import ROOT

NEEDED = {"model_name_or_path": "base", "train_data": "data.json", "output_dir": "out", "use_cpu": True}


def parse(tmp_path, settings, *flags):
    path = tmp_path / "config.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(NEEDED | settings))
    return parse_arguments([str(path), *flags], SETTINGS)


def test_the_defaults_are_the_paper_s(tmp_path):
    *_, training, _ = parse(tmp_path, {})
    assert (training.learning_rate, training.num_train_epochs) == (4e-5, 1)
    assert training.lr_scheduler_type == "cosine"
    assert training.optim.startswith("adamw_torch")
    assert training.get_warmup_steps(1000) == 30


def test_flags_override_the_file(tmp_path):
    model, _, lora, training, _ = parse(
        tmp_path,
        {"learning_rate": 1e-3, "max_patches": 6, "bf16": False, "lora_rank": 8},
        *("--learning_rate", "2e-4", "--max-patches", "12", "--bf16", "--lora_rank=4"),
    )
    assert (training.learning_rate, model.max_patches, training.bf16, lora.lora_rank) == (2e-4, 12, True, 4)


def test_the_file_and_flags_mean_the_same(tmp_path):
    """YAML reads 4e-4 as a string: it is a number all the same."""
    text = yaml.safe_dump(NEEDED) + "learning_rate: 4e-4\nlearning_rates: {model.lvtc: 2e-3}\nfreeze: [lm_head]\n"
    *_, from_file, _ = parse(tmp_path, text)
    flags = ("--learning_rate", "4e-4", "--learning_rates", '{"model.lvtc": 2e-3}', "--freeze", "lm_head")
    *_, from_flags, _ = parse(tmp_path, {}, *flags)
    for training in (from_file, from_flags):
        assert (training.learning_rate, training.learning_rates) == (4e-4, {"model.lvtc": 2e-3})
        assert training.freeze == ["lm_head"]


def test_settings_of_transformers_may_be_structured(tmp_path):
    settings = {
        "report_to": ["tensorboard", "wandb"],
        "lr_scheduler_kwargs": {"num_cycles": 0.4},
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    *_, training, _ = parse(tmp_path, settings)
    assert training.report_to == ["tensorboard", "wandb"]
    assert training.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (
            {"learning_rat": 1e-3},
            (),
            r"no setting `learning_rat`, which .*config.yaml gives. Did you mean `learning_rate`",
        ),
        ({}, ("--max_patch", "3"), r"no setting `max_patch`, which the command line gives. .*`max_patches`"),
        ({"max_steps": "many"}, (), r"max-steps: invalid int value: 'many'"),
        ({"max_steps": 1.5}, (), r"max-steps: invalid int value: '1.5'"),
        ({"learning_rate": [1e-3]}, (), r"learning-rate: invalid float value"),
        ({"bf16": "perhaps"}, (), r"bf16"),
        ({"bf16": 3}, (), r"bf16"),
        ({"slicing": "diagonal"}, (), r"`slicing` to 'diagonal', expected one of edge, area, ratio"),
        ({"stage": 3}, (), r"`stage` to 3, expected one of 1, 2"),
        ({}, ("--stage", "3"), r"--stage: invalid choice: 3"),
        (
            {"learning_rates": {"model.lvtc": "fast"}},
            (),
            r"`learning_rates` is .*'fast'.*, expected numbers by module",
        ),
        ({"learning_rates": {"model.lvtc": -1.0}}, (), r"must not be negative, got .*-1"),
        ({"learning_rates": [1e-3]}, (), r"`learning_rates` is \[0.001\], expected numbers by module"),
        ({"remove_unused_columns": True}, (), r"`remove_unused_columns` is True, expected False"),
        ({"label_smoothing_factor": 0.1}, (), r"`label_smoothing_factor` is 0.1, expected 0"),
        ({"output_dir": None}, (), r"`output_dir` is missing"),
        (
            {"lora_alpha": 32.0},
            (),
            r"`lora_alpha` is 32.0, but `lora_rank` is 0, which trains without LoRA. Set a rank",
        ),
        ({}, ("--lora_vision",), r"`lora_vision` is True, but `lora_rank` is 0"),
        ({"lora_modules_to_save": []}, (), r"`lora_modules_to_save` is \[\], but `lora_rank` is 0"),
        ({"lora_rank": 4, "lora_alpha": 0}, (), r"lora_alpha=0.0, expected a positive number"),
        ({"lora_rank": 4, "lora_dropout": 1}, (), r"lora_dropout=1.0, expected a rate in \[0, 1\)"),
        ({"lora_rank": -2}, (), r"lora_rank=-2, expected a whole number of at least 0"),
        ("- a\n- b\n", (), r"config.yaml holds list, expected settings by name"),
        ("a: [1\n", (), r"config.yaml is not YAML"),
        (
            "max_patches: 2\nstage: 1\nmax_patches: 12\n",
            (),
            r"config.yaml, line 3: `max_patches` is set twice, expected",
        ),
        ("learning_rates:\n  model.lvtc: 1\n  model.lvtc: 2\n", (), r"line 3: `model.lvtc` is set twice"),
        ('{"stage": 1, "stage": 2}', (), r"line 1: `stage` is set twice"),
        ("model_name_or_path: base\n", (), r"the following arguments are required: .*train_data"),
    ],
)
def test_wrong_settings_are_named(settings, flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, settings, *flags)


def test_rules_hold_in_python_too():
    for settings, message in (
        (lambda: DataArguments("data.json", on_broken="skp"), "on_broken='skp', expected one of 'error', 'skip'"),
        (
            lambda: ModelArguments("base", dtype="half"),
            "dtype='half', expected one of 'float32', 'float16', 'bfloat16'",
        ),
        (lambda: LoraArguments(lora_rank=4, lora_dropout=1.5), "lora_dropout=1.5, expected a rate in [0, 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            settings()


def test_the_command_prints_an_error_in_one_line(tmp_path, capsys):
    assert main(["train", str(tmp_path / "no.yaml")]) == 1
    assert main(["train", "--model-name-or-path", "base", "--train-dat", "x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no.yaml" in lines[0]
    assert lines[1].startswith("internvlx: There is no setting `train_dat`")
    assert lines[1].endswith("Did you mean `train_data`?")


@pytest.mark.parametrize(
    ("command", "package"), [("train", "peft"), ("merge", "peft"), ("answer", "psutil"), ("answer", "datasets")]
)
def test_a_missing_package_is_named_with_what_installs_it(command, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("internvlx_hf.commands.train.find_spec", lambda name: None if name == package else name)
    out = [str(tmp_path / "out.jsonl")] * (command == "answer")
    assert main([command, "a", "b", *out]) == 1
    assert capsys.readouterr().err == f"internvlx: {command} needs {package}: pip install {package}\n"


def test_answers_to_a_file_of_records_need_no_datasets_and_no_peft(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "internvlx_hf.commands.train.find_spec", lambda name: None if name in ("peft", "datasets") else name
    )
    (tmp_path / "records.jsonl").touch()
    assert main(["answer", str(tmp_path / "model"), str(tmp_path / "records.jsonl"), str(tmp_path / "out.jsonl")]) == 1
    assert "needs" not in capsys.readouterr().err


def printed_help(capsys, option: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["train", option])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_ten_settings_to_begin_with(capsys):
    settings = re.findall(r"^  --(\w+)", printed_help(capsys, "--help"), re.MULTILINE)
    assert len(settings) == 10
    assert settings[:3] == ["model_name_or_path", "train_data", "output_dir"]


def test_the_name_of_checkpointing_that_all_versions_know_is_not_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        *_, training, _ = parse(tmp_path, {"gradient_checkpointing": True})
    assert training.gradient_checkpointing


CONFIGS = sorted(path for kind in ("paper", "upgrade") for path in (ROOT / "configs" / kind).glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_recipe_is_the_paper_s(path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    model, data, lora, training, _ = parse_arguments([str(path), "--use_cpu", "--bf16", "false"], SETTINGS)
    assert (training.learning_rate, training.num_train_epochs, training.warmup_steps) == (4e-5, 1, 0.03)
    assert training.lr_scheduler_type == "cosine"
    assert training.stage == (1 if "stage1" in path.stem else 2)
    assert lora.lora_rank == 0
    settings = yaml.safe_load(path.read_text())
    assert settings["bf16"] is True
    assert settings["attn_implementation"] == "varlen_sdpa"
    if "hd" in path.stem:
        assert (model.slicing, model.max_patches) == ("edge", 6)
    else:
        assert model.max_patches == 1
    stage_2, own_start = training.stage == 2, path.parent.name == "paper"
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * 8 == (
        128 if stage_2 else 256
    )
    assert training.weight_decay == (0.01 if own_start else 0)
    assert training.loss_average == ("batch" if own_start else "step")
    assert training.vision_drop_path_rate == (0.1 if own_start and stage_2 else 0)
    assert data.share_tiles == (own_start and "hd" in path.stem)
    assert data.max_length == (4096 if own_start or "hd" in path.stem else 2048)
    assert training.freeze is None
