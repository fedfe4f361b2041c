# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A conversation with a model: its turns, images, videos and streamed answers."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import PIL.Image
import torch
from transformers import DynamicCache, PreTrainedTokenizerBase, TextStreamer
from transformers.cache_utils import Cache

from ..checkpoints.numbers import counted, duration
from ..cost import CostModel, ModelSetup, side_by_side
from ..cost.request_budget import RequestBudget
from ..evaluation.answering import Answerer, generation_arguments
from ..processing.boxes import decode_answer
from ..processing.image_sources import image_size
from ..processing.messages import question_about
from ..processing.video_files import Video

OnText = Callable[[str], None]

# inputs with an entry for each tile
TILE_INPUTS = ("pixel_values", "tile_sizes")


@dataclass(frozen=True)
class Turn:
    """The answer to a question, and its cost.

    Args:
        answer: the text.
        tiles: number of tiles read in this turn: those of the question's images, or of all images if the slicing
            changed.
        tokens: their visual tokens in the language model's first layers.
        expanded_tokens: their visual tokens in its last layers, the same number without LVTC.
        prompt_tokens: number of prompt tokens read in this turn, without those that the cache held.
        answer_tokens: number of tokens of the answer, with the end token.
        finish_reason: see `Answer`.
        first_seconds: time from the question to the first token of the answer.
        seconds: time from the question to the end of the answer.
    """

    answer: str
    tiles: int
    tokens: int
    expanded_tokens: int
    prompt_tokens: int
    answer_tokens: int
    finish_reason: str
    first_seconds: float
    seconds: float

    def __str__(self) -> str:
        images = ""
        if self.tiles:
            after = f", {self.expanded_tokens:,} after the expansion" if self.expanded_tokens != self.tokens else ""
            images = f"{counted(self.tiles, 'tile')}, {self.tokens:,} visual tokens{after}; "
        rate = ""
        if self.answer_tokens > 1 and self.seconds > self.first_seconds:
            rate = f", {(self.answer_tokens - 1) / (self.seconds - self.first_seconds):.1f} tokens/s"
        cut = "; cut off at the maximum length of answers" if self.finish_reason == "length" else ""
        return (
            f"{images}first token after {duration(self.first_seconds)}, {counted(self.answer_tokens, 'token')} in "
            f"{duration(self.seconds)}{rate}{cut}"
        )


