# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Settings that no tensor contradicts: they reach the converted model with the source's values, not with defaults."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion_helpers import GOLDEN, copy_of, edit_config, edit_tensors, load
from internvlx_hf import InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.sentencepiece_bpe import read_sentencepiece
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from json_files import edit_json, json_of, write_json

QWEN, YI, PHI3, INTERNLM2 = "internvl2_qwen2", "internvl2_llama_yi", "internvl2_phi3", "internvl2_internlm2"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
STATES = (True, False, None)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
@pytest.mark.parametrize("name", [QWEN, YI, PHI3, INTERNLM2])
def test_epsilons_of_all_norms_are_the_source_s(tmp_path, out, name, layout):
    source = copy_of(name, tmp_path / "source")
    edit_config(source, lambda raw: raw["llm_config"].update(rms_norm_eps=3e-4))
    edit_config(source, lambda raw: raw["vision_config"].update(layer_norm_eps=7e-5))
    convert_checkpoint(source, out, to=layout)
    raw = json_of(out / "config.json")
    assert raw["text_config"]["rms_norm_eps"] == 3e-4
    assert raw["vision_config"]["layer_norm_eps"] == 7e-5
    if layout == "internvl_x":
        model = load(out).model
        text = [module for name, module in model.language_model.named_modules() if name.endswith("norm")]
        vision = [module for name, module in model.vision_tower.named_modules() if "layernorm" in name]
        assert {module.variance_epsilon for module in text} == {3e-4}
        epsilons = {getattr(module, "variance_epsilon", getattr(module, "eps", None)) for module in vision}
        assert epsilons - {None} == {7e-5}  # an identity has none


def tokenizer_files(name: str, folder: Path, **config) -> Path:
    """A copy of a golden checkpoint's tokenizer with other settings."""
    shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    edit_json(folder / "tokenizer_config.json", **config)
    return folder


def pieces(folder: Path, text: str) -> list[str]:
    return convert_tokenizer(folder).tokenize(text)


def test_legacy_is_on_where_the_source_does_not_say(tmp_path):
    """It puts a dummy prefix, as phi3's, before every part between added tokens, else before the whole text only."""
    text = "one<|user|>two"
    parts = {legacy: pieces(tokenizer_files(PHI3, tmp_path / str(legacy), legacy=legacy), text) for legacy in STATES}
    assert parts[True][-1].startswith("▁t") or "▁" in parts[True][parts[True].index("<|user|>") + 1]
    assert parts[False] != parts[True] == parts[None]
    file = tmp_path / "None" / "tokenizer_config.json"
    write_json(file, {name: value for name, value in json_of(file).items() if name != "legacy"})
    assert pieces(tmp_path / "None", text) == parts[True]


def test_byte_fallback_is_the_model_s(tmp_path):
    folder = tokenizer_files(INTERNLM2, tmp_path / "source")
    assert pieces(folder, "\U0001f9ff") == ["<0xF0>", "<0x9F>", "<0xA7>", "<0xBF>"]
    model = read_sentencepiece(folder / "tokenizer.model")
    assert model.trainer_spec.byte_fallback
    model.trainer_spec.byte_fallback = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    assert pieces(folder, "\U0001f9ff") == ["<unk>"]


@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
def test_no_part_of_a_configuration_keeps_a_stale_dtype(tmp_path, out, layout):
    source = copy_of(QWEN, tmp_path / "source", torch_dtype="float16")
    edit_config(source, lambda raw: raw["llm_config"].update(torch_dtype="float32"))
    convert_checkpoint(source, out, to=layout, dtype="bfloat16")
    raw = json_of(out / "config.json")
    assert [part.get("dtype") for part in (raw, raw["text_config"], raw["vision_config"])] == ["bfloat16"] * 3
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def tyings(folder: Path) -> list[bool]:
    raw = json_of(folder / "config.json")
    return [part["tie_word_embeddings"] for part in (raw, raw["text_config"])]


@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
def test_both_configurations_say_whether_embeddings_are_tied(tmp_path, source, layout):
    edit_config(source, lambda raw: raw["llm_config"].update(tie_word_embeddings=True))
    convert_checkpoint(source, tmp_path / "untied", to=layout)
    assert tyings(tmp_path / "untied") == [False, False]
    edit_tensors(source, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    convert_checkpoint(source, tmp_path / "tied", to=layout)
    assert tyings(tmp_path / "tied") == [True, True]


@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
def test_a_language_model_s_stale_tying_is_put_right(tmp_path, layout):
    convert_checkpoint(copy_of(QWEN, tmp_path / "source"), tmp_path / "first", to=layout)
    edit_config(tmp_path / "first", lambda raw: raw["text_config"].update(tie_word_embeddings=True))
    convert_checkpoint(tmp_path / "first", tmp_path / "second", to=layout)
    assert tyings(tmp_path / "second") == [False, False]


def test_transparency_is_dropped_as_the_source_does_unless_its_processor_says_otherwise(tmp_path, converted):
    processor = InternVLXProcessor.from_pretrained(converted())
    assert json_of(converted() / "processor_config.json")["image_processor"]["alpha"] == "drop"
    assert processor.image_processor.alpha == "drop"
    first, second = shutil.copytree(converted(), tmp_path / "first"), tmp_path / "second"
    processor.image_processor.alpha = "white"
    processor.save_pretrained(first)
    convert_checkpoint(first, second)
    assert InternVLXProcessor.from_pretrained(second).image_processor.alpha == "white"
