"""A model from parts: what it takes from its vision tower and its language model, and what it adds."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, CLIPModel, SiglipModel
from transformers.quantizers import AutoHfQuantizer

from commands import internvlx
from conversion_helpers import GOLDEN, edit_json, edit_tensors, load_all, require_same_tensors
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint, init_checkpoint
from internvlx_hf.conversion.parts import LANGUAGE, TOWER, WRAPPER
from internvlx_hf.processing.chat_templates import require_generation_marks
from json_files import json_of
from message_cases import encode
from part_sources import (
    CHATML,
    LANGUAGES,
    TOWERS,
    VOCABULARY,
    save_language,
    save_tower,
    text_tokenizer,
)
from refusals import refused
from small_folder import names

IMAGE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
KNOWN = len(text_tokenizer(None))
# equal weights at other places of their files: kernels sum in another order where memory is aligned otherwise
ALIGNMENT = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder for every tower and language model, each made when it is first asked for."""
    root = tmp_path_factory.mktemp("parts")

    def source(part: str, kind: str) -> Path:
        folder = root / f"{part}-{kind}"
        return folder if folder.exists() else {TOWER: save_tower, LANGUAGE: save_language}[part](kind, folder)

    return source


def load(folder: Path) -> InternVLXForConditionalGeneration:
    return InternVLXForConditionalGeneration.from_pretrained(folder).eval()


def converted_part(name: str, tmp_path: Path):
    convert_checkpoint(GOLDEN / name, tmp_path / "converted")
    return load(tmp_path / "converted")


def source_tower(kind: str, folder: Path, tmp_path: Path) -> torch.nn.Module:
    """The tower computed without `init`."""
    if kind in ("internvit", "internvl2"):
        return converted_part("internvl2_qwen2", tmp_path).model.vision_tower
    whole = {"clip": CLIPModel, "siglip": SiglipModel}
    model = whole[kind].from_pretrained(folder).vision_model if kind in whole else AutoModel.from_pretrained(folder)
    return model.eval()