@dataclass
class Session:
    """A conversation with a model. The key-value cache is kept, so each question reads only what is new.

    Args:
        answerer: the model with its processor. Its `images_kwargs` may change between turns. A budget
            `max_image_tokens` is that of all images and frames of the conversation.
        system: the system message (default: the chat template's).
        generation: arguments of `generate` (default: greedy decoding).
        budget: limits on a question with the turns before it (default: none).
    """

    answerer: Answerer
    system: str | None = None
    generation: dict = field(default_factory=dict)
    budget: RequestBudget | None = None
    messages: list[dict] = field(default_factory=list, init=False)
    images: list[PIL.Image.Image] = field(default_factory=list, init=False)
    videos: list[Video] = field(default_factory=list, init=False)
    _cache: Cache | None = field(default=None, init=False)
    _read: torch.Tensor | None = field(default=None, init=False)  # (1, n) ids that the cache holds
    _tiles_read: int = field(default=0, init=False)
    _settings_read: dict = field(default_factory=dict, init=False)  # of the images whose tiles the cache holds

    def reset(self) -> None:
        """Forget all turns, images and videos."""
        self.messages, self.images, self.videos = [], [], []
        self.drop_cache()

    def drop_cache(self) -> None:
        """Free the key-value cache on the device. The next question reads all turns again."""
        self._cache, self._read, self._tiles_read = None, None, 0

    def ask(
        self, question: str, images: tuple[PIL.Image.Image | Video, ...] = (), on_text: OnText | None = None
    ) -> Turn:
        """Ask a question after the turns so far. A turn that fails or is interrupted is not kept.

        Args:
            images: the images and videos of this question.
            on_text: called with each piece of the answer as it is generated.

        Raises:
            ValueError: if an image cannot be read, the question contains an image token or places its images elsewhere
                than in front, or the conversation or its images exceed a budget.
        """
        started = time.perf_counter()
        content = question_parts(question, images)
        messages = [*self.messages, {"role": "user", "content": content}]
        inputs = self._inputs(messages)
        if self.budget is not None:
            ids, tiles = inputs["input_ids"], inputs.get("pixel_values", ())
            self.budget.new_tokens(
                self.answerer.model.config,
                ids.shape[1],
                len(tiles),
                self.generation.get("max_new_tokens"),
                inputs.get("tile_sizes"),
            )
        streamer = _Streamer(self.answerer.processor.tokenizer, on_text)
        try:
            output, prompt, tiles, sizes = self._generate(inputs, streamer)
        except BaseException:
            self.drop_cache()  # the cache may hold part of a turn
            raise
        answer = decode_answer(self.answerer.processor.tokenizer, output.tolist()).strip()
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        new_images, new_videos = _by_kind(images)
        self.images += new_images
        self.videos += new_videos
        ended = time.perf_counter()
        tokens, expanded, _ = self.answerer.model.config.count_tokens(tiles, sizes)
        return Turn(
            answer=answer,
            tiles=tiles,
            tokens=tokens,
            expanded_tokens=expanded,
            prompt_tokens=prompt,
            answer_tokens=len(output),
            finish_reason=self.answerer.finish_reason(output, **self.generation),
            first_seconds=(streamer.first or ended) - started,
            seconds=ended - started,
        )

    def costs(self, more: Sequence[PIL.Image.Image | Video] = ()) -> list[tuple[str, int, int, int, int]]:
        """The cost of the conversation's images and videos under the settings in use and under others for comparison.

        Args:
            more: images and videos of the next question.

        Returns:
            For each setting, the one in use first: (name, tiles, visual tokens before and after LVTC's expansion,
            prefill FLOPs).
        """
        model, processor = self.answerer.model, self.answerer.processor
        settings = self.answerer.image_settings
        setups, _ = side_by_side(ModelSetup.reading(f"in use ({settings.slicing})", model.config, settings))
        upright = processor.image_processor.do_exif_transpose is not False
        images, videos = _by_kind([*self.images, *self.videos, *more])
        sizes = [image_size(image, upright) for image in images]
        frames = sum(map(len, processor.video_processor.choose_frames(videos)))
        costs = []
        for setup in setups:
            with suppress(ValueError):  # the budget is too small where a tile has more tokens
                costs.append((setup.name, CostModel(setup).together(sizes, frames)))
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
    def _generate(self, inputs, streamer: "_Streamer") -> tuple[torch.Tensor, int, int, torch.Tensor | None]:
        """The ids of the answer, the numbers of prompt tokens and tiles that were read, and the tiles' sizes."""
        model, ids = self.answerer.model, inputs["input_ids"]
        tiles = inputs.get("pixel_values")
        count = 0 if tiles is None else len(tiles)
        if model.routes_tiles(inputs):  # in each turn, other tiles may be compressed
            self.drop_cache()
            output = model.generate(**inputs, **generation_arguments(self.generation), streamer=streamer)
            return output[0, ids.shape[1] :], ids.shape[1], count, None
        read = self._keep_common(ids)
        new_tiles = count - self._tiles_read
        of_tiles = {name: inputs[name][self._tiles_read :] for name in TILE_INPUTS if name in inputs}
        inputs = dict(inputs) | of_tiles if new_tiles else _without_tiles(inputs)
        arguments = generation_arguments(self.generation)
        output = model.generate(**inputs, **arguments, cache=self._cache, streamer=streamer)
        # the last token was generated but not read
        self._read, self._tiles_read = output[:, : self._cache.get_seq_length()], count  # type: ignore[union-attr]
        return output[0, ids.shape[1] :], ids.shape[1] - read, new_tiles, inputs.get("tile_sizes")

    def _keep_common(self, ids: torch.Tensor) -> int:
        """Crop the cache to its common prefix with (1, n) ids and return the prefix's length.

        If the cache has image tokens beyond the prefix, or tiles that were made under other settings, all of it is
        dropped and the result is 0. The prefix may be shorter than the cache because the next prompt can tokenize an
        answer differently from how it was generated.
        """
        config = self.answerer.model.config
        settings = self.answerer.image_processor.to_dict() | self.answerer.image_settings.given
        # under other settings, as many tiles may be others
        if self._tiles_read and settings != self._settings_read:
            self.drop_cache()
        self._settings_read = settings
        if self._cache is not None and self._read is not None:
            length = min(ids.shape[1], self._read.shape[1])
            common = int((ids[0, :length] == self._read[0, :length]).cumprod(0).sum())
            common = min(common, ids.shape[1] - 1)
            surplus = self._read.shape[1] - common
            if not (self._read[:, common:] == config.image_token_id).any():
                with suppress(ValueError):  # a cache that cannot be cropped, such as one with a sliding window
                    if surplus:
                        self._cache.crop(-surplus)
                    return common
        self.drop_cache()
        self._cache = DynamicCache(config=config.text_config)
        return 0


def question_parts(question: str, media: Sequence[PIL.Image.Image | Video]) -> list[dict]:
    """The message parts of images and videos, and of a question about them.

    Raises:
        ValueError: if the question places them elsewhere, see `question_about`.
    """
    kinds = ["video" if isinstance(one, Video) else "image" for one in media]
    text = question_about(question, kinds.count("image"), kinds.count("video"))
    return [
        *({"type": kind, kind: one} for kind, one in zip(kinds, media, strict=True)),
        {"type": "text", "text": text},
    ]


def _by_kind(media: Sequence[PIL.Image.Image | Video]) -> tuple[list[PIL.Image.Image], list[Video]]:
    images = [one for one in media if not isinstance(one, Video)]
    return images, [one for one in media if isinstance(one, Video)]


def _without_tiles(inputs) -> dict:
    return {name: value for name, value in inputs.items() if name not in TILE_INPUTS}


@dataclass
class _AnswerDecoder:
    """The part of a tokenizer that a streamer uses."""

    tokenizer: PreTrainedTokenizerBase

    def decode(self, ids: list[int] | int) -> str:
        return decode_answer(self.tokenizer, [ids] if isinstance(ids, int) else ids)


class _Streamer(TextStreamer):
    """Passes on the answer's text and records the time of its first token."""

    def __init__(self, tokenizer, on_text: OnText | None):
        super().__init__(_AnswerDecoder(tokenizer), skip_prompt=True)  # type: ignore[arg-type]
        self.on_text = on_text
        self.first: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.first is None and not self.next_tokens_are_prompt:
            self.first = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.on_text is not None and text:
            self.on_text(text)
