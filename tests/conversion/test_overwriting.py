"""Real conversions and merges into a folder that is there, that another process writes, or that a killed one left."""

import os
import shutil
import signal
import sys

import pytest
from safetensors.torch import load_file

import forked
from commands import internvlx
from conversion_helpers import GOLDEN, golden_logits, load, not_converted
from internvlx_hf.checkpoints.errors import LinkError
from internvlx_hf.checkpoints.manifest import MANIFEST
from internvlx_hf.cli import main
from internvlx_hf.conversion import convert, convert_checkpoint
from internvlx_hf.hub import CardError
from internvlx_hf.training.arguments import LoraArguments
from internvlx_hf.training.lora import add_lora
from internvlx_hf.training.merge import merge_adapter
from json_files import json_of
from refusals import refused
from small_folder import names
from tiny import LVTC, tiny_model
from training_helpers import run, save_checkpoint

pytestmark = pytest.mark.any_transformers

QWEN = "internvl2_qwen2"
PERSONS = "\nWritten by a person.\n"


@pytest.fixture
def out(converted, tmp_path):
    """A conversion's result beside nothing else."""
    return shutil.copytree(converted(), tmp_path / "out")


def add_to_card(out, text=PERSONS):
    card = out / "README.md"
    card.write_text(card.read_text() + text)


def test_interrupt_says_that_the_new_folder_is_in_its_place(out, monkeypatch, capsys):
    rmtree = shutil.rmtree

    def interrupted(folder, **options):
        if ".removed-" in folder.name:
            raise KeyboardInterrupt
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    old = json_of(out / MANIFEST)["run"]
    assert (
        f"internvlx: interrupted, {out} had already been written\n"
        in internvlx(capsys, "convert", GOLDEN / QWEN, out, "--overwrite", status=130).err
    )
    assert json_of(out / MANIFEST)["run"] != old


def link_card(out):
    card = out / "README.md"
    card.symlink_to(card.rename(out.parent / "elsewhere.md"))


def convert_qwen(out, *options) -> int:
    return main(["convert", str(GOLDEN / QWEN), str(out), *options])


def test_of_two_conversions_into_one_folder_one_succeeds_and_the_folder_is_its(tmp_path):
    out, logs = tmp_path / "results" / "out", [tmp_path / "3", tmp_path / "5"]
    processes = [
        forked.start(lambda number=log.name: convert_qwen(out, "--max-patches", number), errors=log) for log in logs
    ]
    codes = [forked.wait(process) for process in processes]
    errors = [log.read_text() for log in logs]
    assert sorted(codes) == [0, 1], errors
    error = errors[codes.index(1)]
    assert "Another process is writing" in error or "exists already" in error
    assert names(out.parent) == ["out"]
    report = json_of(out / "conversion_report.json")
    assert report["options"]["max_patches"] == (3, 5)[codes.index(0)]
    assert golden_logits(load(out), QWEN).isfinite().all()


def test_conversion_killed_between_its_renames_is_repeated_with_the_person_s_card(out, tmp_path):
    add_to_card(out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def kill_before_the_new_folder_is_moved(event, arguments):
        if event == "os.rename" and str(arguments[1]) == str(out):
            os.kill(os.getpid(), signal.SIGKILL)

    def convert_and_be_killed():
        sys.addaudithook(kill_before_the_new_folder_is_moved)
        return convert_qwen(out, "--max-patches", "3", "--overwrite")

    assert forked.run(convert_and_be_killed) == -signal.SIGKILL
    assert not out.exists()
    with refused("exists already", by=FileExistsError):
        convert_checkpoint(GOLDEN / QWEN, out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    convert_checkpoint(GOLDEN / QWEN, out, max_patches=4, overwrite=True)
    assert json_of(out / "conversion_report.json")["options"]["max_patches"] == 4
    assert PERSONS in (out / "README.md").read_text()
    assert names(tmp_path) == ["out"]


def test_folder_that_may_not_be_replaced_is_refused_before_the_source_is_looked_for(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text("{}")
    with refused("not the folder of a checkpoint", by=FileExistsError):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "src", overwrite=True)


def test_what_a_person_writes_into_the_card_during_the_conversion_stays(out, monkeypatch):
    write_weights = convert.write_weights

    def edit_and_write(*arguments):
        add_to_card(out)
        write_weights(*arguments)

    monkeypatch.setattr(convert, "write_weights", edit_and_write)
    convert_checkpoint(GOLDEN / QWEN, out, overwrite=True)
    assert PERSONS in (out / "README.md").read_text()


@pytest.mark.parametrize("damage", [lambda out: add_to_card(out, "<!-- internvlx:begin -->\n"), link_card])
def test_card_that_is_damaged_during_the_conversion_costs_no_work(damage, out, monkeypatch):
    write_weights = convert.write_weights

    def write_and_damage(*arguments):
        write_weights(*arguments)
        damage(out)

    monkeypatch.setattr(convert, "write_weights", write_and_damage)
    with refused("README.md", "The finished folder is kept as", "out.finished-") as error:
        convert_checkpoint(GOLDEN / QWEN, out, overwrite=True)
    (kept,) = out.parent.glob("out.finished-*")
    assert str(kept) in str(error.value)
    assert load_file(kept / "model.safetensors").keys() == load_file(out / "model.safetensors").keys()
    assert (kept / "conversion_report.json").is_file()


def test_out_that_is_not_utf_8_is_refused_before_any_work(tmp_path):
    with refused("latin-\\udce9/out' is not UTF-8"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / os.fsdecode(b"latin-\xe9") / "out")


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("NOTICE", "gone", "NOTICE is a broken link"),
        ("LICENSE-x", "../secret", "LICENSE-x leads to … secret, outside"),
        ("LICENSES/MIT.txt", "../../secret", "MIT.txt leads to … secret, outside"),
        ("LICENSES", "..", "LICENSES leads to … outside"),
        ("LICENSES", "other", "LICENSES is not a file"),
    ],
)
def test_licence_that_cannot_be_copied_is_named_before_the_weights(name, target, said, tmp_path, source, monkeypatch):
    (source / "other").mkdir()
    (tmp_path / "secret").write_text("key")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(target)
    monkeypatch.setattr(convert, "write_weights", lambda *arguments: pytest.fail("the weights were written"))
    not_converted(source, said, LinkError)


