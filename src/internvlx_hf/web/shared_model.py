# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One model for all visitors: one answer at a time, each under settings of its own."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from queue import SimpleQueue

import PIL.Image

from ..chat import Session, Turn
from ..cost import Cost, CostModel, ModelSetup
from ..cost.estimate import TEXT_TOKENS
from ..cost.setups import tiling_rule
from ..evaluation.answering import Answerer
from ..pictures import Attention, attend
from ..processing.rvtc import SLICING_STRATEGIES, TilePlan
from .limits import ImageSettings

# conversations whose keys and values stay on the device; the others are read again when they go on
MOST_CACHES = 4


class Stopped(Exception):
    """The visitor does not want the rest of the answer."""


@dataclass(frozen=True)
class SlicingCost:
    """What an image costs under one slicing strategy.

    Args:
        seconds: to the first token, as this machine's latest answers suggest. None before the first one.
    """

    slicing: str
    plan: TilePlan
    cost: Cost
    seconds: float | None


class SharedModel:
    """A model and its processor, neither of which a visitor's settings change.

    Args:
        answerer: the model with its processor.
        name: what the page calls it.
    """

    def __init__(self, answerer: Answerer, name: str):
        self.model, self.processor, self.name = answerer.model, answerer.processor, name
        self.defaults = ImageSettings.of(answerer.image_processor)
        self.flops_per_second: float | None = None
        self._lock = threading.Lock()
        self._recent: list[weakref.ref[Session]] = []  # the sessions with caches, the latest last

    def answerer(self, settings: ImageSettings) -> Answerer:
        """Raises: ValueError: the settings contradict each other."""
        return Answerer(self.model, self.processor, settings.images_kwargs)

    def warm_up(self) -> None:
        """Read a tile once: first calls are slow, and the estimates of seconds need a measurement."""
        tile = PIL.Image.new("RGB", (self.model.config.tile_size,) * 2, "grey")
        for _ in range(2):
            session = Session(self.answerer(self.defaults), generation={"max_new_tokens": 1})
            self._measure(session, session.ask("What is this?", (tile,)))

    def costs(
        self, size: tuple[int, int], settings: ImageSettings, text_tokens: int = TEXT_TOKENS
    ) -> list[SlicingCost]:
        """What an upright image of (width, height) pixels costs under each slicing strategy, the other settings equal."""
        found = []
        for slicing in reversed(SLICING_STRATEGIES):
            setting = self._setting(self.answerer(replace(settings, slicing=slicing)))
            cost = CostModel(setting, text_tokens).of_size(*size)
            seconds = cost.prefill_flops / self.flops_per_second if self.flops_per_second else None
            found.append(SlicingCost(slicing, setting.tiling.plan(*size), cost, seconds))
        return found

    def _setting(self, answerer: Answerer) -> ModelSetup:
        return ModelSetup(self.name, self.model.config, tiling_rule(answerer.image_processor, self.model.config))

    def ask(
        self,
        session: Session,
        question: str,
        images: Sequence[PIL.Image.Image],
        settings: ImageSettings,
        max_new_tokens: int,
    ) -> Iterator[tuple[str, Turn | None]]:
        """Put a question in a conversation, one answer of the model at a time.

        Yields:
            The answer so far, and at its end what it took. Whoever stops iterating stops the answer.

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
            except BaseException as error:  # raised where the answer is awaited
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

    def attend(self, image: PIL.Image.Image, question: str, settings: ImageSettings, max_new_tokens: int) -> Attention:
        """See [`attend`]."""
        processor = copy(self.processor)
        processor.image_processor = self.answerer(settings).image_processor
        with self._lock:
            return attend(self.model, processor, image, question, max_new_tokens)

    def _measure(self, session: Session, turn: Turn) -> None:
        """Learn the machine's speed from an answer whose whole prompt was read."""
        if len(session.messages) != 2 or not turn.tiles:
            return
        cost = CostModel(self._setting(session.answerer), turn.prompt_tokens - turn.tokens).of_tiles(turn.tiles)
        self.flops_per_second = cost.prefill_flops / turn.first_seconds

    def _keep_cache(self, session: Session) -> None:
        living = [ref for ref in self._recent if ref() is not None and ref() is not session]
        self._recent = [*living, weakref.ref(session)]
        while len(self._recent) > MOST_CACHES:
            oldest = self._recent.pop(0)()
            if oldest is not None:
                oldest.drop_cache()
