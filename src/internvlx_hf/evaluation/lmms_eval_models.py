# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""lmms-eval's view of a model: `lmms_eval --model internvlx --model_args pretrained=PATH --tasks ...`.

lmms-eval hands a task's requests over in one of two forms. To a *chat* model it gives messages, images in their place; to
a *simple* one (`--force_simple`) a text and a list of images. Multiple choice by likelihood exists for simple ones only.
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

from .answering import IMAGE_SETTINGS, Answerer, Conversation, marks_as_text


class InternVLXSimple(lmms):
    """Texts with their images in front.

    Args:
        pretrained: a folder or Hub id of an InternVL-X model.
        revision: of the Hub repository.
        batch_size: conversations that a process generates at once.
        dtype: of the weights; "auto" as they were saved.
        device: unset: the GPU of this process, or the CPU.
        device_map: "auto" spreads one copy of the model over all GPUs; for a single process only.
        attn_implementation: as in `from_pretrained`.
        system_prompt: a system message, or a file that holds it.
        image_settings: any of `slicing`, `min_patches`, `max_patches`, `use_thumbnail`, `resize_backend`,
            `do_exif_transpose` and `jpeg_draft`, in place of the checkpoint's own.

    Raises:
        ValueError: an argument is wrong, or the checkpoint is not an InternVL-X model.
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
            raise ValueError(f"internvlx has no model_args {unknown}; settings of images are {list(IMAGE_SETTINGS)}.")
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
        """Each process has a copy of its own on its own device. Nothing is synchronised while they generate."""
        if self.accelerator.num_processes > 1 and (device or device_map):
            raise ValueError(
                f"device={device!r}, device_map={device_map!r} with {self.accelerator.num_processes} processes: expected "
                "neither, each process takes its own device. To spread one copy over several GPUs, start one process."
            )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"Started with {self.accelerator.distributed_type}, expected plain `accelerate launch --multi_gpu`, or one "
                "process with device_map=auto where a copy does not fit on a GPU."
            )
        return device_map or {"": torch.device(device) if device else self.accelerator.device}

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        in_groups = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: 0,  # as they come: what a row takes depends on its images, which nobody has seen
            group_fn=self._generation_kwargs,
            grouping=True,
        )
        results = []
        with self._progress(requests) as progress:
            for batch in in_groups.get_batched(n=self.batch_size):
                # a copy: lmms-eval keeps the same dict in its log of samples
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
        """(loss, is_greedy) of every continuation, wrapped: lmms-eval 0.7 makes a string of a bare pair.

        lmms-eval's multiple choice takes the choice with the *smallest* number, unlike its documentation of this method and
        like its own model classes, which return losses. So do we: the mean over the answer's tokens and the end marker.
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
        raise NotImplementedError("internvlx answers tasks of one round; this task asks for several.")

    def clean(self) -> None:
        """Called before a judge is started on the same GPU."""
        self.answerer = None
        super().clean()

    @staticmethod
    def _generation_kwargs(arguments: tuple) -> dict:
        return arguments[1]

    def _conversation(self, arguments: tuple) -> Conversation:
        context, _, doc_to_visual, number, task, split = arguments
        return images_then_text(doc_to_visual(self.task_dict[task][split][number]), context, task)

    def _prepared(self, conversation: Conversation) -> Conversation:
        return self._apply_system_prompt(marks_as_text(conversation), self.system_prompt)

    def _progress(self, requests: list) -> tqdm:
        return tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")


class InternVLXChat(InternVLXSimple):
    """Messages with their images where the task puts them: what `--model internvlx` gives."""

    is_simple = False

    @staticmethod
    def _generation_kwargs(arguments: tuple) -> dict:
        return arguments[2]

    def _conversation(self, arguments: tuple) -> Conversation:
        _, doc_to_messages, _, number, task, split = arguments
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][number]))
        _, videos, audios = messages.extract_media()
        if videos or audios:
            raise ValueError(f"Task {task!r} has videos or sounds, expected text and images.")
        return messages.to_hf_messages()


def images_then_text(visuals: Iterable | None, text: str, task: str) -> Conversation:
    """A user's turn. Raises a ValueError if a visual is no image."""
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
