# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model's answers about an image at each size of a tile that it offers."""

from typing import TYPE_CHECKING

import PIL.Image

from ..cost.request_budget import RequestBudget

if TYPE_CHECKING:
    from ..evaluation.answering import Answerer


def answer_at_sizes(
    answerer: "Answerer",
    image: PIL.Image.Image,
    question: str,
    max_new_tokens: int,
    budget: RequestBudget | None = None,
) -> dict[str, str]:
    """Ask a question about an image at each size that the model offers; greedy answers by the size's name.

    Raises:
        ValueError: if the image or the question is invalid, or the prompt and its answer exceed the budget (default:
            none).
    """
    from ..evaluation.answering import Answerer
    from .session import Session

    sizes, answers = answerer.processor.sizes, {}
    for name in sizes:
        settings = answerer.images_kwargs | ({"tokens_per_tile": name} if len(sizes) > 1 else {})
        own = Answerer(answerer.model, answerer.processor, settings)
        session = Session(own, generation={"max_new_tokens": max_new_tokens}, budget=budget)
        answers[name] = session.ask(question, (image,)).answer
    return answers
