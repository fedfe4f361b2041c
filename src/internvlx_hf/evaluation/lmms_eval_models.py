# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Model classes for lmms-eval: `lmms_eval --model internvlx --model_args pretrained=PATH --tasks ...`.

lmms-eval passes a task's requests in one of two forms. A *chat* model gets messages with images in their place; a
*simple* model (`--force_simple`) gets a text and a list of images. Multiple choice by likelihood exists only for
simple models.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from PIL.Image import Image
from tqdm import tqdm

from .answering import IMAGE_SETTINGS, Answerer, Messages, marks_as_text


class InternVLXSimple(lmms):
    """Requests as texts with their images in front.

    Args:
        pretrained: a folder or Hub id of an InternVL-X model.
        revision: revision of the Hub repository (default: "main").
        batch_size: number of conversations per batch and process (default: 1).
        dtype: dtype of the weights (default: "auto", as they were saved).
        device: device of the model (default: the GPU of this process, or the CPU).
        device_map: "auto" spreads one copy of the model over all GPUs, for a single process only (default: none).
        attn_implementation: as in `from_pretrained`.
        system_prompt: a system message, or a file that holds it (default: none).
        image_settings: any of `IMAGE_SETTINGS`: the fields of `ImageSettings`, `resize_backend`, `do_exif_transpose`
            and `jpeg_draft`, to override the checkpoint's own.

    Raises:
        ValueError: if an argument is invalid or the checkpoint is not an InternVL-X model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        revision: str = "main",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        **image_settings,
    ):
        super().__init__()
        self.batch_size = _whole_number(batch_size)
        if unknown := sorted(set(image_settings) - set(IMAGE_SETTINGS)):
            raise ValueError(f"internvlx has no model_args {unknown}; image settings are {list(IMAGE_SETTINGS)}.")
        # a rank may have to wait for hours for the others' last answers
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=1))])
        placement = self._placement(device, device_map)
        attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.answerer = Answerer.from_pretrained(
            str(pretrained), image_settings, revision, dtype=dtype, device_map=placement, **attention
        )
        self.device = self.answerer.model.device
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.system_prompt = self._resolve_system_prompt(system_prompt)

    def _placement(self, device: str | None, device_map: str | None) -> str | dict:
        """The device or device map of this process's copy. Processes do not synchronise while they generate."""
        if self.accelerator.num_processes > 1 and (device or device_map):
            raise ValueError(
                f"device={device!r}, device_map={device_map!r} with {self.accelerator.num_processes} processes: "
                "expected neither, since each process uses its own device. To spread one copy over several GPUs, "
                "start one process."
            )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"Started with {self.accelerator.distributed_type}, expected plain `accelerate launch --multi_gpu`, "
                "or one process with device_map=auto if a copy does not fit on one GPU."
            )
        return device_map or {"": torch.device(device) if device else self.accelerator.device}

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Generate answers, in the order of the requests."""
        in_groups = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: 0,  # unsorted: a row's cost depends on its images, which are not loaded yet
            group_fn=self._generation_kwargs,
            grouping=True,
        )
        results = []
        with self._progress(requests) as progress:
            for batch in in_groups.get_batched(n=self.batch_size):
                # a copy, since lmms-eval keeps the same dict in its log of samples
                kwargs = dict(self._generation_kwargs(batch[0]))
                until = kwargs.pop("until", None) or ()
                until = [until] if isinstance(until, str) else [string for string in until if string]
                conversations = [self._prepared(self._conversation(arguments)) for arguments in batch]
                for arguments, answer in zip(batch, self.answerer.answer(conversations, until, **kwargs), strict=True):
                    results.append(GenerationResult(answer.text, TokenCounts(output_tokens=answer.num_tokens)))
                    request = (arguments[0], self._generation_kwargs(arguments))
                    self.cache_hook.add_partial("generate_until", request, answer.text)
                progress.update(len(batch))
        return in_groups.get_original(results)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(loss, is_greedy) of every continuation, wrapped because lmms-eval 0.7 turns a bare pair into a string.

        lmms-eval's multiple choice picks the *smallest* number, contrary to its documentation of this method, and its
        own model classes return losses. So does this class: the mean over the answer's tokens and the end marker.
        """
        results = []
        with self._progress(requests) as progress:
            for batch in _batched(requests, self.batch_size):
                conversations, continuations = [], []
                for context, continuation, doc_to_visual, number, task, split in (request.args for request in batch):
                    doc = self.task_dict[task][split][number]
                    conversations.append(self._prepared(images_then_text(doc_to_visual(doc), context, task)))
                    continuations.append(continuation if isinstance(continuation, str) else continuation(doc))
                scores = self.answerer.score(conversations, [text.strip() for text in continuations])
                results += [GenerationResult((score.loss, score.is_greedy)) for score in scores]
                progress.update(len(batch))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("internvlx supports only tasks of one round, but this task has several.")

    def clean(self) -> None:
        """Called before a judge is started on the same GPU."""
        self.answerer = None
        super().clean()

    @staticmethod
    def _generation_kwargs(arguments: tuple) -> dict:
        return arguments[1]

    def _conversation(self, arguments: tuple) -> Messages:
        context, _, doc_to_visual, number, task, split = arguments
        return images_then_text(doc_to_visual(self.task_dict[task][split][number]), context, task)

    def _prepared(self, conversation: Messages) -> Messages:
        return self._apply_system_prompt(marks_as_text(conversation), self.system_prompt)

    def _progress(self, requests: list) -> tqdm:
        return tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")


class InternVLXChat(InternVLXSimple):
    """Requests as messages with images in their place, the default of `--model internvlx`."""

    is_simple = False

    @staticmethod
    def _generation_kwargs(arguments: tuple) -> dict:
        return arguments[2]

    def _conversation(self, arguments: tuple) -> Messages:
        _, doc_to_messages, _, number, task, split = arguments
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][number]))
        _, videos, audios = messages.extract_media()
        if videos or audios:
            raise ValueError(f"Task {task!r} has video or audio, expected text and images.")
        return messages.to_hf_messages()


def images_then_text(visuals: Iterable | None, text: str, task: str) -> Messages:
    """A user's turn.

    Raises:
        ValueError: if a visual is not an image.
    """
    visuals = list(visuals or ())
    for visual in visuals:
        if not isinstance(visual, Image):
            raise ValueError(f"Task {task!r} has a {type(visual).__name__} as visual, expected Pillow images.")
    images = [{"type": "image", "image": visual} for visual in visuals]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def _whole_number(batch_size: int | str) -> int:
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ValueError(f"batch_size={batch_size!r}, expected a positive whole number; there is no automatic choice.")
    return int(batch_size)


def _batched(items: list, size: int) -> Iterator[list]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
