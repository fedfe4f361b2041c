"""Every command takes folders relative to the working folder."""

import pytest
from safetensors.torch import load_file, save_file

from commands import internvlx
from conversion_helpers import copy_of
from internvlx_hf.cli import main

SHARDED = "internvl2_internlm2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working folder, with the sharded checkpoint `source` and its license file."""
    copy_of(SHARDED, tmp_path / "source")
    (tmp_path / "source/LICENSE").write_text("terms")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_convert_then_card_cost_and_push(here, capsys):
    assert main(["convert", "source", "out", "--max-shard-gigabytes", "0.0002"]) == 0
    assert len(list((here / "out").glob("*.safetensors"))) > 1
    assert (here / "out/LICENSE").read_text() == "terms"
    assert main(["card", "out"]) == 0
    assert main(["cost", "--model", "source", "--size", "640x480"]) == 0
    assert main(["cost", "--model", "out", "--size", "640x480"]) == 0
    assert "LICENSE" in internvlx(capsys, "push", "out", "owner/name", "--dry-run").out


def test_init_of_parts(here):
    copy_of("internvl2_qwen2", here / "language")
    assert main(["init", "out", "--vision", "source", "--language", "language"]) == 0
    assert sorted(path.name for path in (here / "out/LICENSES").iterdir())


def test_merge_of_an_adapter(here):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    assert main(["convert", "source", "out"]) == 0
    model = get_peft_model(AutoModel.from_pretrained("out"), LoraConfig(target_modules=r".*language_model.*q_proj"))
    model.save_pretrained("adapter")
    weights = load_file("adapter/adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, "adapter/adapter_model.safetensors")
    assert main(["merge", "adapter", "merged"]) == 0
    assert (here / "merged/LICENSE").read_text() == "terms"
