"""Converting a checkpoint of ours again: what its report and its training recipe say is still said of the new one."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from card_reports import RECIPE
from conversion_helpers import GOLDEN, not_converted
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import write_card
from internvlx_hf.hub.push import push_warnings
from json_files import edit_json, write_json

PROJECTOR = "model.multi_modal_projector"


def converted(folder: Path, recipe: dict | None = None, **options) -> Path:
    """A conversion of a golden checkpoint, trained since if there is a recipe."""
    convert_checkpoint(GOLDEN / "internvl2_qwen2", folder, base_model="owner/base", **options)
    if recipe is not None:
        write_json(folder / "training_recipe.json", recipe)
        write_card(folder)
    return folder


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("init", "start"), [("warm", "starts from the original's weights"), ("paper", "start at random")]
)
def test_untrained_modules_stay_untrained(tmp_path, init, start):
    source, again = converted(tmp_path / "source", projector="pvtc", init=init), tmp_path / "again"
    report = convert_checkpoint(source, again, slicing="edge")
    assert report.exact
    assert (report.untrained_modules, report.base_model) == ([PROJECTOR], "owner/base")
    assert f"- `{PROJECTOR}`\n\n" in card(again)
    assert start in card(again).split("## Not trained yet")[1]
    assert "The weights are those of the original" not in card(again)
    assert "not trained" in push_warnings(again, card(again))[0]
    upgraded = convert_checkpoint(again, tmp_path / "upgraded", lvtc=True)
    assert upgraded.untrained_modules == ["model.lvtc.hr_projector", PROJECTOR]
    assert start.replace("start at", "Some start at") in card(tmp_path / "upgraded")


def test_training_is_remembered(tmp_path):
    source = converted(tmp_path / "source", RECIPE, projector="pvtc")
    again = tmp_path / "again"
    assert convert_checkpoint(source, again, dtype="bfloat16").untrained_modules == []
    assert (again / "training_recipe.json").read_bytes() == (source / "training_recipe.json").read_bytes()
    before, after = (ModelCard(card(folder)).data for folder in (source, again))
    for name in ("base_model", "datasets", "license"):
        assert after.get(name) == before.get(name), name
    assert after.eval_results[0].metric_value == 0.5
    assert "Not trained yet" not in card(again)
    assert "1 step, 1 epoch, 100 tokens. The conversion came after the training." in card(again)


def test_training_before_an_upgrade_is_not_that_of_the_new_modules(tmp_path):
    source = converted(tmp_path / "source", RECIPE)
    upgraded = tmp_path / "upgraded"
    assert convert_checkpoint(source, upgraded, projector="pvtc").untrained_modules == [PROJECTOR]
    assert f"- `{PROJECTOR}`\n\n" in card(upgraded).split("## Not trained yet")[1]
    convert_checkpoint(upgraded, tmp_path / "again")
    for folder in (upgraded, tmp_path / "again"):
        assert not ModelCard(card(folder)).data.eval_results, "they were the source's"
    write_json(upgraded / "training_recipe.json", RECIPE | {"steps": 7})
    text = write_card(upgraded).text
    assert "Not trained yet" not in text
    assert "came after the training" not in text
    assert ModelCard(text).data.eval_results


def test_origin_passes_through_the_native_layout(tmp_path):
    source = converted(tmp_path / "source")
    edit_json(source / "conversion_report.json", revision="0123")
    convert_checkpoint(source, tmp_path / "native", to="internvl")
    report = convert_checkpoint(tmp_path / "native", tmp_path / "again")
    assert (report.base_model, report.revision) == ("owner/base", "0123")
    assert "The weights are those of the original" in card(tmp_path / "again")


def test_parts_are_still_named(tmp_path):
    source = converted(tmp_path / "source")
    parts = {
        name: {"source": f"a {name}", "base_model": f"owner/{name}"} for name in ("vision_tower", "language_model")
    }
    edit_json(source / "conversion_report.json", source_card={"license": "mit"}, base_model=None, parts=parts)
    (source / "README.md").unlink()
    convert_checkpoint(source, tmp_path / "again")
    data = ModelCard(card(tmp_path / "again")).data
    assert (data.base_model, data.license) == (["owner/vision_tower", "owner/language_model"], "mit")
    assert "Made of the vision tower of `a vision_tower`" in card(tmp_path / "again")


def test_damaged_report_is_named_before_anything_is_written(tmp_path):
    source = converted(tmp_path / "source")
    (source / "conversion_report.json").write_text('{"source": 1}')
    not_converted(source, "conversion_report.json: source is 1")
