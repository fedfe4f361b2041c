"""LVTC's forward: against numbers computed beforehand, against the paper in one file, and in all the ways it is called.

Tolerances. The golden numbers are float32 and were computed in another order of operations: 2e-5. The tiny models'
logits are of size 1 to 5 (their weights are drawn large, so that a mistake shows), and two orders of summation of float32
differ there by some 1e-5: 1e-4, while a token in the wrong place changes them by tenths or more.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import varlen  # noqa: F401  registers the attention of that name
from backbones import on_each_backbone
from internvlx_hf import InternVLXConfig, InternVLXModel
from internvlx_hf.modeling.modeling_internvlx import InternVLXImageFeatures
from lvtc_cases import CLOSE, KEPT, MIXED, ROPES, SLIDING, lvtc, rope_model
from one_file import reference_logits
from paths import GOLDEN as GOLDEN_ROOT
from tiny import IMAGE_TOKEN, LVTC, TEXT_MODELS, split_batch, tiny_batch, tiny_config, tiny_model

GOLDEN = GOLDEN_ROOT / "lvtc"
GOLDEN_CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def check_against_reference(model, layouts, *, padding_side="left", gradients=True, **close):
    """Logits of every sample in one padded batch, and the gradients of all parameters, equal the slow version's."""
    batch = tiny_batch(model.config, layouts, padding_side=padding_side)
    weight = torch.randn(model.config.text_config.vocab_size, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits
    expected = []
    for i, sample in enumerate(split_batch(batch, model.config)):
        rows, _ = reference_logits(model, sample["input_ids"][0], sample.get("pixel_values"))
        torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], rows, **{**CLOSE, **close})
        expected.append(rows)
    if not gradients:
        return
    parameters = dict(model.named_parameters())
    got = torch.autograd.grad((logits[batch["attention_mask"].bool()].tanh() @ weight).sum(), parameters.values())
    want = torch.autograd.grad((torch.cat(expected).tanh() @ weight).sum(), parameters.values())
    for name, a, b in zip(parameters, got, want, strict=True):
        # a PVTC window of one patch has nothing to choose from: its query does not matter
        assert b.any() or model.config.token_grid == model.config.patch_grid, name
        # gradients sum over all rows and layers: relative to the largest of the tensor
        scale = b.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(a / scale, b / scale, atol=1e-3, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


# ---- Golden numbers


def golden_model(case, tensors):
    before, after, side = case["n1"], case["n2"], max(case["n1"], case["n2"])
    config = InternVLXConfig(
        vision_config={
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 8,
            "image_size": 2 * side,
            "patch_size": 2,
        },
        text_config=case["text_config"],
        image_token_id=IMAGE_TOKEN,
        downsample_ratio=before / side,
        projector_config={"num_heads": 2},
        lvtc_config={
            "expand_layer": case["k"],
            "downsample_ratio": after / side,
            "num_lr_projectors": case["T"],
            "insert_start": case["start"],
            "insert_interval": case["interval"],
            "upsample_mode": case["mode"],
            "hr_projector_type": "pixel_shuffle" if case["hr"] else None,
        },
    )
    model = InternVLXModel(config).eval()
    weights = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items() if "text_model." in name}
    model.language_model.load_state_dict(weights)
    return model


