"""Converted checkpoints give the answers that the reference gives with the original ones (golden/checkpoints)."""

import json
import os
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import forked
from conversion_helpers import FAMILIES, FEATURES, GOLDEN, LOGITS, copy_of, distance, golden, load
from internvlx_hf.conversion import convert_checkpoint
from llava_sources import CASES as LLAVAS
from llava_sources import answers, llava_processor, save_llava
from paths import HELPERS


@pytest.mark.slow
def test_converted_checkpoints_answer_as_the_reference_in_a_process_without_this_package(tmp_path):
    """LLaVA's reference is transformers."""
    expected = {name: golden(name) for name in FAMILIES}
    for name in ("llama_clip", "qwen2_siglip"):
        settings = LLAVAS[name]
        expected[name] = answers(save_llava(tmp_path / name, **settings), llava_processor(settings["tower"]))
    for name in ("converted", "golden", "answers"):
        (tmp_path / name).mkdir()
    for name, tensors in expected.items():
        convert_checkpoint(GOLDEN / name if name in FAMILIES else tmp_path / name, tmp_path / "converted" / name)
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, tmp_path / "golden" / f"{name}.golden.safetensors")
    folders = [tmp_path / "converted" / name for name in expected]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    places = (tmp_path / "golden", tmp_path / "answers", *folders)
    done = forked.python(HELPERS / "conversion_process.py", *places, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    wrong = {}
    for name, theirs in expected.items():
        file = tmp_path / "answers" / f"{name}.safetensors"
        ours = load_file(file)
        with safe_open(file, "pt") as found:
            assert found.metadata()["class"] == "InternVLXForConditionalGeneration"
        assert {key for key in theirs if "logits" in key or "generated" in key} - {"logits_positions"} <= ours.keys()
        wrong |= {
            (name, key): error
            for key, value in ours.items()
            if key in theirs and (error := _error(key, value, theirs[key]))
        }
    assert wrong == {}


def _error(key: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """0 where our numbers are the reference's, as nearly as the golden files ask."""
    if not theirs.is_floating_point():
        return float((ours != theirs).sum())
    error = distance(ours, theirs)
    return 0.0 if error <= (FEATURES if key.startswith("vision") else LOGITS) else error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "layer"),
    [
        (name, key, layer)
        for name in FAMILIES
        for key, layer in (("m2", -2), ("0", 0))
        if f"select_layer.{key}.vision_features" in golden(name)
    ],
)
def test_features_of_another_layer_are_the_reference_s(tmp_path, name, key, layer):
    convert_checkpoint(copy_of(name, tmp_path / "source", select_layer=layer), tmp_path / "out")
    with torch.no_grad():
        features = load(tmp_path / "out").get_image_features(golden(name)["pixel_values"], return_dict=True)
    assert distance(features.pooler_output, golden(name)[f"select_layer.{key}.vision_features"]) <= FEATURES


@pytest.mark.parametrize("name", [name for name in FAMILIES if "hires.vision_features" in golden(name)])
def test_position_embeddings_are_resized_to_tiles_of_another_size(tmp_path, name):
    pixels = golden(name)["hires.pixel_values"]
    convert_checkpoint(copy_of(name, tmp_path / "source", force_image_size=pixels.shape[-1]), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config.tile_size == pixels.shape[-1]
    with torch.no_grad():
        features = model.get_image_features(pixels, return_dict=True).pooler_output
    assert distance(features, golden(name)["hires.vision_features"]) <= FEATURES


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_chat_with_a_converted_checkpoint_says_what_the_reference_said(tmp_path, name):
    """Tokenizer, template, stop ids and model together: from a question to the reference's text."""
    convert_checkpoint(GOLDEN / name, tmp_path / "out")
    told = json.loads((GOLDEN / f"{name}.golden.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    question = re.search(r"<img>.*</img>\n(.*?)<\|(im_)?end\|>", told["texts"]["query"])[1]
    settings = {"max_new_tokens": 12, "do_sample": False}
    answer = load(tmp_path / "out").chat(tokenizer, golden(name)["pixel_values"], question, settings)
    assert answer == told["generated_text"].strip()
