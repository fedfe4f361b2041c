"""Pushing while others push: in this process, with the real client and a Hub on loopback."""

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers import Trainer, TrainingArguments

from hub_server import WRITER, Blob, Hub
from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.hub import PushesCheckpoint, push, push_folder

REPO = "you/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # `Trainer`'s, made once
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        close_session()  # one that was opened offline answers nothing
        yield hub
    close_session()


def commit(hub, branch="main", **files):
    repository = hub.repositories[REPO]
    changed = {name.replace("__", "."): Blob(text.encode(), False) for name, text in files.items()}
    return repository.commit(branch, repository.commits[hub.head(REPO, branch)] | changed, "by another")


def meanwhile(monkeypatch, act):
    """Let `act` happen after the repository was read and before the commit, where the warnings are read again."""
    warnings, calls = push.push_warnings, []

    def and_act(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            act()
        return warnings(*arguments)

    monkeypatch.setattr(push, "push_warnings", and_act)


def pushed(folder, **settings):
    return push_folder(folder, REPO, token=WRITER, **settings)


def test_a_commit_between_check_and_push_is_not_overwritten(hub, folder, monkeypatch):
    pushed(folder)
    with (folder / "config.json").open("a") as file:
        file.write(" ")
    others = []
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: others.append(commit(hub, notes__txt="by another")))
        with pytest.raises(
            OSError, match=f"{REPO} was changed by someone else in the meantime. Nothing was committed"
        ):
            pushed(folder)
    assert [hub.head(REPO)] == others
    again = pushed(folder)
    assert (again.is_new, hub.files(REPO)["notes.txt"]) == (True, b"by another")


def test_a_file_that_changes_before_the_commit_is_not_pushed(hub, folder, monkeypatch):
    shard = next(folder.glob("*.safetensors"))
    meanwhile(monkeypatch, shard.touch)
    with pytest.raises(ValueError, match=f"{shard.name} changed while"):
        pushed(folder)
    assert list(hub.files(REPO)) == [".gitattributes"]


def test_only_weights_of_another_checkpoint_are_deleted(hub, folder):
    pushed(folder)
    commit(hub, model__safetensors="old weights", notes__txt="kept")
    found = pushed(folder)
    assert found.deleted == ["model.safetensors"]
    assert {"notes.txt"} == hub.files(REPO).keys() - {path.name for path in folder.iterdir()} - {
        ".gitattributes",
        "README.md",
    }


def test_the_card_of_the_branch_is_the_one_that_is_carried_on(hub, folder):
    pushed(folder, revision="next")
    card = hub.files(REPO, "next")["README.md"].decode()
    commit(hub, "next", README__md=card + "\nWritten on the branch.\n")
    pushed(folder, revision="next")
    assert "Written on the branch." in hub.files(REPO, "next")["README.md"].decode()
    assert list(hub.files(REPO)) == [".gitattributes"]


def test_a_public_repository_is_not_pushed_to_as_private(hub, folder):
    pushed(folder)
    head = hub.head(REPO)
    with pytest.raises(ValueError, match=f"{REPO} exists and is public"):
        pushed(folder, private=True)
    assert hub.head(REPO) == head


def test_a_trainer_pushes_with_the_token_of_its_arguments(hub, folder):
    class PushingTrainer(PushesCheckpoint, Trainer):
        pass

    arguments = TrainingArguments(
        str(folder), report_to="none", use_cpu=True, push_to_hub=True, hub_model_id=REPO, hub_token=WRITER
    )
    PushingTrainer(InternVLXForConditionalGeneration.from_pretrained(folder), arguments).push_to_hub()
    assert "model.safetensors" in hub.files(REPO)
