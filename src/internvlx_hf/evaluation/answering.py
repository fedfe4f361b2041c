# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Answering and scoring conversations in batches, which is what an evaluation harness needs from a model."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoProcessor, GenerationConfig, StoppingCriteria
from transformers.utils import logging

from .. import registration  # noqa: F401
from ..modeling import InternVLXConfig
from ..processing.boxes import decode_answer
from ..processing.image_settings import ImageSettings, split_by_owner
from ..processing.literals import MARKS, escaped
from ..processing.processing_internvlx import IGNORE_INDEX

logger = logging.get_logger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
# settings of the checkpoint's processor that an evaluation may change
IMAGE_SETTINGS = (*ImageSettings.names(), "resize_backend", "do_exif_transpose", "jpeg_draft")

Messages = list[dict]  # a conversation, as `apply_chat_template` takes it


class Answer(NamedTuple):
    """A generated answer.

    Args:
        text: without special tokens, but for the tags of boxes.
        num_tokens: generated tokens, the end marker included.
        finish_reason: as OpenAI names it: "length" if the answer is cut off at `max_new_tokens`, else "stop".
    """

    text: str
    num_tokens: int
    finish_reason: str = "stop"


class AnswerScore(NamedTuple):
    """How likely a given answer is.

    Args:
        loss: mean negative log-likelihood of its tokens, the end marker included; lower is more likely.
        num_tokens: its tokens, the end marker included.
        is_greedy: whether greedy decoding would have generated it.
    """

    loss: float
    num_tokens: int
    is_greedy: bool


class Answerer:
    """A model and its processor, which answer conversations in batches.

    Args:
        model: an `InternVLXForConditionalGeneration` in evaluation mode.
        processor: its processor.
        images_kwargs: settings of images to override, such as `{"max_patches": 12, "max_image_tokens": 4096}`
            (default: none).

    Attributes:
        version: what identifies the checkpoint's files, for a record of the answers; empty if it is not known.
    """

    def __init__(self, model, processor, images_kwargs: dict | None = None):
        self.model = model
        self.processor = processor
        self.version: dict[str, str] = {}
        self.images_kwargs: dict = {}
        self.update_images_kwargs(**(images_kwargs or {}))

    @classmethod
    def from_pretrained(cls, path: str, images_kwargs: dict | None = None, revision: str = "main", **model_kwargs):
        """Load a model and its processor.

        Args:
            path: a folder or a Hub id.
            model_kwargs: arguments of `AutoModel.from_pretrained`: `dtype`, `device_map`, `attn_implementation`, ...

        Raises:
            ValueError: if it is not an InternVL-X model or `images_kwargs` are invalid. This is checked before any
                weights are read.
        """
        model_type = AutoConfig.from_pretrained(path, revision=revision).model_type
        if model_type != InternVLXConfig.model_type:
            raise ValueError(
                f"{path!r} is a {model_type!r} model, expected {InternVLXConfig.model_type!r}. `internvlx convert "
                f"{path} FOLDER` converts InternVL checkpoints."
            )
        processor = AutoProcessor.from_pretrained(path, revision=revision)
        _check_images_kwargs(processor, images_kwargs or {})
        model = AutoModel.from_pretrained(path, revision=revision, **model_kwargs).eval()
        return cls(model, processor, images_kwargs)

    @property
    def changed_processor(self):
        """A copy of the processor with the settings that answers are given under."""
        images, own = split_by_owner(self.images_kwargs)
        changed, images_changed = copy(self.processor), copy(self.processor.image_processor)
        images_changed.change_tiling(**images)
        vars(changed).update(own, image_processor=images_changed)
        return changed

    @property
    def image_processor(self):
        """An image processor with the settings that answers are given under."""
        return self.changed_processor.image_processor

    @property
    def image_settings(self) -> ImageSettings:
        """The settings of images that answers are given under."""
        return self.changed_processor.image_settings

    def update_images_kwargs(self, **changed) -> None:
        """Change `images_kwargs`. Raises: ValueError: if the settings are invalid or contradict each other."""
        _check_images_kwargs(self.processor, self.images_kwargs | changed)
        self.images_kwargs |= changed

    @torch.inference_mode()
    def answer(
        self, conversations: Sequence[Messages], until: Sequence[str] = (), **generation_kwargs
    ) -> list[Answer]:
        """Generate an answer for each conversation, all in one batch.

        Args:
            conversations: messages that end with the user's turn.
            until: an answer ends before the first of these strings that it contains (default: none).
            generation_kwargs: arguments of `generate` or of an evaluation task, see [`generation_arguments`].
        """
        return self.complete(self.inputs(conversations, add_generation_prompt=True), until, **generation_kwargs)

    @torch.inference_mode()
    def complete(self, inputs: Mapping, until: Sequence[str] = (), **generation_kwargs) -> list[Answer]:
        """Generate an answer for each row of a batch of prompts, padded on the left; arguments as for `answer`."""
        tokenizer = self.processor.tokenizer
        arguments = generation_arguments(generation_kwargs)
        if self.model.generation_config.pad_token_id is None:
            arguments["pad_token_id"] = tokenizer.pad_token_id
        prompt = inputs["input_ids"].shape[1]
        if until:
            start = 0 if self.model.routes_tiles(inputs) else prompt
            arguments["stopping_criteria"] = [StopAtText(tokenizer, until, start)]
        output = self.model.generate(**inputs, **arguments)[:, prompt:]
        texts = [decode_answer(tokenizer, row) for row in output]
        answers = []
        for text, row in zip(texts, output, strict=True):
            count, wanted = count_generated(row, tokenizer.pad_token_id), cut_at(text, until)
            reason = self.finish_reason(row[:count], **arguments) if wanted == text else "stop"
            answers.append(Answer(wanted, count, reason))
        return answers

    def finish_reason(
        self, generated: torch.Tensor, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS, eos_token_id=None, **_
    ) -> str:
        """The reason, see `Answer`, why (n,) generated ids end, from the arguments of `generate`."""
        ends = self.model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        has_end = len(generated) and int(generated[-1]) in (ends if isinstance(ends, list) else [ends])
        return "length" if len(generated) >= max_new_tokens and not has_end else "stop"

    @torch.inference_mode()
    def score(self, conversations: Sequence[Messages], answers: Sequence[str]) -> list[AnswerScore]:
        """Score how likely each answer is after its conversation, all in one batch.

        The chat template writes the answer with an end marker after it, as in training.
        """
        turns = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in answers]
        complete = [[*asked, *answered] for asked, answered in zip(conversations, turns, strict=True)]
        inputs = self.inputs(complete, return_labels=True)
        targets = F.pad(inputs.pop("labels"), (0, 1), value=IGNORE_INDEX)[:, 1:]
        supervised = targets != IGNORE_INDEX
        logits = self.model(**inputs, logits_to_keep=supervised).logits.float()  # [supervised rows, vocabulary]
        targets = targets[supervised]
        losses = F.cross_entropy(logits, targets, reduction="none")
        as_greedy = logits.argmax(-1) == targets
        counts = supervised.sum(-1).tolist()
        return [
            AnswerScore(loss.mean().item(), len(loss), bool(greedy.all()))
            for loss, greedy in zip(losses.split(counts), as_greedy.split(counts), strict=True)
        ]

    def inputs(self, conversations: Sequence[Messages], **kwargs):
        """The model's inputs for the conversations, padded on the left; `kwargs` are those of
        `apply_chat_template`.
        """
        return chat_inputs(self.processor, conversations, self.images_kwargs, **kwargs).to(self.model.device)


