"""The paper in one file: it reads what `internvlx convert` writes, and says what the package says."""

import math
import subprocess
import sys

import pytest
import torch

from conversion_helpers import FAMILIES, GOLDEN, edit_config, load
from image_cases import random_image
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint
from llava_sources import save_llava
from one_file import one_file
from paths import ROOT
from tiny import TEXT_MODELS, tiny_model, tiny_processor

SCRIPT = ROOT / "examples" / "internvlx_in_one_file.py"
QUESTION = "What is on the picture?"
NEW = 8
PVTC, LVTC = {"projector": "pvtc"}, {"lvtc": True}
QWEN = "internvl2_qwen2"
KINDS = {
    **{name: (name, {}) for name in FAMILIES},
    **{text: (text, {}) for text in TEXT_MODELS},
    "llava": ("llava clip", {}),
    "PVTC, from InternVL2's projector": (QWEN, PVTC),
    "PVTC, from LLaVA's projector": ("llava clip", PVTC),
    "PVTC, without a CLS token": ("llava siglip", PVTC),
    "PVTC, as released": (QWEN, PVTC | {"init": "paper"}),
    "LVTC": (QWEN, LVTC),
    "LVTC, as in the paper": (QWEN, LVTC | {"init": "paper"}),
    "LVTC, bilinear": (QWEN, {"lvtc": {"upsample_mode": "bilinear", "expanded_positions": "counted"}}),
    "LVTC in a mixture of experts": ("qwen3_moe", LVTC),
    "PVTC and LVTC": ("internvl2_internlm2", PVTC | LVTC),
    "PVTC and LVTC of fewer tokens": ("internvl2_phi3", PVTC | LVTC | {"downsample_ratio": 0.25}),
    "RVTC and a budget": (QWEN, {"slicing": "edge", "max_patches": 9, "max_image_tokens": 20}),
}


def write_source(kind, folder):
    if kind.startswith("llava"):
        save_llava(folder, tower=kind.split()[1])
    elif kind in TEXT_MODELS:
        model = tiny_model(kind, downsample_ratio=0.5)
        model.save_pretrained(folder)
        tiny_processor(model.config).save_pretrained(folder)
    else:
        return GOLDEN / kind
    return folder


def convert(kind, folder):
    """What `internvlx convert` writes, with every weight moved: a new module starts at zero, which would hide its mistakes."""
    source, options = KINDS[kind]
    convert_checkpoint(write_source(source, folder / "source"), folder / "converted", **options)
    model = load(folder / "converted")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "converted")
    return folder / "converted"


def package_s_answer(folder, image):
    """The logits after the prompt, and the greedy answer."""
    model = InternVLXForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = InternVLXProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():  # before `generate`: a rotary embedding may remember the longest prompt
        logits = model(**inputs).logits[0, -1]
    answer = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return inputs, logits, processor.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_and_answer_are_the_package_s_for_every_kind_of_checkpoint(tmp_path, kind):
    folder, image = convert(kind, tmp_path), random_image(150, 70)
    inputs, expected, answer = package_s_answer(folder, image)
    model = one_file.load(folder)
    rows, _ = model(inputs["input_ids"][0], model.encode(inputs["pixel_values"]))
    # two orders of summation in float32, of logits of size 1 to 10
    torch.testing.assert_close(model.lm_head(rows[-1]), expected, atol=1e-4, rtol=1e-4)
    assert one_file.answer(folder, image, QUESTION, NEW) == answer
    assert answer


@pytest.mark.slow
def test_the_script_prints_only_the_answer(tmp_path):
    folder = convert("PVTC and LVTC", tmp_path)
    random_image(150, 70).save(tmp_path / "image.png")
    command = [sys.executable, SCRIPT, folder, tmp_path / "image.png", QUESTION, "--max-new-tokens", str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == package_s_answer(folder, tmp_path / "image.png")[2] + "\n"


@pytest.mark.parametrize("slicing", ["edge", "area", "ratio"])
@pytest.mark.parametrize("size", [(150, 70), (70, 150), (40, 300), (20, 80), (31, 33), (5, 7), (32, 32), (401, 150)])
@pytest.mark.parametrize("tiles", [{}, {"min_patches": 3}, {"use_thumbnail": False}, {"crop_to_patches": False}])
def test_tiles_are_the_processor_s_pixel_for_pixel(slicing, size, tiles):
    tile = {"height": 32, "width": 32}
    processor = InternVLXImageProcessor(size=tile, max_patches=6, slicing=slicing, **{"crop_to_patches": True} | tiles)
    image = random_image(*size)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(one_file.tiles_of(image, processor.to_dict()), expected)


def test_a_photo_is_turned_upright_as_by_the_processor():
    image = random_image(70, 150)
    image.getexif()[0x0112] = 6
    processor = InternVLXImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(one_file.tiles_of(image, processor.to_dict()), expected)


@pytest.mark.parametrize("most_tiles", [1, 2, 4, 6, math.inf])
def test_a_budget_takes_as_many_tiles_as_by_the_processor(most_tiles):
    config = tiny_model(downsample_ratio=0.5).config
    processor, image = tiny_processor(config), random_image(150, 70)
    budget = None if most_tiles == math.inf else most_tiles * config.image_seq_length
    expected = processor(images=image, text="<image>", max_image_tokens=budget, return_tensors="pt")["pixel_values"]
    assert torch.equal(one_file.tiles_of(image, processor.image_processor.to_dict(), most_tiles), expected)


def test_a_checkpoint_with_other_modules_is_refused(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "out", lvtc=True)
    edit_config(tmp_path / "out", lambda raw: raw.update(lvtc_config=None))
    with pytest.raises(RuntimeError, match=r"lvtc.hr_projector"):
        one_file.load(tmp_path / "out")


def test_the_file_is_short_and_stands_alone():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 350
    assert "internvlx_hf" not in source
