# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The page: its form, and the callback of each button."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from functools import partial, wraps
from html import escape
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

from ..checkpoints.options import option_type
from ..processing.image_settings import ImageSettings
from ..processing.rvtc import SLICING_WORDS
from .callbacks import Callbacks
from .samples import SAMPLES
from .uploads import DELETE_AFTER, Uploads

logger = logging.getLogger(__name__)

MAX_WAITING = 32
TITLE = "Ask about an image"
WHAT = "The image is cut into tiles, each tile becomes visual tokens, and the model reads those with your question."
RULES = "; ".join(f"{name}: {words}" for name, words in reversed(SLICING_WORDS.items()))
STYLE = """
footer { display: none !important; }
#image img { width: 100%; height: 100%; object-fit: contain; }
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
"""


# options of events: those that run the model run one at a time, and others wait in Gradio's queue
_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
_DRAWING: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 1, "api_visibility": "private"}
_FORM: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def build_page(callbacks: Callbacks) -> gr.Blocks:
    """Build the page of a model. None of its callbacks has a name in Gradio's API."""
    with gr.Blocks(
        title=f"InternVL-X: {callbacks.shared.name}",
        analytics_enabled=False,
    ) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>Model: {escape(callbacks.shared.name)}. {WHAT}</p>", elem_id="model")
        conversation = gr.State(None, time_to_live=DELETE_AFTER)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = _upload_box()
                _samples(callbacks, upload)
                _pdf_upload(callbacks, upload)
                settings = _settings(callbacks)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                length = _ask_tab(callbacks, conversation, upload, settings)
                _compare_tab(callbacks, upload, length, settings)
                look, look_inputs, answer = _attention_tab(upload, settings)
                sizes = _sizes_tab(upload, settings) if len(callbacks.shared.processor.sizes) > 1 else None
        slide = gr.HTML(elem_id="attention")
        tiles = gr.HTML(elem_id="tiles")
        look.click(_with_messages(callbacks.show_attention), look_inputs, [answer, slide], **_MODEL)
        if sizes is not None:
            draw, draw_inputs = sizes
            draw.click(_with_messages(callbacks.show_sizes), draw_inputs, [slide], **_MODEL)
        upload.change(lambda: ("", ""), None, [answer, slide], **_FORM)
        gr.on(
            [upload.change, *(each.change for each in settings)],
            _with_messages(callbacks.show_tiles),
            [upload, *settings],
            [tiles],
            trigger_mode="always_last",
            show_progress="minimal",
            **_DRAWING,
        )
    for block in page.blocks.values():
        _open_only_uploads(block, callbacks.uploads)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def _upload_box() -> gr.Image:
    box = gr.Image(
        label="Image",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=320,
        buttons=[],
        elem_id="image",
    )
    return _named_by_path(box)


def _samples(callbacks: Callbacks, upload: gr.Image) -> None:
    """Buttons that put a sample into the box of the image."""
    with gr.Row():
        for number, name in enumerate(SAMPLES):

            def draw(request: gr.Request, name: str = name) -> str:
                return callbacks.draw_sample(name, request.client.host)

            button = gr.Button(f"Sample: {name.lower()}", size="sm", min_width=100, elem_id=f"sample-{number}")
            button.click(_with_messages(draw), None, [upload], **_DRAWING)


def _pdf_upload(callbacks: Callbacks, upload: gr.Image) -> None:
    """Let a visitor put a page of a PDF into the box of the image."""
    with gr.Row():
        pdf = _named_by_path(gr.UploadButton("Page of a PDF", file_types=[".pdf"], min_width=150, elem_id="pdf"))
        number = gr.Number(value=1, label="Page", precision=0, minimum=1, min_width=80, elem_id="pdf-page")

    def draw(path: str | None, page: float | None, request: gr.Request):
        return callbacks.draw_page(path, page, request.client.host) if path else gr.skip()

    # not among the drawings: a slow PDF keeps only other PDFs waiting
    gr.on(
        [pdf.upload, number.change],
        _with_messages(draw),
        [pdf, number],
        [upload],
        trigger_mode="always_last",
        concurrency_limit=1,
        api_visibility="private",
    )


def _named_by_path(block: Any) -> Any:
    """Keep the uploaded file and its name."""
    block.preprocess = lambda payload: None if payload is None else payload.path
    return block


def _open_only_uploads(block: Any, uploads: Uploads) -> None:
    """Check a request's files before Gradio, which would also download URLs, copies them."""
    move = block.async_move_resource_to_block_cache

    async def move_upload(path):
        try:
            return await move(path and str(uploads.file(path)))
        except ValueError as error:
            raise _message(error) from error

    block.async_move_resource_to_block_cache = move_upload


def _settings(callbacks: Callbacks) -> list:
    """The inputs of `Limits.check_settings`, in the same order."""
    first, *others = (partial(_setting, callbacks, each) for each in fields(ImageSettings))
    inputs = [first(info=RULES), others.pop(0)()]
    with gr.Accordion("More", open=False):
        return [*inputs, *(other() for other in others)]


