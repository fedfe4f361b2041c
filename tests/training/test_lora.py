"""LoRA: what it adapts, that it resumes, and that the merged checkpoint is the adapter on its base.

1e-4 on logits of size 1: merging adds the low-rank product to the weight instead of to the result.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from dial_cases import dial_batch, split_dial
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.cli import main
from internvlx_hf.training.arguments import LoraArguments
from internvlx_hf.training.lora import add_lora, linear_targets
from internvlx_hf.training.merge import merge_adapter
from internvlx_hf.training.parameters import part_sizes, plain_name
from tiny import LVTC, TEXT_MODELS, tiny_batch, tiny_model
from training_helpers import RANDOM, changed, losses, run, save_checkpoint, save_dial, saved_weights
from versions import needs_transformers

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
# in the four layers of a tiny language model; experts are parameters of their own, and only its last layer has none
LINEAR = {"llama": 28, "qwen2": 28, "qwen3": 28, "qwen3_moe": 4 * 4 + 3, "mistral": 28, "phi3": 16}


@torch.no_grad()
def logits(model):
    batch = tiny_batch(model.config, [[3, "tile", 5], [7], ["tile", "tile", 2]])
    return model.eval()(**batch).logits


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_all_linear_layers_of_the_language_model_are_adapted_and_none_of_the_tower(text):
    model = tiny_model(text, **LVTC)
    targets = [name for name, _ in model.named_modules() if re.fullmatch(linear_targets(model), name)]
    assert len(targets) == LINEAR[text]
    assert all(name.startswith("model.language_model.layers.") for name in targets)
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in targets)
    tower = {name for name, _ in model.named_modules() if re.fullmatch(linear_targets(model, vision=True), name)}
    assert tower > set(targets)
    assert sum("vision_tower" in name for name in tower) == 2 * 6


@pytest.mark.parametrize("lvtc", [LVTC, {}], ids=["LVTC", "no LVTC"])
def test_the_projectors_are_trained_in_full(lvtc):
    adapted = add_lora(tiny_model(**lvtc), LoraArguments(lora_rank=2))
    sizes = {size.part: size for size in part_sizes(adapted)}
    full = {part for part, size in sizes.items() if size.trained == size.total}
    assert full == {"model.multi_modal_projector"} | ({"model.lvtc"} if lvtc else set())
    assert sizes["model.vision_tower"].trained == sizes["lm_head"].trained == 0
    assert 0 < sizes["model.language_model"].trained < sizes["model.language_model"].total
    assert sum(size.total for size in sizes.values()) == tiny_model(**lvtc).num_parameters() + sum(
        parameter.numel() for name, parameter in adapted.named_parameters() if ".lora_" in name
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_vision": True, "lora_target_modules": ".*q_proj"}, r"`lora_target_modules` replaces them: set one"),
        ({"lora_target_modules": "q_proj"}, r"`lora_target_modules` is 'q_proj', which matches no module's full name"),
        ({"lora_modules_to_save": ["lvtcc"]}, r"`lora_modules_to_save` names lvtcc, which the model does not have"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(tiny_model(**LVTC), LoraArguments(lora_rank=2, **settings))


@pytest.mark.parametrize("setting", [{"stage": 1}, {"freeze": ["lm_head"]}, {"train": ["lm_head"]}])
def test_lora_does_not_go_with_freezing_by_name(setting, tmp_path):
    with pytest.raises(ValueError, match=r"LoRA \(`lora_rank`=4\) determines what is trained"):
        run(tmp_path, lora_rank=4, **setting)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which `out` is an adapter, trained for 6 steps and saved at 3."""
    folder = tmp_path_factory.mktemp("lora")
    trainer = run(folder, lora_rank=4, learning_rate=1e-2, lora_dropout=0.3, learning_rates={"model.lvtc": 2e-2})
    return folder, trainer


@pytest.mark.slow
def test_a_resumed_adapter_matches_an_uninterrupted_one_bit_for_bit(trained, tmp_path):
    folder, whole = trained
    settings = {"lora_rank": 4, "learning_rate": 1e-2, "lora_dropout": 0.3, "learning_rates": {"model.lvtc": 2e-2}}
    resumed = run(
        folder,
        **settings,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(folder / "out" / "checkpoint-3"),
    )
    assert losses(resumed) == losses(whole)
    assert changed(saved_weights(folder / "out"), saved_weights(tmp_path / "resumed")) == set()
    assert changed(saved_weights(folder / "out" / "checkpoint-3"), saved_weights(folder / "out"))


@pytest.mark.slow
def test_the_merged_checkpoint_answers_as_the_adapter_does_and_needs_no_peft(trained, tmp_path, capsys):
    from peft import PeftModel

    folder, trainer = trained
    expected = logits(trainer.model)
    base = InternVLXForConditionalGeneration.from_pretrained(folder / "base")
    assert (logits(base) - expected).abs().max() > 0.1
    reloaded = PeftModel.from_pretrained(base, folder / "out")
    torch.testing.assert_close(logits(reloaded), expected, **CLOSE)

    assert main(["merge", str(folder / "out"), str(tmp_path / "merged")]) == 0
    merged = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, **CLOSE)
    adapted = {plain_name(name) for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach() for name, p in tiny_model(**LVTC, **RANDOM).named_parameters()}
    assert changed(before, {name: p.detach() for name, p in merged.named_parameters()}) == adapted

    processor = InternVLXProcessor.from_pretrained(tmp_path / "merged")
    assert processor.image_processor.max_patches == 3
    assert (tmp_path / "merged" / "modeling_internvlx.py").is_file()
    recipe = json.loads((tmp_path / "merged" / "training_recipe.json").read_text())
    assert (recipe["base_model"], recipe["settings"]["lora_rank"]) == ("base", 4)
    assert "lora_rank" in (tmp_path / "merged" / "README.md").read_text()


