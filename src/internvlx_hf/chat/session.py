# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A conversation: its turns, images and videos, and answers as they are written."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import PIL.Image
import torch
from transformers import DynamicCache, TextStreamer
from transformers.cache_utils import Cache

from ..cost import CostModel, ModelSetup, side_by_side
from ..cost.setups import tiling_rule
from ..evaluation.answering import Answerer, generation_arguments
from ..processing.image_sources import image_size
from ..processing.video_files import Video

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Turn:
    """A question's answer, and what it took.

    Args:
        answer: as text.
        tiles: that the model read for this turn: the question's images, and all again where their slicing was changed.
        tokens: their visual tokens in the language model's first layers.
        expanded_tokens: in its last ones; the same without LVTC.
        prompt_tokens: of the prompt that the model read for this turn, the turns before it not counted.
        answer_tokens: the end marker included.
        first_seconds: from the question to the answer's first token.
        seconds: from the question to the end.
    """

    answer: str
    tiles: int
    tokens: int
    expanded_tokens: int
    prompt_tokens: int
    answer_tokens: int
    first_seconds: float
    seconds: float

    def __str__(self) -> str:
        images = ""
        if self.tiles:
            after = f", {self.expanded_tokens:,} after the expansion" if self.expanded_tokens != self.tokens else ""
            images = f"{self.tiles} tile{'s' * (self.tiles > 1)}, {self.tokens:,} visual tokens{after}; "
        rate = ""
        if self.answer_tokens > 1 and self.seconds > self.first_seconds:
            rate = f", {(self.answer_tokens - 1) / (self.seconds - self.first_seconds):.1f} tokens/s"
        return (
            f"{images}first token after {self.first_seconds:.1f} s, {self.answer_tokens} token"
            f"{'s' * (self.answer_tokens != 1)} in {self.seconds:.1f} s{rate}"
        )


