"""PVTC and LVTC on a checkpoint that had neither: where the new tensors start, and how far from the original."""

import pytest
import torch
from safetensors.torch import load_file

from conversion_helpers import (
    FAMILIES,
    GOLDEN,
    LOGITS,
    copy_of,
    distance,
    golden,
    golden_logits,
    load,
    load_all,
    not_converted,
    require_same_tensors,
)
from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.conversion import ConversionOptions, InitOptions, convert_checkpoint
from internvlx_hf.conversion.upgrades import fold_windows
from json_files import json_of

INTERNVL2 = [name for name in FAMILIES if name.startswith("internvl2")]
QWEN, INTERNLM2 = "internvl2_qwen2", "internvl2_internlm2"
PROJECTOR = "model.multi_modal_projector"
# one insertion, so that an LR projector is there
WITH_LR = {"expand_layer": 2, "num_lr_projectors": 2, "insert_start": 1, "insert_interval": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERNVL2)
def test_warm_pvtc_answers_as_the_original(converted, name):
    model = load(converted(name, projector="pvtc"))
    assert model.config.projector_config.projector_type == "pvtc"
    assert model.config.projector_config.query_mlp == "internvl2"
    assert distance(golden_logits(model, name), golden(name)["logits"]) <= LOGITS


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"projector": "pvtc"}, "matches the source computed independently"),
        ({"projector": "pvtc", "init": "paper"}, "skipped"),
        ({"lvtc": True}, "skipped"),
    ],
    ids=["warm_pvtc", "paper_pvtc", "lvtc"],
)
def test_verification_compares_what_should_be_equal(out, options, found):
    checks = convert_checkpoint(GOLDEN / QWEN, out, verify=True, **options).checks
    assert checks["reference"].startswith(found)


