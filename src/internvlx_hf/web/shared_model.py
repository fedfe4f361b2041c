# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One model for all visitors, with one answer at a time and the settings of each request."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from queue import SimpleQueue

import PIL.Image

from ..chat import Session, Turn
from ..chat.size_answers import answer_at_sizes
from ..cost import Cost, CostModel, ModelSetup
from ..cost.estimate import TEXT_TOKENS
from ..cost.request_budget import RequestBudget
from ..evaluation.answering import Answerer
from ..pictures import Attention, attend
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_STRATEGIES, TilePlan

# number of conversations whose caches stay on the device; others are read again when they continue
MAX_CACHES = 4


class Stopped(Exception):
    """The visitor stopped the answer."""


@dataclass(frozen=True)
class SlicingCost:
    """The cost of an image under a slicing strategy.

    Args:
        slicing: the strategy.
        plan: the image's grid of tiles.
        cost: the cost of a prompt with the image.
        seconds: time to the first token, estimated from this machine's latest answer. None before the first answer.
    """

    slicing: str
    plan: TilePlan
    cost: Cost
    seconds: float | None


class SharedModel:
    """A model and its processor. A visitor's settings change neither.

    Args:
        answerer: the model with its processor.
        name: name of the model on the page.
    """

    def __init__(self, answerer: Answerer, name: str):
        self.model, self.processor, self.name = answerer.model, answerer.processor, name
        self.defaults = answerer.image_settings
        self.flops_per_second: float | None = None
        self._lock = threading.Lock()
        self._recent: list[weakref.ref[Session]] = []  # the sessions with caches, the latest last

    def answerer(self, settings: ImageSettings) -> Answerer:
        """The model with the settings of a request. Raises: ValueError: if the settings contradict each other."""
        processor = copy(self.processor)
        processor.max_image_tokens = None  # the settings replace the checkpoint's budget, also by none
        return Answerer(self.model, processor, settings.given)

    def warm_up(self) -> None:
        """Read a tile: the first call is slow, and estimates of time need a measurement."""
        tile = PIL.Image.new("RGB", (self.model.config.tile_size,) * 2, "grey")
        for _ in range(2):
            session = Session(self.answerer(self.defaults), generation={"max_new_tokens": 1})
            self._measure(session, session.ask("What is this?", (tile,)))

    def costs(
        self, size: tuple[int, int], settings: ImageSettings, text_tokens: int = TEXT_TOKENS
    ) -> list[SlicingCost]:
        """The cost of an upright image of (width, height) pixels under each slicing strategy, with the same other
        settings.
        """
        found = []
        for slicing in reversed(SLICING_STRATEGIES):
            model = CostModel(self._setup(self.answerer(replace(settings, slicing=slicing))), text_tokens)
            (plan,), cost = model.plans([size]), model.of_size(*size)
            seconds = cost.prefill_flops / self.flops_per_second if self.flops_per_second else None
            found.append(SlicingCost(slicing, plan, cost, seconds))
        return found

    def _setup(self, answerer: Answerer) -> ModelSetup:
        return ModelSetup.reading(self.name, self.model.config, answerer.image_settings)

    def ask(
        self,
        session: Session,
        question: str,
        images: Sequence[PIL.Image.Image],
        settings: ImageSettings,
        max_new_tokens: int,
    ) -> Iterator[tuple[str, Turn | None]]:
        """Ask a question in a conversation. The model gives one answer at a time, and an answer stops with its
        iterator.

        Yields:
            The answer so far and None; at the end, the answer and its turn.

        Raises:
            ValueError: see [`Session.ask`].
        """
        session.answerer = self.answerer(settings)
        session.generation = {"max_new_tokens": max_new_tokens}
        events: SimpleQueue[str | Turn | BaseException] = SimpleQueue()
        stopped = threading.Event()

        def on_text(text: str) -> None:
            if stopped.is_set():
                raise Stopped
            events.put(text)

        def work() -> None:
            try:
                with self._lock:
                    on_text("")
                    turn = session.ask(question, tuple(images), on_text)
                    self._measure(session, turn)
                    self._keep_cache(session)
                events.put(turn)
            except BaseException as error:  # raised again by the generator that waits for the answer
                events.put(error)

        threading.Thread(target=work, daemon=True).start()
        text = ""
        try:
            while not isinstance(event := events.get(), Turn):
                if isinstance(event, BaseException):
                    raise event
                text += event
                yield text, None
            yield event.answer, event
        finally:
            stopped.set()

    def attend(
        self,
        image: PIL.Image.Image,
        question: str,
        settings: ImageSettings,
        max_new_tokens: int,
        budget: RequestBudget | None = None,
    ) -> Attention:
        """Run [`attend`] with the settings of a request."""
        processor = self.answerer(settings).changed_processor
        with self._lock:
            return attend(self.model, processor, image, question, max_new_tokens, budget)

    def answer_at_sizes(
        self,
        image: PIL.Image.Image,
        question: str,
        settings: ImageSettings,
        max_new_tokens: int,
        budget: RequestBudget,
    ) -> tuple[ModelSetup, dict[str, str]]:
        """The model with the settings of a request, and its answers at each size of a tile, see
        [`answer_at_sizes`].
        """
        answerer = self.answerer(replace(settings, tokens_per_tile=None))
        with self._lock:
            return self._setup(answerer), answer_at_sizes(answerer, image, question, max_new_tokens, budget)

    def _measure(self, session: Session, turn: Turn) -> None:
        """Measure the machine's speed with an answer whose whole prompt was read."""
        if len(session.messages) != 2 or not turn.tiles:
            return
        cost = CostModel(self._setup(session.answerer), turn.prompt_tokens - turn.tokens).of_tiles(turn.tiles)
        self.flops_per_second = cost.prefill_flops / turn.first_seconds

    def _keep_cache(self, session: Session) -> None:
        living = [ref for ref in self._recent if ref() is not None and ref() is not session]
        self._recent = [*living, weakref.ref(session)]
        while len(self._recent) > MAX_CACHES:
            oldest = self._recent.pop(0)()
            if oldest is not None:
                oldest.drop_cache()