def chat_inputs(processor, conversations: Sequence[Messages], images_kwargs: Mapping, **kwargs):
    """The inputs for conversations, padded on the left, on the CPU; `kwargs` are those of `apply_chat_template`."""
    return processor.apply_chat_template(
        list(conversations),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left", **images_kwargs},
        **kwargs,
    )


def marks_as_text(conversation: Messages) -> Messages:
    """Escape `<image>` in the texts of a conversation whose images are given as parts, so that it is read as text."""

    def as_text(part: dict) -> dict:
        return {**part, "text": escaped(part["text"], MARKS)} if part.get("type") == "text" else part

    return [
        {**message, "content": [as_text(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else {**message, "content": escaped(message["content"], MARKS)}
        for message in conversation
    ]


class StopAtText(StoppingCriteria):
    """Stops a row as soon as its generated text contains one of the strings.

    transformers' `stop_strings` also match the last characters of the prompt: after ChatML's `assistant\\n`, the first
    line break of an answer would complete "\\n\\n".
    """

    def __init__(self, tokenizer, strings: Sequence[str], prompt_length: int):
        self.decode = partial(tokenizer.batch_decode, skip_special_tokens=True)
        self.strings = tuple(strings)
        self.prompt_length = prompt_length
        # a token is at least one byte; a few more, since the window may start inside a character
        self.window = max(len(string.encode()) for string in strings) + 4

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        """(B,) bool, for (B, L) ids."""
        start = max(self.prompt_length, input_ids.shape[1] - self.window)
        ends = [any(string in text for string in self.strings) for text in self.decode(input_ids[:, start:])]
        return torch.tensor(ends, device=input_ids.device)  # type: ignore[return-value]


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first occurrence of any of the strings."""
    return text[: min((text.find(string) for string in until if string in text), default=len(text))]


def generation_arguments(task_kwargs: dict) -> dict:
    """Arguments of `generate` from those of an evaluation task.

    `max_new_tokens` defaults to 1024. Answers are greedy, whatever the checkpoint's generation config says, unless the
    task asks for sampling (`do_sample=True`, or a `temperature` above zero without `do_sample=False`) or for beams.
    Penalties on repetition are the checkpoint's, unless the task sets them. Other names, which tasks may have for
    other models, are left out with a warning.
    """
    known = vars(GenerationConfig())
    unknown = sorted(set(task_kwargs) - set(known))
    if unknown:
        logger.warning_once(f"`generate` has no arguments {unknown}: they are ignored.")
    arguments = {name: value for name, value in task_kwargs.items() if name in known and value is not None}
    arguments.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    arguments.setdefault("do_sample", arguments.get("temperature", 0) > 0)
    arguments.setdefault("num_beams", 1)
    if not arguments["do_sample"]:
        arguments |= {"temperature": None, "top_p": None, "top_k": None}
    return arguments


def _check_images_kwargs(processor, images_kwargs: dict) -> None:
    if unknown := sorted(set(images_kwargs) - set(IMAGE_SETTINGS)):
        raise ValueError(f"Unknown image settings {unknown}, expected some of {list(IMAGE_SETTINGS)}.")
    processor.tiling_rules([(1, 1)], images_kwargs)  # a budget must have room for an image


def count_generated(row: torch.Tensor, pad_token_id: int | None) -> int:
    """Number of tokens in a generated row without the padding at its end."""
    if pad_token_id is None:
        return len(row)
    generated = (row != pad_token_id).nonzero()
    return int(generated[-1]) + 1 if len(generated) else 0