@pytest.mark.parametrize(
    ("options", "module"),
    [({"projector": "pvtc"}, "multi_modal_projector"), ({"lvtc": WITH_LR}, "lvtc")],
    ids=["pvtc", "lvtc"],
)
def test_every_part_of_a_warm_upgrade_learns_from_the_second_step_on(converted, options, module):
    model = load(converted(INTERNLM2, **options)).requires_grad_(False)  # with a layer for an insertion
    upgraded = model.model.get_submodule(module).requires_grad_(True).eval()
    optimiser = torch.optim.SGD(upgraded.parameters(), lr=1e-3)
    batch = {key: golden(INTERNLM2)[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    for _ in range(3):
        optimiser.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
    assert [name for name, value in upgraded.named_parameters() if not value.grad.any()] == []


def test_report_says_which_tensors_are_new_and_how_they_start(out):
    report = convert_checkpoint(GOLDEN / QWEN, out, projector="pvtc")
    saved = json_of(out / "conversion_report.json")
    assert saved["new_tensors"] == report.new_tensors
    stored = load_file(out / "model.safetensors")
    of_projector = {name for name in stored if name.startswith(PROJECTOR)}
    assert of_projector == report.new_tensors.keys() | report.derived_tensors.keys()
    zero = {name for name in of_projector if not stored[name].any()}
    assert zero == {name for name, start in report.new_tensors.items() if start == "zero"}
    assert report.derived_tensors[f"{PROJECTOR}.local_query.linear_2.bias"] == f"{PROJECTOR}.linear_2.bias"
    assert not report.exact
    card = (out / "README.md").read_text()
    assert "need training" in card
    assert f"`{PROJECTOR}`" in card


@pytest.mark.parametrize("options", [{"projector": "pvtc"}, {"projector": "pvtc", "lvtc": True}], ids=["pvtc", "both"])
def test_paper_init_starts_as_the_model_itself_does(out, options):
    report = convert_checkpoint(GOLDEN / QWEN, out, init="paper", **options)
    stored = load_file(out / "model.safetensors")
    torch.manual_seed(0)
    fresh = InternVLXForConditionalGeneration(load(out).config).state_dict()
    assert report.derived_tensors == {}
    assert load(out).config.projector_config.query_mlp == "released"
    for name in report.new_tensors:
        # two draws of so many numbers: the means differ by 1.4 standard errors, as a rule
        error = fresh[name].std().item() / fresh[name].numel() ** 0.5
        assert stored[name].mean().item() == pytest.approx(fresh[name].mean().item(), abs=6 * error + 1e-8), name
        assert stored[name].std().item() == pytest.approx(fresh[name].std().item(), rel=0.4, abs=1e-8), name


def test_seed_settles_what_is_random(tmp_path, converted):
    options = {"projector": "pvtc", "init": "paper", "seed": 1}
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "again", **options)
    require_same_tensors(converted(**options), tmp_path / "again")
    first, other = (load_all(converted(**options | {"seed": seed}))[f"{PROJECTOR}.cls_scale"] for seed in (1, 2))
    assert not torch.equal(first, other)


def test_warm_lvtc_upsamples_and_adds_nothing(tmp_path, converted):
    report = convert_checkpoint(GOLDEN / INTERNLM2, tmp_path / "warm", lvtc=WITH_LR)
    without = WITH_LR | {"hr_projector_type": None, "num_lr_projectors": 1, "expanded_positions": "kept"}
    upsampled = converted(INTERNLM2, lvtc=without)
    assert not json_of(upsampled / "conversion_report.json")["new_tensors"]
    assert torch.equal(*(golden_logits(load(folder), INTERNLM2) for folder in (tmp_path / "warm", upsampled)))
    assert {name.split(".")[2] for name in report.new_tensors} == {"hr_projector", "lr_projectors"}
    assert set(report.new_tensors.values()) == {"zero"}
    assert report.untrained_modules == ["model.lvtc.hr_projector", "model.lvtc.lr_projectors"]


@torch.no_grad()
def test_warm_lvtc_is_the_original_but_for_the_number_of_visual_tokens(tmp_path):
    """A quarter of the weight for each of four children gives the original's text back (in a stage two of one layer; a second
    one would see that children attend to each other)."""
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "warm", lvtc=True)
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "counted", lvtc={"expanded_positions": "counted"})
    warm, counted = load(tmp_path / "warm"), load(tmp_path / "counted")
    expected, ids = golden(QWEN)["logits"], golden(QWEN)["input_ids"][0]
    is_text = (ids != warm.config.image_token_id)[golden(QWEN)["logits_positions"]]
    rms = [
        (golden_logits(model, QWEN) - expected)[:, is_text].pow(2).mean().sqrt().item() for model in (warm, counted)
    ]
    assert rms[0] < rms[1] / 2
    warm.model.language_model.layers[1].register_forward_pre_hook(weigh_children, with_kwargs=True)
    warm.set_attn_implementation("eager")
    assert distance(golden_logits(warm, QWEN)[:, is_text], expected[:, is_text]) <= LOGITS


def weigh_children(layer, args, kwargs):
    """Lower the scores of the tokens that share their position with others by the logarithm of their number."""
    rotary = kwargs["position_embeddings"][1][0]  # sines, (n, head width)
    shared = (rotary == rotary[:, None]).all(-1).sum(1).log()
    return args, kwargs | {"attention_mask": kwargs["attention_mask"] - shared}


def test_empty_settings_of_lvtc_are_its_defaults(out):
    report = convert_checkpoint(GOLDEN / QWEN, out, lvtc={})
    assert any(module.startswith("model.lvtc") for module in report.untrained_modules)
    for options in (ConversionOptions, InitOptions):
        assert options(lvtc={}) == options(lvtc=True) != options()


def test_the_internvl_x_release_can_be_given_lvtc(converted):
    name, upsampled = "internvlx_internlm2", {"hr_projector_type": None, "expanded_positions": "kept"}
    folders = converted(name, lvtc=True), converted(name, lvtc=upsampled)
    assert torch.equal(*(golden_logits(load(folder), name) for folder in folders))
    assert json_of(folders[0] / "conversion_report.json")["untrained_modules"] == ["model.lvtc.hr_projector"]


