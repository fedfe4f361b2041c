# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Pushing a checkpoint folder to the Hub: checked before, in one commit, resumed where it broke off."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import logging

from ..checkpoints.names import CARD, is_weights
from ..checkpoints.rules import choice
from .checks import check_folder
from .folder import FolderError, LeftFile, PushedFile, card_to_push, files_left, files_to_push, folder_stamps
from .model_card import CardFacts

CARDS = ("hub", "folder")
logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Pushed:
    """A push that is done.

    Args:
        url: of the commit, or of the pull request.
        commit: its hash, which `from_pretrained(..., revision=...)` takes.
        is_new: whether anything was to be changed.
        deleted: weights of another checkpoint that the repository held, and does not hold any more.
        left: what stayed in the folder, and why.
    """

    url: str
    commit: str
    is_new: bool
    deleted: list[str]
    left: list[LeftFile]


@dataclass(frozen=True)
class PushPlan:
    """What a push will do.

    Args:
        files: what it uploads, the model card last.
        left: what stays in the folder, and why.
        warnings: what whoever pushes should know before.
    """

    files: list[PushedFile]
    left: list[LeftFile]
    warnings: list[str]


def plan_push(folder: str | Path, repo_id: str, include: Sequence[str] = ()) -> PushPlan:
    """Check a folder, and list what a push of it uploads and what it leaves. Asks no network, runs none of its code.

    Uploaded are the files of the checkpoint (weights that the index names, configurations, processor, templates, the code
    that an `auto_map` leads to, reports, licences), the model card, and the images in the folder that it shows.

    Args:
        folder: a whole checkpoint.
        repo_id: "owner/name", or "name" for the token's owner.
        include: patterns of files or folders that would be left behind: `checkpoint-*`, `*.tfevents.*`. A file that is
            hidden or may hold a secret is sent only if its whole path stands there.

    Raises:
        FolderError: the folder is not a whole checkpoint, naming everything that is wrong with it; a file that would be
            sent is a link out of the folder; a pattern of `include` matches nothing; a file is being changed.
        ValueError: `repo_id` is not possible.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository id, expected 'owner/name': {error}") from error
    folder = Path(folder)
    before = folder_stamps(folder)
    check_folder(folder)
    card = card_to_push(folder, repo_id)
    files = files_to_push(folder, card, include)
    _refuse_changed(file.name for file in files if file.stamp != before.get(file.name))
    left = files_left(folder, {file.name for file in files})
    return PushPlan([*files, PushedFile(CARD, card.encode())], left, push_warnings(folder, card))


def _refuse_changed(names: Iterable[str]) -> None:
    """Raises: FolderError: there are names."""
    if changed := sorted(names):
        raise FolderError(
            f"{', '.join(changed)} changed while the folder was being checked. Nothing was committed. Push again when "
            "nothing writes there any more."
        )


def push_warnings(folder: Path, card: str) -> list[str]:
    """What whoever pushes a model should know before: that it is not trained, that nobody may know its licence.

    Args:
        card: its text as it will be in the repository.
    """
    found = []
    if untrained := CardFacts(folder).untrained_modules:
        found.append(f"{folder} has modules that no training has seen: {', '.join(untrained)}. Its card says so.")
    metadata = ModelCard(card).data.to_dict()
    if metadata.get("license") in (None, "unknown") or not (
        metadata["license"] != "other" or metadata.get("license_name") or metadata.get("license_link")
    ):
        found.append(
            f"The licence of {folder} is not known. Name it in the metadata of {CARD}: `license: apache-2.0`."
        )
    return found


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    include: Sequence[str] = (),
    card: str | None = None,
) -> Pushed:
    """Push a checkpoint folder in one commit: weights, code, processor and model card belong together.

    What the Hub has already is not uploaded again, also what a push left there that broke off. The folder stays as it is.

    Args:
        folder: a whole checkpoint; without a README.md one is made on the way.
        repo_id: "owner/name", or "name" for the token's owner. The repository is made if there is none.
        private: make it private.
        revision: branch to push to, made if there is none; unset: the main one.
        token: of the Hub; unset: HF_TOKEN or what `hf auth login` stored.
        message: of the commit.
        create_pr: open a pull request instead of changing the branch.
        include: see [`plan_push`].
        card: where the folder's model card and the repository's hold writing that differs, whose stays: "hub", "folder".

    Raises:
        FolderError: the folder is not a whole checkpoint. Nothing was sent.
        CardError: both cards hold writing, and `card` is not set. Nothing was uploaded.
        ValueError: an argument is not possible; `private` was asked for a repository that is public.
        OSError: the Hub refused, or the connection broke.
    """
    choice(CARDS).or_null().check("card", card)
    if create_pr and revision is not None:
        raise ValueError(f"create_pr and revision={revision!r} exclude one another: a pull request is against main.")
    folder = Path(folder)
    plan = plan_push(folder, repo_id, include)
    from .. import __version__

    api = HfApi(token=token, library_name="internvlx_hf", library_version=__version__)
    with _explained(repo_id, token):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        info = _open(api, repo_id, private, revision)
        there = {file.rfilename for file in info.siblings or ()}
        new_card = card_to_push(folder, repo_id, _card_there(api, repo_id, info) if CARD in there else "", card)
        for warning in push_warnings(folder, new_card):
            logger.warning(warning)
        files = [*plan.files[:-1], PushedFile(CARD, new_card.encode())]
        additions = [CommitOperationAdd(file.name, file.content) for file in files]
        _refuse_changed(file.name for file in files if not file.is_unchanged)
        # `from_pretrained` would take an old model.safetensors before new shards
        stale = sorted(name for name in there - {file.name for file in files} if is_weights(name))
        done = api.create_commit(
            repo_id,
            [
                *additions,
                *(CommitOperationDelete(name, is_folder=False) for name in stale),
            ],
            commit_message=message or f"Upload {folder.resolve().name} with internvlx-hf",
            revision=revision,
            create_pr=create_pr,
            # what is deleted, and the card, were decided by this commit
            parent_commit=info.sha,
        )
    return Pushed(done.pr_url or done.commit_url, done.oid, done.oid != info.sha, stale, plan.left)


def _open(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> ModelInfo:
    """What the repository is, at the branch to push to.

    Raises:
        ValueError: it is public, and was asked to be private.
    """
    info = api.model_info(repo_id)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public: --private would not change that. Make it private in its settings, or choose "
            "another name."
        )
    if revision is None:
        return info
    if not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision)


def _card_there(api: HfApi, repo_id: str, info: ModelInfo) -> str:
    return Path(api.hf_hub_download(repo_id, CARD, revision=info.sha)).read_text(encoding="utf-8")


@contextmanager
def _explained(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what the Hub and the connection may answer into an `OSError` that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(_explanation(error, repo_id, bool(token or get_token()))) from error
    except (HTTPError, RuntimeError) as error:
        # `huggingface_hub` wraps what ends an upload into a RuntimeError
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise OSError(_explanation(cause, repo_id, bool(token or get_token()))) from error
        raise OSError(
            f"The connection to the Hub broke: {cause}. Nothing was committed to {repo_id}. Push again: files that have "
            "arrived are not uploaded a second time."
        ) from error


def _explanation(error: HfHubHTTPError, repo_id: str, has_token: bool) -> str:
    status = error.response.status_code
    answer = error.server_message or " ".join(str(error).split())
    if status == 401 and not has_token:
        return f"{repo_id}: the Hub wants a token. Run `hf auth login`, set HF_TOKEN, or pass --token."
    if status == 401:
        return (
            f"{repo_id}: the Hub does not accept the token. Make a new one, with the right to write, in its settings."
        )
    if status == 403:
        return (
            f"{repo_id}: the token may not write there. It needs the right to write, and its owner a part in "
            f"{repo_id.partition('/')[0]}. The Hub says: {answer}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id}: there is no such revision. The Hub says: {answer}"
    if status == 404:
        return f"{repo_id}: there is no such repository, or it is private and the token may not see it."
    if status in (409, 412):
        return (
            f"{repo_id} was changed by somebody else in the meantime. Nothing was committed. Push again: files that have "
            f"arrived are not uploaded a second time. The Hub says: {answer}"
        )
    return f"{repo_id}: the Hub refused: {answer}"
