"""Transformers' native InternVL: its checkpoints come in, and what kept its projector goes back out."""

import json
import runpy

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

from conversion_helpers import FAMILIES, GOLDEN, LOGITS, distance, edit_config, golden, golden_logits, load
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.native import require_native
from paths import ROOT
from tiny import tiny_config

INTERNVL2 = [name for name in FAMILIES if name.startswith("internvl2")]
QWEN = "internvl2_qwen2"


def load_native(folder) -> InternVLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERNVL2)
def test_converted_model_goes_back_into_the_native_layout(tmp_path, name):
    convert_checkpoint(GOLDEN / name, tmp_path / "ours")
    report = convert_checkpoint(tmp_path / "ours", tmp_path / "native", to="internvl")
    model = load_native(tmp_path / "native")
    assert type(model) is InternVLForConditionalGeneration
    assert distance(golden_logits(model, name), golden(name)["logits"]) <= LOGITS
    assert report.exact
    assert not list((tmp_path / "native").glob("*.py"))
    assert "custom_code" not in (tmp_path / "native" / "README.md").read_text()


def test_original_checkpoint_becomes_native_at_once(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    assert distance(golden_logits(load_native(tmp_path / "native"), QWEN), golden(QWEN)["logits"]) <= LOGITS


def test_native_weights_have_the_names_that_transformers_writes(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    load_native(tmp_path / "native").save_pretrained(tmp_path / "saved")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "saved"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("native", "saved")]
    different = {key for key in configs[0] if configs[0][key] != configs[1].get(key)}
    assert different <= {"_name_or_path"}


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
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def module_names(tensors: dict) -> dict:
    """The names of modules, in which some native checkpoints were written."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("language_model.lm_head"):
            renamed[name.removeprefix("language_model.")] = tensor
        else:
            renamed["model." + name.replace("language_model.model.", "language_model.")] = tensor
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["files", "modules"])
def test_native_checkpoint_becomes_ours_with_the_same_logits(tmp_path, native, naming):
    expected = golden_logits(load_native(native), QWEN)
    if naming == "modules":
        save_file(module_names(load_file(native / "model.safetensors")), native / "model.safetensors")
    report = convert_checkpoint(native, tmp_path / "ours", verify=True)
    assert distance(golden_logits(load(tmp_path / "ours"), QWEN), expected) <= 1e-5
    assert report.checks["reference"].startswith("matches the source computed independently")
    processor = json.loads((tmp_path / "ours" / "processor_config.json").read_text())
    assert processor["image_processor"]["max_patches"] == 12
    assert processor["image_processor"]["slicing"] == "ratio"


def test_native_setting_that_ours_does_not_know_is_refused(tmp_path, native):
    edit_config(native, lambda raw: raw.update(vision_feature_select_strategy="full"))
    with pytest.raises(ValueError, match="vision_feature_select_strategy='full'"):
        convert_checkpoint(native, tmp_path / "ours")


@pytest.mark.parametrize("options", [{"projector": "pvtc"}, {"lvtc": True}])
def test_what_native_internvl_cannot_compute_does_not_go_back(tmp_path, options):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "ours", **options)
    with pytest.raises(ValueError, match="Native InternVL supports only InternVL2's projector"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "native", to="internvl")
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_another_tower_than_internvit_does_not_go_back(tower):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    vision, projector = {"model_type": tower, **sizes}, {"projector_type": "pixel_shuffle"}
    config = tiny_config("qwen2", vision_config=vision, projector_config=projector)
    with pytest.raises(ValueError, match=f"only InternViT, but the model has the vision tower '{tower}'"):
        require_native(config)


def test_there_and_back_is_the_same_checkpoint(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "native", to="internvl")
    convert_checkpoint(tmp_path / "native", tmp_path / "again")
    ours, again = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    for file in ("processor_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "ours" / file).read_text() == (tmp_path / "again" / file).read_text(), file


def test_native_processor_takes_images(tmp_path, monkeypatch):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    # without torchvision there is no video processor to hand over
    monkeypatch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *args: None)
    processor = InternVLProcessor(
        AutoImageProcessor.from_pretrained(tmp_path / "native"),
        AutoTokenizer.from_pretrained(tmp_path / "native"),
        image_seq_length=4,
    )
    image = Image.linear_gradient("L").convert("RGB").resize((112, 56))
    found = processor(images=[image], text=["<IMG_CONTEXT>Hello"], return_tensors="pt")
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "ours")
    ours = AutoProcessor.from_pretrained(tmp_path / "ours", trust_remote_code=False)
    expected = ours(images=[image], text=["<IMG_CONTEXT>Hello"], resize_backend="pillow", return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.allclose(found["pixel_values"], expected["pixel_values"], atol=0.02)


def test_native_configuration_is_valid_for_transformers(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    config = AutoConfig.from_pretrained(tmp_path / "native")
    assert isinstance(config, InternVLConfig)
    assert (config.image_seq_length, config.downsample_ratio, config.tie_word_embeddings) == (4, 0.5, False)


def test_what_llama_cpp_converts_has_the_names_and_classes_that_it_looks_for(tmp_path):
    """Its own conversion was run once: docs/serving.md says with what result."""
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "native", to="internvl")
    prepare = runpy.run_path(str(ROOT / "integrations/llama_cpp/prepare.py"))["prepare"]
    prepare(tmp_path / "native", tmp_path / "out")
    native, prepared = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "out"))
    assert prepared.keys() == module_names(native).keys()
    for name, tensor in module_names(native).items():
        torch.testing.assert_close(prepared[name], tensor, rtol=0, atol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["Qwen2ForCausalLM"]
    assert config["vision_config"]["architectures"] == ["InternVisionModel"]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    with pytest.raises(ValueError, match="exists already"):
        prepare(tmp_path / "native", tmp_path / "out")
    edit_config(tmp_path / "native", lambda raw: raw.update(vision_feature_layer=-2))
    with pytest.raises(ValueError, match=r"vision_feature_layer=-2, but llama\.cpp computes -1"):
        prepare(tmp_path / "native", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def video_settings(folder) -> dict:
    return json.loads((folder / "processor_config.json").read_text())["video_processor"]


def test_video_settings_go_there_and_back(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "ours")
    own = video_settings(tmp_path / "ours")
    assert (own["num_frames"], own["image_mean"]) == (8, pytest.approx([0.485, 0.456, 0.406]))
    convert_checkpoint(tmp_path / "ours", tmp_path / "native", to="internvl")
    file = tmp_path / "native" / "video_preprocessor_config.json"
    native = json.loads(file.read_text())
    assert native["image_mean"] == own["image_mean"]
    native |= {"num_frames": None, "fps": 2.0, "image_mean": [0.5, 0.5, 0.5], "do_sample_frames": False}
    file.write_text(json.dumps(native))
    convert_checkpoint(tmp_path / "native", tmp_path / "again")
    again = video_settings(tmp_path / "again")
    assert (again["fps"], again["image_mean"]) == (2.0, [0.5, 0.5, 0.5])
    assert "do_sample_frames" not in again
    convert_checkpoint(tmp_path / "again", tmp_path / "back", to="internvl")
    back = json.loads((tmp_path / "back" / "video_preprocessor_config.json").read_text())
    assert (back["fps"], back["num_frames"], back["image_mean"]) == (2.0, None, [0.5, 0.5, 0.5])
    file.write_text(json.dumps(native | {"num_frames": 4}))  # it wins over fps there
    convert_checkpoint(tmp_path / "native", tmp_path / "four")
    assert (video_settings(tmp_path / "four")["num_frames"], video_settings(tmp_path / "four").get("fps")) == (4, None)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"num_frames": 0}, "video_preprocessor_config.json.*num_frames=0"),
        ({"size": {"height": 9, "width": 9}}, "of frames, but vision_config.image_size"),
        ({"initial_shift": 3}, "initial_shift=3"),
    ],
)
def test_video_settings_that_cannot_be_kept_are_refused(tmp_path, native, setting, error):
    (native / "video_preprocessor_config.json").write_text(json.dumps(setting))
    with pytest.raises(ValueError, match=error):
        convert_checkpoint(native, tmp_path / "ours")
