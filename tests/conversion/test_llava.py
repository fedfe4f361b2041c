"""LLaVA: transformers' checkpoints come in with the same answers, are upgraded, and go back out."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from conversion_helpers import (
    LOGITS,
    distance,
    edit_config,
    edit_tensors,
    load,
    load_all,
    not_converted,
    require_same_tensors,
)
from internvlx_hf import InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint, convert_tokenizer, init_checkpoint
from json_files import edit_json, write_json
from llava_sources import (
    CASES,
    IMAGE,
    PATCH,
    TEMPLATE,
    TILE,
    VOCABULARY,
    answers,
    conversation,
    llava_processor,
    prompt,
    save_llava,
)
from part_sources import save_language, save_tower


@pytest.fixture(scope="module")
def saved_llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "llava"
    save_llava(folder)
    return folder


@pytest.fixture
def llava_folder(saved_llava, tmp_path):
    """A LLaVA to change."""
    return shutil.copytree(saved_llava, tmp_path / "llava")


def require_equal_answers(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key in ("vision_features", "logits", "text.logits_last2"):
        assert distance(found[key], expected[key]) <= LOGITS, key
    for key in ("generated_ids", "text.generated_ids"):
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_converted_llava_answers_the_same(tmp_path, out, name):
    settings = CASES[name]
    processor = llava_processor(settings["tower"])
    expected = answers(save_llava(tmp_path / "llava", **settings), processor)
    assert convert_checkpoint(tmp_path / "llava", out).exact
    require_equal_answers(answers(load(out), processor), expected)


def module_names(tensors: dict) -> dict:
    """The names of modules, in which transformers 4.52 and later may have saved."""
    return {
        name.removeprefix("language_model.")
        if "lm_head" in name
        else "model." + name.replace("language_model.model.", "language_model."): tensor
        for name, tensor in tensors.items()
    }


def wrapped_tower(tensors: dict) -> dict:
    """The names of transformers 4, with what its files had besides."""
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()}
    positions = torch.arange(2.0)
    return renamed | {
        "vision_tower.vision_model.embeddings.position_ids": positions.long()[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": positions,
    }


@pytest.mark.parametrize("naming", [module_names, wrapped_tower, "bin", "shards"])
def test_every_file_format_and_naming_of_llava_is_read(tmp_path, out, naming):
    model = save_llava(tmp_path / "llava")
    file = tmp_path / "llava/model.safetensors"
    if naming == "bin":
        torch.save(load_file(file), tmp_path / "llava/pytorch_model.bin")
        file.unlink()
    elif naming == "shards":
        model.save_pretrained(tmp_path / "llava", max_shard_size="200KB")
        assert len(list((tmp_path / "llava").glob("*.safetensors"))) > 1
    else:
        save_file(naming(load_file(file)), file)
    report = convert_checkpoint(tmp_path / "llava", out, max_shard_gigabytes=3e-4)
    assert report.exact
    assert len(list(out.glob("*.safetensors"))) > 1
    require_same_tensors(out, model.state_dict())


def test_verification_compares_with_transformers_llava(tmp_path):
    save_llava(tmp_path / "llava", vision_feature_layer=-1, tower="siglip")
    for source, out, to in (("llava", "out", "internvl_x"), ("out", "back", "llava")):
        checks = convert_checkpoint(tmp_path / source, tmp_path / out, to=to, verify=True).checks
        assert checks["reference"].startswith("matches the source computed independently")


# ---- the processor


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A LLaVA, and its conversion."""
    root = tmp_path_factory.mktemp("llava_converted")
    save_llava(root / "llava")
    convert_checkpoint(root / "llava", root / "out", max_patches=6, slicing="edge")
    convert_checkpoint(root / "llava", root / "one_tile")
    return root


