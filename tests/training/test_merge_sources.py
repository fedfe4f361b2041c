"""Adapters and bases that somebody else made: `merge` and `train` read nothing outside their folders, and name what is wrong."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.training.arguments import LoraArguments
from internvlx_hf.training.lora import add_lora
from internvlx_hf.training.merge import merge_adapter
from tiny import LVTC, tiny_model
from training_helpers import run, save_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_checkpoint(folder / "base")
    add_lora(tiny_model(**LVTC), LoraArguments(lora_rank=2)).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def merge(folder):
    merge_adapter(folder / "adapter", folder / "out", base=str(folder / "base"))


def refused(folder, act, match, error=ValueError):
    with pytest.raises(error, match=match):
        act(folder)
    assert not (folder / "out").exists()


def index_of_weights_elsewhere(base):
    elsewhere = shutil.move(base / WEIGHTS, base.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(elsewhere), "../elsewhere.safetensors")}
    (base / INDEX).write_text(json.dumps(index))


def moved_out(file):
    file.symlink_to(shutil.move(file, file.parent.parent / "elsewhere"))


@pytest.mark.parametrize("act", [merge, run])
def test_base_whose_index_names_a_file_elsewhere_is_refused(folder, act):
    index_of_weights_elsewhere(folder / "base")
    refused(folder, act, r"index\.json has the tensor .*'\.\./elsewhere\.safetensors', expected the bare name")


@pytest.mark.parametrize("act", [merge, run])
@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_base_with_a_link_out_of_its_folder_is_refused(folder, act, name):
    moved_out(folder / "base" / name)
    refused(folder, act, f"{name} leads to .*elsewhere", LinkError)


@pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG])
def test_adapter_that_is_a_link_out_of_its_folder_is_refused(folder, name):
    moved_out(folder / "adapter" / name)
    refused(folder, merge, f"{name} leads to .*elsewhere", LinkError)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (ADAPTER_CONFIG, "[]", ADAPTER_CONFIG),
        (ADAPTER_CONFIG, "{", ADAPTER_CONFIG),
        (ADAPTER_CONFIG, '{"peft_type": "LORA", "base_model_name_or_path": 3}', "base_model_name_or_path=3, expected"),
        (ADAPTER, "no weights", ADAPTER),
        (ADAPTER, None, "adapter holds no weights of an adapter, expected adapter_model.safetensors or"),
    ],
)
def test_damaged_adapter_is_named(folder, name, content, match):
    path = folder / "adapter" / name
    path.unlink() if content is None else path.write_text(content)
    refused(folder, merge, match)


def test_the_revision_of_an_adapter_s_base_on_the_hub_is_not_that_of_a_folder(folder):
    settings = json.loads((folder / "adapter" / ADAPTER_CONFIG).read_text())
    (folder / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(settings | {"revision": "v2"}))
    merge(folder)
    assert (folder / "out" / WEIGHTS).is_file()
