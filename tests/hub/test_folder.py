"""What of a folder is pushed, and what is found wrong with it before anything is sent."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import internvlx
from conversion_helpers import GOLDEN
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import FolderError, check_folder, plan_push
from json_files import edit_json, json_of
from refusals import refused
from tiny import save_tiny


def problems(folder) -> list[str]:
    with pytest.raises(FolderError) as error:
        check_folder(folder)
    return str(error.value).split("\n  ")[1:]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("text", ["llama", "phi3"])
def test_what_save_pretrained_writes_is_whole(text, tied, tmp_path):
    check_folder(save_tiny(tmp_path / "model", text, tie_word_embeddings=tied))


@pytest.mark.parametrize("to", ["internvl_x", "internvl"])
def test_what_a_conversion_writes_is_whole(to, tmp_path):
    convert_checkpoint(GOLDEN / "internvl2_qwen2", tmp_path / "out", to=to)
    files = {file.name for file in plan_push(tmp_path / "out", "you/converted").files}
    assert {"README.md", "conversion_report.json", "model.safetensors", "config.json"} <= files


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md"])
def test_device_in_a_file_s_place_is_named_and_not_read(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    with refused(name, by=FolderError) as error:
        check_folder(folder)
    assert "is not a regular file" in str(error.value) or "leads to /dev/zero" in str(error.value)


def test_too_many_added_tokens_are_refused_by_their_number(folder):
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=["<a>"] * 50_001)
    with refused("tokenizer_config.json adds 50001 tokens", "at most 50000", by=FolderError):
        check_folder(folder)


def test_everything_that_is_missing_is_named_at_once(folder):
    shards = sorted(path.name for path in folder.glob("model-*"))
    for name in (shards[1], shards[2], "pvtc.py", "tokenizer.json", "processor_config.json"):
        (folder / name).unlink()
    found = problems(folder)
    assert found[0] == (
        f"{folder} lacks {shards[1]}, {shards[2]} of the {len(shards)} shards that model.safetensors.index.json names."
    )
    assert found[1].startswith("tokenizer.json is missing")
    assert found[2].startswith("processor_config.json is missing")
    assert found[3] == "pvtc.py is missing: it belongs to the code that travels with the checkpoint."
    assert len(found) == 4


INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00007.safetensors" for i in (1, 2))
NORM = "model.language_model.norm.weight"


def config(edit):
    return lambda folder: edit_json(folder / "config.json", edit)


def index(edit):
    return lambda folder: edit_json(folder / INDEX, lambda index: edit(index["weight_map"]))


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def weights(name):
    return lambda folder: save_file({"lm_head.weight": torch.zeros(1)}, folder / name)


def tensors_missing(folder):
    shard = folder / json_of(folder / INDEX)["weight_map"][NORM]
    index(lambda names: names.pop(NORM))(folder)
    save_file({name: tensor for name, tensor in load_file(shard).items() if name != NORM}, shard)


def pickled(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def other_class(folder):
    path = folder / "modeling_internvlx.py"
    path.write_text(path.read_text().replace("class InternVLXForConditionalGeneration", "class Renamed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: os.truncate(folder / SECOND, 500), f"{SECOND} is damaged or truncated"),
        (weights("model.safetensors"), f"There are both model.safetensors and {FIRST}, model-00002"),
        (weights("model-00001-of-00002.safetensors"), f"model-00001-of-00002.safetensors is not named by {INDEX}"),
        (
            index(lambda names: names.update({"made.up": FIRST})),
            f"{FIRST} lacks tensors that the index names: made.up",
        ),
        (index(lambda names: names.pop(NORM)), f"holds tensors that the index lacks: {NORM}."),
        (tensors_missing, f"The weights lack tensors of the model that config.json describes: {NORM}"),
        (pickled, f"holds no weights, expected one of model.safetensors, {INDEX}."),
        (
            config(lambda raw: raw["text_config"].update(vocab_size=321)),
            "has the shape (320, 64), but config.json makes it (321, 64)",
        ),
        (
            config(lambda raw: raw["text_config"].update(num_hidden_layers=10**6, layer_types=None)),
            "config.json has text_config.num_hidden_layers=1000000, but the weights hold only",
        ),
        (
            lambda folder: edit_json(folder / "processor_config.json", image_seq_length=16),
            "Processor and model do not fit: tokens per tile is 16 in the processor and 4 in config.json.",
        ),
        (config(lambda raw: raw["auto_map"].pop("AutoModel")), "config.json has no auto_map for AutoModel:"),
        (
            config(lambda raw: raw["auto_map"].update(AutoModel="owner/name--" + raw["auto_map"]["AutoModel"])),
            "config.json loads InternVLXForConditionalGeneration from another repository (owner/name--model",
        ),
        (written("lvtc.py", "def f(:\n"), "lvtc.py is not valid Python"),
        (other_class, "modeling_internvlx.py does not define InternVLXForConditionalGeneration."),
        (written("README.md", "---\ntags: [\n---\n"), "README.md: its metadata is not valid YAML"),
    ],
)
def test_folder_that_would_not_load_is_refused_by_name(folder, damage, said):
    damage(folder)
    assert any(said in problem for problem in problems(folder)), problems(folder)


def test_other_models_and_adapters_are_told_where_to_go(folder, tmp_path, capsys):
    edit_json(folder / "config.json", model_type="llama")
    assert problems(folder) == [
        f"{folder} has model_type='llama', expected a checkpoint of model type 'internvl_x' or 'internvl' or 'llava'."
    ]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert (
        f"internvlx merge {tmp_path / 'adapter'} OUT"
        in internvlx(capsys, "push", tmp_path / "adapter", "you/adapter", status=1).err
    )
    assert "is not a folder" in internvlx(capsys, "push", tmp_path / "nowhere", "you/nowhere", status=1).err


def test_dry_run_lists_files_and_sizes_and_sends_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: pytest.fail("something was sent"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    *files, total = internvlx(capsys, "push", folder, "you/model", "--dry-run").out.splitlines()
    assert "  250.6 kB  model-00005-of-00007.safetensors" in files
    assert total.endswith(f"in {len(files)} files, nothing was sent")
    assert any(line.endswith("README.md") for line in files)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_card_of_a_person_s_own_goes_as_it_is(folder):
    own = "---\nlicense: mit\n---\n# Mine\n"
    (folder / "README.md").write_text(own)
    [card] = [file for file in plan_push(folder, "you/model").files if file.name == "README.md"]
    assert card.content == own.encode()