def test_the_projector_of_a_tile_router_goes_where_its_model_goes():
    """Though an adapter holds a copy of the other projector."""
    router = {"router_relative_threshold": 0.0, "router_absolute_threshold": 0.0}
    model = tiny_model(projector_config={"projector_type": "pixel_shuffle"}, **router)
    adapted = add_lora(model, LoraArguments(lora_rank=2)).double().train()
    batch = dial_batch(model.config, [[3, "16", 2, "4", 1], [4]])
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("multi_modal_projector" in name for name in trained)
    assert not any("tile_router" in name for name in trained)


@pytest.mark.slow
def test_an_adapter_of_several_sizes_answers_as_the_merged_checkpoint(tmp_path):
    """Tiles of all sizes in a batch answer as sample by sample, and each size's parameters are trained and saved."""
    base = save_dial(tmp_path / "base", RANDOM)
    adapted = run(tmp_path, model_name_or_path=base, lora_rank=4, tokens_per_tile="16+4:16").model.eval()
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    before = InternVLXForConditionalGeneration.from_pretrained(base)
    projectors = {name for name, _ in before.named_parameters() if "projector" in name}
    assert any(".sizes." in name for name in projectors)
    assert projectors <= changed(dict(before.named_parameters()), dict(merged.named_parameters()))
    batch = dial_batch(before.config, [[3, "16", "4", 5], [7], [2, "4:16", "16:4", 1, "16:0", 4], ["4", 2]])
    with torch.no_grad():
        found, expected = (model(**batch).logits for model in (adapted, merged))
        torch.testing.assert_close(found, expected, **CLOSE)
        for row, mask, sample in zip(found, batch["attention_mask"], split_dial(batch, before.config), strict=True):
            torch.testing.assert_close(row[mask.bool()], adapted(**sample).logits[0], **CLOSE)


@needs_transformers("5.18", "AutoModel leaves out the modules that an adapter saves whole, and says so")
def test_automodel_loads_an_adapter_s_folder(trained):
    folder, trainer = trained
    model = AutoModel.from_pretrained(folder / "out")
    torch.testing.assert_close(logits(model), logits(trainer.model), **CLOSE)


def test_the_base_s_precision_is_kept_unless_another_is_asked_for(tmp_path, trained):
    folder, _ = trained
    low = tiny_model(**LVTC, **RANDOM).to(torch.bfloat16)
    low.save_pretrained(tmp_path / "low")
    merge_adapter(folder / "out", tmp_path / "kept", base=str(tmp_path / "low"))
    merge_adapter(folder / "out", tmp_path / "wide", base=str(tmp_path / "low"), dtype="float32")
    for name, dtype in (("kept", torch.bfloat16), ("wide", torch.float32)):
        assert {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}
        assert AutoModel.from_pretrained(tmp_path / name, dtype="auto").dtype == dtype


def broken_adapter(folder, out, edit):
    out.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(out / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, out / "adapter_model.safetensors")
    return out


def test_what_cannot_be_merged_is_named_and_nothing_is_written(trained, tmp_path, monkeypatch):
    folder, _ = trained
    adapter, out = folder / "out", tmp_path / "merged"
    other = save_checkpoint(tmp_path / "other", "llama", text_config={"num_hidden_layers": 6})
    first = sorted(load_file(adapter / "adapter_model.safetensors"))[0]
    nan = broken_adapter(adapter, tmp_path / "nan", lambda weights: weights[first].fill_(float("nan")))
    short = broken_adapter(adapter, tmp_path / "short", lambda weights: weights.pop(first))
    cases = [
        (
            {"adapter": folder / "base"},
            ValueError,
            r"base is a full checkpoint already: it has no adapter_config.json",
        ),
        ({"adapter": folder / "data"}, ValueError, r"data is not an adapter"),
        ({"adapter": tmp_path / "none"}, OSError, r"none is not a folder"),
        ({"base": str(tmp_path / "none")}, OSError, r"none is not a folder"),
        ({"base": str(other)}, ValueError, r"does not fit .*other\): \d+ of its tensors are missing"),
        ({"adapter": nan}, ValueError, r"values that are NaN or infinite: " + re.escape(first)),
        ({"adapter": short}, ValueError, r"1 of its tensors are missing, unexpected or of another shape, " + first),
        ({"dtype": "int8"}, ValueError, r"dtype='int8', expected one of 'float32'"),
        ({"out": folder / "base"}, FileExistsError, r"exists already"),
        ({"out": adapter, "overwrite": True}, FileExistsError, r"contains the source"),
        ({"out": folder / "data", "overwrite": True}, FileExistsError, r"not the folder of a checkpoint"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            merge_adapter(**{"adapter": adapter, "out": out, **options})
        assert not out.exists()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(InternVLXForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(adapter, out)
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []


@pytest.mark.slow
def test_two_lora_runs_with_one_seed_give_the_same_weights(tmp_path):
    settings = {"lora_rank": 2, "lora_dropout": 0.3, "max_steps": 2, "save_strategy": "no"}
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        torch.manual_seed(len(name))  # where a process happens to stand
        run(tmp_path, **settings, seed=seed, output_dir=str(tmp_path / name))
    weights = {name: saved_weights(tmp_path / name) for name in ("one", "same", "other")}
    assert changed(weights["one"], weights["same"]) == set()
    # lora_A starts at random, and two steps do not bring it together
    started = {name for name in weights["one"] if "lora_A" in name}
    assert started
    assert started <= changed(weights["one"], weights["other"])
