# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Pushing from a `Trainer` with `TrainingArguments(push_to_hub=True)`: a model that loads, our card, and nothing
else.
"""

import glob
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from ..checkpoints.folders import checkpoint_files
from ..checkpoints.names import CARD
from .folder import names_to_push, real_files
from .model_card import read_card, write_card

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

logger = logging.get_logger(__name__)


class PushesCheckpoint(Base):
    """Mixin for a `Trainer` that pushes: `class MyTrainer(PushesCheckpoint, Trainer)`.

    A plain `Trainer` replaces the model card with transformers' own at every push, including manual content. While it
    trains, it pushes models without their code, which then do not load. And it pushes everything else in the folder,
    such as a `training_args.bin` with the Hub token.
    """

    def create_model_card(self, *args, **kwargs) -> None:
        """Renew our card; for an adapter, write transformers' and peft's."""
        if (self._out / "adapter_config.json").is_file():
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_card(self._out, name=self.hub_model_id)

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, **kwargs):
        """As in `Trainer`, but upload only the files that `internvlx push` would upload."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        private = {"private": kwargs.pop("private")} if "private" in kwargs else {}
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(
            **{"model_name": self.hub_model_id.split("/")[-1], "tags": getattr(self.model, "model_tags", None)}
            | kwargs
        )
        self._finish_current_push()
        return self._upload_checkpoint(commit_message, token=token, revision=revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        is_pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_pushing and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, out = Path(checkpoint_folder), self._out
        # copied, since the checkpoint may be deleted during the upload
        for name in checkpoint_files(checkpoint) - {CARD}:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkpoint / name, out / name)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, {progress}"
        jobs = [self._upload_checkpoint(message, run_as_future=True)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            jobs.append(self._upload_state(checkpoint, f"{message}, checkpoint"))
        if is_pushing:
            self.push_in_progress.jobs.extend(jobs)  # type: ignore[attr-defined]
        else:
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type, assignment]

    @property
    def _out(self) -> Path:
        return Path(self.args.output_dir)  # type: ignore[arg-type]

    def _upload_checkpoint(self, message: str, **options):
        files, problems = real_files(self._out, names_to_push(self._out, read_card(self._out)))
        for problem in problems:
            logger.warning(f"Not pushed: {problem}")
        names = [glob.escape(name) for name, target in files.items() if target.is_file()]
        return self._upload(self._out, message, allow_patterns=names, **options)

    def _upload_state(self, checkpoint: Path, message: str):
        """Upload the state to resume training from, without the saved arguments, which hold the token."""
        is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        return self._upload(
            checkpoint,
            message,
            path_in_repo="last-checkpoint" if is_last else checkpoint.name,
            ignore_patterns=["training_args.bin"],
            run_as_future=True,
        )

    def _upload(self, folder: Path, message: str, token=None, revision=None, **options):
        return hf_api().upload_folder(  # type: ignore[call-overload]
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=message,
            token=self.args.hub_token if token is None else token,
            revision=self.args.hub_revision if revision is None else revision,
            **options,
        )
