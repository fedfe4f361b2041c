"""Converted checkpoints give the answers that the reference gives with the original ones (golden/checkpoints)."""

import copy

import pytest
import torch

from conversion_helpers import FAMILIES, FEATURES, LOGITS, copy_of, distance, golden, load
from internvlx_hf.conversion import convert_checkpoint


def generated(model, ids, mask, **images):
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **images)
    return output[:, ids.shape[1] :]


@torch.no_grad()
def answers(fresh_model, golden):
    """Our numbers under the golden file's names.

    As for the reference's, every prompt gets a model of its own: dynamic NTK remembers the longest prompt seen.
    """
    pixels, ids, mask = (golden[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    model = copy.deepcopy(fresh_model)
    features = model.get_image_features(pixels, return_dict=True)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    yield "vision_hidden_state", features.last_hidden_state
    yield "vision_features", features.pooler_output
    yield "logits", logits[:, golden["logits_positions"]]
    yield "logits_argmax", logits.argmax(-1)
    yield "logits_logsumexp", logits.logsumexp(-1)
    yield "generated_ids", generated(model, ids, mask, pixel_values=pixels)
    for prompt, images in (("text", {}), ("batch", {"pixel_values": golden.get("batch.pixel_values")})):
        if f"{prompt}.input_ids" in golden:
            model = fresh_model if prompt == "batch" else copy.deepcopy(fresh_model)
            ids, mask = golden[f"{prompt}.input_ids"], golden[f"{prompt}.attention_mask"]
            yield f"{prompt}.logits_last2", model(input_ids=ids, attention_mask=mask, **images).logits[:, -2:]
            yield f"{prompt}.generated_ids", generated(model, ids, mask, **images)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_converted_checkpoints_answer_as_the_reference(converted, name):
    theirs = golden(name)
    ours = dict(answers(load(converted(name)), theirs))
    assert {key for key in theirs if "logits" in key or "generated" in key} - {"logits_positions"} <= ours.keys()
    assert {key: error for key in ours.keys() & theirs if (error := _error(key, ours[key], theirs[key]))} == {}


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
def test_features_of_another_layer_are_the_reference_s(tmp_path, out, name, key, layer):
    convert_checkpoint(copy_of(name, tmp_path / "source", select_layer=layer), out)
    with torch.no_grad():
        features = load(out).get_image_features(golden(name)["pixel_values"], return_dict=True)
    assert distance(features.pooler_output, golden(name)[f"select_layer.{key}.vision_features"]) <= FEATURES


@pytest.mark.parametrize("name", [name for name in FAMILIES if "hires.vision_features" in golden(name)])
def test_position_embeddings_are_resized_to_tiles_of_another_size(tmp_path, out, name):
    pixels = golden(name)["hires.pixel_values"]
    convert_checkpoint(copy_of(name, tmp_path / "source", force_image_size=pixels.shape[-1]), out)
    model = load(out)
    assert model.config.tile_size == pixels.shape[-1]
    with torch.no_grad():
        features = model.get_image_features(pixels, return_dict=True).pooler_output
    assert distance(features, golden(name)["hires.vision_features"]) <= FEATURES
