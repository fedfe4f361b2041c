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
from commands import internvlx
from internvlx_hf.hub import FolderError, check_folder, plan_push
from internvlx_hf.hub import push as push_module
from json_files import edit_json
from refusals import refused

pytestmark = pytest.mark.any_transformers

SECRET, HIDDEN, UNKNOWN = "may hold a secret", "is hidden", "is not part of a checkpoint"
STATE, LOG, HALF = "is training state", "is a log", "is incomplete"
WEIGHTS, CODE = "holds weights that the index does not name", "is code that no auto_map names"
# files by why they stay; one in a folder is listed as that
STAYS = {
    SECRET: (
        "id_rsa",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519.pub",
        "hf_token.txt",
        "hf_token",
        "token",
        "secrets.json",
        "Secrets/a.txt",
        "credentials.json",
        "passwords.csv",
        "aws.pem",
        "server.key",
        "client.p12",
        "prod.env",
        ".env",
        ".env.local",
        ".netrc",
        "training_args.bin",
        "LICENSE.key",
    ),
    HIDDEN: (
        ".bash_history",
        ".cache/huggingface/state",
    ),
    UNKNOWN: (
        "data.jsonl",
        "metrics.json",
        "all_results.json",
        "explore.ipynb",
        "backup.zip",
        "page.png",
        "pages/config.json",
        "pages/optimizer.pt",
    ),
    STATE: (
        "checkpoint-500/model.safetensors",
        "tmp-checkpoint-10/model.safetensors",
        "optimizer.pt",
        "optimizer_0/part.distcp",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "random_states_0.pkl",
        "trainer_state.json",
        "global_step1/zero_pp_rank_0.pt",
        "zero_to_fp32.py",
        "latest",
        "pytorch_model_fsdp_0/a.distcp",
    ),
    LOG: (
        "runs/now/events.out.tfevents.1.host.2.0",
        "wandb/run/files/config.yaml",
        "mlruns/0/meta.yaml",
        "events.out.tfevents.1.host.2.0",
        "train.log",
        "slurm-1.out",
    ),
    "is a memory dump": ("core.1234",),
    "is a cache": ("__pycache__/pvtc.cpython-311.pyc",),
    HALF: (
        "config.json.tmp",
        "model.safetensors.incomplete",
    ),
    "is the manifest of the last write": ("internvlx_manifest.json",),
    WEIGHTS: (
        "other.safetensors",
        "pytorch_model.bin",
    ),
    CODE: (
        "train.py",
        "keys.py",
    ),
}
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
    for name in [name for names in STAYS.values() for name in names]:
        write(folder / name, "{}")
    plan = plan_push(folder, "you/model")
    assert {file.name for file in plan.files} == {path.name for path in whole.iterdir()} | {"README.md"}
    return {file.name: file for file in plan.left}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sent(folder, include=()) -> set[str]:
    return {file.name for file in plan_push(folder, "you/model", include).files}


def test_what_is_not_of_the_checkpoint_stays_and_says_why(left):
    assert {name: file.reason for name, file in left.items()} == {
        name.partition("/")[0] + "/" * ("/" in name): reason for reason, names in STAYS.items() for name in names
    }


def test_folders_that_stay_are_listed_once(left):
    assert left["pages/"].num_files == 2
    assert sum(file.num_files for file in left.values()) == sum(map(len, STAYS.values()))


def test_what_is_of_the_checkpoint_travels(folder):
    contents = {
        f"{kind}_config.json": folder / "processor_config.json" for kind in ("preprocessor", "video_preprocessor")
    }
    contents["generation_config.json"] = folder / "generation_config.json"
    for name in TRAVELS:
        write(folder / name, contents[name].read_text() if name in contents else "{}")
    assert set(TRAVELS) <= sent(folder)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"chat_template": 3'])
def test_processor_that_does_not_load_is_a_problem_of_the_folder(folder, content):
    write(folder / "chat_template.json", content)
    with refused("cannot be pushed", by=FolderError):
        check_folder(folder)


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
def test_images_of_all_kinds_travel(folder):
    names = [f"page.{suffix}" for suffix in ("png", "jpg", "jpeg", "gif", "webp", "svg", "PNG")]
    for name in names:
        write(folder / name, "")
    write(folder / "README.md", "".join(f"![]({name})" for name in names))
    assert set(names) <= sent(folder)


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
    with refused("--include 'nothing' matches no file", by=FolderError):
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
    with refused(f"give its full path: {name}", by=FolderError):
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
    with refused(f"{path} leads to {target}, outside of {folder}", by=FolderError):
        plan_push(folder, "you/model")


def test_weights_that_are_a_link_out_of_the_folder_are_refused(folder, secret):
    shard = sorted(folder.glob("model-*"))[2]
    shutil.move(shard, secret)
    shard.symlink_to(secret)
    with refused(f"{shard} leads to {secret}, outside", by=FolderError):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../elsewhere/x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", 3])
def test_index_leads_nowhere_else(folder, tmp_path, name):
    save_file({"a": torch.zeros(1)}, write(tmp_path / "elsewhere" / "x.safetensors", ""))
    edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(a=name))
    with refused(f"the tensor a in {name!r}", "the bare name", by=FolderError):
        check_folder(folder)


def test_links_to_nothing_and_loops_are_refused(folder):
    (folder / "NOTICE").symlink_to("nowhere")
    (folder / "LICENSE").symlink_to("LICENSE")
    with refused("LICENSE is a broken link", "NOTICE is a broken link", by=FolderError):
        plan_push(folder, "you/model")


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
        with refused(f"data.txt leads to {secret}, outside", by=FolderError):
            plan_push(folder, "you/model", [include])
    for include in ("data", "data/", "LICEN*", "*"):
        with refused("is a link to a folder, which is not followed", by=FolderError):
            plan_push(folder, "you/model", [include])
    with refused("matches no file", by=FolderError):
        plan_push(folder, "you/model", ["data/secret.txt"])


def test_image_that_is_a_link_out_of_the_folder_is_refused(folder, secret):
    (folder / "page.png").symlink_to(secret)
    assert "page.png" not in sent(folder)
    write(folder / "README.md", "![](page.png)")
    with refused(f"page.png leads to {secret}, outside", by=FolderError):
        plan_push(folder, "you/model")


def test_what_is_no_regular_file_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("NOTICE")
        with refused("NOTICE is not a regular file", by=FolderError):
            plan_push(folder, "you/model")


# -- what is checked is what is sent


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00007.safetensors"])
def test_file_that_changes_while_it_is_checked_is_refused(folder, monkeypatch, name):
    def check_and_change(path):
        check_folder(path)
        (path / name).write_bytes((path / name).read_bytes() + b" ")

    monkeypatch.setattr(push_module, "check_folder", check_and_change)
    with refused(f"{name} changed while the folder was being checked", by=FolderError):
        plan_push(folder, "you/model")


def test_small_files_are_held_as_they_were_checked_and_weights_are_compared(folder):
    files = {file.name: file for file in plan_push(folder, "you/model").files}
    checked = (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{}")
    assert files["config.json"].content == checked
    shard = files["model-00002-of-00007.safetensors"]
    assert shard.is_unchanged
    os.utime(shard.content, ns=(1, 1))
    assert not shard.is_unchanged


# -- the dry run


def dry_run(folder, capsys) -> tuple[list[str], str]:
    printed = internvlx(capsys, "push", folder, "you/model", "--dry-run")
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
    with refused("'LICENSE-\\udce9' in", "is not UTF-8", by=FolderError):
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