def test_prompt_is_llava_s_token_by_token(converted):
    ours, theirs = (AutoProcessor.from_pretrained(converted / name) for name in ("one_tile", "llava"))
    assert (type(ours), type(theirs)) == (InternVLXProcessor, LlavaProcessor)
    turns = [
        *conversation(),
        {"role": "assistant", "content": [{"type": "text", "text": "A set."}]},
        {"role": "user", "content": [{"type": "text", "text": "And here?"}, {"type": "image", "image": IMAGE}]},
    ]
    found, expected = prompt(ours, turns), prompt(theirs, turns)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    # torch's resizing differs from Pillow's by at most a level
    assert distance(found["pixel_values"], expected["pixel_values"]) <= 1.1 / 255 / 0.25
    raw = {"text": "USER: <image>\nWhat? ASSISTANT:", "images": [IMAGE], "return_tensors": "pt"}
    assert torch.equal(ours(**raw)["input_ids"], theirs(**raw)["input_ids"])


def test_image_token_is_renamed_under_its_id_and_stands_alone(converted):
    ours, theirs = (AutoProcessor.from_pretrained(converted / name) for name in ("one_tile", "llava"))
    assert ours.image_token_id == theirs.image_token_id == load(converted / "one_tile").config.image_token_id
    assert (ours.image_tokens, ours.image_token_ids) == (("<IMG_CONTEXT>",), [theirs.image_token_id])
    assert (ours.wrap_images, ours.start_image_token, ours.end_image_token_id) == (False, "", None)
    # the mark as text, which LLaVA's tokenizer would take for an image
    assert theirs.image_token_id not in ours.tokenizer("<image>")["input_ids"]
    ids = prompt(ours, conversation())["input_ids"]
    assert (ids == ours.image_token_id).sum() == ours.image_seq_length == (TILE // PATCH) ** 2
    assert ours._get_num_multimodal_tokens([(TILE, TILE)]).num_image_tokens == [ours.image_seq_length]
    video = ours(text="<video>", videos=[[IMAGE, IMAGE]], return_tensors="pt")
    assert (video["input_ids"] == ours.image_token_id).sum() == 2 * ours.image_seq_length


def test_tokenizer_alone_can_be_converted(converted):
    ours, theirs = convert_tokenizer(converted / "llava"), AutoTokenizer.from_pretrained(converted / "llava")
    text = "Read the digits, and say: 12 élan <|im_end|>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    again = convert_tokenizer(converted / "one_tile")
    assert again.get_vocab() == ours.get_vocab()
    assert not hasattr(again, "start_image_token")


def test_template_that_ignores_strings_writes_them_after_conversion(converted):
    ours = AutoProcessor.from_pretrained(converted / "one_tile")
    text = ours.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert text == "USER: Hello ASSISTANT:"
    given = prompt(ours, [{"role": "user", "content": "<image>\nWhat is on the image?"}], images=[IMAGE])
    assert torch.equal(given["input_ids"], prompt(ours, conversation())["input_ids"])


def test_one_tile_by_default_and_rvtc_on_request(converted):
    wide = Image.new("RGB", (3 * TILE, 2 * TILE))
    for name, tiles in (("one_tile", 1), ("out", 7)):
        processor = AutoProcessor.from_pretrained(converted / name).image_processor
        assert len(processor(wide)["pixel_values"]) == tiles


def _as_list(value):
    return list(value) if isinstance(value, tuple) else value


def test_pixel_settings_come_along(tmp_path, out):
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 1, "rescale_factor": 1 / 128}
    save_llava(tmp_path / "llava", image_settings=settings)
    report = convert_checkpoint(tmp_path / "llava", out)
    ours = AutoProcessor.from_pretrained(out).image_processor
    assert {name: _as_list(getattr(ours, name)) for name in settings} == settings
    # what torch cannot resample with
    assert ours.resize_backend == "pillow"
    theirs = llava_processor(**settings).image_processor(IMAGE, return_tensors="pt")["pixel_values"]
    assert distance(ours(IMAGE, return_tensors="pt")["pixel_values"], theirs) <= 1e-5
    assert any("cuts off what is left" in note for note in report.notes)


