"""Which files of a folder `push` sends and which it leaves: what belongs to the checkpoint goes, and nothing else."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from card_reports import REPORT
from internvlx_hf.cli import main
from internvlx_hf.hub import FolderError, check_folder, plan_push
from internvlx_hf.hub import push as push_module

pytestmark = pytest.mark.any_transformers

SECRET, HIDDEN, UNKNOWN = "may hold a secret", "is hidden", "is not part of a checkpoint"
STATE, LOG, HALF = "is training state", "is a log", "is incomplete"
WEIGHTS, CODE = "holds weights that the index does not name", "is code that no auto_map names"
# a file, as what it is listed, and why
STAYS = (
    ("id_rsa", "id_rsa", SECRET),
    ("id_dsa", "id_dsa", SECRET),
    ("id_ecdsa", "id_ecdsa", SECRET),
    ("id_ed25519.pub", "id_ed25519.pub", SECRET),
    ("hf_token.txt", "hf_token.txt", SECRET),
    ("hf_token", "hf_token", SECRET),
    ("token", "token", SECRET),
    ("secrets.json", "secrets.json", SECRET),
    ("Secrets/a.txt", "Secrets/", SECRET),
    ("credentials.json", "credentials.json", SECRET),
    ("passwords.csv", "passwords.csv", SECRET),
    ("aws.pem", "aws.pem", SECRET),
    ("server.key", "server.key", SECRET),
    ("client.p12", "client.p12", SECRET),
    ("prod.env", "prod.env", SECRET),
    (".env", ".env", SECRET),
    (".env.local", ".env.local", SECRET),
    (".netrc", ".netrc", SECRET),
    ("training_args.bin", "training_args.bin", SECRET),
    ("LICENSE.key", "LICENSE.key", SECRET),
    (".bash_history", ".bash_history", HIDDEN),
    (".cache/huggingface/state", ".cache/", HIDDEN),
    ("data.jsonl", "data.jsonl", UNKNOWN),
    ("metrics.json", "metrics.json", UNKNOWN),
    ("all_results.json", "all_results.json", UNKNOWN),
    ("explore.ipynb", "explore.ipynb", UNKNOWN),
    ("backup.zip", "backup.zip", UNKNOWN),
    ("page.png", "page.png", UNKNOWN),
    ("pages/config.json", "pages/", UNKNOWN),
    ("pages/optimizer.pt", "pages/", UNKNOWN),
    ("checkpoint-500/model.safetensors", "checkpoint-500/", STATE),
    ("tmp-checkpoint-10/model.safetensors", "tmp-checkpoint-10/", STATE),
    ("optimizer.pt", "optimizer.pt", STATE),
    ("optimizer_0/part.distcp", "optimizer_0/", STATE),
    ("scheduler.pt", "scheduler.pt", STATE),
    ("scaler.pt", "scaler.pt", STATE),
    ("rng_state.pth", "rng_state.pth", STATE),
    ("rng_state_0.pth", "rng_state_0.pth", STATE),
    ("random_states_0.pkl", "random_states_0.pkl", STATE),
    ("trainer_state.json", "trainer_state.json", STATE),
    ("global_step1/zero_pp_rank_0.pt", "global_step1/", STATE),
    ("zero_to_fp32.py", "zero_to_fp32.py", STATE),
    ("latest", "latest", STATE),
    ("pytorch_model_fsdp_0/a.distcp", "pytorch_model_fsdp_0/", STATE),
    ("runs/now/events.out.tfevents.1.host.2.0", "runs/", LOG),
    ("wandb/run/files/config.yaml", "wandb/", LOG),
    ("mlruns/0/meta.yaml", "mlruns/", LOG),
    ("events.out.tfevents.1.host.2.0", "events.out.tfevents.1.host.2.0", LOG),
    ("train.log", "train.log", LOG),
    ("slurm-1.out", "slurm-1.out", LOG),
    ("core.1234", "core.1234", "is a memory dump"),
    ("__pycache__/pvtc.cpython-311.pyc", "__pycache__/", "is a cache"),
    ("config.json.tmp", "config.json.tmp", HALF),
    ("model.safetensors.incomplete", "model.safetensors.incomplete", HALF),
    ("internvlx_manifest.json", "internvlx_manifest.json", "is the manifest of the last write"),
    ("other.safetensors", "other.safetensors", WEIGHTS),
    ("pytorch_model.bin", "pytorch_model.bin", WEIGHTS),
    ("train.py", "train.py", CODE),
    ("keys.py", "keys.py", CODE),
)
TRAVELS = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "additional_chat_templates/tools.jinja",
    "conversion_report.json",
    "training_recipe.json",
    "LICENSE",
    "LICENCE.md",
    "NOTICE.txt",
    "LICENSES/MIT.txt",
    ".gitattributes",
)


@pytest.fixture(scope="module")
def left(whole, tmp_path_factory):
    """What stays of a folder that has all that stays."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("left") / "model")
    for name, _, _ in STAYS:
        write(folder / name, "{}")
    plan = plan_push(folder, "you/model")
    assert {file.name for file in plan.files} == {path.name for path in whole.iterdir()} | {"README.md"}
    return {file.name: file for file in plan.left}


