"""Making a dial of a checkpoint: sizes beside its own number of tokens, at which it answers as before."""

import pytest
import torch
from PIL import Image

from conversion_helpers import GOLDEN, LOGITS, distance, golden, golden_logits, load, not_converted
from internvlx_hf import InternVLXProcessor
from internvlx_hf.conversion import convert_checkpoint
from llava_sources import save_llava
from refusals import refused

QWEN = "internvl2_qwen2"  # 4 tokens of 4x4 patches in 2 layers
PROJECTOR = "model.multi_modal_projector"


def generated(folder, **sizes):
    model, processor = load(folder), InternVLXProcessor.from_pretrained(folder)
    inputs = processor(Image.effect_noise((70, 60), 50).convert("RGB"), "<image> what?", return_tensors="pt", **sizes)
    answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return inputs, answer[0, inputs["input_ids"].shape[1] :].tolist()


def test_sizes_that_shrink_need_no_weights_and_no_training(out):
    report = convert_checkpoint(GOLDEN / QWEN, out, tokens_per_tile="4,4:1,4:0", merge_at=1)
    assert report.exact
    assert not report.new_tensors
    assert not report.untrained_modules
    model = load(out)
    assert (model.config.tokens_per_tile, model.config.merge_layer) == (["4", "4:1", "4:0"], 1)
    assert distance(golden_logits(model, QWEN), golden(QWEN)["logits"]) <= LOGITS
    inputs, before = generated(out)
    assert "tile_sizes" not in inputs
    for index, size in enumerate(["4:1", "4:0"], start=1):
        inputs, after = generated(out, tokens_per_tile=size)
        assert set(inputs["tile_sizes"].tolist()) == {index}
        assert len(after) == len(before)


@pytest.mark.parametrize("projector", ["keep", "pvtc"])
def test_fewer_tokens_start_as_the_old_projector_reads_larger_windows(out, projector):
    report = convert_checkpoint(GOLDEN / QWEN, out, tokens_per_tile=["4", "1"], projector=projector)
    assert report.untrained_modules == [PROJECTOR]
    model = load(out)
    assert distance(golden_logits(model, QWEN), golden(QWEN)["logits"]) <= LOGITS
    own = "local_query." if projector == "pvtc" else ""
    weight, folded = (model.get_parameter(f"{PROJECTOR}.{part}{own}linear_1.weight") for part in ("", "sizes.4."))
    width = weight.shape[1] // 4
    # each patch of a window of 4x4 takes a quarter of the weight of the patch of 2x2 in whose place it is
    torch.testing.assert_close(folded.view(-1, 4, 4, width)[:, ::2, ::2], weight.view(-1, 2, 2, width) / 4)
    _, answer = generated(out, tokens_per_tile="1")
    assert len(answer) == 4


def test_sizes_that_grow_take_lvtcs_projectors(out):
    report = convert_checkpoint(
        GOLDEN / QWEN, out, tokens_per_tile=["4", "1:4", "4:1"], merge_at=1, lvtc={"expand_layer": 1}
    )
    assert report.untrained_modules == ["model.lvtc.hr_projector", PROJECTOR]
    model = load(out)
    assert model.config.lvtc_config.downsample_ratio == 0.5
    assert distance(golden_logits(model, QWEN), golden(QWEN)["logits"]) <= LOGITS
    # stage two sees what the source saw
    torch.testing.assert_close(
        model.get_parameter("model.lvtc.hr_projector.linear_2.weight"),
        model.get_parameter(f"{PROJECTOR}.linear_2.weight"),
    )
    inputs, answer = generated(out, tokens_per_tile="1:4")
    assert len(answer) == 4
    assert set(inputs["tile_sizes"].tolist()) == {1}


def test_a_llava_takes_sizes(tmp_path, out):
    save_llava(tmp_path / "source")
    tokens = 64
    report = convert_checkpoint(
        tmp_path / "source", out, tokens_per_tile=f"{tokens},{tokens}:16,{tokens}:0", merge_at=2
    )
    assert report.exact
    _, before = generated(out)
    _, after = generated(out, tokens_per_tile=f"{tokens}:16")
    assert len(before) == len(after)


def test_a_dial_is_converted_again_with_its_sizes(tmp_path, out):
    convert_checkpoint(GOLDEN / QWEN, tmp_path / "dial", tokens_per_tile="4,4:1", merge_at=1)
    convert_checkpoint(tmp_path / "dial", out)
    assert load(out).config.tokens_per_tile == ["4", "4:1"]
    assert InternVLXProcessor.from_pretrained(out).offered_sizes == ["4", "4:1"]
    convert_checkpoint(tmp_path / "dial", tmp_path / "again", tokens_per_tile="4,4:1,1,4:0", merge_at=1)
    again = load(tmp_path / "again").config
    assert (again.tokens_per_tile, again.merge_layer) == (["4", "4:1", "1", "4:0"], 1)
    with refused("already offers ['4', '4:1']", "behind"):
        convert_checkpoint(tmp_path / "dial", tmp_path / "third", tokens_per_tile="4,4:0", merge_at=1)
    with refused("to='internvl'", "tokens_per_tile=['4', '4:1']"):
        convert_checkpoint(tmp_path / "dial", tmp_path / "native", to="internvl")


BAD = {
    "no merge layer": ({"tokens_per_tile": "4,4:1"}, "`merge_layer` must be in 1...1"),
    "a layer that there is not": ({"tokens_per_tile": "4,4:1", "merge_at": 2}, "got 2 with 4:1"),
    "nothing to merge": ({"merge_at": 1}, "merge_at=1"),
    "another default": ({"tokens_per_tile": "1,4"}, "the default '1'"),
    "growth without LVTC": ({"tokens_per_tile": "4,1:4"}, "'1:4', which grows"),
    "no grid": ({"tokens_per_tile": "4,9"}, "Expected one of 1, 4, 16"),
    "no size": ({"tokens_per_tile": "4,x"}, "expected a list of sizes of a tile"),
    "a thumbnail": ({"tokens_per_tile": "4+1"}, "expected a list of sizes of a tile"),
}


@pytest.mark.parametrize("name", BAD)
def test_sizes_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, name):
    options, said = BAD[name]
    folder = tmp_path / "source"
    folder.symlink_to(GOLDEN / QWEN, target_is_directory=True)
    not_converted(folder, said, ValueError, **options)