def test_what_llava_cuts_off_is_kept(converted):
    """A wide image with a red left edge: LLaVA's crop loses it."""
    image = Image.new("RGB", (3 * TILE, TILE))
    image.paste("red", (0, 0, TILE, TILE))
    ours, theirs = (AutoProcessor.from_pretrained(converted / name) for name in ("one_tile", "llava"))
    red = [processor.image_processor(image, return_tensors="pt")["pixel_values"][0, 0] for processor in (ours, theirs)]
    assert red[0].max() - red[0].min() > 3
    assert red[1].max() == red[1].min()


def test_stretching_tower_needs_no_note(tmp_path, out):
    save_llava(tmp_path / "llava", tower="siglip")
    notes = convert_checkpoint(tmp_path / "llava", out).notes
    assert not any("LLaVA's image processor" in note for note in notes)


# ---- refusals


def set_top(**values):
    return lambda raw: raw.update(values)


def set_part(part, **values):
    return lambda raw: raw[part].update(values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_top(model_type="llava_next"), "'llava_next' … newline tokens … Supported are … llava"),
        (set_top(model_type="llava_onevision"), "'llava_onevision' … newline tokens"),
        (set_top(model_type="video_llava"), "'video_llava' … second vision tower"),
        (set_top(model_type="vipllava"), "'vipllava' … several layers"),
        (set_top(model_type="instructblip"), "'instructblip' … Q-Former"),
        (set_top(model_type="blip-2"), "'blip-2' … Q-Former"),
        (set_top(model_type="minigpt4"), "'minigpt4' … Q-Former"),
        (set_top(model_type="llava_llama"), "'llava_llama' … LLaVA's own code … llava-hf/llava-1.5-7b-hf"),
        (set_top(model_type="idefics3"), "model_type='idefics3' … Supported are the model types"),
        (lambda raw: raw.pop("vision_config"), "lacks vision_config … LLaVA's own code"),
        (set_top(vision_feature_layer=[-2, -1]), "vision_feature_layer=[-2, -1] joins … a single layer"),
        (set_top(vision_feature_layer=[]), "vision_feature_layer=[]"),
        (set_top(vision_feature_layer=-9), "`vision_feature_layer` must be in -4...3"),
        (set_top(vision_feature_layer="last"), "vision_feature_layer='last'"),
        (set_top(vision_feature_select_strategy="full"), "'full' of clip_vision_model makes 65 tokens … 'default'"),
        (set_top(vision_feature_select_strategy="odd"), "vision_feature_select_strategy"),
        (set_top(multimodal_projector_bias=False), "multimodal_projector_bias=False"),
        (set_top(projector_hidden_act="swish2"), "projector_hidden_act='swish2'"),
        (set_top(image_token_index=-1), "image_token_index=-1"),
        (set_top(image_token_index=VOCABULARY), "image_token_id`=320 is outside the vocabulary"),
        (set_top(image_token_index=40), "image_token_index=40 is not an added token"),
        (set_part("vision_config", model_type="dinov2"), "'dinov2' … clip_vision_model or siglip_vision_model"),
        (set_part("vision_config", hidden_size=36), "do not fit its config.json"),
        (set_part("text_config", model_type="gpt2"), "text_config.model_type` must be one of … 'gpt2'"),
        (set_part("text_config", num_hidden_layers=2), "unexpected: language_model.model.layers.2"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_by_name(llava_folder, edit, said):
    edit_config(llava_folder, edit)
    not_converted(llava_folder, said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop_size": {"height": 28, "width": 28}}, "crop_size= … 28 … makes tiles of 32x32"),
        ({"do_center_crop": False, "size": {"shortest_edge": 28}}, "size= … 28 … makes tiles of 32x32"),
        ({"do_center_crop": 3}, "do_center_crop=3"),
        ({"size": "32"}, "size='32' … a number of pixels"),
        ({"image_std": [0, 0, 0]}, "image_std=[0, 0, 0]"),
    ],
)
def test_image_settings_that_cannot_be_kept_are_refused(llava_folder, settings, said):
    edit_json(llava_folder / "processor_config.json", lambda raw: raw["image_processor"].update(settings))
    not_converted(llava_folder, said)