def golden_inputs(model, case, tensors, samples, padding_side):
    """Embeddings in place of ids and projected tokens in place of pixels, both as the golden files have them."""
    placeholder = model.get_input_embeddings().weight[IMAGE_TOKEN].detach()
    rows, tiles = [], []
    for sample in samples:
        parts, at = [], 0
        for kind, value in case["layouts"][sample]:
            if kind == "text":
                parts.append(tensors[f"sample{sample}.text"][at : at + value])
                at += value
            else:
                parts.append(placeholder.expand(case["n1"] ** 2, -1))
                tiles.append(value)
        rows.append(torch.cat(parts))
    length = max(map(len, rows))
    embeds = torch.randn(len(rows), length, len(placeholder), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if padding_side == "left" else slice(0, len(row))
        embeds[i, place], mask[i, place] = row, 1
    inputs = {"inputs_embeds": embeds, "attention_mask": mask}
    if tiles:
        later = [*tensors["lr"][1:, tiles], *([tensors["hr"][tiles]] if case["hr"] else [])]
        features = InternVLXImageFeatures(pooler_output=tensors["lr"][0, tiles], deepstack_features=later or None)
        inputs["mm_encoder_outputs"] = {"image": features}
    return inputs


def golden_groups(name):
    samples = list(range(len(json.loads((GOLDEN / f"{name}.json").read_text())["layouts"])))
    one_by_one = [pytest.param(name, [i], "left", id=f"{name}-{i}") for i in samples]
    return [*one_by_one, *(pytest.param(name, samples, side, id=f"{name}-all-{side}") for side in ("left", "right"))]


@pytest.mark.parametrize(
    ("name", "samples", "padding_side"), [group for name in GOLDEN_CASES for group in golden_groups(name)]
)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_golden_numbers_hold_sample_by_sample_and_in_one_padded_batch(name, samples, padding_side, use_cache):
    case, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    model = golden_model(case, tensors)
    inputs = golden_inputs(model, case, tensors, samples, padding_side)
    seen = {}
    layers, norm = model.language_model.layers, model.language_model.norm
    layers[case["k"] - 1].register_forward_hook(lambda module, args, output: seen.update(shallow=output))
    norm.register_forward_hook(lambda module, args, output: seen.update(deep=output))
    outputs = model(**inputs, use_cache=use_cache).last_hidden_state
    for i, sample in enumerate(samples):
        visible = inputs["attention_mask"][i].bool()
        expected = {key: tensors[f"sample{sample}.{key}"] for key in ("before_expansion", "final")}
        is_text = {key: tensors[f"sample{sample}.{key}_is_text"].bool() for key in ("shallow", "deep")}
        torch.testing.assert_close(seen["shallow"][i][visible], expected["before_expansion"], atol=2e-5, rtol=0)
        # with a cache, stage two stands at the right of its row; a batch without images is left as it is
        deep, length = seen["deep"][i], len(expected["final"])
        if "mm_encoder_outputs" not in inputs:
            deep = deep[visible]
        deep = deep[-length:] if use_cache else deep[:length]
        torch.testing.assert_close(deep, expected["final"], atol=2e-5, rtol=0)
        text = outputs[i][visible][is_text["shallow"]]
        torch.testing.assert_close(text, expected["final"][is_text["deep"]], atol=2e-5, rtol=0)


# ---- The paper in one file


@pytest.mark.parametrize("text", TEXT_MODELS)
def test_logits_and_all_gradients_equal_the_slow_reference_for_every_backbone(text):
    check_against_reference(tiny_model(text, **LVTC), MIXED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        lvtc(num_lr_projectors=1),
        lvtc(num_lr_projectors=3, insert_start=0),
        lvtc(expand_layer=3, num_lr_projectors=3, insert_start=0, insert_interval=2),
        lvtc(hr_projector_type=None),
        lvtc(upsample_mode="bilinear"),
        lvtc(1, 8, upsample_mode="bilinear"),
        lvtc(2, 8, hr_projector_type=None, num_lr_projectors=1),
        lvtc(4, 4),
        lvtc(4, 2),
        lvtc(8, 2, hr_projector_type=None, num_lr_projectors=1, expand_layer=1),
        lvtc(expand_layer=1, num_lr_projectors=2, insert_start=0),
        lvtc(lr_projector_type="pvtc", hr_projector_type="linear"),
        lvtc(**KEPT),
        lvtc(4, 2, **KEPT),
    ],
    ids=[
        "T=1",
        "T=3",
        "T=3, every second layer",
        "no HR",
        "bilinear",
        "bilinear 1 to 8",
        "upsampling alone",
        "N2=N1",
        "N2<N1",
        "forward compression alone",
        "insertion before layer 0",
        "other projectors",
        "kept positions",
        "kept positions, N2<N1",
    ],
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits_and_all_gradients_equal_the_slow_reference_for_every_setting(settings, padding_side):
    check_against_reference(tiny_model("qwen2", **settings), MIXED, padding_side=padding_side)


@pytest.mark.slow
@on_each_backbone(("qwen2", "mistral", "qwen3_moe"), padding_side=("left", "right"))
def test_sliding_windows_count_the_tokens_of_their_own_stage(text, padding_side):
    model = tiny_model(text, text_config=SLIDING[text], **LVTC)
    check_against_reference(model, MIXED, padding_side=padding_side)
    wide = tiny_model(text, **LVTC)
    batch = tiny_batch(model.config, MIXED[:2])
    assert not torch.allclose(model(**batch).logits, wide(**batch).logits, atol=0.1)  # the window matters


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("text", [7, 17], ids=["only stage two", "both stages"])
@torch.no_grad()
def test_stages_do_not_disturb_each_other_s_rope_state(rope, text):
    """Below or above the 24 tokens that the rope was made for. Dynamic NTK keeps the frequencies of the longest row that it
    saw above them: in the second round, stage one's must not be those of stage two in the first."""
    model, layout = rope_model(rope), [3, "tile", "tile", text - 3]
    sample = tiny_batch(model.config, [layout])
    expected, lengths = reference_logits(model, sample["input_ids"][0], sample["pixel_values"])
    assert lengths == (text + 8, text + 32)
    for _ in range(2):
        torch.testing.assert_close(model(**sample).logits[0], expected, **CLOSE)
    short = tiny_batch(model.config, [[6]])
    torch.testing.assert_close(model(**short).logits[0], reference_logits(model, short["input_ids"][0])[0], **CLOSE)
    plain = tiny_model(model.config.text_config.model_type, **LVTC)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(**sample).logits[0], expected, atol=0.01)  # the scaling matters


