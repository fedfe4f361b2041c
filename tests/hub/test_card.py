"""Model cards: what they say, that the Hub can read it, and that nothing a person wrote into one is lost."""

import io
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from commands import internvlx
from conversion_helpers import GOLDEN, copy_of
from internvlx_hf import InternVLXConfig, InternVLXImageProcessor
from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.cli import main
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import CardError, model_card, write_card
from internvlx_hf.hub.card_text import manual_content, renew_card, validate_card
from internvlx_hf.hub.folder import card_to_push
from json_files import edit_json, write_json
from refusals import refused
from tiny import LVTC, save_tiny

METADATA = {"library_name": "transformers", "tags": ["one", "two"], "base_model": "owner/base"}
SECTIONS = {"title": "# Title", "cost": "## Cost\n\nA tile is dear.", "use": "## Use\n\n```python\nload()\n```"}
RECIPE = {
    "base_model": "internvl2-1b-x",
    "revision": None,
    "data": [
        {"name": "pages|small", "samples": 1200, "repeat_time": 2},
        {"name": "docs", "samples": 10, "repeat_time": 1, "hub_id": "owner/docs"},
    ],
    "evaluation_data": [{"name": "held out", "samples": 100}],
    "trained_modules": {"model.multi_modal_projector": 123456},
    "settings": {"learning_rate": 4e-5, "stage": 1},
    "steps": 100,
    "epochs": 1.0,
    "tokens": 54321,
    "metrics": {"train_loss": 1.25, "eval_loss": 0.5, "eval_runtime": 3.0},
    "versions": {"internvlx_hf": "0.1.0"},
}


# a card of version 0.1.0 as it was first written
EARLIER = """\
---
library_name: transformers
tags:
- one
- two
base_model: owner/base
---

<!-- internvlx:card What stands between the marks `begin` and `end` is generated. Write anywhere else. What you edit there \
stays as you leave it; delete a part with its marks to have it generated again. metadata: library_name=ad9b0702 \
tags=298a9912 base_model=d7ef8c71 -->

<!-- internvlx:begin title 79aeaf7b -->
# Title
<!-- internvlx:end title -->

<!-- internvlx:begin cost 7e614d79 -->
## Cost

A tile is dear.
<!-- internvlx:end cost -->

<!-- internvlx:begin use 963299e4 -->
## Use

```python
load()
```
<!-- internvlx:end use -->
"""


