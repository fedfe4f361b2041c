"""What of a folder is pushed, and what is found wrong with it before anything is sent."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion_helpers import GOLDEN
from internvlx_hf.cli import main
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.hub import FolderError, check_folder, plan_push
from tiny import tiny_model, tiny_processor


def problems(folder) -> list[str]:
    with pytest.raises(FolderError) as error:
        check_folder(folder)
    return str(error.value).split("\n  ")[1:]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("text", ["llama", "phi3"])
def test_what_save_pretrained_writes_is_whole(text, tied, tmp_path):
    model = tiny_model(text, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    check_folder(tmp_path)


@pytest.mark.parametrize("to", ["internvl_x", "internvl"])
def test_what_a_conversion_writes_is_whole(to, tmp_path):
    convert_checkpoint(GOLDEN / "internvl2_qwen2", tmp_path / "out", to=to)
    files = {file.name for file in plan_push(tmp_path / "out", "you/converted").files}
    assert {"README.md", "conversion_report.json", "model.safetensors", "config.json"} <= files


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md"])
def test_device_in_a_file_s_place_is_named_and_not_read(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(FolderError, match=rf"{name} (is not a regular file|leads to /dev/zero)"):
        check_folder(folder)


def test_too_many_added_tokens_are_refused_by_their_number(folder):
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content["extra_special_tokens"] = ["<a>"] * 50_001
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(FolderError, match=r"tokenizer_config\.json adds 50001 tokens, expected at most 50000"):
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


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_short(folder):
    path = folder / "model-00002-of-00008.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def both_kinds(folder):
    save_file({"lm_head.weight": torch.zeros(1)}, folder / "model.safetensors")


def left_over_shard(folder):
    save_file({"lm_head.weight": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")


def index_too_long(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["made.up"] = "model-00001-of-00008.safetensors"
    path.write_text(json.dumps(index))


def index_too_short(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].pop("model.language_model.norm.weight")
    path.write_text(json.dumps(index))


def tensors_missing(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = folder / index["weight_map"].pop("model.language_model.norm.weight")
    path.write_text(json.dumps(index))
    save_file({name: tensor for name, tensor in load_file(shard).items() if "language_model.norm" not in name}, shard)


def pickled(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def other_vocabulary(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    edit_json(folder / "config.json", text_config=config["text_config"])


def a_million_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**6
    del config["text_config"]["layer_types"]
    edit_json(folder / "config.json", text_config=config["text_config"])


def other_tokens(folder):
    edit_json(folder / "processor_config.json", image_seq_length=16)


def no_auto_map(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]["AutoModel"]
    edit_json(folder / "config.json", auto_map=config["auto_map"])


def foreign_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "owner/name--" + config["auto_map"]["AutoModel"]
    edit_json(folder / "config.json", auto_map=config["auto_map"])


def broken_code(folder):
    (folder / "lvtc.py").write_text("def f(:\n")


def other_class(folder):
    path = folder / "modeling_internvlx.py"
    path.write_text(path.read_text().replace("class InternVLXForConditionalGeneration", "class Renamed"))


def damaged_card(folder):
    (folder / "README.md").write_text("---\ntags: [\n---\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "model-00002-of-00008.safetensors is damaged or truncated"),
        (both_kinds, "There are both model.safetensors and model-00001-of-00008.safetensors, model-00002"),
        (left_over_shard, "model-00001-of-00002.safetensors is not named by model.safetensors.index.json"),
        (
            index_too_long,
            "model-00001-of-00008.safetensors lacks tensors that the index names: made.up",
        ),
        (
            index_too_short,
            "holds tensors that the index lacks: model.language_model.norm.weight.",
        ),
        (
            tensors_missing,
            "The weights lack tensors of the model that config.json describes: model.language_model.norm",
        ),
        (
            pickled,
            "holds no weights, expected one of model.safetensors, model.safetensors.index.json.",
        ),
        (other_vocabulary, "has the shape (320, 64), but config.json makes it (321, 64)"),
        (a_million_layers, "config.json has text_config.num_hidden_layers=1000000, but the weights hold only"),
        (other_tokens, "Processor and model do not fit: tokens per tile is 16 in the processor and 4 in config.json."),
        (no_auto_map, "config.json has no auto_map for AutoModel:"),
        (
            foreign_code,
            "config.json loads InternVLXForConditionalGeneration from another repository (owner/name--model",
        ),
        (broken_code, "lvtc.py is not valid Python"),
        (other_class, "modeling_internvlx.py does not define InternVLXForConditionalGeneration."),
        (damaged_card, "README.md: its metadata is not valid YAML"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folder_that_would_not_load_is_refused_by_name(folder, damage, message):
    damage(folder)
    assert any(message in problem for problem in problems(folder)), problems(folder)


def test_other_models_and_adapters_are_told_where_to_go(folder, tmp_path, capsys):
    edit_json(folder / "config.json", model_type="llama")
    assert problems(folder) == [
        f"{folder} has model_type='llama', expected a checkpoint of model type 'internvl_x' or 'internvl' or 'llava'."
    ]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["push", str(tmp_path / "adapter"), "you/adapter"]) == 1
    assert f"internvlx merge {tmp_path / 'adapter'} OUT" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "nowhere"), "you/nowhere"]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_dry_run_lists_files_and_sizes_and_sends_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: pytest.fail("something was sent"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["push", str(folder), "you/model", "--dry-run"]) == 0
    *files, total = capsys.readouterr().out.splitlines()
    assert "  250.6 kB  model-00005-of-00008.safetensors" in files
    assert total.endswith(f"in {len(files)} files, nothing was sent")
    assert any(line.endswith("README.md") for line in files)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_card_of_a_person_s_own_goes_as_it_is(folder):
    own = "---\nlicense: mit\n---\n# Mine\n"
    (folder / "README.md").write_text(own)
    [card] = [file for file in plan_push(folder, "you/model").files if file.name == "README.md"]
    assert card.content == own.encode()
