# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints on the Hugging Face Hub: writing their model cards, renewing their code and pushing them."""

from .card_text import Card, CardError
from .checks import check_folder
from .folder import FolderError, LeftFile, PushedFile
from .model_card import model_card, write_card
from .push import Pushed, PushPlan, plan_push, push_folder
from .renew import renew_code
from .trainer_card import PushesCheckpoint

__all__ = [
    "Card",
    "CardError",
    "FolderError",
    "LeftFile",
    "PushPlan",
    "Pushed",
    "PushedFile",
    "PushesCheckpoint",
    "check_folder",
    "model_card",
    "plan_push",
    "push_folder",
    "renew_code",
    "write_card",
]