def test_warm_lvtc_projectors_know_what_internvl2_s_does(converted):
    stored = load_all(converted(INTERNLM2, lvtc=WITH_LR))
    hidden = stored[f"{PROJECTOR}.linear_1.weight"]  # [D, 2·2·C]
    assert torch.equal(stored["model.lvtc.lr_projectors.0.linear_1.weight"], hidden)
    folded = hidden.unflatten(1, (4, -1)).sum(1)
    assert torch.allclose(stored["model.lvtc.hr_projector.linear_1.weight"], folded, atol=1e-6)


def test_upgrades_combine(converted):
    folders = (converted(INTERNLM2, projector="pvtc", lvtc=WITH_LR), converted(INTERNLM2, lvtc=WITH_LR))
    assert distance(*(golden_logits(load(folder), INTERNLM2) for folder in folders)) <= LOGITS


def test_paper_s_layout_a_quarter_of_the_tokens_first(out, converted):
    report = convert_checkpoint(GOLDEN / QWEN, out, downsample_ratio=0.25, lvtc={"downsample_ratio": 0.5})
    assert (report.tokens["per_tile"], report.tokens["per_tile_expanded"]) == (1, 4)
    config = load(out).config
    assert (config.image_seq_length, config.lvtc_config.expanded_positions) == (1, "counted")
    stored, source = load_all(out), load_all(converted())
    for name in ("layer_norm.weight", "linear_1.weight", "linear_2.weight", "linear_2.bias"):
        assert torch.equal(stored[f"model.lvtc.hr_projector.{name}"], source[f"{PROJECTOR}.{name}"])
    assert report.new_tensors == {}
    assert not report.exact
    assert report.untrained_modules == ["model.lvtc.hr_projector", "model.multi_modal_projector"]


@pytest.mark.parametrize(("old", "new"), [(2, 1), (4, 2), (2, 4), (1, 4), (2, 2)])
def test_folded_weights_see_an_even_window_as_before(old, new):
    """A window of equal patches gives the same product, whatever the window's side."""
    torch.manual_seed(0)
    weight, patch = torch.randn(5, old * old * 3), torch.randn(3)
    (folded,) = fold_windows(old, new, total=True)(weight)
    assert torch.allclose(folded @ patch.repeat(new * new), weight @ patch.repeat(old * old), atol=1e-5)
    (norm,) = fold_windows(old, new, total=False)(weight[0])
    assert norm.mean().item() == pytest.approx(weight[0].mean().item(), abs=1e-6)


def test_a_larger_window_is_seen_by_the_means_of_its_parts():
    torch.manual_seed(0)
    weight, window = torch.randn(5, 2 * 2 * 3), torch.randn(4, 4, 3)
    (folded,) = fold_windows(2, 4, total=True)(weight)
    means = window.reshape(2, 2, 2, 2, 3).mean((1, 3))
    assert torch.allclose(folded @ window.flatten(), weight @ means.flatten(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (QWEN, {"projector": "linear"}, "projector='linear' … one of 'keep', 'pvtc'"),
        (QWEN, {"init": "hot"}, "init='hot' … one of 'warm', 'paper'"),
        (QWEN, {"lvtc": {"expand_layer": 9}}, "expand_layer"),
        (QWEN, {"downsample_ratio": 0.3}, "downsample_ratio"),
        ("internvlx_internlm2", {"downsample_ratio": 0.25}, "can be changed to another ratio"),
    ],
)
def test_impossible_upgrade_is_refused_before_anything_is_written(tmp_path, name, options, said):
    not_converted(copy_of(name, tmp_path / "source"), said, ValueError, **options)


def test_converted_checkpoint_can_be_upgraded_later(tmp_path, converted):
    options = {"projector": "pvtc", "max_patches": 4}
    later, at_once = tmp_path / "later", converted(**options)
    convert_checkpoint(converted(), later, **options)
    require_same_tensors(later, at_once)
    for file in ("chat_template.jinja", "processor_config.json", "generation_config.json", "config.json"):
        assert (later / file).read_bytes() == (at_once / file).read_bytes(), file
