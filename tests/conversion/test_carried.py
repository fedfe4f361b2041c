# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Settings that no tensor contradicts: they reach the converted model with the source's values, not with defaults."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion_helpers import GOLDEN, copy_of, edit_config, edit_tensors, load
from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion.sentencepiece_bpe import read_sentencepiece
from internvlx_hf.conversion.tokenizers import convert_tokenizer

QWEN, YI, PHI3, INTERNLM2 = "internvl2_qwen2", "internvl2_llama_yi", "internvl2_phi3", "internvl2_internlm2"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
@pytest.mark.parametrize("name", [QWEN, YI, PHI3, INTERNLM2])
def test_epsilons_of_all_norms_are_the_source_s(tmp_path, name, layout):
    source = copy_of(name, tmp_path / "source")
    edit_config(source, lambda raw: raw["llm_config"].update(rms_norm_eps=3e-4))
    edit_config(source, lambda raw: raw["vision_config"].update(layer_norm_eps=7e-5))
    convert_checkpoint(source, tmp_path / "out", to=layout)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["text_config"]["rms_norm_eps"] == 3e-4
    assert raw["vision_config"]["layer_norm_eps"] == 7e-5
    if layout == "internvl_x":
        model = load(tmp_path / "out").model
        text = [module for name, module in model.language_model.named_modules() if name.endswith("norm")]
        vision = [module for name, module in model.vision_tower.named_modules() if "layernorm" in name]
        assert {module.variance_epsilon for module in text} == {3e-4}
        epsilons = {getattr(module, "variance_epsilon", getattr(module, "eps", None)) for module in vision}
        assert epsilons - {None} == {7e-5}  # an identity has none


def tokenizer_files(name: str, folder: Path, **config) -> Path:
    """A copy of a golden checkpoint's tokenizer with other settings."""
    skip = shutil.ignore_patterns("*.safetensors*")
    shutil.copytree(GOLDEN / name, folder, ignore=skip)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def pieces(folder: Path, text: str) -> list[str]:
    return convert_tokenizer(folder).tokenize(text)


def test_legacy_decides_which_parts_of_a_text_get_a_prefix(tmp_path):
    """With a dummy prefix, as phi3's: `legacy` puts it before every part between added tokens, else before the whole."""
    text = "one<|user|>two"
    new = pieces(tokenizer_files(PHI3, tmp_path / "new", legacy=False), text)
    old = pieces(tokenizer_files(PHI3, tmp_path / "old", legacy=True), text)
    assert new != old
    mark = "<|user|>"
    assert old[old.index(mark) + 1].startswith("▁")
    assert not new[new.index(mark) + 1].startswith("▁")
    assert old[0].startswith("▁")
    assert new[0].startswith("▁")
    for unsaid in (None, "missing"):
        folder = tokenizer_files(PHI3, tmp_path / str(unsaid), legacy=unsaid)
        if unsaid == "missing":
            path = folder / "tokenizer_config.json"
            config = json.loads(path.read_text())
            del config["legacy"]
            path.write_text(json.dumps(config))
        assert pieces(folder, text) == old


def test_byte_fallback_is_the_model_s(tmp_path):
    folder = tokenizer_files(INTERNLM2, tmp_path / "source")
    assert pieces(folder, "\U0001f9ff") == ["<0xF0>", "<0x9F>", "<0xA7>", "<0xBF>"]
    model = read_sentencepiece(folder / "tokenizer.model")
    assert model.trainer_spec.byte_fallback
    model.trainer_spec.byte_fallback = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    assert pieces(folder, "\U0001f9ff") == ["<unk>"]


@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
def test_no_part_of_a_configuration_keeps_a_stale_dtype(tmp_path, layout):
    source = copy_of(QWEN, tmp_path / "source", torch_dtype="float16")
    edit_config(source, lambda raw: raw["llm_config"].update(torch_dtype="float32"))
    convert_checkpoint(source, tmp_path / "out", to=layout, dtype="bfloat16")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [part.get("dtype") for part in (raw, raw["text_config"], raw["vision_config"])] == ["bfloat16"] * 3
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def tyings(folder: Path) -> list[bool]:
    raw = json.loads((folder / "config.json").read_text())
    return [raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"]]


@pytest.mark.parametrize("layout", ["internvl_x", "internvl"])
def test_both_configurations_say_whether_embeddings_are_tied(tmp_path, layout):
    source = copy_of(QWEN, tmp_path / "source")
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


def test_transparency_is_dropped_as_the_source_does_unless_its_processor_says_otherwise(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "first")
    assert InternVLXImageProcessor.from_pretrained(tmp_path / "first").alpha == "drop"
    assert json.loads((tmp_path / "first/processor_config.json").read_text())["image_processor"]["alpha"] == "drop"
    processor = InternVLXProcessor.from_pretrained(tmp_path / "first")
    processor.image_processor.alpha = "white"
    processor.save_pretrained(tmp_path / "first")
    convert_checkpoint(tmp_path / "first", tmp_path / "second")
    assert InternVLXImageProcessor.from_pretrained(tmp_path / "second").alpha == "white"
