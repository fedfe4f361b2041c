# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The callbacks of the page's buttons: from values of the form to values of the form, without Gradio."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from ..chat import Session, Turn
from ..cost.estimate import TEXT_TOKENS
from ..pictures.attention import open_upright
from ..processing.boxes import parse_boxes
from . import fragments
from .limits import Limits
from .samples import sample_png
from .shared_model import SharedModel
from .uploads import Uploads

Messages = list[dict[str, str]]
SLIDE_TOKENS = 64  # maximum length of an answer whose attention is drawn


@dataclass(eq=False)
class VisitorSession:
    """A visitor's conversation about one upload. `upload` is the path of its file, or None without one."""

    session: Session
    upload: str | None


class Callbacks:
    """The methods raise ValueError for errors that a visitor can correct. The message says how.

    Args:
        shared: the model.
        limits: limits on the requests of a visitor.
        uploads: the files that a request may name.
    """

    def __init__(self, shared: SharedModel, limits: Limits, uploads: Uploads):
        self.shared, self.limits, self.uploads = shared, limits, uploads

    def draw_page(self, upload: str, number: float | None, client: str) -> str:
        """Render a page of a PDF, numbered from 1. Returns: the path of its image, which counts as an upload of the
        client.
        """
        png = self.limits.render_page(self.uploads.file(upload), number)
        return self.uploads.add(client, f"page-{number:.0f}.png", png)

    def draw_sample(self, name: str, client: str) -> str:
        """Draw one of the `SAMPLES`. Returns: the path of its image, which counts as an upload of the client."""
        return self.uploads.add(client, f"{name}.png", sample_png(name))

    def show_tiles(self, upload: str | None, *settings) -> str:
        """The tiles of each slicing strategy and their cost, as HTML."""
        if upload is None:
            return ""
        chosen = self.limits.check_settings(*settings)
        image = self._upright(upload)
        costs = self.shared.costs(image.size, chosen)
        return fragments.cards(image, costs, str(chosen.slicing), TEXT_TOKENS)

    def ask(
        self, conversation: VisitorSession | None, upload: str | None, question: str, max_new_tokens, *settings
    ) -> Iterator[tuple[VisitorSession, Messages, str]]:
        """Ask a question. A new upload starts a new conversation.

        Yields:
            The conversation, its turns, and the cost of the latest answer, with a picture of its boxes.
        """
        question = self.limits.check_question(question)
        max_new_tokens = self.limits.check_new_tokens(max_new_tokens)
        chosen = self.limits.check_settings(*settings)
        if conversation is None or conversation.upload != upload:
            conversation = VisitorSession(Session(self.shared.answerer(chosen), budget=self.limits), upload)
        session = conversation.session
        images = (self._image(upload),) if upload and not session.messages else ()
        before = _turns(session)
        yield conversation, [*before, _message("user", question)], ""
        for text, turn in self.shared.ask(session, question, images, chosen, max_new_tokens):
            turns = [*before, _message("user", question), _message("assistant", text)]
            yield conversation, turns, fragments.note(f"{chosen}: {turn}") + self._boxes(turn, upload) if turn else ""

    def compare(self, upload: str | None, question: str, max_new_tokens, *settings) -> Iterator[tuple[str, str, str]]:
        """Ask the same question under two settings, one after the other.

        Args:
            settings: the arguments of `Limits.check_settings` for the first setting, then those for the second.

        Yields:
            Both answers so far, and a table of their cost, as HTML.
        """
        question, image = self.limits.check_question(question), self._image(upload)
        max_new_tokens = self.limits.check_new_tokens(max_new_tokens)
        half = len(settings) // 2
        both = [self.limits.check_settings(*part) for part in (settings[:half], settings[half:])]
        answers = ["", ""]
        turns: list[tuple[str, Turn | None]] = [(str(chosen), None) for chosen in both]
        for i, chosen in enumerate(both):
            session = Session(self.shared.answerer(chosen), budget=self.limits)
            for text, turn in self.shared.ask(session, question, (image,), chosen, max_new_tokens):
                answers[i] = text
                turns[i] = (str(chosen), turn)
                yield answers[0], answers[1], fragments.comparison(turns)

    def show_attention(self, upload: str | None, question: str, *settings) -> tuple[str, str]:
        """The answer, and a slide of where the model looks while it answers, as HTML."""
        question, image = self.limits.check_question(question), self._image(upload)
        chosen = self.limits.check_settings(*settings)
        max_new_tokens = min(SLIDE_TOKENS, self.limits.max_new_tokens)
        attention = self.shared.attend(image, question, chosen, max_new_tokens, self.limits)
        return attention.answer, fragments.attention_slide(attention, self.shared.name)

    def show_sizes(self, upload: str | None, question: str, *settings) -> str:
        """A slide of the image at each size of a tile that the model offers, with the answers, as HTML."""
        question, image = self.limits.check_question(question), self._image(upload)
        chosen = self.limits.check_settings(*settings)
        max_new_tokens = min(SLIDE_TOKENS, self.limits.max_new_tokens)
        setup, answers = self.shared.answer_at_sizes(image, question, chosen, max_new_tokens, self.limits)
        return fragments.sizes_slide(self._upright(upload or ""), setup, answers, question)

    def _boxes(self, turn: Turn, upload: str | None) -> str:
        if upload is None or not parse_boxes(turn.answer, (1, 1)):
            return ""
        image = self._upright(upload)
        return fragments.boxes_slide(image, parse_boxes(turn.answer, image.size), self.shared.name)

    def _upright(self, upload: str):
        seen_by = self.shared.processor.image_processor
        return open_upright(self._image(upload), seen_by.alpha, bool(seen_by.do_exif_transpose))

    def _image(self, upload: str | None):
        if upload is None:
            raise ValueError("There is no image yet. Drop one into the box first.")
        return self.limits.open_upload(self.uploads.file(upload))


def _turns(session: Session) -> Messages:
    return [
        _message(message["role"], next(part["text"] for part in message["content"] if part["type"] == "text"))
        for message in session.messages
    ]


def _message(role: str, text: str) -> dict[str, str]:
    """A turn of the page's conversation, which shows HTML."""
    return {"role": role, "content": escape(text)}