# ---- Every way to call it


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen", "flex_attention"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_every_attention_implementation_on_mixed_image_counts(attention, padding_side):
    """ "varlen" stands for flash attention's interface on a CPU; tests/test_cuda.py has its kernels."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED, padding_side=padding_side)
    samples = split_batch(batch, model.config)
    expected = [reference_logits(model, s["input_ids"][0], s.get("pixel_values"))[0] for s in samples]
    model.set_attn_implementation({"text_config": attention})
    assert model.config.text_config._attn_implementation == attention
    with torch.compiler.set_stance("force_eager"):  # compiling flex attention's kernel would take most of a minute
        logits = model(**batch).logits
    for i, rows in enumerate(expected):
        torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], rows, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_sample_s_logits_do_not_depend_on_its_batch_without_a_mask(attention):
    """Rows of the same length with 0, 1 and 2 tiles, so that they grow apart although nothing is padded."""
    model = tiny_model("llama", **LVTC)
    model.set_attn_implementation({"text_config": attention})
    batch = tiny_batch(model.config, [[10], [3, "tile", 3], ["tile", 1, "tile", 1]])
    logits = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits
    for i, sample in enumerate(split_batch(batch, model.config)):
        expected, _ = reference_logits(model, sample["input_ids"][0], sample.get("pixel_values"))
        torch.testing.assert_close(logits[i], expected, **CLOSE)


@pytest.mark.parametrize("settings", [{}, LVTC], ids=["one stage", "LVTC"])
@torch.no_grad()
def test_placeholders_without_pixels_are_text(settings):
    model = tiny_model("qwen2", **settings)
    ids = tiny_batch(model.config, [[3, "tile", 2]])["input_ids"]
    expected = model.model.language_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model.model(input_ids=ids).last_hidden_state, expected, **CLOSE)


@torch.no_grad()
def test_a_masked_out_tile_is_as_if_it_were_not_there():
    """... in the numbers of what comes after it, positions included: dynamic NTK and longrope see absolute positions."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2, "tile", 4]])
    batch["attention_mask"][0, 3:7] = 0
    seen = []
    for layer in (0, 2):
        hook = {"with_kwargs": True}
        model.model.language_model.layers[layer].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_ids"]), **hook
        )
    logits = model(**batch).logits
    visible = batch["attention_mask"].bool()
    without = {"input_ids": batch["input_ids"][visible][None], "pixel_values": batch["pixel_values"][1:]}
    torch.testing.assert_close(logits[visible], model(**without).logits[0], **CLOSE)
    assert seen[0][visible].tolist() == seen[2][0].tolist() == list(range(13))
    assert seen[1][0].tolist() == seen[3][0].tolist() == list(range(25))


@torch.no_grad()
def test_a_row_of_nothing_but_padding_leaves_the_others_as_they_are():
    for attention in ("eager", "sdpa"):
        model = tiny_model("llama", **LVTC)
        model.set_attn_implementation({"text_config": attention})
        batch = tiny_batch(model.config, [[3, "tile", 2], [4], ["tile", 5]])
        batch["attention_mask"][1] = 0
        logits = model(**batch).logits
        assert logits.isfinite().all()
        for i in (0, 2):
            sample = split_batch(batch, model.config)[i]
            expected, _ = reference_logits(model, sample["input_ids"][0], sample["pixel_values"])
            torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], expected, **CLOSE)


def test_positions_count_anew_in_each_stage_without_padding():
    model = tiny_model("llama", **LVTC)
    seen = {}
    for i, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: seen.update({i: kwargs["position_ids"]}), with_kwargs=True
        )
    for side in ("left", "right"):
        batch = tiny_batch(model.config, MIXED, padding_side=side)
        model(**batch)
        for i, mask in enumerate(batch["attention_mask"].bool()):
            short = int(mask.sum())
            long = short + 12 * MIXED[i].count("tile")
            for layer in (0, 1):
                assert seen[layer][i][mask].tolist() == list(range(short))
            for layer in (2, 3):
                assert seen[layer][i][-long:].tolist() == list(range(long))


