# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Pushing a checkpoint folder to the Hub: checked first, uploaded in one commit, resumable."""

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
from ..processing.rules import choice
from .checks import check_folder
from .folder import FolderError, LeftFile, PushedFile, card_to_push, files_left, files_to_push, folder_stamps
from .model_card import CardFacts

CARDS = ("hub", "folder")
logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Args:
        url: URL of the commit or of the pull request.
        commit: the commit's hash, for `from_pretrained(..., revision=...)`.
        is_new: whether anything changed.
        deleted: outdated weights of another checkpoint that were deleted from the repository.
        left: files that were not uploaded, and why.
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
        files: files to upload, the model card last.
        left: files that will not be uploaded, and why.
        warnings: what the user should know before pushing.
    """

    files: list[PushedFile]
    left: list[LeftFile]
    warnings: list[str]


def plan_push(folder: str | Path, repo_id: str, include: Sequence[str] = ()) -> PushPlan:
    """Check a folder and list which files a push uploads and which it does not. Uses no network and runs no code of
    it.

    A push uploads the checkpoint's files (weights that the index names, configurations, processor, templates, the code
    that an `auto_map` names, reports, licences), the model card, and the images in the folder that the card shows.

    Args:
        folder: a complete checkpoint.
        repo_id: "owner/name", or "name" for the token's owner.
        include: patterns of additional files or folders to upload: `checkpoint-*`, `*.tfevents.*` (default: none). A
            file that is hidden or may hold a secret is uploaded only if its full path is given.

    Raises:
        FolderError: if the folder is not a complete checkpoint (the message lists every problem), a file to upload is
            a link out of the folder, a pattern of `include` matches nothing, or a file is being changed.
        ValueError: if `repo_id` is invalid.
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
    """Raise a `FolderError` if any file has changed."""
    if changed := sorted(names):
        raise FolderError(
            f"{', '.join(changed)} changed while the folder was being checked. Nothing was committed. Push again when "
            "nothing writes to the folder."
        )


def push_warnings(folder: Path, card: str) -> list[str]:
    """Warnings before a push: modules that are not trained, a licence that is not known.

    Args:
        card: text of the card for the repository.
    """
    found = []
    if untrained := CardFacts(folder).untrained_modules:
        found.append(f"{folder} has modules that are not trained: {', '.join(untrained)}. Its card says so.")
    metadata = ModelCard(card).data.to_dict()
    if metadata.get("license") in (None, "unknown") or not (
        metadata["license"] != "other" or metadata.get("license_name") or metadata.get("license_link")
    ):
        found.append(
            f"The licence of {folder} is not known. State it in the metadata of {CARD}: `license: apache-2.0`."
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
    """Push a checkpoint folder in one commit, with weights, code, processor and model card.

    Files that the Hub already has are not uploaded again, including those from an interrupted push. The folder is not
    changed.

    Args:
        folder: a complete checkpoint. A model card is generated if there is no README.md.
        repo_id: "owner/name", or "name" for the token's owner. The repository is created if needed.
        private: create the repository as private (default: the Hub's default).
        revision: branch to push to, created if needed (default: the main branch).
        token: Hub token (default: HF_TOKEN or the one that `hf auth login` stored).
        message: commit message (default: names the folder).
        create_pr: open a pull request instead of changing the branch (default: no).
        include: see [`plan_push`].
        card: whose manual content to keep if the folder's and the repository's model cards have different content:
            "hub" or "folder" (default: raise).

    Raises:
        FolderError: if the folder is not a complete checkpoint. Nothing is uploaded.
        CardError: if both cards have manual content and `card` is not set. Nothing is uploaded.
        ValueError: if an argument is invalid, or `private` is set for a public repository.
        OSError: if the Hub refuses or the connection fails.
    """
    choice(CARDS).or_null().check("card", card)
    if create_pr and revision is not None:
        raise ValueError(f"create_pr and revision={revision!r} exclude each other: a pull request targets main.")
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
        # `from_pretrained` would read an old model.safetensors instead of new shards
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
            # the deleted files and the card were determined from this commit
            parent_commit=info.sha,
        )
    return Pushed(done.pr_url or done.commit_url, done.oid, done.oid != info.sha, stale, plan.left)


def _open(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> ModelInfo:
    """Information about the repository at the branch to push to.

    Raises:
        ValueError: if it is public although `private` is set.
    """
    info = api.model_info(repo_id)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public, which --private does not change. Make it private in its settings, or "
            "choose another name."
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
    """Turn errors of the Hub and the connection into an `OSError` that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(_explanation(error, repo_id, bool(token or get_token()))) from error
    except (HTTPError, RuntimeError) as error:
        # `huggingface_hub` wraps the error that ends an upload in a RuntimeError
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise OSError(_explanation(cause, repo_id, bool(token or get_token()))) from error
        raise OSError(
            f"The connection to the Hub failed: {cause}. Nothing was committed to {repo_id}. Push again: files that "
            "have arrived are not uploaded again."
        ) from error


def _explanation(error: HfHubHTTPError, repo_id: str, has_token: bool) -> str:
    status = error.response.status_code
    answer = error.server_message or " ".join(str(error).split())
    if status == 401 and not has_token:
        return f"{repo_id}: the Hub requires a token. Run `hf auth login`, set HF_TOKEN, or pass --token."
    if status == 401:
        return (
            f"{repo_id}: the Hub does not accept the token. Create a new one with write access in the Hub's settings."
        )
    if status == 403:
        return (
            f"{repo_id}: the token has no write access. It needs write permission, and its owner must be a member of "
            f"{repo_id.partition('/')[0]}. The Hub says: {answer}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id}: there is no such revision. The Hub says: {answer}"
    if status == 404:
        return f"{repo_id}: there is no such repository, or it is private and the token has no access to it."
    if status in (409, 412):
        return (
            f"{repo_id} was changed by someone else in the meantime. Nothing was committed. Push again: files that "
            f"have arrived are not uploaded again. The Hub says: {answer}"
        )
    return f"{repo_id}: the Hub refused: {answer}"
