# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx chat`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.options import CommandParser, add_options, settings_from
from ..processing.image_settings import ImageSettings
from ..processing.rules import FieldRule, is_number, setting
from ..processing.rvtc import SLICING_STRATEGIES, SLICING_WORDS
from .model_options import (
    FRAMES,
    CommonOptions,
    add_device_options,
    device_options,
    load_model,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..chat import Session
    from ..chat.session import Turn
    from ..processing.video_files import Video

PROMPT = "> "
HELP = """\
/image PATH      add an image or the pages of a PDF (a file or a URL) to the next question
/video PATH      add a video (a file, a URL or a folder of frames)
/slicing [NAME [MAX_PATCHES]]
                 change the slicing of images into tiles:
{strategies}
/budget [TOKENS] change how many visual tokens all images and frames of the conversation share (none: no budget)
/cost            show the images' cost, also under other slicing strategies
/reset           forget the conversation
/help            show these lines
/exit            end, as does Ctrl-D. Ctrl-C stops an answer"""


@dataclass
class SamplingOptions:
    """How tokens of an answer are chosen."""

    temperature: float = setting(
        0.0,
        FieldRule("0 (greedy) or more", lambda temperature: is_number(temperature) and temperature >= 0),
        "sampling temperature; 0 decodes greedily",
    )
    seed: int = setting(0, None, "seed of sampling")


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if an image, the model or a number is invalid. The message names it."""
    options = _parser().parse_intermixed_args(arguments)  # an option may stand before the question
    images, question = _split_words(options.words, options.question)
    _check(options, images, question)
    from ..chat import Session, list_files
    from ..processing.messages import question_about
    from ..processing.video_files import Video, names_video

    images = list_files(images) if options.jsonl else images
    opened = () if options.jsonl else tuple(chain(*map(_open, images)))  # before the model is loaded
    for image in images if options.jsonl else ():
        _require_file(image)
    for folder in filter(os.path.isdir, () if options.jsonl else images):
        _say(f"{folder} is a folder: its images are the frames of one video (--jsonl asks about each image)")
    if question is not None:  # before the model is loaded
        are_videos = (
            [names_video(image) for image in images] if options.jsonl else [isinstance(each, Video) for each in opened]
        )
        for asked in ([each] for each in are_videos) if options.jsonl else [are_videos]:
            question_about(question, images=asked.count(False), videos=asked.count(True))
    generation = {"max_new_tokens": options.max_new_tokens}
    if options.temperature:
        generation |= {"do_sample": True, "temperature": options.temperature}
        _seed(options.seed)
    if options.jsonl:
        _answer_each(options, images, question, generation)
        return
    answerer = load_model(options, say=_say)
    _set_frames(answerer, options)
    session = Session(answerer, options.system, generation)
    if question is None:
        ChatLoop(session, opened).run()
    else:
        print_turn(session, question, opened)


def _split_words(words: list[str], question: str | None) -> tuple[list[str], str | None]:
    """The images and the question of a command line. The question is the last word unless that names an image."""
    if question is None and words and not _names_image(words[-1]):
        *words, question = words
    return words, question


def _names_image(word: str) -> bool:
    if word.lower().startswith(("http://", "https://", "data:", "file:")) or os.path.exists(word):
        return True
    from PIL import Image

    from ..processing.pdf_files import names_pdf
    from ..processing.video_files import names_video

    if " " not in word and (names_video(word) or names_pdf(word)):
        return True
    # a word with an image's suffix is meant as a file, even if there is no such file
    return " " not in word and Path(word).suffix.lower() in Image.registered_extensions()


def _check(options: argparse.Namespace, images: list[str], question: str | None) -> None:
    if question is not None and not question.strip():
        raise ValueError("The question is empty.")
    if options.jsonl and not (images and question):
        raise ValueError(f"--jsonl={options.jsonl} needs images and a question to ask about each.")
    if options.jsonl and not options.jsonl.absolute().parent.is_dir():
        raise FileNotFoundError(f"--jsonl={options.jsonl}: there is no folder {options.jsonl.absolute().parent}.")


def _require_file(image: str) -> None:
    """Raises: ValueError: if an image of --jsonl is a file that does not exist."""
    from ..processing.image_files import ImageAccess, abbreviated, file_of
    from ..processing.pdf_files import without_pages

    if not image.lower().startswith(("http://", "https://")):
        file_of(without_pages(image), abbreviated(image), ImageAccess())


def _open(image: str) -> "Sequence[Image | Video]":
    """Open an image, the pages of a PDF, or a video, recognized by its file name extension or as a folder."""
    from ..processing.pdf_files import open_images
    from ..processing.video_files import names_video

    return [_open_video(image)] if names_video(image) or os.path.isdir(image) else open_images(image)


def _open_video(path: str) -> "Video":
    from ..processing.video_files import open_video

    try:
        return open_video(path)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _say(line: str) -> None:
    """Print to stderr, dimmed on a terminal. Stdout has the answer alone."""
    if sys.stderr.isatty():
        _console().print(line, style="dim", highlight=False, markup=False)
    else:
        print(line, file=sys.stderr, flush=True)


def _console():
    from rich.console import Console

    return Console(stderr=True)


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)


def _set_frames(answerer, options: argparse.Namespace) -> None:
    if options.num_frames or options.fps:  # sample, whatever the checkpoint says, and of a folder of frames too
        video_processor = answerer.processor.video_processor
        video_processor.do_sample_frames = True
        video_processor.num_frames, video_processor.fps = options.num_frames, options.fps


def _answer_each(options: argparse.Namespace, images: list[str], question: str | None, generation) -> None:
    from ..chat import answer_images
    from ..chat.answers import earlier_settings, image_keys, model_settings
    from ..chat.bulk import BATCH_SIZE
    from ..chat.loading import answerer_with, open_answerer

    answerer, folder = open_answerer(
        options.model, options.revision, settings_from(options, ImageSettings).given, _say
    )
    _set_frames(answerer, options)
    settings = {
        **model_settings(options.model, answerer),
        "system": options.system,
        **{name: getattr(options, name) for name in ("num_frames", "fps") if getattr(options, name)},
        **generation,
        **({"seed": options.seed} if options.temperature else {}),
    }
    same = earlier_settings(settings, answerer) if options.revision is None else None
    image_keys(options.jsonl, [each for each in (settings, same) if each])  # refuses it before the model is loaded
    answerer = answerer_with(
        *(answerer, folder, "transformers", device_options(options)), lambda line: _say(f"{options.model} on {line}")
    )
    outcome = answer_images(
        answerer,
        images,
        question or "",
        options.jsonl,
        settings,
        options.batch_size or BATCH_SIZE,
        options.system,
        same,
        **generation,
    )
    _say(f"{options.jsonl}: {outcome}")
    outcome.require_all("image", f", as {options.jsonl} says")


def print_turn(session: "Session", question: str, images: "tuple[Image | Video, ...]" = ()) -> "Turn":
    """Stream an answer to stdout, and print its cost to stderr."""
    spinner = _console().status("reading") if sys.stderr.isatty() and sys.stdout.isatty() else nullcontext()

    def show(text: str) -> None:
        if hasattr(spinner, "stop"):
            spinner.stop()
        print(text, end="", flush=True)

    with spinner:
        turn = session.ask(question, images, show)
    print(flush=True)
    _say(str(turn))
    return turn


class ChatLoop:
    """Reads questions and commands from a terminal or a pipe until the input ends.

    Args:
        images: images and videos of the first question.
    """

    def __init__(self, session: "Session", images: "tuple[Image | Video, ...]" = ()):
        self.session = session
        self.images = list(images)
        self.commands = {
            "/image": self.add_image,
            "/video": self.add_video,
            "/slicing": self.set_slicing,
            "/budget": self.set_budget,
            "/cost": self.print_cost,
            "/reset": self.reset,
            "/help": lambda _: print(
                HELP.format(strategies="\n".join(f"{name:>23}: {words}" for name, words in SLICING_WORDS.items()))
            ),
        }

    def run(self) -> None:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if is_terminal:
            with suppress(ImportError):
                import readline  # noqa: F401  # lets `input` edit lines
            _say("Ask a question, or type /help for commands.")
        while True:
            try:
                line = input(PROMPT if is_terminal else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                _say("")
                continue
            if line in ("/exit", "/quit"):
                return
            if line:
                self.handle(line)

    def handle(self, line: str) -> None:
        """Run a command or answer a question. Errors are printed, and the conversation continues."""
        word, _, rest = line.partition(" ")
        try:
            if word in self.commands:
                self.commands[word](rest.strip())
            elif word.startswith("/") and word[1:].isalpha():
                raise ValueError(f"there is no command {word}, expected one of {', '.join([*self.commands, '/exit'])}")
            else:
                print_turn(self.session, line, tuple(self.images))
                self.images = []
        except KeyboardInterrupt:
            _say("\nstopped; this question is not part of the conversation")
        except (ValueError, OSError) as error:
            _say(f"internvlx: {error}")

    def add_image(self, path: str) -> None:
        if not path:
            raise ValueError("/image needs a file or a URL")
        from ..processing.pdf_files import open_images

        pages = open_images(path.strip("'\""))
        self.images += pages
        size = f"{pages[0].width}x{pages[0].height} pixels" if len(pages) == 1 else f"{len(pages)} pages"
        _say(f"{path}, {size}, added to the next question")

    def add_video(self, path: str) -> None:
        if not path:
            raise ValueError("/video needs a file, a URL or a folder of frames")
        video = _open_video(path.strip("'\""))
        (frames,) = self.session.answerer.processor.video_processor.choose_frames([video])
        self.images.append(video)
        length = "" if video.seconds is None else f" in {video.seconds:.1f} s"
        _say(f"{path}, {len(frames)} of {video.num_frames} frames{length}, added to the next question")

    def set_slicing(self, words: str) -> None:
        answerer = self.session.answerer
        name, _, most = words.partition(" ")
        if name and name not in SLICING_STRATEGIES:
            raise ValueError(f"/slicing {name!r}, expected one of {', '.join(SLICING_STRATEGIES)}")
        if most and not (most.isdecimal() and int(most) > 0):
            raise ValueError(f"/slicing {name} {most!r}, expected a number of tiles")
        changed = ({"slicing": name} if name else {}) | ({"max_patches": int(most)} if most else {})
        answerer.update_images_kwargs(**changed)
        settings = answerer.image_settings
        _say(f"slicing {settings.slicing}, at most {settings.max_patches} tiles per image")

    def set_budget(self, tokens: str) -> None:
        answerer = self.session.answerer
        if tokens and tokens != "none" and not tokens.isdecimal():
            raise ValueError(f"/budget {tokens!r}, expected a number of visual tokens or none")
        if tokens:
            answerer.update_images_kwargs(max_image_tokens=None if tokens == "none" else int(tokens))
        if tokens == "none":
            answerer.processor.max_image_tokens = None  # the checkpoint's
        budget = answerer.image_settings.max_image_tokens
        _say("no budget" if budget is None else f"at most {budget:,} visual tokens in the conversation")

    def print_cost(self, _: str) -> None:
        if not (self.session.images or self.session.videos or self.images):
            raise ValueError("there are no images or videos in the conversation yet")
        from ..checkpoints.numbers import FLOP_UNITS, scaled
        from ..cost.report import table

        rows = [
            [name, tiles, f"{tokens:,}", f"{expanded:,}", scaled(flops, FLOP_UNITS)]
            for name, tiles, tokens, expanded, flops in self.session.costs(self.images)
        ]
        print(table(["", "tiles", "tokens", "stage two", "prefill"], rows, left=(0,)))

    def reset(self, _: str) -> None:
        self.session.reset()
        self.images = []


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx chat",
        description="Ask a model about images and videos. With a question, print the answer and its cost. Without a "
        "question, start a conversation. With --jsonl, ask the same question about each image.",
        epilog="internvlx chat MODEL photo.jpg 'What is this?'",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint's folder or Hub id; an InternVL or LLaVA checkpoint is converted once, into the cache",
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="IMAGE... QUESTION",
        help="files or URLs of images, PDFs (scan.pdf#page=3-7 selects pages) and videos, then the question",
    )
    parser.add_argument("--question", help="the question, if it could be mistaken for a file name")
    parser.add_argument(
        "--jsonl",
        type=Path,
        metavar="FILE",
        help="ask about each image, also those in folders, and append the answers to FILE; a later run resumes there",
    )
    add_options(parser, CommonOptions, ("batch_size",))
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the chat template's)")
    images = parser.add_argument_group("images")
    add_options(images, ImageSettings)
    add_options(parser.add_mutually_exclusive_group(), CommonOptions, FRAMES)
    answer = parser.add_argument_group("answers")
    add_options(answer, CommonOptions, ("max_new_tokens",))
    add_options(answer, SamplingOptions)
    add_device_options(parser)
    return parser