def test_llava_without_a_chat_template_is_told_where_to_put_one(tmp_path, out):
    save_llava(tmp_path / "llava", template=None)
    not_converted(tmp_path / "llava", "no chat template. Put … chat_template.jinja")
    # the file of transformers before 4.51
    write_json(tmp_path / "llava/chat_template.json", {"chat_template": TEMPLATE})
    convert_checkpoint(tmp_path / "llava", out)
    assert "<IMG_CONTEXT>" in (tmp_path / "out/chat_template.jinja").read_text()


def test_missing_and_unexpected_tensors_are_named(llava_folder):
    edit_tensors(llava_folder, lambda tensors: tensors.pop("multi_modal_projector.linear_2.bias"))
    not_converted(llava_folder, "missing: model.multi_modal_projector.linear_2.bias")
    edit_tensors(llava_folder, lambda tensors: tensors.update({"image_newline": torch.zeros(64)}))
    not_converted(llava_folder, "unexpected: image_newline")


# ---- upgrades


@torch.no_grad()
def logits(folder: Path, inputs: dict) -> torch.Tensor:
    return load(folder)(**inputs).logits[:, -1]


def test_warm_pvtc_of_single_patches_answers_as_llava(out, llava_folder):
    inputs = prompt(llava_processor(), conversation())
    with torch.no_grad():
        expected = LlavaForConditionalGeneration.from_pretrained(llava_folder).eval()(**inputs).logits[:, -1]
    report = convert_checkpoint(llava_folder, out, projector="pvtc", downsample_ratio=1, verify=True)
    assert report.checks["reference"].startswith("matches")
    assert distance(logits(out, inputs), expected) <= LOGITS


def test_warm_pvtc_starts_as_llava_s_mlp_of_each_window_s_mean(tmp_path, out, llava_folder):
    report = convert_checkpoint(llava_folder, out, projector="pvtc")
    convert_checkpoint(llava_folder, tmp_path / "kept")
    model, kept = load(out), load(tmp_path / "kept")
    assert model.config.projector_config.query_mlp == "llava"
    assert (report.tokens["per_tile"], model.config.image_seq_length) == (16, 16)
    assert report.untrained_modules == ["model.multi_modal_projector"]
    pixels = torch.randn(2, 3, TILE, TILE)
    with torch.no_grad():
        tower = kept.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        means = tower.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)
        expected = kept.model.multi_modal_projector(torch.cat([means[:, :1], means], 1))
        found = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("projector", ["keep", "pvtc"])
def test_warm_lvtc_expands_to_llava_s_grid_and_adds_llava_s_tokens(tmp_path, llava_folder, projector):
    settings = {"expand_layer": 2, "num_lr_projectors": 2, "insert_start": 1, "insert_interval": 1}
    report = convert_checkpoint(llava_folder, tmp_path / "warm", lvtc=settings, projector=projector)
    assert (report.tokens["per_tile"], report.tokens["per_tile_expanded"]) == (16, 64)
    stored, source = load_all(tmp_path / "warm"), load_all(llava_folder)
    for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
        assert torch.equal(stored[f"model.lvtc.hr_projector.{name}"], source[f"multi_modal_projector.{name}"])
    folded = source["multi_modal_projector.linear_1.weight"].repeat(1, 4) / 4
    assert torch.allclose(stored["model.lvtc.lr_projectors.0.linear_1.weight"], folded, atol=1e-7)
    assert not stored["model.lvtc.lr_projectors.0.linear_2.weight"].any()


def test_window_of_an_upgrade_fits_the_grid(tmp_path, out):
    save_llava(
        tmp_path / "llava",
        tower="siglip",
        vision_config={"image_size": 36},
        image_settings={"size": {"height": 36, "width": 36}},
    )
    report = convert_checkpoint(tmp_path / "llava", out, projector="pvtc")
    assert report.tokens["per_tile"] == 9  # of 9x9 patches


def test_ratio_alone_can_be_changed(out, llava_folder):
    report = convert_checkpoint(llava_folder, out, downsample_ratio=0.25)
    assert report.tokens["per_tile"] == 4
    assert report.untrained_modules == ["model.multi_modal_projector"]
    assert load(out).config.projector_config.projector_type == "linear"