def source_language_model(kind: str, folder: Path, tmp_path: Path) -> torch.nn.Module:
    golden = {"internlm2": "internvl2_internlm2", "internvl2": "internvl2_llama3"}
    if kind in golden:
        return converted_part(golden[kind], tmp_path)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def language_part(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of the language model by the names that its own class gives them."""
    own = {"model.language_model.": "model.", "lm_head.": "lm_head."}
    state = model.state_dict()
    if not any(name.startswith("model.language_model.") for name in state):
        return state
    return {
        new + name.removeprefix(old): tensor
        for name, tensor in state.items()
        for old, new in own.items()
        if name.startswith(old)
    }


def chat(processor) -> dict:
    content = [{"type": "image", "image": Image.new("RGB", (40, 30), "red")}, {"type": "text", "text": "What is it?"}]
    return encode([{"role": "user", "content": content}], processor, add_generation_prompt=True)


def train_a_step(model, inputs) -> None:
    model.train()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    untouched = [name for name, weight in model.named_parameters() if "multi_modal" in name and weight.grad is None]
    assert loss.isfinite()
    assert not untouched
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.eval()


@torch.no_grad()
def require_runs_saves_and_loads(folder: Path, copy_to: Path) -> None:
    model, processor = load(folder), InternVLXProcessor.from_pretrained(folder)
    inputs = chat(processor)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.enable_grad():
        train_a_step(model, inputs)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
    model.save_pretrained(copy_to)
    loaded = load(copy_to)
    require_same_tensors(loaded.state_dict(), model.state_dict())
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, **ALIGNMENT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOWERS)
def test_tower_stays_as_it_is(kind, sources, tmp_path, out):
    folder = sources(TOWER, kind)
    report = init_checkpoint(out, vision=folder, language=sources(LANGUAGE, "qwen2"), max_patches=2)
    tower, model = source_tower(kind, folder, tmp_path), load(out)
    expected, found = (
        {name.removeprefix(WRAPPER): tensor for name, tensor in each.state_dict().items()}
        for each in (tower, model.model.vision_tower)
    )
    require_same_tensors(found, expected)
    tile = torch.randn(1, 3, model.config.tile_size, model.config.tile_size)
    with torch.no_grad():
        features = tower(pixel_values=tile).last_hidden_state
        found = model.model.vision_tower(pixel_values=tile).last_hidden_state
    torch.testing.assert_close(found, features, **ALIGNMENT)
    assert report.new_tensors
    assert all(name.startswith("model.multi_modal_projector.") for name in report.new_tensors)
    assert report.untrained_modules == ["model.multi_modal_projector"]
    require_runs_saves_and_loads(out, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", LANGUAGES)
def test_language_model_stays_as_it_is(kind, sources, tmp_path, out):
    folder = sources(LANGUAGE, kind)
    init_checkpoint(out, vision=sources(TOWER, "clip_vision"), language=folder, max_patches=2)
    expected, model = source_language_model(kind, folder, tmp_path), load(out)
    known = KNOWN if kind in LANGUAGES[:6] else model.config.text_config.vocab_size
    theirs, ours = language_part(expected), language_part(model)
    assert ours.keys() == theirs.keys()
    rows = {
        name: known if tensor.shape[0] in (VOCABULARY, 320) and "_proj" not in name else None
        for name, tensor in ours.items()
    }
    assert [name for name in theirs if not torch.equal(ours[name][: rows[name]], theirs[name][: rows[name]])] == []
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        logits, expected_logits = (each(input_ids=ids).logits[..., :known] for each in (model, expected))
    torch.testing.assert_close(logits, expected_logits, **ALIGNMENT)
    assert model.config.text_config.eos_token_id == expected.config.get_text_config().eos_token_id
    require_runs_saves_and_loads(out, tmp_path / "copy")


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_grows_by_rows_near_the_mean(tied, sources, tmp_path, out):
    language = save_language("llama", tmp_path / "language", vocab_size=KNOWN, tie_word_embeddings=tied)
    init_checkpoint(out, vision=sources(TOWER, "clip_vision"), language=language)
    model, source = load(out), AutoModelForCausalLM.from_pretrained(language)
    size = model.config.text_config.vocab_size
    assert size % 64 == 0
    assert KNOWN + 3 <= size < KNOWN + 3 + 64
    assert ("lm_head.weight" in load_all(out)) is not tied
    for part in ("get_input_embeddings", "get_output_embeddings"):
        found, old = (getattr(each, part)().weight for each in (model, source))
        assert torch.equal(found[:KNOWN], old)
        distance = (found[KNOWN:] - old.mean(0)) / old.std(0, correction=0)
        assert 0.015 < distance.std() < 0.025
        assert distance.abs().max() < 0.1
    tokenizer = InternVLXProcessor.from_pretrained(out).tokenizer
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKENS) == [KNOWN, KNOWN + 1, KNOWN + 2]
    assert model.config.image_token_id == KNOWN + 2


def test_the_seed_settles_every_byte(sources, tmp_path):
    parts = {"vision": sources(TOWER, "clip"), "language": sources(LANGUAGE, "qwen2"), "lvtc": {"expand_layer": 2}}
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        init_checkpoint(tmp_path / out, **parts, seed=seed, downsample_ratio=0.25)
    same, other = (tmp_path / out / "model.safetensors" for out in "ab")
    assert same.read_bytes() == other.read_bytes()
    first, third = load_all(tmp_path / "a"), load_all(tmp_path / "c")
    changed = {name for name in first if not torch.equal(first[name], third[name])}
    assert not any(name.startswith("model.vision_tower.") for name in changed)
    rows = (first["lm_head.weight"] != third["lm_head.weight"]).any(1).nonzero().flatten().tolist()
    assert rows == [KNOWN, KNOWN + 1, KNOWN + 2]
    assert any("lvtc" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


def test_command_says_what_it_made_and_the_card_names_both_parts(sources, tmp_path, out, capsys):
    arguments = ["--vision", str(sources(TOWER, "clip")), "--language", str(sources(LANGUAGE, "qwen2")), "--verify"]
    arguments += ["--projector", '{"projector_type": "pvtc", "num_heads": 8}', "--lvtc", "--slicing", "area"]
    printed = internvlx(capsys, "init", out, *arguments, "--downsample-ratio", "0.25", "--max-patches", "3")
    assert "needs training: model.multi_modal_projector" in printed.out
    assert "needs training: model.lvtc" in printed.out
    assert "Train it: internvlx train --model_name_or_path " in printed.out
    assert "verified tensors" in printed.out
    report = json_of(tmp_path / "out/conversion_report.json")
    assert report["parts"]["vision_tower"]["source"] == "vision_tower-clip"
    assert report["options"]["projector"] == {"projector_type": "pvtc", "num_heads": 8}
    card = ModelCard.load(tmp_path / "out/README.md").text
    assert "vision tower of `vision_tower-clip` and the language model of `language_model-qwen2`" in card
    assert (tmp_path / "out/LICENSES/vision_tower-LICENSE").read_text() == "of the tower"
    assert (tmp_path / "out/LICENSES/language_model-LICENSE").read_text() == "of the language model"
    processor = InternVLXProcessor.from_pretrained(out).image_processor
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    assert list(processor.image_std) == [0.2, 0.3, 0.4]
    assert (processor.slicing, processor.max_patches, processor.size.height) == ("area", 3, 32)


def test_each_part_keeps_its_dtype_unless_one_is_given(sources, tmp_path, out):
    language = save_language("qwen2", tmp_path / "language")
    edit_tensors(language, lambda tensors: tensors.update({name: x.bfloat16() for name, x in tensors.items()}))
    parts = {"vision": sources(TOWER, "clip"), "language": language}
    report = init_checkpoint(out, **parts)
    dtypes = {name.split(".")[1]: x.dtype for name, x in load_all(out).items() if name.startswith("model.")}
    half = dict.fromkeys(("multi_modal_projector", "language_model"), torch.bfloat16)
    assert dtypes == {"vision_tower": torch.float32, **half}
    assert report.dtype == "bfloat16"
    assert any("dtype='auto'" in note for note in report.notes)
    init_checkpoint(tmp_path / "half", **parts, dtype="float16")
    assert {tensor.dtype for tensor in load_all(tmp_path / "half").values()} == {torch.float16}


def test_own_chat_template_writes_what_it_wrote_and_images_too(sources, out):
    init_checkpoint(out, vision=sources(TOWER, "clip"), language=sources(LANGUAGE, "qwen2"))
    processor = InternVLXProcessor.from_pretrained(out)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
    ]
    expected = text_tokenizer(CHATML).apply_chat_template(messages, tokenize=False)
    assert processor.apply_chat_template(copy.deepcopy(messages)) == expected
    assert processor.tokenizer.apply_chat_template(messages, tokenize=False) == expected
    turns = [*messages, {"role": "user", "content": "Say it again."}, {"role": "assistant", "content": "Again."}]
    found = processor.apply_chat_template(turns, return_labels=True, return_tensors="pt")
    trained = processor.decode(found["input_ids"][found["labels"] != -100])
    assert trained == "Hello.<|im_end|>Again.<|im_end|>"
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "path": "x.png"}]}])
    assert prompt == "<|im_start|>user\n<IMG_CONTEXT>\n<|im_end|>\n"


def test_template_whose_answers_change_later_is_said_to_train_nothing(sources, tmp_path, out):
    only_last = CHATML.replace("message['content']", "(message['content'] if loop.last else 'older')")
    language = save_language("llama", tmp_path / "language", template=only_last)
    report = init_checkpoint(out, vision=sources(TOWER, "clip"), language=language)
    assert any("cannot be trained" in note for note in report.notes)


def test_named_template_brings_its_tokens_and_trains(sources, tmp_path, out):
    language = save_language("llama", tmp_path / "language", template=None)
    init_checkpoint(out, vision=sources(TOWER, "clip"), language=language, template="phi3-chat")
    processor = InternVLXProcessor.from_pretrained(out)
    require_generation_marks(processor.chat_template, "training")
    tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    ids = processor.tokenizer.convert_tokens_to_ids(tokens)
    assert sorted(ids) == list(range(KNOWN + 3, KNOWN + 7))
    assert ids[-1] in load(out).generation_config.eos_token_id


def test_template_may_be_a_file(sources, tmp_path, out):
    language = save_language("llama", tmp_path / "language", template=None)
    template = tmp_path / "own.jinja"
    template.write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    init_checkpoint(out, vision=sources(TOWER, "clip"), language=language, template=str(template))
    processor = InternVLXProcessor.from_pretrained(out)
    prompt = processor.apply_chat_template([{"role": "user", "content": "a"}])
    assert prompt == "<|im_start|>user\na<|endoftext|>\n"


def test_gguf_file_is_read_by_transformers(sources, tmp_path, out, monkeypatch):
    """The package gguf is not installed for the tests: transformers is asked for the file and gives its dequantized model."""
    language = save_language("llama", tmp_path / "language")
    (language / "model.gguf").write_bytes(b"GGUF")
    (language / "README.md").write_text("---\nlicense: llama3\n---\n")
    asked = []

    def loader(auto_class):
        real = auto_class.from_pretrained

        def load_plain(folder, gguf_file, revision, quantization_config=None):
            asked.append((folder, gguf_file))
            loaded = real(folder)
            if quantization_config is not None:  # newer versions of transformers keep it, and would not save the model
                assert quantization_config.dequantize
                loaded.hf_quantizer = AutoHfQuantizer.from_config(quantization_config)
                loaded.config.quantization_config = quantization_config
                assert not loaded.hf_quantizer.is_serializable()
            return loaded

        return load_plain

    for auto_class in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(auto_class, "from_pretrained", loader(auto_class))
    report = init_checkpoint(out, vision=sources(TOWER, "clip"), language=f"{language}/model.gguf")
    assert (tmp_path / "out/LICENSES/language_model-LICENSE").read_text() == "of the language model"
    part = report.parts[LANGUAGE]
    assert (part["source"], part["source_card"]) == ("model.gguf", {"license": "llama3"})
    assert asked == [(str(language), "model.gguf")] * 2
    assert not (tmp_path / "out/.language").exists()
    monkeypatch.undo()
    source = AutoModelForCausalLM.from_pretrained(language)
    assert torch.equal(load(out).lm_head.weight[:KNOWN], source.lm_head.weight[:KNOWN])


def test_gguf_file_without_the_package_says_what_to_install(sources, tmp_path, out, monkeypatch):
    def load_nothing(*_, **__):
        raise ImportError("Please install torch and gguf")

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_nothing)
    with refused("pip install gguf"):
        init_checkpoint(out, vision=sources(TOWER, "clip"), language=tmp_path / "model.gguf")
    assert not out.exists()


def _swap(name):
    return lambda parts: parts.update({name: parts["language" if name == "vision" else "vision"]})


def _edited(part, **settings):
    return lambda parts: edit_json(parts[part] / "config.json", **settings)


def _without_template(parts):
    (parts["language"] / "chat_template.jinja").unlink()


def _without_a_tensor(parts):
    edit_tensors(parts["language"], lambda tensors: tensors.pop("model.norm.weight"))


def _gguf(parts):
    (parts["language"] / "model.gguf").write_bytes(b"GGUF")
    parts["language"] = f"{parts['language']}/model.gguf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (_swap("vision"), {}, "model_type='qwen2' is not a vision tower"),
        (_swap("language"), {}, "model_type='clip_vision_model' … expected a language model of one of the types llama"),
        (_edited("language", model_type="gemma2"), {}, "model_type='gemma2' … qwen3 … internlm2"),
        (_edited("vision", model_type="no_tower"), {}, "model_type='no_tower'"),
        (_edited("vision", num_hidden_layers=3), {}, "missing: vision_tower:encoder.layers.2"),
        (_without_template, {}, "no chat template … internlm2-chat, Hermes-2, phi3-chat, internvl2_5"),
        (_without_a_tensor, {}, "missing: language_model:model.norm.weight"),
        (lambda parts: None, {"template": "chatml"}, "template='chatml' … one of internlm2-chat"),
        (lambda parts: None, {"projector": {"projector_type": "pvtc", "num_heads": 7}}, "num_heads`=7 does not divide"),
        (lambda parts: None, {"projector": "mlp"}, "projector='mlp' … 'pvtc'"),
        (lambda parts: None, {"downsample_ratio": 0.3}, "downsample_ratio"),
        (lambda parts: None, {"lvtc": {"expand_layer": 9}}, "expand_layer"),
        (lambda parts: parts.update(vision="no/such-folder"), {}, "no/such-folder"),
        (_gguf, {}, "model.gguf: "),  # what follows depends on the version: no package gguf, or no such format
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_leaves_nothing(change, options, said, tmp_path, out):
    parts = {"vision": save_tower("clip_vision", tmp_path / "tower")}
    parts["language"] = save_language("qwen2", tmp_path / "words")
    before = names(tmp_path)
    change(parts)
    with refused(said, by=(ValueError, OSError)):
        init_checkpoint(out, **parts, **options)
    assert [name for name in names(tmp_path) if "lock" not in name] == before