def test_licences_come_along_those_of_a_folder_too(tmp_path, source):
    texts = {
        "LICENSE": "MIT",
        "LICENCE-data": "CC",
        "NOTICE.txt": "By us",
        "LICENSES/MIT.txt": "MIT",
        "LICENSES/a/b": "x",
    }
    for name, text in texts.items():
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_text(text)
    (source / "LICENSE-link").symlink_to("LICENSE")
    convert_checkpoint(source, tmp_path / "out")
    for name, text in {**texts, "LICENSE-link": "MIT"}.items():
        assert (tmp_path / "out" / name).read_text() == text
        assert not (tmp_path / "out" / name).is_symlink()


def test_training_names_a_licence_that_cannot_be_copied_before_it_trains(tmp_path):
    base = save_checkpoint(tmp_path / "base")
    (base / "NOTICE").symlink_to("gone")
    with refused("NOTICE is a broken link", by=LinkError):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def adapter(tmp_path):
    save_checkpoint(tmp_path / "base")
    model = add_lora(tiny_model(**LVTC), LoraArguments(lora_rank=2))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merge_replaces_its_own_folder_keeps_the_person_s_card_and_takes_licences_along(adapter, tmp_path):
    out = tmp_path / "merged"
    (tmp_path / "base" / "LICENSES").mkdir()
    (tmp_path / "base" / "LICENSES" / "MIT.txt").write_text("MIT")
    merge_adapter(adapter, out)
    add_to_card(out)
    merge_adapter(adapter, out, overwrite=True, dtype="bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()} == {"torch.bfloat16"}
    assert PERSONS in (out / "README.md").read_text()
    assert (out / "LICENSES" / "MIT.txt").read_text() == "MIT"
    add_to_card(out, "<!-- internvlx:begin -->\n")
    with refused("damaged or misplaced", by=CardError):
        merge_adapter(adapter, out, overwrite=True)
    assert names(tmp_path) == ["adapter", "base", "merged"]


def test_merge_refuses_what_it_did_not_write_and_its_own_base(adapter, tmp_path):
    out = tmp_path / "merged"
    merge_adapter(adapter, out)
    (out / "notes.txt").write_text("mine")
    with refused("did not write", ": notes.txt.", by=FileExistsError):
        merge_adapter(adapter, out, overwrite=True)
    with refused("not the folder of a checkpoint that internvlx wrote", by=FileExistsError):
        merge_adapter(adapter, tmp_path / "base", overwrite=True)
    (out / "notes.txt").unlink()
    with refused("merged contains the source", by=FileExistsError):
        merge_adapter(adapter, out, base=str(out), overwrite=True)


def test_merge_names_a_licence_that_cannot_be_copied_before_it_loads_the_model(adapter, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("key")
    (tmp_path / "base" / "LICENSE").symlink_to("../secret")
    (tmp_path / "base" / "model.safetensors").unlink()
    with refused("LICENSE leads to", by=LinkError):
        merge_adapter(adapter, tmp_path / "merged")