# ---- back


def require_same_llava(folder: Path, ours: Path, messages) -> None:
    """A LLaVA gives the logits of our checkpoint on the prompt that its own files make."""
    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    assert type(processor) is LlavaProcessor
    own = AutoProcessor.from_pretrained(ours)
    found, expected = prompt(processor, messages), prompt(own, messages, processor_kwargs={"resize_backend": "pillow"})
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert distance(found["pixel_values"], expected["pixel_values"]) <= 1e-5
    with torch.no_grad():
        assert distance(model(**found).logits[:, -1], logits(ours, found)) <= LOGITS
        answer, other = (
            each.generate(**found, max_new_tokens=8, do_sample=False, eos_token_id=2) for each in (model, load(ours))
        )
    assert torch.equal(answer, other)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_there_and_back_is_the_same_llava(tmp_path, tower):
    save_llava(tmp_path / "llava", tower=tower, vision_feature_layer=-1)
    convert_checkpoint(tmp_path / "llava", tmp_path / "ours")
    report = convert_checkpoint(tmp_path / "ours", tmp_path / "back", to="llava")
    assert report.exact
    require_same_tensors(tmp_path / "llava", tmp_path / "back")
    configs = [AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("llava", "back")]
    for part in ("vision_config", "text_config"):
        assert {**configs[0].pop(part), "dtype": "float32"} == configs[1].pop(part)
    assert {name for name in configs[0] if configs[0][name] != configs[1][name]} <= {
        "_name_or_path",
        "image_seq_length",
    }
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("llava", "back")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert not list((tmp_path / "back").glob("*.py"))
    wide = Image.new("RGB", (50, 20), "red")
    require_same_llava(tmp_path / "back", tmp_path / "ours", conversation(wide))
    card = (tmp_path / "back/README.md").read_text()
    assert "transformers' LLaVA" in card
    assert "custom_code" not in card


def test_model_from_parts_goes_to_llava_with_its_start_and_end_tokens(tmp_path):
    tower, language = save_tower("clip", tmp_path / "tower"), save_language("qwen2", tmp_path / "language")
    parts = {"vision": tower, "language": language, "vision_feature_layer": -2}
    init_checkpoint(tmp_path / "ours", **parts, projector="linear", downsample_ratio=1.0)
    report = convert_checkpoint(tmp_path / "ours", tmp_path / "llava", to="llava")
    assert any("one tile per image, while the source takes up to 6" in note for note in report.notes)
    require_same_llava(tmp_path / "llava", tmp_path / "ours", conversation())
    assert "<img><image></img>" in (tmp_path / "llava/chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"projector": "pvtc"}, "projector 'pvtc' with downsample_ratio=0.5 … Expected 'linear' with 1"),
        ({"lvtc": True}, "downsample_ratio=0.5 and LVTC"),
        ({"downsample_ratio": 0.5}, "projector 'linear' with downsample_ratio=0.5"),
    ],
)
def test_what_llava_cannot_compute_does_not_go_back(llava_folder, options, said):
    not_converted(llava_folder, said, ValueError, to="llava", **options)


def test_last_layer_after_the_norm_does_not_go_back(tmp_path):
    tower, language = save_tower("siglip", tmp_path / "tower"), save_language("llama", tmp_path / "language")
    init_checkpoint(tmp_path / "ours", vision=tower, language=language, projector="linear", downsample_ratio=1.0)
    not_converted(
        tmp_path / "ours", "vision_feature_layer=-1 … after its final norm … 2 is the last", ValueError, to="llava"
    )


def test_parts_can_be_taken_from_a_llava(out, llava_folder):
    init_checkpoint(out, vision=llava_folder, language=llava_folder)
    source, found = load_all(llava_folder), load_all(out)
    norm = "language_model.norm.weight"
    assert torch.equal(found[f"model.{norm}"], source["language_model.model.norm.weight"])
    assert torch.equal(found["model.vision_tower.post_layernorm.weight"], source["vision_tower.post_layernorm.weight"])
    assert AutoProcessor.from_pretrained(out).wrap_images
