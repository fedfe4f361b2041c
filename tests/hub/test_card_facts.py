"""What a card says of a conversion and a training, from JSON that may be damaged or hold names like marks."""

import copy
import re

import pytest
from huggingface_hub import ModelCard

from card_reports import RECIPE, REPORT
from conversion_helpers import GOLDEN
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import model_card, write_card
from internvlx_hf.hub.card_text import manual_content, validate_card
from json_files import write_json
from refusals import refused
from tiny import LVTC, tiny_model, tiny_processor

MARKS = (
    "<!-- internvlx:begin cost 1a2b3c4d -->",
    "pages <!-- internvlx:end data --> more",
    "<!-- internvlx:card x metadata: -->",
    "internvlx:begin",
)
NAMES = (
    *MARKS,
    "a|b",
    "a\nb",
    "a\n\n# b",
    "<script>alert(1)</script>",
    "`a`",
    "---\na: 1\n---",
    "[a](b)",
    "é\u2028x\x00",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts") / "model"
    model = tiny_model(**LVTC)
    model.config.save_pretrained(folder)
    tiny_processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture
def native(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internvl"}')
    return tmp_path


def card_of(folder, report=None, recipe=None) -> str:
    for name, content in (("conversion_report.json", report), ("training_recipe.json", recipe)):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            write_json(folder / name, content)
    return model_card(folder, "you/model").text


def assert_reads_again(folder, text: str) -> None:
    validate_card(text)
    assert not manual_content(text), "all of it is generated"
    assert model_card(folder, "you/model", text).text == text
    assert ModelCard(text).data.library_name == "transformers"


# -- names


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind_leave_a_card_that_can_be_read_and_renewed(folder, name):
    recipe = copy.deepcopy(RECIPE) | {"base_model": name, "settings": {name: name}, "trained_modules": {name: 1}}
    recipe["data"][0]["name"] = recipe["evaluation_data"][0]["name"] = name
    report = copy.deepcopy(REPORT) | {
        "source": name,
        "base_model": None,
        "notes": [name],
        "dropped_tensors": {name: name},
    }
    report["untrained_modules"].append(name)
    assert_reads_again(folder, card_of(folder, report, recipe))


def test_name_of_a_data_set_stays_legible(folder):
    recipe = copy.deepcopy(RECIPE)
    recipe["data"] = [{"name": "<!-- internvlx:end data --> a|b\n<b>"}, {"name": "no id", "hub_id": "no id"}]
    text = card_of(folder, recipe=recipe)
    assert "| &lt;!-- internvlx&#58;end data --&gt; a\\|b &lt;b&gt; |" in text
    assert "| no id |  | 1 |" in text


# -- damaged files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {}}, "data is {} … a list"),
        ({"data": [[]]}, "data[0] is [] … an object"),
        ({"data": [{"samples": 3}]}, "data[0].name is missing … a text"),
        ({"data": [{"name": 3}]}, "data[0].name is 3 … a text"),
        ({"evaluation_data": [{"name": None}]}, "evaluation_data[0].name is None"),
        ({"trained_modules": ["a"]}, "trained_modules is ['a'] … an object"),
        ({"trained_modules": {"a": "b"}}, "trained_modules['a'] is 'b' … a whole number"),
        ({"settings": 3}, "settings is 3"),
        ({"metrics": [1]}, "metrics is [1]"),
        ({"steps": "many"}, "steps is 'many' … a whole number or a number"),
        ({"base_model": 3}, "base_model is 3 … a text or null"),
        ({"versions": "0.1"}, "versions is '0.1'"),
        ({"versions": {"internvlx_hf": 1}}, "versions.internvlx_hf is 1"),
    ],
)
def test_malformed_recipe_is_named_with_the_field(folder, change, said):
    with refused(f"training_recipe.json: {said}"):
        card_of(folder, recipe=RECIPE | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"untrained_modules": "model.lvtc"}, "untrained_modules is 'model.lvtc' … a list"),
        ({"options": {"init": 3}}, "options.init is 3 … a text"),
        ({"notes": "a"}, "notes is 'a'"),
        ({"dropped_tensors": []}, "dropped_tensors is [] … an object"),
        ({"exact": "yes"}, "exact is 'yes' … true or false"),
        ({"parameters": None}, "parameters is None … a whole number"),
        ({"parameters": True}, "parameters is True … a whole number"),
        ({"language_model": "qwen2"}, "language_model is 'qwen2' … an object"),
        ({"language_model": {}}, "language_model.source is missing"),
        ({"source_card": {"license": 3}}, "source_card.license is 3"),
        ({"tokens": {"tile_size": 448, "per_tile": 256}}, "tokens.max_tiles is missing"),
        ({"source": "x" * 200, "exact": ["x" * 200]}, "exact is [' … ..., expected"),
    ],
)
def test_malformed_report_is_named_with_the_field(folder, change, said):
    with refused(f"conversion_report.json: {said}"):
        card_of(folder, REPORT | change)


