"""What `save_pretrained` writes: weights that load bit by bit, and the code and entries that `trust_remote_code` needs."""

import ast
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import internvlx_hf
from internvlx_hf import (
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXModel,
    InternVLXProcessor,
)
from tiny import LVTC, tiny_config, tiny_model, tiny_processor

SOURCE = Path(internvlx_hf.__file__).parent
MODEL = "modeling_internvlx.InternVLXForConditionalGeneration"
MODEL_ENTRIES = {
    "AutoConfig": "configuration_internvlx.InternVLXConfig",
    "AutoModel": MODEL,
    "AutoModelForImageTextToText": MODEL,
    "AutoModelForCausalLM": MODEL,
}
OFF_AND_ON = pytest.mark.parametrize("kwargs", [{}, LVTC], ids=["lvtc off", "lvtc on"])


def assert_carries_code(folder: Path, sub_package: str) -> None:
    """The folder holds the sub-package's modules as they are here, and with each what it imports."""
    modules = {path.name: path for path in (SOURCE / sub_package).glob("*.py") if path.name != "__init__.py"}
    for name, path in modules.items():
        assert (folder / name).read_text() == path.read_text()
    for name in modules:
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (folder / f"{node.module}.py").is_file()


def assert_carries_model_code(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["auto_map"] == MODEL_ENTRIES
    assert_carries_code(folder, "modeling")


def assert_carries_processor_code(folder: Path) -> None:
    saved = json.loads((folder / "processor_config.json").read_text())
    assert saved["auto_map"]["AutoProcessor"] == "processing_internvlx.InternVLXProcessor"
    image_processor = saved["image_processor"]["auto_map"]["AutoImageProcessor"]
    assert "image_processing_internvlx.InternVLXImageProcessor" in image_processor
    assert_carries_code(folder, "processing")


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert [
        name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ] == []


@OFF_AND_ON
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_model_loads_bit_by_bit(dtype, shard, kwargs, tmp_path):
    model = tiny_model(**kwargs).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard == "60KB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    loaded, report = InternVLXForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.dtype == dtype
    assert not loaded.training
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM])
def test_auto_classes_give_the_model_with_its_head(auto_class, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is InternVLXForConditionalGeneration
    assert_same_weights(loaded, model)
    assert type(auto_class.from_config(model.config)) is InternVLXForConditionalGeneration


def test_auto_classes_give_the_processors(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    tiny_processor(tiny_config()).save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is InternVLXProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is InternVLXImageProcessor


@OFF_AND_ON
def test_every_checkpoint_carries_its_code_and_all_entries(kwargs, tmp_path):
    model = tiny_model(**kwargs)
    model.save_pretrained(tmp_path / "model")
    assert_carries_model_code(tmp_path / "model")
    model.config.save_pretrained(tmp_path / "config")
    assert_carries_model_code(tmp_path / "config")
    tiny_processor(model.config).save_pretrained(tmp_path / "processor")
    assert_carries_processor_code(tmp_path / "processor")


def test_saving_again_into_the_same_folder_replaces_stale_code(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "pvtc.py").write_text("raise RuntimeError('an older release')")
    model.save_pretrained(tmp_path)
    assert_carries_model_code(tmp_path)


@OFF_AND_ON
def test_model_without_its_head_is_saved_and_loaded_alone(kwargs, tmp_path):
    torch.manual_seed(0)
    model = InternVLXModel(tiny_config(**kwargs)).eval()
    model.save_pretrained(tmp_path / "alone")
    assert_carries_model_code(tmp_path / "alone")
    loaded, report = InternVLXModel.from_pretrained(tmp_path / "alone", output_loading_info=True)
    assert not any(report.values())
    assert_same_weights(loaded, model)

    whole, report = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "alone", output_loading_info=True)
    assert report["missing_keys"] == {"lm_head.weight"}
    assert_same_weights(whole.model, model)
    whole.save_pretrained(tmp_path / "whole")
    assert_same_weights(InternVLXModel.from_pretrained(tmp_path / "whole"), model)


def test_checkpoint_that_was_loaded_and_saved_again_is_the_same_files(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "first")
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for before, after in itertools.pairwise(folders):
        InternVLXForConditionalGeneration.from_pretrained(before).save_pretrained(after)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[1] == files[2]
    # loading tells the sub-configurations the dtype of the weights, which the first file did not
    assert {name for name in files[0] | files[1] if files[0].get(name) != files[1].get(name)} <= {"config.json"}


def test_internvl_s_published_way_to_load_works(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation in ("flash_attention_2", "sdpa")
