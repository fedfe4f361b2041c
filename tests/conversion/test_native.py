"""Transformers' native InternVL: its checkpoints come in, and what kept its projector goes back out."""

import runpy
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from conversion_helpers import (
    FAMILIES,
    GOLDEN,
    LOGITS,
    distance,
    golden,
    golden_logits,
    load,
    load_all,
    not_converted,
    require_same_tensors,
)
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.native import require_native
from json_files import edit_json, json_of, write_json
from paths import ROOT
from refusals import refused
from tiny import tiny_config

INTERNVL2 = [name for name in FAMILIES if name.startswith("internvl2")]
QWEN = "internvl2_qwen2"


def load_native(folder) -> InternVLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERNVL2)
def test_converted_model_goes_back_into_the_native_layout(tmp_path, converted, name):
    """And the original becomes native at once."""
    report = convert_checkpoint(converted(name), tmp_path / "native", to="internvl")
    model = load_native(tmp_path / "native")
    assert (type(model), type(model.config)) == (InternVLForConditionalGeneration, InternVLConfig)
    assert distance(golden_logits(model, name), golden(name)["logits"]) <= LOGITS
    assert report.exact
    assert not list((tmp_path / "native").glob("*.py"))
    assert "custom_code" not in (tmp_path / "native" / "README.md").read_text()
    require_same_tensors(converted(name, to="internvl"), tmp_path / "native")


def test_native_files_are_those_that_transformers_writes(tmp_path, converted):
    native = converted(to="internvl")
    load_native(native).save_pretrained(tmp_path)
    require_same_tensors(native, tmp_path)
    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (native, tmp_path))
    assert {key for key in ours if ours[key] != theirs.get(key)} <= {"_name_or_path"}
    assert (ours["image_seq_length"], ours["downsample_ratio"], ours["tie_word_embeddings"]) == (4, 0.5, False)


@pytest.fixture
def native(tmp_path):
    """A native checkpoint with random weights that transformers itself saved, and the tokenizer of a golden one."""
    torch.manual_seed(0)
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "sidecar", to="internvl")
    config = AutoConfig.from_pretrained(tmp_path / "sidecar")
    config.vision_config.norm_type, config.vision_config.use_qk_norm = "rms_norm", True
    config.text_config.initializer_range = 0.2
    model = InternVLForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "sidecar")
    return tmp_path / "sidecar"


@pytest.mark.slow
def test_a_native_mixture_of_experts_comes_in_and_goes_back_out(tmp_path):
    """Files have a tensor per expert, modules one for all experts of a layer."""
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    config = AutoConfig.from_pretrained(tmp_path / "native")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {name: getattr(config.text_config, name) for name in sizes}
    config.text_config = tiny_config("qwen3_moe", text_config=text | {"mlp_only_layers": [1]}).text_config
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "native")
    report = convert_checkpoint(tmp_path / "native", tmp_path / "ours", verify=True)
    assert report.checks["reference"].startswith("matches the source computed independently")
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "ours")(input_ids=ids).logits, model(input_ids=ids).logits)
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", to="internvl")
    require_same_tensors(tmp_path / "native", tmp_path / "back")