def renew(previous="", metadata=METADATA, sections=SECTIONS):
    return renew_card(previous, metadata, lambda _: sections)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    settings = {"slicing": "area", "max_patches": 9}
    return save_tiny(tmp_path_factory.mktemp("card") / "tiny", image_settings=settings, **LVTC)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A conversion with new modules, of which one has been trained since."""
    folder = tmp_path_factory.mktemp("card") / "trained"
    source = copy_of("internvl2_qwen2", tmp_path_factory.mktemp("source") / "source")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n# Base\n")
    convert_checkpoint(source, folder, projector="pvtc", lvtc=True, base_model="OpenGVLab/InternVL2-1B")
    converted = (folder / "README.md").read_text()
    write_json(folder / "training_recipe.json", RECIPE)
    write_card(folder)
    return converted, (folder / "README.md").read_text()


# -- a card's text


def test_renewing_a_card_with_the_same_changes_nothing():
    card = renew()
    again = renew(card.text)
    assert again == card
    assert again.edited == []
    assert not manual_content(card.text)


def test_generated_sections_are_replaced_in_their_places_and_all_else_stays():
    text = renew().text
    text = text.replace("<!-- internvlx:begin cost", "Before the cost.\n\n<!-- internvlx:begin cost")
    text += "\n## Mine\n\n- a list\n\n      and  code\n"
    later = renew(text, sections={**SECTIONS, "cost": "## Cost\n\nA tile is cheap."})
    assert "dear" not in later.text
    assert later.text == text.replace("dear", "cheap").replace(*digests_of("cost", text, later.text))
    assert manual_content(later.text) == {"Before the cost.", "## Mine", "- a list", "      and  code"}


def digests_of(name: str, *texts: str) -> list[str]:
    return [re.search(f"internvlx:begin {name} .*", text)[0] for text in texts]


def test_section_that_was_edited_is_the_person_s_from_then_on():
    text = renew().text.replace("A tile is dear.", "A tile is a bargain.")
    later = renew(text, sections={**SECTIONS, "cost": "## Cost\n\nA tile is cheap."})
    assert later.edited == ["cost"]
    assert "bargain" in later.text
    assert "cheap" not in later.text
    assert renew(later.text).edited == ["cost"]


def test_section_that_was_emptied_stays_empty_and_one_that_was_deleted_comes_back_in_its_place():
    text = renew().text
    emptied = text.replace("## Cost\n\nA tile is dear.\n", "")
    assert "dear" not in renew(emptied).text
    deleted = re.sub("<!-- internvlx:begin cost.*internvlx:end cost -->\n", "", text, flags=re.DOTALL)
    assert "internvlx:begin cost" not in deleted
    assert renew(deleted).text == text


def test_section_that_has_nothing_to_say_any_more_goes_unless_it_was_edited():
    for text, stays in ((renew().text, False), (renew().text.replace("dear", "a bargain"), True)):
        assert ("A tile is" in renew(text, sections={**SECTIONS, "cost": ""}).text) is stays
    assert ModelCard(renew(text, metadata={"tags": ["three"]}).text).data.to_dict() == {"tags": ["three"]}


def test_new_section_goes_where_it_belongs():
    sections = {"title": "# Title", "cost": SECTIONS["cost"], "data": "## Data\n\nPages.", "use": SECTIONS["use"]}
    text = renew(renew().text, sections=sections).text
    assert text.index("is dear") < text.index("Pages.") < text.index("load()")


def test_metadata_that_a_person_changed_added_or_deleted_stays_so():
    text = renew().text
    for old, new in (
        ("base_model: owner/base", "base_model: owner/other  # as I know"),
        ("- two\n", ""),
        ("library_name: transformers\n", ""),
        ("---\n\n", "license: mit # surely\n---\n\n"),
    ):
        text = text.replace(old, new, 1)
    card = renew(text, metadata={**METADATA, "tags": ["three"], "pipeline_tag": "image-text-to-text"})
    expected = {"base_model": "owner/other", "tags": ["one"], "license": "mit", "pipeline_tag": "image-text-to-text"}
    assert ModelCard(card.text).data.to_dict() == expected
    assert sorted(card.edited) == ["base_model", "library_name", "tags"]
    assert "base_model: owner/other  # as I know" in card.text
    assert "license: mit # surely" in card.text
    # only its digest
    assert renew(card.text, metadata={**METADATA, "tags": ["three"]}).text.count("library_name") == 1


def test_metadata_keep_their_order_and_a_person_s_comments():
    text = renew().text.replace("tags:\n", "# for the search\ntags:\n")
    text = text.replace("owner/base\n---", "owner/base\nlicense: mit\n---")
    assert renew(text).text == text
    later = renew(text, metadata=METADATA | {"library_name": "ours"}).text
    assert later.startswith(
        "---\n# for the search\ntags:\n- one\n- two\nbase_model: owner/base\nlicense: mit\nlibrary_name: ours\n---\n"
    )


@pytest.mark.parametrize(
    "block",
    [
        "{license: mit, tags: [mine]}",
        "'license': mit\n\ntags: [\n  mine]",
        "license: ''\nlicense: mit\ntags:\n# mine\n- mine",
    ],
    ids=["flow", "quoted", "twice"],
)
def test_metadata_of_any_style_are_kept(block):
    expected = {"license": "mit", "tags": ["mine"], "library_name": "transformers", "base_model": "owner/base"}
    card = renew(f"---\n{block}\n---\n# Mine\n")
    assert ModelCard(card.text).data.to_dict() == expected
    reformatted = card.text.replace("base_model: owner/base", "'base_model':\n  owner/base")
    later = ModelCard(renew(reformatted, metadata=METADATA | {"base_model": "owner/other"}).text)
    assert later.data.to_dict() == expected | {"base_model": "owner/other"}


def test_card_of_a_person_s_own_keeps_all_of_it_and_gains_sections():
    own = "---\nlicense: mit\ntags:\n- mine\n---\n# My model\n\nIt reads.\n"
    card = renew(own)
    assert "# Title" not in card.text
    assert card.text.index("It reads.") < card.text.index("A tile is dear.")
    data = ModelCard(card.text).data
    assert (data.license, data.tags, data.base_model) == ("mit", ["mine"], "owner/base")


def test_windows_line_ends_and_a_byte_order_mark_are_no_edits():
    text = renew().text
    assert renew("\ufeff" + text.replace("\n", "\r\n")).text == text


def number_of(line: str) -> int:
    return next(n for n, text in enumerate(renew().text.split("\n"), 1) if line in text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<!-- internvlx:end cost -->", "", f"line {number_of('begin cost')}: … its other half"),
        ("<!-- internvlx:end use -->", "", f"line {number_of('begin use')}: … its other half"),
        ("<!-- internvlx:begin cost.*", "", f"line {number_of('end cost')}: … damaged or misplaced"),
        ("internvlx:begin cost ", "internvlx:begin cost #", f"line {number_of('begin cost')}: … begin cost #"),
        ("end cost -->", "end cost ->", f"line {number_of('begin cost')}: … its other half"),
        ("(<!-- internvlx:begin use[^\0]*)", r"\1\1", "'use' appears twice"),
        ("metadata:", "metadata", f"line {number_of('internvlx:card')}: the mark '<!-- internvlx:card"),
        ("tags:\n", "tags: [\n", "not valid YAML"),
        ("^---\n[^\0]*?---\n", "---\n- a\n- b\n---\n", "is a list"),
    ],
)
def test_damaged_card_is_named_and_left_alone(checkpoint, old, new, said):
    path = checkpoint / "README.md"
    damaged = re.sub(old, new, renew().text)
    path.write_text(damaged)
    with refused(said, by=CardError):
        write_card(checkpoint)
    assert path.read_text() == damaged
    path.unlink()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_model": "owner/base/deep"}, "base_model='owner/base/deep'"),
        ({"datasets": ["a b"]}, "datasets='a b'"),
        ({"model-index": [{"results": []}]}, "not valid"),
    ],
)
def test_metadata_that_the_hub_cannot_read_are_refused(metadata, message):
    with refused(message, by=CardError):
        renew(metadata=metadata)


def test_card_of_an_earlier_version_is_renewed():
    hint = re.compile("(?<=internvlx:card ).*(?= metadata:)")
    assert hint.sub("", renew().text) == hint.sub("", EARLIER), "the format has changed"
    text = EARLIER.replace("load()", "load_mine()").replace("- one\n", "") + "\nMine.\n"
    card = renew(text, METADATA | {"base_model": "owner/other"}, SECTIONS | {"cost": "## Cost\n\nA tile is cheap."})
    assert sorted(card.edited) == ["tags", "use"]
    assert manual_content(card.text) == manual_content(text)
    assert "A tile is cheap." in card.text
    assert ModelCard(card.text).data.to_dict() == METADATA | {"tags": ["two"], "base_model": "owner/other"}


# -- a checkpoint's card


def test_card_tells_what_pictures_cost_by_the_image_processor_s_own_count(checkpoint):
    text = model_card(checkpoint).text
    config, processor = (
        InternVLXConfig.from_pretrained(checkpoint),
        InternVLXImageProcessor.from_pretrained(checkpoint),
    )
    rows = re.findall(r"^\| (\d+)x(\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for width, height, tiles, tokens, expanded in (map(int, row) for row in rows):
        assert tiles == processor.get_number_of_image_patches(height, width)
        assert tokens == tiles * config.image_seq_length
        assert expanded == tiles * config.expanded_image_seq_length
    assert "at most 9 tiles (slicing `area`)" in text


def test_trained_conversion_s_card_is_complete(trained):
    _, text = trained
    card = ModelCard(text)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (data.base_model, data.license, data.license_name) == ("OpenGVLab/InternVL2-1B", "other", "qwen")
    assert data.datasets == ["owner/docs"]
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("loss", 0.5, "held out")
    for said in (
        "Converted from `OpenGVLab/InternVL2-1B`",
        "Trained from `internvl2-1b-x` by internvlx-hf 0.1.0 for 100 steps, 1 epoch, 54,321 tokens.",
        "| pages\\|small | 1,200 | 2 |",
        "[docs](https://huggingface.co/datasets/owner/docs)",
        "- `model.multi_modal_projector`: 123,456 parameters",
        "| `learning_rate` | 4e-05 |",
        "| `eval_loss` | 0.5 |",
        'AutoModel.from_pretrained("trained", trust_remote_code=True',
        "Weights: [qwen](LICENSE).",
    ):
        assert said in card.text, said
    assert "eval_runtime" not in card.text
    validate_card(text)


@pytest.mark.parametrize("options", [{"projector": "pvtc"}, {"lvtc": True}], ids=["pvtc", "lvtc"])
def test_card_of_an_upgrade_promises_no_more_than_its_start_keeps(options, tmp_path):
    convert_checkpoint(GOLDEN / "internvl2_qwen2", tmp_path / "out", **options)
    untrained = (tmp_path / "out" / "README.md").read_text().split("Not trained yet")[1].split("internvlx:end")[0]
    assert "starts from the original's weights" in untrained
    assert ("answers before training say little" in untrained) == ("lvtc" in options)


def test_converting_again_keeps_what_was_written_into_the_card(tmp_path):
    source, out = GOLDEN / "internvl2_qwen2", tmp_path / "out"
    convert_checkpoint(source, out)
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "\nWritten by hand.\n")
    convert_checkpoint(source, out, slicing="edge", overwrite=True)
    renewed = (out / "README.md").read_text()
    assert "Written by hand." in renewed
    assert "slicing `edge`" in renewed
    (out / "README.md").write_text(card.replace("internvlx:end cost", "internvlx:end"))
    with refused("damaged or misplaced", by=CardError):
        convert_checkpoint(source, out, overwrite=True)


def test_card_command_writes_and_says_what_it_left(checkpoint, capsys):
    assert main(["card", str(checkpoint), "--name", "you/tiny"]) == 0
    path = checkpoint / "README.md"
    assert 'from_pretrained("you/tiny"' in path.read_text()
    path.write_text(path.read_text().replace("## Use", "## How to use it"))
    capsys.readouterr()
    assert internvlx(capsys, "card", checkpoint).out.splitlines()[0] == "kept as edited: use"
    assert "## How to use it" in path.read_text()
    path.unlink()
    assert "no config.json" in internvlx(capsys, "card", checkpoint.parent, status=1).err


@pytest.mark.parametrize(("target", "said"), [("../secret.md", "leads to … secret"), ("gone.md", "is a broken link")])
def test_card_that_is_a_link_out_of_the_folder_or_to_nothing_is_left_as_it_is(checkpoint, target, said):
    (checkpoint.parent / "secret.md").write_text("secret")
    card = checkpoint / "README.md"
    card.unlink(missing_ok=True)
    card.symlink_to(target)
    with refused(f"README.md {said}", by=LinkError):
        write_card(checkpoint)
    assert card.is_symlink()
    card.unlink()


def test_impossible_image_processor_is_named_with_its_folder(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    edit_json(folder / "processor_config.json", lambda saved: saved["image_processor"].update(max_patches=10**5))
    with refused(f"The image processor of {folder}: max_patches=100000", "to 10000"):
        write_card(folder)


def test_edits_on_the_hub_are_kept_or_refused(checkpoint):
    card = model_card(checkpoint, "you/model").text
    here, both = f"{card}\nWritten here.\n", f"{card}\nWritten here.\n\nWritten on the Hub.\n"
    (checkpoint / "README.md").write_text(here)
    with refused("The model cards of you/model", "--card hub or --card folder", by=CardError):
        card_to_push(checkpoint, "you/model", on_hub=both)
    (checkpoint / "README.md").write_text(both)
    assert card_to_push(checkpoint, "you/model", on_hub=here) == both


def test_a_card_is_in_utf_8_whatever_the_locale(checkpoint, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda encoding, _=2: encoding or "ascii")
    write_card(checkpoint, previous=f"{model_card(checkpoint).text}\nÜber 何.\n")
    assert "Über 何." in (checkpoint / "README.md").read_text("utf-8")