def test_source_s_card_brings_licence_and_language_only(folder):
    report = copy.deepcopy(REPORT)
    report["source_card"] |= {"tags": ["evil"], "library_name": "other", "license": ["mit", "apache-2.0"]}
    text = card_of(folder, report)
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.language) == ("transformers", ["mit", "apache-2.0"], ["en"])
    assert "evil" not in data.tags


# -- what is trained, what is the original's


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upgraded") / "model"
    convert_checkpoint(GOLDEN / "internvl2_qwen2", folder, projector="pvtc", lvtc=True)
    return folder


def untrained(folder, *trained: str) -> tuple[list[str], str]:
    """The modules that the card calls untrained, and what it says of them."""
    write_json(folder / "training_recipe.json", {"trained_modules": dict.fromkeys(trained, 1)})
    text = write_card(folder).text
    (folder / "training_recipe.json").unlink()
    section = text.split("## Not trained yet")[1].split("internvlx:end")[0] if "## Not trained yet" in text else ""
    return re.findall(r"^- `(.*)`$", section, re.MULTILINE), section


def test_card_after_lvtc_training_lists_what_no_training_has_seen(upgraded):
    projector, hr_projector = "model.multi_modal_projector", "model.lvtc.hr_projector"
    modules, text = untrained(upgraded)
    assert modules == [hr_projector, projector]
    assert "answers before training say little" in text
    # a name that begins like a module's is another module's
    assert untrained(upgraded, "model.lv", "model.multi_modal", f"{projector}.linear")[0] == modules

    assert untrained(upgraded, projector)[0] == [hr_projector]
    for trained in ("model.lvtc", hr_projector):
        modules, text = untrained(upgraded, trained, "model.language_model")
        assert modules == [projector]
        assert "say little" not in text, "that is of LVTC, which is trained"
        assert "starts from the original's weights" in text
        assert untrained(upgraded, trained, projector) == ([], "")
    assert untrained(upgraded, "model") == ([], "")


@pytest.mark.parametrize("kind", ["ours", "native"])
@pytest.mark.parametrize(("exact", "is_trained"), [(True, False), (True, True), (False, False), (False, True)])
def test_weights_are_called_the_original_s_only_if_they_are(folder, native, kind, exact, is_trained):
    place = folder if kind == "ours" else native
    report = REPORT | {"exact": exact, "untrained_modules": []}
    text = card_of(place, report, RECIPE if is_trained else None)
    is_said = "The weights are those of the original" in text
    assert is_said is (exact and not is_trained)
    assert ("resize_backend='pillow'" in text) is (is_said and kind == "ours")


@pytest.mark.parametrize(
    ("max_tiles", "wide", "narrow"), [(1, 1, 1), (2, 3, 1), (7, 3, 1), (12, 9, 13)], ids=["1", "2", "7", "12"]
)
def test_native_card_counts_tiles_up_to_max_tiles(native, max_tiles, wide, narrow):
    """Tiles of 1280x720 and of 336x280 pixels: the grids 2x1, 4x2 and 4x3 are nearest, and a thumbnail goes with them."""
    report = REPORT | {"untrained_modules": [], "tokens": {"tile_size": 448, "per_tile": 256, "max_tiles": max_tiles}}
    text = card_of(native, report)
    most = "one tile." if max_tiles == 1 else f"at most {max_tiles} tiles (slicing `ratio`), plus a thumbnail"
    assert f"An image becomes {most}" in text
    assert f"| 1280x720 | {wide} | {wide * 256} |" in text
    assert f"| 336x280 | {narrow} | {narrow * 256} |" in text


@pytest.mark.parametrize(("field", "message"), [("tile_size", "size={'height': 0"), ("max_tiles", "max_patches=0")])
def test_impossible_tiles_of_a_native_checkpoint_are_named(native, field, message):
    report = REPORT | {"tokens": REPORT["tokens"] | {field: 0}}
    with refused(f"The image processor of {native}: {message}"):
        card_of(native, report)


@pytest.mark.parametrize(("init", "start"), [("warm", "from the original's weights"), ("paper", "at random")])
def test_card_says_how_untrained_modules_start(native, init, start):
    assert f"start{'s' * (init == 'warm')} {start}" in card_of(native, REPORT | {"options": {"init": init}})
    assert start not in card_of(native, REPORT | {"options": {"init": "of a later version"}})