def module_names(tensors: dict) -> dict:
    """The names of modules, in which some native checkpoints were written."""
    return {
        name.removeprefix("language_model.")
        if name.startswith("language_model.lm_head")
        else "model." + name.replace("language_model.model.", "language_model."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["files", "modules"])
def test_native_checkpoint_becomes_ours_with_the_same_logits(tmp_path, native, naming):
    expected = golden_logits(load_native(native), QWEN)
    if naming == "modules":
        save_file(module_names(load_file(native / "model.safetensors")), native / "model.safetensors")
    report = convert_checkpoint(native, tmp_path / "ours", verify=True)
    assert distance(golden_logits(load(tmp_path / "ours"), QWEN), expected) <= 1e-5
    assert report.checks["reference"].startswith("matches the source computed independently")
    processor = json_of(tmp_path / "ours" / "processor_config.json")
    assert processor["image_processor"]["max_patches"] == 12
    assert processor["image_processor"]["slicing"] == "ratio"


def test_native_setting_that_ours_does_not_know_is_refused(native):
    edit_json(native / "config.json", vision_feature_select_strategy="full")
    not_converted(native, "vision_feature_select_strategy='full'", ValueError)


@pytest.mark.parametrize("options", [{"projector": "pvtc"}, {"lvtc": True}])
def test_what_native_internvl_cannot_compute_does_not_go_back(converted, options):
    not_converted(
        converted(**options), "Native InternVL supports only InternVL2's projector", ValueError, to="internvl"
    )


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_another_tower_than_internvit_does_not_go_back(tower):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    vision, projector = {"model_type": tower, **sizes}, {"projector_type": "pixel_shuffle"}
    config = tiny_config("qwen2", vision_config=vision, projector_config=projector)
    with refused(f"only InternViT, but the model has the vision tower '{tower}'"):
        require_native(config)


def test_there_and_back_is_the_same_checkpoint(tmp_path, converted):
    convert_checkpoint(converted(), tmp_path / "native", to="internvl")
    convert_checkpoint(tmp_path / "native", tmp_path / "again")
    require_same_tensors(converted(), tmp_path / "again")
    for file in ("processor_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (converted() / file).read_text() == (tmp_path / "again" / file).read_text(), file


def test_native_processor_takes_images(converted, monkeypatch):
    native = converted(to="internvl")
    # without torchvision there is no video processor to hand over
    monkeypatch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *args: None)
    image_processor, tokenizer = (kind.from_pretrained(native) for kind in (AutoImageProcessor, AutoTokenizer))
    image = Image.linear_gradient("L").convert("RGB").resize((112, 56))
    inputs = {"images": [image], "text": ["<IMG_CONTEXT>Hello"], "return_tensors": "pt"}
    found = InternVLProcessor(image_processor, tokenizer, image_seq_length=4)(**inputs)
    expected = AutoProcessor.from_pretrained(converted())(**inputs, resize_backend="pillow")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.allclose(found["pixel_values"], expected["pixel_values"], atol=0.02)


def test_what_llama_cpp_converts_has_the_names_and_classes_that_it_looks_for(tmp_path, out, converted):
    """Its own conversion was run once: docs/serving.md says with what result."""
    native = shutil.copytree(converted(to="internvl"), tmp_path / "native")
    prepare = runpy.run_path(str(ROOT / "integrations/llama_cpp/prepare.py"))["prepare"]
    prepare(native, out)
    require_same_tensors(out, module_names(load_all(native)))
    config = json_of(out / "config.json")
    assert config["text_config"]["architectures"] == ["Qwen2ForCausalLM"]
    assert config["vision_config"]["architectures"] == ["InternVisionModel"]
    assert (out / "tokenizer.json").exists()
    with refused("exists already"):
        prepare(native, out)
    edit_json(native / "config.json", vision_feature_layer=-2)
    with refused("vision_feature_layer=-2, but llama.cpp computes -1"):
        prepare(native, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def video_settings(folder) -> dict:
    return json_of(folder / "processor_config.json")["video_processor"]


def test_video_settings_go_there_and_back(tmp_path, converted):
    own = video_settings(converted())
    assert (own["num_frames"], own["image_mean"]) == (8, pytest.approx([0.485, 0.456, 0.406]))
    native, again, back = (tmp_path / name for name in ("native", "again", "back"))
    convert_checkpoint(converted(), native, to="internvl")
    file = native / "video_preprocessor_config.json"
    assert json_of(file)["image_mean"] == own["image_mean"]
    edit_json(file, num_frames=None, fps=2.0, image_mean=[0.5, 0.5, 0.4], do_sample_frames=False)
    convert_checkpoint(native, again)
    convert_checkpoint(again, back, to="internvl")
    for found in (video_settings(again), json_of(back / file.name)):
        assert (found["fps"], found["image_mean"]) == (2.0, [0.5, 0.5, 0.4])
    assert found["num_frames"] is None
    assert "do_sample_frames" not in video_settings(again)
    edit_json(file, num_frames=4)  # it wins over fps there
    convert_checkpoint(native, again, overwrite=True)
    assert (video_settings(again)["num_frames"], video_settings(again).get("fps")) == (4, None)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"num_frames": 0}, "video_preprocessor_config.json … num_frames=0"),
        ({"size": {"height": 9, "width": 9}}, "of frames, but vision_config.image_size"),
        ({"initial_shift": 3}, "initial_shift=3"),
    ],
)
def test_video_settings_that_cannot_be_kept_are_refused(native, setting, said):
    write_json(native / "video_preprocessor_config.json", setting)
    not_converted(native, said, ValueError)