def _setting(callbacks: Callbacks, field: Field, side: str = "", value: Any = None, info: str | None = None) -> Any:
    """The input of a setting of images.

    Args:
        side: which of two settings it is of.
        value: what it first shows (default: the model's own).
    """
    value = getattr(callbacks.shared.defaults, field.name) if value is None else value
    says: dict[str, Any] = {
        "label": f"{field.metadata['label']} {side}".strip(),
        "info": info or field.metadata["help"],
    }
    says["elem_id"] = f"{field.name.replace('_', '-')}{'-' * bool(side)}{side}"
    kind, choices = option_type(field), field.metadata["rule"].choices
    if choices:
        return gr.Radio(list(reversed(choices)), value=value, **says)
    if kind is bool:
        return gr.Checkbox(value=bool(value), **says)
    if "limit" in field.metadata:
        limit, _ = callbacks.limits.of_setting(field)
        return gr.Slider(1, limit, value=min(value, limit), step=1, **says)
    if kind is int:
        return gr.Number(value=value, precision=0, minimum=1, placeholder="no limit", **says)
    return gr.Textbox(value=value, placeholder="the model's", **says)


def _question_box(label: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(label=label, value="What is in this image?", lines=1, max_lines=6, elem_id=elem_id)


def _ask_tab(callbacks: Callbacks, conversation: gr.State, upload: gr.Image, settings: list) -> gr.Slider:
    """Returns: the slider of the maximum answer length, which the tab Compare uses too."""
    with gr.Tab("Ask"):
        # text without Markdown or formulas; no button to copy it, since that would copy the escaped text
        chat = gr.Chatbot(
            label="Conversation",
            height=360,
            render_markdown=False,
            latex_delimiters=[],
            feedback_options=None,
            buttons=[],
            elem_id="chat",
        )
        turn_cost = gr.HTML(elem_id="took")
        question = _question_box("Question", "question")
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop", min_width=80, elem_id="stop")
            new = gr.Button("New conversation", min_width=80, elem_id="new")
        limit = callbacks.limits.max_new_tokens
        length = gr.Slider(
            1, limit, value=min(256, limit), step=1, label="Maximum answer length, in tokens", elem_id="longest"
        )
    running = gr.on(
        [ask.click, question.submit],
        _with_messages(callbacks.ask),
        [conversation, upload, question, length, *settings],
        [conversation, chat, turn_cost],
        **_MODEL,
    )
    stop.click(None, cancels=[running])
    gr.on(
        [new.click, chat.clear, upload.change],
        lambda: (None, [], ""),
        None,
        [conversation, chat, turn_cost],
        cancels=[running],
        **_FORM,
    )
    return length


def _compare_tab(callbacks: Callbacks, upload: gr.Image, length: gr.Slider, settings: list) -> None:
    with gr.Tab("Compare"):
        question = _question_box("Question for both", "compare-question")
        sides, answers = [], []
        with gr.Row():
            for name, slicing in (("A", "ratio"), ("B", "edge")):
                with gr.Column(min_width=200):
                    both = zip(fields(ImageSettings), (slicing, None), strict=False)
                    sides.append([_setting(callbacks, each, name, value) for each, value in both])
        compare = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Row():
            for name in ("A", "B"):
                answers.append(
                    gr.Textbox(
                        label=f"Answer {name}",
                        lines=3,
                        max_lines=8,
                        interactive=False,
                        min_width=200,
                        elem_id=f"answer-{name}",
                    )
                )
        table = gr.HTML(elem_id="comparison")
    others = settings[2:]
    compare.click(
        _with_messages(callbacks.compare),
        [upload, question, length, *sides[0], *others, *sides[1], *others],
        [*answers, table],
        **_MODEL,
    )


def _attention_tab(upload: gr.Image, settings: list) -> tuple[gr.Button, list, gr.Textbox]:
    """Returns: the button, the inputs of `Callbacks.show_attention`, and the box of the answer."""
    with gr.Tab("Attention"):
        question = _question_box("Question", "attention-question")
        look = gr.Button("Show where the model looks", variant="primary", elem_id="look")
        answer = gr.Textbox(label="Answer", interactive=False, elem_id="attention-answer")
    return look, [upload, question, *settings], answer


def _sizes_tab(upload: gr.Image, settings: list) -> tuple[gr.Button, list]:
    """Returns: the button, and the inputs of `Callbacks.show_sizes`."""
    with gr.Tab("Sizes"):
        question = _question_box("Question at each size", "sizes-question")
        draw = gr.Button("Ask at each size of a tile", variant="primary", elem_id="sizes")
    return draw, [upload, question, *settings]


def _with_messages(callback: Callable) -> Callable:
    """Show the callback's errors as messages on the page: a ValueError as it is, others without details."""
    if isgeneratorfunction(callback):

        @wraps(callback)
        def generator(*values) -> Iterator:
            try:
                yield from callback(*values)
            except Exception as error:
                raise _message(error) from error

        return generator

    @wraps(callback)
    def function(*values):
        try:
            return callback(*values)
        except Exception as error:
            raise _message(error) from error

    return function


def _message(error: Exception) -> gr.Error:
    """The message of an error, escaped because the page shows it as HTML."""
    if isinstance(error, ValueError):
        text = str(error)
    else:
        logger.exception("A request failed", exc_info=error)
        text = (
            f"The server failed ({type(error).__name__}); its log has the reason. Try again, or try a smaller image."
        )
    return gr.Error(escape(text), print_exception=False)