@torch.no_grad()
def test_hidden_states_and_attentions_have_each_layer_s_own_length():
    model = tiny_model("llama", **LVTC)
    model.set_attn_implementation("eager")
    batch = tiny_batch(model.config, [[3, "tile", 2], [4, "tile"]])
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    short, long = 9, 21
    assert [h.shape[1] for h in outputs.hidden_states] == [short, short, short, long, long]
    assert [a.shape[-2:] for a in outputs.attentions] == [(short, short)] * 2 + [(long, long)] * 2
    for attention in outputs.attentions:  # rows of probabilities
        torch.testing.assert_close(attention[0].sum(-1), torch.ones_like(attention[0, ..., 0]))
    assert outputs.logits.shape[1] == short
    assert len(model(**batch, output_hidden_states=True, return_dict=False)) >= 3


@torch.no_grad()
def test_text_rows_are_exact_and_placeholders_read_the_last_of_their_children():
    model = tiny_model("llama", **LVTC)
    seen = []
    model.model.language_model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    out = model.model(**tiny_batch(model.config, [[3, "tile", 2]])).last_hidden_state[0]
    deep = seen[0][0]  # 3 + 16 + 2 rows; the tile's 4x4 grid begins at 3
    last_children = [3 + 5, 3 + 7, 3 + 13, 3 + 15]  # (1, 1), (1, 3), (3, 1), (3, 3)
    assert torch.equal(out, deep[[0, 1, 2, *last_children, 19, 20]])


@pytest.mark.parametrize("settings", [lvtc(num_lr_projectors=1), lvtc(4, 2)], ids=["N2>N1", "N2<N1"])
def test_placeholders_of_a_tile_that_are_not_contiguous_raise(settings):
    model = tiny_model("llama", **settings)
    batch = tiny_batch(model.config, [["tile", 4]])
    ids, tokens = batch["input_ids"], model.config.image_seq_length
    ids[0, [tokens - 1, tokens]] = ids[0, [tokens, tokens - 1]]  # a word before the tile's last placeholder
    with pytest.raises(ValueError, match=f"{tokens} image placeholders of a tile must be contiguous"):
        model(**batch)


def test_a_4d_mask_with_images_raises_and_without_them_works():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    length = batch["input_ids"].shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=rf"2D `attention_mask`.*\(1, 1, {length}, {length}\)"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], attention_mask=mask)
    text = tiny_batch(model.config, [[length]])["input_ids"]
    torch.testing.assert_close(
        model(input_ids=text, attention_mask=mask).logits, model(input_ids=text).logits, **CLOSE
    )


def test_image_features_of_another_shape_raise():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    features = model.get_image_features(batch.pop("pixel_values"), return_dict=True)
    cut = InternVLXImageFeatures(
        pooler_output=features.pooler_output, deepstack_features=features.deepstack_features[:1]
    )
    with pytest.raises(ValueError, match="deepstack_features"):
        model(**batch, mm_encoder_outputs={"image": cut})
    with pytest.raises(ValueError, match="deepstack_features"):
        model(**batch, mm_encoder_outputs={"image": InternVLXImageFeatures(pooler_output=features.pooler_output)})


# ---- Models


def test_a_backbone_that_it_cannot_drive_raises_at_construction():
    with pytest.raises(ValueError, match=r"text_config.model_type.*'gpt2'"):
        tiny_config("gpt2", **LVTC)


@pytest.mark.parametrize("rope", ["default", *ROPES])
@torch.no_grad()
def test_a_saved_model_gives_the_same_logits_when_loaded(rope, tmp_path):
    """The rotary embedding of stage two has no weights in the checkpoint: it is made anew on loading."""
    model = tiny_model("llama", **LVTC) if rope == "default" else rope_model(rope)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 4]])
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_bfloat16_stays_bfloat16_and_close():
    """8 bits of mantissa: a percent of the logits' size after four layers."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = model(**batch).logits[batch["attention_mask"].bool()]
    logits = model.to(torch.bfloat16)(**batch).logits
    assert logits.dtype == torch.bfloat16
    error = (logits[batch["attention_mask"].bool()].float() - expected).abs().mean()
    assert error < 0.05 * expected.abs().mean()
