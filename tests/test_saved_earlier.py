"""Checkpoints saved by commit f0f8648 still load, by the package and by the code that they carry.

`golden/saved/` holds what `save_pretrained` and `convert_checkpoint` wrote then, the code of all folders once (`code.zip`),
and beside each folder what that commit made of one prompt: `input_ids`, the sum of each tile's pixels, and the logits of
the last 8 positions, in float32.
"""

import json
import shutil
import sys
import zipfile
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import internvlx_hf
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import plan_push, renew_code, write_card
from paths import GOLDEN
from versions import is_older

SAVED = GOLDEN / "saved"
CASES = sorted(path.name for path in SAVED.iterdir() if path.is_dir())
# float32 kernels sum in another order where weights mapped from a file lie at odd addresses; logits are of size 1 to 3
ATOL = 1e-4


@pytest.fixture
def checkpoint(request, tmp_path):
    """A checkpoint as it was saved, with its code."""
    folder = tmp_path / request.param
    shutil.copytree(SAVED / request.param, folder)
    with zipfile.ZipFile(SAVED / "code.zip") as code:
        code.extractall(folder)
    return folder


every_checkpoint = pytest.mark.parametrize("checkpoint", CASES, indirect=True)
converted_checkpoint = pytest.mark.parametrize("checkpoint", ["converted"], indirect=True)


@torch.no_grad()
def assert_answers_as_then(model, processor, name: str) -> None:
    expected = load_file(SAVED / f"{name}.expected.safetensors")
    content = [
        {"type": "image", "image": expected["image"].numpy()},
        {"type": "text", "text": "What is on the picture?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    sums = inputs["pixel_values"].double().sum((1, 2, 3))
    torch.testing.assert_close(sums, expected["tile_sums"], atol=1e-2, rtol=0)
    logits = model.eval()(**inputs).logits[:, -8:]
    torch.testing.assert_close(logits, expected["last_logits"], atol=ATOL, rtol=0)


@every_checkpoint
def test_package_loads_it_and_saves_it_again(checkpoint, tmp_path):
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(model) is InternVLXForConditionalGeneration
    assert_answers_as_then(model, processor, checkpoint.name)

    again = tmp_path / "again"
    model.save_pretrained(again)
    processor.save_pretrained(again)
    model = AutoModelForImageTextToText.from_pretrained(again)
    assert_answers_as_then(model, AutoProcessor.from_pretrained(again), checkpoint.name)


@every_checkpoint
@pytest.mark.parametrize(
    "renewed",
    [pytest.param(False, marks=pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")), True],
    ids=["its own code", "renewed code"],
)
def test_code_that_it_carries_loads_it(checkpoint, renewed, tmp_path, monkeypatch, nothing_deprecated_is_used):
    """As `trust_remote_code=True` does, which takes the package's classes instead where that is imported."""
    if renewed:
        renew_code(checkpoint)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    config = json.loads((checkpoint / "config.json").read_text())
    processor = json.loads((checkpoint / "processor_config.json").read_text())
    model_class = get_class_from_dynamic_module(config["auto_map"]["AutoModel"], checkpoint)
    processor_class = get_class_from_dynamic_module(processor["auto_map"]["AutoProcessor"], checkpoint)
    assert not issubclass(model_class, InternVLXForConditionalGeneration)
    model, own = (
        model_class.from_pretrained(checkpoint, dtype=torch.float32),
        processor_class.from_pretrained(checkpoint),
    )
    # docs/hub.md quotes this error and says what to do
    fails = not renewed and not is_older("5.24")
    with pytest.raises(TypeError, match=r"'image_hidden_states'$") if fails else nullcontext():
        assert_answers_as_then(model, own, checkpoint.name)
    if not renewed:
        nothing_deprecated_is_used.clear()


@converted_checkpoint
def test_the_imported_package_is_used_before_its_code(checkpoint):
    for auto_class in (AutoConfig, AutoProcessor, AutoModel, AutoModelForImageTextToText):
        loaded = auto_class.from_pretrained(checkpoint, trust_remote_code=True)
        assert type(loaded).__module__.startswith("internvlx_hf.")


@every_checkpoint
def test_its_configuration_keeps_every_field(checkpoint, tmp_path):
    InternVLXConfig.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    saved, again = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, tmp_path / "again"))
    transformers_own = PretrainedConfig().to_dict()
    for ours in (
        lambda config: config,
        lambda config: config["projector_config"],
        lambda config: config["lvtc_config"],
    ):
        for name, value in (ours(saved) or {}).items():
            if name not in transformers_own and not isinstance(value, dict):
                assert ours(again)[name] == value, name


@pytest.mark.slow
@every_checkpoint
def test_it_is_whole_to_a_push(checkpoint):
    write_card(str(checkpoint))
    names = {file.name for file in plan_push(str(checkpoint), "owner/name").files}
    assert {"config.json", "model.safetensors", "processor_config.json", "modeling_internvlx.py", "README.md"} <= names


@converted_checkpoint
def test_its_card_is_renewed_and_keeps_what_a_person_wrote(checkpoint):
    card = checkpoint / "README.md"
    card.write_text(card.read_text() + "\n## Results\n\nOurs.\n")
    write_card(str(checkpoint), name="owner/name")
    text = card.read_text()
    assert text.endswith("\n## Results\n\nOurs.\n")
    assert text.count('from_pretrained("owner/name"') == 2
    assert "Converted from `OpenGVLab/InternVL2-1B` by internvlx-hf" in text


@converted_checkpoint
def test_a_new_conversion_may_replace_it(checkpoint):
    convert_checkpoint(GOLDEN / "checkpoints/internvl2_qwen2", checkpoint, overwrite=True)
    version = json.loads((checkpoint / "config.json").read_text())["internvlx_version"]
    assert version == internvlx_hf.__version__
