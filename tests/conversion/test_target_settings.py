"""Image and video settings in transformers' own layouts: written there, or said to be lost."""

from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import GotOcr2ImageProcessorPil

from conversion_helpers import GOLDEN, copy_of
from internvlx_hf import InternVLXProcessor
from internvlx_hf.conversion import ConversionOptions, convert_checkpoint
from internvlx_hf.conversion.sources import Tiling
from internvlx_hf.conversion.target_settings import fit_settings
from internvlx_hf.processing.image_settings import ImageSettings
from json_files import json_of
from refusals import refused

QWEN = "internvl2_qwen2"
PIXELS = {"do_normalize": False, "rescale_factor": 1 / 127.5, "resample": 2, "do_convert_rgb": False}


def fitted(to: str, max_tiles: int = 12, slicing=None, max_patches=None, **tiling) -> tuple[Tiling, list[str]]:
    settings = {name: tiling.pop(name) for name in ImageSettings.names() if name in tiling}
    source = SimpleNamespace(tiling=Tiling(28, ImageSettings(**settings), **tiling), notes=[])
    fit_settings(source, ConversionOptions(to=to, slicing=slicing, max_patches=max_patches), max_tiles)
    return source.tiling, source.notes


def test_native_settings_are_written_and_others_are_noted(tmp_path):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "ours", slicing="edge", max_patches=5)
    processor = InternVLXProcessor.from_pretrained(tmp_path / "ours")
    for name, value in (PIXELS | {"use_thumbnail": False, "min_patches": 2, "do_exif_transpose": False}).items():
        setattr(processor.image_processor, name, value)
    processor.video_processor.max_frames, processor.video_processor.do_sample_frames = 16, False
    processor.save_pretrained(tmp_path / "ours")
    report = convert_checkpoint(tmp_path / "ours", tmp_path / "native", to="internvl")
    assert [report.tokens[name] for name in ("min_tiles", "max_tiles", "slicing")] == [2, 5, "ratio"]
    lost = (
        "slicing='edge'",
        "use_thumbnail=False",
        "do_exif_transpose=False",
        "max_frames=16",
        "do_sample_frames=False",
    )
    assert {note.split()[0] for note in report.notes} == set(lost)
    native = json_of(tmp_path / "native" / "preprocessor_config.json")
    convert_checkpoint(tmp_path / "native", tmp_path / "back")
    back = InternVLXProcessor.from_pretrained(tmp_path / "back").image_processor.to_dict()
    for name, value in (PIXELS | {"min_patches": 2, "max_patches": 5}).items():
        assert native[name] == back[name] == pytest.approx(value), name
    assert (back["slicing"], back["use_thumbnail"]) == ("ratio", True)


def test_one_tile_per_image_stays_one_in_the_native_processor(tmp_path):
    source = copy_of(QWEN, tmp_path / "source", dynamic_image_size=False)
    convert_checkpoint(source, tmp_path / "native", to="internvl")
    native = GotOcr2ImageProcessorPil.from_pretrained(tmp_path / "native")
    # as InternVLProcessor calls it
    found = native([Image.new("RGB", (112, 56))], crop_to_patches=True, return_tensors="pt")
    assert len(found["pixel_values"]) == 1
    convert_checkpoint(tmp_path / "native", tmp_path / "back")
    back = InternVLXProcessor.from_pretrained(tmp_path / "back").image_processor
    assert back.get_number_of_image_patches(56, 112) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"to": "internvl", "slicing": "edge"},
            "slicing='edge', but native InternVL always cuts images by their ratio",
        ),
        ({"to": "llava", "slicing": "edge"}, "slicing='edge' has no effect: LLaVA takes one tile per image"),
        ({"to": "llava", "max_patches": 6}, "max_patches=6 has no effect"),
        ({"to": "internvl", "video": {"frame_label": "{}: "}}, "frame_label='{}: '"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused(options, message):
    with refused(message):
        fitted(**options)


def test_llava_takes_one_tile_and_has_no_transparency():
    tiling, notes = fitted("llava", min_patches=2, others={"alpha": "white", "do_exif_transpose": True})
    assert (tiling.settings.min_patches, tiling.settings.max_patches) == (1, 1)
    assert ["up to 12" in notes[1], "alpha='white'" in notes[0], len(notes)] == [True, True, 2]


def test_what_fits_is_not_noted():
    for to in ("internvl", "llava"):
        assert fitted(to, max_tiles=1, others={"alpha": "drop"}, video={"max_frames": 128})[1] == []
    assert fitted("internvl_x", slicing="edge", max_image_tokens=9)[1] == []