@dataclass
class Session:
    """A conversation with a model. What was read stays in the cache, so that a further question reads only what is new.

    Args:
        answerer: the model with its processor; its `images_kwargs` may change between turns.
        system: the system message; None: the chat template's own.
        generation: arguments of `generate`; greedy unless they say otherwise.
    """

    answerer: Answerer
    system: str | None = None
    generation: dict = field(default_factory=dict)
    messages: list[dict] = field(default_factory=list, init=False)
    images: list[PIL.Image.Image] = field(default_factory=list, init=False)
    videos: list[Video] = field(default_factory=list, init=False)
    _cache: Cache | None = field(default=None, init=False)
    _read: torch.Tensor | None = field(default=None, init=False)  # (1, n) ids that the cache holds
    _tiles_read: int = field(default=0, init=False)

    def reset(self) -> None:
        """Forget all turns, images and videos."""
        self.messages, self.images, self.videos = [], [], []
        self.drop_cache()

    def drop_cache(self) -> None:
        """Free what the conversation holds on the device. The next question reads all turns again."""
        self._cache, self._read, self._tiles_read = None, None, 0

    def ask(
        self, question: str, images: tuple[PIL.Image.Image | Video, ...] = (), on_text: OnText | None = None
    ) -> Turn:
        """Put a question after the turns so far.

        Args:
            images: those that the question brings, videos among them.
            on_text: gets the answer piece by piece while it is written.

        Raises:
            ValueError: an image cannot be read, or the question holds an image token. The turn is then not kept, nor is one
                that is interrupted.
        """
        started = time.perf_counter()
        content = [*map(media_part, images), {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        inputs = self._inputs(messages)
        streamer = _Streamer(self.answerer.processor.tokenizer, on_text)
        try:
            output, prompt, tiles = self._generate(inputs, streamer)
        except BaseException:
            self.drop_cache()  # the cache may hold half a turn
            raise
        answer = self.answerer.processor.tokenizer.decode(output, skip_special_tokens=True).strip()
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.images += [image for image in images if not isinstance(image, Video)]
        self.videos += [video for video in images if isinstance(video, Video)]
        config, ended = self.answerer.model.config, time.perf_counter()
        return Turn(
            answer=answer,
            tiles=tiles,
            tokens=tiles * config.image_seq_length,
            expanded_tokens=tiles * config.expanded_image_seq_length,
            prompt_tokens=prompt,
            answer_tokens=len(output),
            first_seconds=(streamer.first or ended) - started,
            seconds=ended - started,
        )

    def costs(self) -> list[tuple[str, int, int, int, int]]:
        """What the conversation's images and videos cost under this model's settings and beside others.

        Returns:
            (setting, tiles, visual tokens before and after LVTC's expansion, FLOPs of the prefill) for each setting, the
            one in use first.
        """
        model, processor = self.answerer.model, self.answerer.processor
        tiling = tiling_rule(self.answerer.image_processor, model.config)
        settings, _ = side_by_side(ModelSetup(f"in use ({tiling.slicing})", model.config, tiling))
        upright = processor.image_processor.do_exif_transpose is not False
        sizes = [image_size(image, upright) for image in self.images]
        frames = sum(map(len, processor.video_processor.choose_frames(self.videos)))
        costs = [(setting.name, CostModel(setting).together(sizes, frames)) for setting in settings]
        return [
            (name, cost.tiles, cost.stage_one_tokens, cost.stage_two_tokens, cost.prefill_flops)
            for name, cost in costs
        ]

    def _inputs(self, messages: list[dict]):
        system = (
            [] if self.system is None else [{"role": "system", "content": [{"type": "text", "text": self.system}]}]
        )
        return self.answerer.inputs([[*system, *messages]], add_generation_prompt=True)

    @torch.inference_mode()
    def _generate(self, inputs, streamer: "_Streamer") -> tuple[torch.Tensor, int, int]:
        """The answer's ids, and how many tokens and tiles were read for it."""
        model, ids = self.answerer.model, inputs["input_ids"]
        tiles = inputs.get("pixel_values")
        count = 0 if tiles is None else len(tiles)
        read = self._keep_common(ids)
        new_tiles = count - self._tiles_read
        inputs = dict(inputs) | {"pixel_values": tiles[self._tiles_read :]} if new_tiles else _without_tiles(inputs)
        arguments = generation_arguments(self.generation)
        output = model.generate(**inputs, **arguments, past_key_values=self._cache, streamer=streamer)
        # the last token was written and not read
        self._read, self._tiles_read = output[:, : self._cache.get_seq_length()], count  # type: ignore[union-attr]
        return output[0, ids.shape[1] :], ids.shape[1] - read, new_tiles

    def _keep_common(self, ids: torch.Tensor) -> int:
        """Leave in the cache what (1, n) ids begin with, all images or nothing; returns how many tokens that is.

        An answer may be other tokens in the next prompt than those that were written.
        """
        config = self.answerer.model.config
        if self._cache is not None and self._read is not None:
            length = min(ids.shape[1], self._read.shape[1])
            common = int((ids[0, :length] == self._read[0, :length]).cumprod(0).sum())
            common = min(common, ids.shape[1] - 1)
            surplus = self._read.shape[1] - common
            if not (self._read[:, common:] == config.image_token_id).any():
                with suppress(ValueError):  # a cache that cannot be cropped, as one with a sliding window
                    if surplus:
                        self._cache.crop(-surplus)
                    return common
        self.drop_cache()
        self._cache = DynamicCache(config=config.text_config)
        return 0


def media_part(image: PIL.Image.Image | Video) -> dict:
    """The part of a message that an image or a video is."""
    kind = "video" if isinstance(image, Video) else "image"
    return {"type": kind, kind: image}


def _without_tiles(inputs) -> dict:
    return {name: value for name, value in inputs.items() if name != "pixel_values"}


class _Streamer(TextStreamer):
    """Hands the answer on as text, and takes the time of its first token."""

    def __init__(self, tokenizer, on_text: OnText | None):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.first: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.first is None and not self.next_tokens_are_prompt:
            self.first = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.on_text is not None and text:
            self.on_text(text)
