"""`internvlx convert`, what it prints, and the model card and report that it leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import internvlx_hf
from commands import internvlx
from conversion_helpers import GOLDEN, copy_of
from internvlx_hf.checkpoints import folders
from internvlx_hf.cli import main
from internvlx_hf.commands import convert
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.conversion import verify as verification
from json_files import json_of
from refusals import refused

QWEN = "internvl2_qwen2"


@pytest.mark.parametrize(("text", "ratio"), [("1/3", 1 / 3), ("0.5", 0.5), ("1", 1.0)])
def test_a_ratio_may_be_a_fraction(text, ratio):
    assert convert._parser().parse_args(["SRC", "OUT", "--downsample-ratio", text]).downsample_ratio == ratio


@pytest.mark.parametrize("text", ["1/0", "a third"])
def test_a_ratio_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        convert._parser().parse_args(["SRC", "OUT", "--downsample-ratio", text])
    assert f"'{text}' is not a ratio, expected one such as 1/3 or 0.5" in capsys.readouterr().err


def test_command_says_its_version(capsys):
    assert internvlx(capsys, "--version").out == f"internvlx-hf {internvlx_hf.__version__}\n"


def test_command_whose_reader_has_gone_ends_without_a_word():
    command = Path(sys.executable).with_name("internvlx")
    arguments = [command, "cost", "--size", "640x480", "--model", "internvl2-1b", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 141


def test_convert_prints_what_it_did_and_verified(out, capsys):
    printed = internvlx(capsys, "convert", GOLDEN / QWEN, out, "--verify", "--slicing", "edge")
    assert "65 tensors converted, 0 dropped, 0 new, 0 derived" in printed.out
    assert "verified tensors: 73 tensors of the right shapes, all finite" in printed.out
    assert "verified reference: matches the source computed independently" in printed.out
    assert "Converting: 100%" in printed.err
    report = json_of(out / "conversion_report.json")
    assert report["checks"].keys() == {"tensors", "forward", "reference"}
    assert report["options"]["slicing"] == "edge"


def test_verification_says_when_the_model_does_not_fit_into_memory(out, monkeypatch):
    monkeypatch.setattr(verification, "_free_memory", lambda: 1000)
    checks = convert_checkpoint(GOLDEN / QWEN, out, verify=True).checks
    assert checks["forward"].startswith("skipped: needs")
    assert "all finite" in checks["tensors"]


def test_lvtc_takes_its_configuration_as_json(tmp_path, out, capsys):
    arguments = ["convert", str(GOLDEN / QWEN), str(out), "--lvtc", '{"hr_projector_type": null}']
    assert main(arguments) == 0
    config = json_of(out / "config.json")
    assert config["lvtc_config"]["hr_projector_type"] is None
    printed = internvlx(capsys, *arguments[:2], tmp_path / "plain", "--lvtc", "--init", "paper").out
    assert "needs training: model.lvtc.hr_projector" in printed
    assert f"Train it: internvlx train --model_name_or_path {tmp_path / 'plain'} --train_data data.jsonl" in printed


@pytest.mark.parametrize("settings", ["source-folder", "17", "[17]"])
def test_wrong_lvtc_settings_are_named(settings, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "source", "out", "--lvtc", settings])
    assert stop.value.code == 2
    assert f"{settings!r} is not a JSON object such as" in " ".join(capsys.readouterr().err.split())


def test_hub_id_is_downloaded_and_recorded(tmp_path, out, monkeypatch):
    snapshot = tmp_path / "models--OpenGVLab--InternVL2-1B" / "snapshots" / "0123abc"
    calls = []

    def download(repo, revision, allow_patterns):
        calls.append((repo, revision))
        if not snapshot.exists():
            snapshot.parent.mkdir(parents=True)
            copy_of(QWEN, snapshot)
            (snapshot / "README.md").write_text("---\nlicense: mit\n---\n# InternVL2-1B\n")
            (snapshot / "LICENSE").write_text("MIT")
        return str(snapshot)

    monkeypatch.setattr(folders, "snapshot_download", download)
    report = convert_checkpoint("OpenGVLab/InternVL2-1B", out, revision="main")
    assert calls == [("OpenGVLab/InternVL2-1B", "main")]
    assert (report.source, report.base_model, report.revision) == ("OpenGVLab/InternVL2-1B",) * 2 + ("0123abc",)
    card = ModelCard.load(out / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (data.base_model, data.base_model_relation) == ("OpenGVLab/InternVL2-1B", "finetune")
    assert data.license == "mit"
    assert {"custom_code", "internvl_x"} <= set(data.tags)
    assert "`0123abc`" in card.text
    assert (out / "LICENSE").read_text() == "MIT"


def test_hub_that_cannot_be_reached_is_named(out, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(folders, "snapshot_download", fail)
    with refused("OpenGVLab/InternVL2-1B", "downloading it from the Hub failed: offline", by=FileNotFoundError):
        convert_checkpoint("OpenGVLab/InternVL2-1B", out)


def test_card_says_what_an_image_costs_and_nothing_about_this_machine(converted):
    out = converted(base_model="OpenGVLab/InternVL2-1B")
    card = (out / "README.md").read_text()
    assert "A tile of 56x56 pixels takes 4 tokens." in card
    assert "at most 12 tiles (slicing `ratio`)" in card
    assert "base_model: OpenGVLab/InternVL2-1B" in card
    for file in (*out.glob("*.json"), out / "README.md"):
        assert str(GOLDEN.parent) not in file.read_text(), file


def test_card_s_example_runs(tmp_path, monkeypatch):
    from PIL import Image

    convert_checkpoint(GOLDEN / QWEN, tmp_path / "internvl2_qwen2", slicing="edge")
    Image.linear_gradient("L").save(tmp_path / "image.jpg")
    card = (tmp_path / "internvl2_qwen2" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("max_new_tokens=100", "max_new_tokens=2"), {})
