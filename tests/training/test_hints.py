# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What an unknown setting or a missing package is answered with."""

import pytest

from internvlx_hf.training.arguments import parse_arguments
from internvlx_hf.training.train import SETTINGS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("learning_rat", "learning_rate"),
        ("epochs", "num_train_epochs"),
        ("num_epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
        ("lora_r", "lora_rank"),
        ("max_seq_length", "max_length"),
        ("max_dynamic_patch", "max_patches"),
        ("meta_path", "train_data"),
        ("model", "model_name_or_path"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest_name(name, meant, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"{name}: 1\n")
    required = ["--model_name_or_path", "base", "--train_data", "data.json", "--output_dir", str(tmp_path)]
    for arguments in ([str(config), *required], [*required, f"--{name}", "1"], [*required, f"--{name}=1"]):
        with pytest.raises(ValueError, match=rf"no setting `{name}`, .* Did you mean `{meant}`\?"):
            parse_arguments(arguments, SETTINGS)


def test_learning_rates_that_are_no_json_are_named(tmp_path):
    required = ["--model_name_or_path", "base", "--train_data", "data.json", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"`learning_rates` is '\{model: 1', expected JSON"):
        parse_arguments([*required, "--learning_rates", "{model: 1"], SETTINGS)


def test_a_configuration_that_is_no_text_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ValueError, match=r"run.yaml is not YAML"):
        parse_arguments([str(tmp_path / "run.yaml")], SETTINGS)