@pytest.fixture(scope="module")
def travelling(whole, tmp_path_factory):
    """What is sent of a folder that has all that travels."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("travelling") / "model")
    contents = {
        "generation_config.json": (folder / "generation_config.json").read_text(),
        "preprocessor_config.json": (folder / "processor_config.json").read_text(),
        "video_preprocessor_config.json": (folder / "processor_config.json").read_text(),
    }
    for name in TRAVELS:
        write(folder / name, contents.get(name, "{}"))
    return sent(folder)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sent(folder, include=()) -> set[str]:
    return {file.name for file in plan_push(folder, "you/model", include).files}


@pytest.mark.parametrize(("name", "listed", "reason"), STAYS, ids=[name for name, _, _ in STAYS])
def test_what_is_not_of_the_checkpoint_stays_and_says_why(left, name, listed, reason):
    assert left[listed].reason == reason


def test_each_file_that_stays_is_listed_and_folders_once(left):
    assert left.keys() == {listed for _, listed, _ in STAYS}
    assert left["pages/"].num_files == 2
    assert sum(file.num_files for file in left.values()) == len(STAYS)


@pytest.mark.parametrize("name", TRAVELS)
def test_what_is_of_the_checkpoint_travels(travelling, name):
    assert name in travelling


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"chat_template": 3'])
def test_processor_that_does_not_load_is_a_problem_of_the_folder(folder, content):
    write(folder / "chat_template.json", content)
    with pytest.raises(FolderError, match="cannot be pushed"):
        check_folder(folder)


def test_what_is_sent_is_what_was_written_and_the_card(folder):
    assert sent(folder) == {path.name for path in folder.iterdir()} | {"README.md"}


def test_code_that_the_code_imports_travels(folder):
    write(folder / "extra.py", "raise SystemExit('was run')\n")
    assert "extra.py" not in sent(folder)
    with (folder / "pvtc.py").open("a") as module:
        module.write("\ndef f():\n    from .extra import g\n")
    assert "extra.py" in sent(folder)


# -- images that the card shows


@pytest.mark.slow
@pytest.mark.parametrize(
    "link",
    [
        "![a page](images/page%20one.png)",
        '![a page](./images/page%20one.png "Title")',
        "![a page](<images/page one.png>)",
        "[![a page](images/page%20one.png?raw=true)](https://example.org)",
        '<p><img width="300" src="images/page%20one.png"></p>',
        "<IMG SRC='images/page%20one.png'/>",
    ],
)
def test_image_that_the_card_shows_travels_and_others_stay(folder, link):
    for name in ("images/page one.png", "images/other.png"):
        write(folder / name, "")
    write(folder / "README.md", f"# Mine\n\n{link}\n")
    assert {name for name in sent(folder) if "/" in name} == {"images/page one.png"}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "gif", "webp", "svg", "PNG"])
def test_images_of_all_kinds_travel(folder, suffix):
    write(folder / f"page.{suffix}", "")
    write(folder / "README.md", f"![](page.{suffix})")
    assert f"page.{suffix}" in sent(folder)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["data.jsonl", ".env", "../outside.png", "images", "https://example.org/page.png"])
def test_card_makes_nothing_else_travel(folder, target):
    for name in ("data.jsonl", ".env", "images/page.png", "../outside.png", "page.png"):
        write(folder / name, "")
    before = sent(folder)
    write(folder / "README.md", f"![]({target}) <img src='{target}'>\n")
    assert sent(folder) == before


# -- --include


@pytest.mark.slow
def test_include_sends_files_and_folders_that_would_stay(folder):
    for name in ("data.jsonl", "checkpoint-5/model.safetensors", "checkpoint-5/deep/state.pt", "runs/a.tfevents.1"):
        write(folder / name, "")
    plain = sent(folder)
    assert sent(folder, ["data.jsonl"]) - plain == {"data.jsonl"}
    for pattern in ("checkpoint-*", "checkpoint-5", "checkpoint-5/"):
        assert sent(folder, [pattern]) - plain == {"checkpoint-5/model.safetensors", "checkpoint-5/deep/state.pt"}
    assert sent(folder, ["*.tfevents.*", "deep"]) - plain == {"runs/a.tfevents.1", "checkpoint-5/deep/state.pt"}
    with pytest.raises(FolderError, match="--include 'nothing' matches no file"):
        plan_push(folder, "you/model", ["data.jsonl", "nothing"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["id_rsa", ".env", "keys/id_rsa", "data/.env", "checkpoint-5/training_args.bin"])
def test_pattern_does_not_send_what_may_hold_a_secret_and_its_whole_path_does(folder, name):
    write(folder / name, "")
    write(folder / Path(name).with_name("other.txt"), "")
    plain = sent(folder)
    assert sent(folder, ["*"]) - plain == {Path(name).with_name("other.txt").as_posix()}
    assert [file.name for file in plan_push(folder, "you/model", ["*"]).left] == [name]
    assert sent(folder, [name]) - plain == {name}
    with pytest.raises(FolderError, match=f"give its full path: {name}"):
        plan_push(folder, "you/model", ["*" + name[-4:]])


# -- links


@pytest.fixture
def secret(tmp_path):
    return write(tmp_path / "elsewhere" / "secret.txt", "secret")


@pytest.mark.parametrize(
    "name", ["LICENSE-x", "NOTICE", "README.md", "vocab.json", "LICENSES/MIT.txt", "config.json", "pvtc.py"]
)
def test_link_out_of_the_folder_is_refused(folder, secret, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    target = secret
    if path.exists():
        target = shutil.move(path, secret)
    path.symlink_to(target)
    with pytest.raises(FolderError, match=f"{path} leads to {target}, outside of {folder}"):
        plan_push(folder, "you/model")


def test_weights_that_are_a_link_out_of_the_folder_are_refused(folder, secret):
    shard = sorted(folder.glob("model-*"))[2]
    shutil.move(shard, secret)
    shard.symlink_to(secret)
    with pytest.raises(FolderError, match=f"{shard} leads to {secret}, outside"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../elsewhere/x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", 3])
def test_index_leads_nowhere_else(folder, tmp_path, name):
    save_file({"a": torch.zeros(1)}, write(tmp_path / "elsewhere" / "x.safetensors", ""))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["a"] = name
    write(folder / "model.safetensors.index.json", json.dumps(index))
    with pytest.raises(FolderError, match=f"the tensor a in {name!r}, expected the bare name"):
        check_folder(folder)


def test_links_to_nothing_and_loops_are_refused(folder):
    (folder / "NOTICE").symlink_to("nowhere")
    (folder / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(FolderError) as error:
        plan_push(folder, "you/model")
    assert "LICENSE is a broken link" in str(error.value)
    assert "NOTICE is a broken link" in str(error.value)


def test_links_inside_the_folder_are_followed(folder):
    write(folder / "licence.txt", "terms")
    (folder / "LICENSE").symlink_to("licence.txt")
    [licence] = [file for file in plan_push(folder, "you/model").files if file.name == "LICENSE"]
    assert licence.content == b"terms"


def test_snapshot_of_the_hub_s_cache_can_be_pushed(whole, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(whole.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert sent(snapshot) == {path.name for path in whole.iterdir()} | {"README.md"}


@pytest.mark.slow
def test_linked_file_and_folder_that_are_no_part_of_the_checkpoint_stay(folder, secret):
    (folder / "data.txt").symlink_to(secret)
    (folder / "LICENSES").symlink_to(secret.parent)
    (folder / "data").symlink_to(secret.parent)
    plan = plan_push(folder, "you/model")
    assert {file.name: file.reason for file in plan.left} == {
        "data.txt": "is a link out of the folder, a broken link or no regular file",
        "LICENSES": "is a link to a folder",
        "data": "is a link to a folder",
    }
    for include in ("data.txt", "*.txt"):
        with pytest.raises(FolderError, match=f"data.txt leads to {secret}, outside"):
            plan_push(folder, "you/model", [include])
    for include in ("data", "data/", "LICEN*", "*"):
        with pytest.raises(FolderError, match="is a link to a folder, which is not followed"):
            plan_push(folder, "you/model", [include])
    with pytest.raises(FolderError, match="matches no file"):
        plan_push(folder, "you/model", ["data/secret.txt"])


def test_image_that_is_a_link_out_of_the_folder_is_refused(folder, secret):
    (folder / "page.png").symlink_to(secret)
    assert "page.png" not in sent(folder)
    write(folder / "README.md", "![](page.png)")
    with pytest.raises(FolderError, match=f"page.png leads to {secret}, outside"):
        plan_push(folder, "you/model")


def test_what_is_no_regular_file_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("NOTICE")
        with pytest.raises(FolderError, match="NOTICE is not a regular file"):
            plan_push(folder, "you/model")


# -- what is checked is what is sent


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00008.safetensors"])
def test_file_that_changes_while_it_is_checked_is_refused(folder, monkeypatch, name):
    def check_and_change(path):
        check_folder(path)
        (path / name).write_bytes((path / name).read_bytes() + b" ")

    monkeypatch.setattr(push_module, "check_folder", check_and_change)
    with pytest.raises(FolderError, match=f"{name} changed while the folder was being checked"):
        plan_push(folder, "you/model")


def test_small_files_are_held_as_they_were_checked_and_weights_are_compared(folder):
    files = {file.name: file for file in plan_push(folder, "you/model").files}
    checked = (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{}")
    assert files["config.json"].content == checked
    shard = files["model-00002-of-00008.safetensors"]
    assert shard.is_unchanged
    os.utime(shard.content, ns=(1, 1))
    assert not shard.is_unchanged


# -- the dry run


def dry_run(folder, capsys) -> tuple[list[str], str]:
    assert main(["push", str(folder), "you/model", "--dry-run"]) == 0
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err


def test_dry_run_says_what_stays_why_and_how_to_send_it(folder, capsys):
    for name in ("id_rsa", "data.jsonl", "runs/a", "runs/b"):
        write(folder / name, "")
    lines, _ = dry_run(folder, capsys)
    heading = lines.index("Not pushed unless `--include PATTERN` names them:")
    assert lines[heading + 1 :] == [
        "  data.jsonl is not part of a checkpoint",
        "  id_rsa may hold a secret: only the whole path of a file includes it",
        "  runs/ (2 files) is a log",
    ]


def test_names_that_a_terminal_would_obey_or_not_encode_are_escaped(folder, capsys):
    for name in (b"evil\x1b[2K\nmodel", b"latin-\xe9.txt"):
        write(folder / os.fsdecode(name), "")
    lines, _ = dry_run(folder, capsys)
    assert lines[-2:] == [
        r"  'evil\x1b[2K\nmodel' is not part of a checkpoint",
        r"  'latin-\udce9.txt' is not part of a checkpoint",
    ]


def test_file_to_send_whose_name_is_not_utf_8_is_refused(folder):
    write(folder / os.fsdecode(b"LICENSE-\xe9"), "")
    with pytest.raises(FolderError, match=r"'LICENSE-\\udce9' in .* is not UTF-8"):
        plan_push(folder, "you/model")


def test_dry_run_of_hundreds_of_files_stays_short(folder, capsys):
    for number in range(300):
        write(folder / f"slurm-{number}.out", "")
    lines, _ = dry_run(folder, capsys)
    assert lines[-1] == "  and 280 more; each is a log"
    assert len([line for line in lines if line.endswith(".out is a log")]) == 20


# -- warnings


def test_untrained_modules_and_an_unknown_licence_are_told_before_the_push(folder, capsys):
    report = REPORT | {"untrained_modules": ["model.lvtc", "model.multi_modal_projector"]}
    write(folder / "README.md", "# Mine\n")
    write(folder / "conversion_report.json", json.dumps(report))
    untrained, licence = plan_push(folder, "you/model").warnings
    assert "are not trained: model.lvtc, model.multi_modal_projector" in untrained
    assert "The licence" in licence
    _, errors = dry_run(folder, capsys)
    assert errors.splitlines() == [f"warning: {untrained}", f"warning: {licence}"]
    write(folder / "training_recipe.json", json.dumps({"trained_modules": {"model.lvtc": 1}}))
    assert "not trained: model.multi_modal_projector." in plan_push(folder, "you/model").warnings[0]
    write(folder / "training_recipe.json", json.dumps({"trained_modules": {"model": 1}}))
    assert plan_push(folder, "you/model").warnings == [licence]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metadata", "is_known"),
    [
        ("license: mit", True),
        ("license: other\nlicense_name: qwen", True),
        ("license: other\nlicense_link: LICENSE", True),
        ("license: other", False),
        ("license: unknown", False),
        ("tags: []", False),
    ],
)
def test_licence_is_known_where_the_metadata_names_it(folder, metadata, is_known):
    write(folder / "README.md", f"---\n{metadata}\n---\n# Mine\n")
    assert (plan_push(folder, "you/model").warnings == []) is is_known
