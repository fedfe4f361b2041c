# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx answer`."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoints.options import CommandParser, add_options, settings_from
from ..processing.image_settings import ImageSettings
from .model_options import BATCH_SIZE, CommonOptions, add_device_options, device_options
from .train import require_packages

VLLM_BATCH_SIZE = 256  # vLLM schedules what it is given


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the data, the model or a number is invalid, or a record has no answer."""
    options = _parser().parse_args(arguments)
    _check(options)
    from ..chat.answers import earlier_settings, model_settings
    from ..chat.loading import answerer_with, open_answerer
    from ..chat.ray_answers import RayTask, answer_on_ray, require_reachable
    from ..chat.record_answers import absolute_roots, answer_records, record_keys, require_questions
    from ..data import load_training_data

    if options.ray:
        require_reachable(options.ray)
    images = settings_from(options, ImageSettings).given
    answerer, folder = open_answerer(options.model, options.revision, images, say=_say)
    source = {
        "source": os.path.abspath(options.data) if os.path.exists(options.data) else options.data,
        "image_root": options.image_root and os.path.abspath(options.image_root),
        "split": options.split,
        "share_tiles": options.share_tiles,
    }
    data: Any = load_training_data(processor=answerer.processor, **source)  # not a stream
    absolute_roots(data)
    settings = {
        **model_settings(options.model, answerer),
        "share_tiles": options.share_tiles,
        "max_new_tokens": options.max_new_tokens,
        **({"engine": "vllm"} if options.engine == "vllm" else {}),
    }
    require_questions(answerer, data, options.allow_text)
    wanted = device_options(options)
    batch_size = options.batch_size or (BATCH_SIZE if options.engine == "transformers" else VLLM_BATCH_SIZE)
    if options.ray:
        model = os.path.abspath(options.model) if os.path.isdir(options.model) else options.model
        task = RayTask(
            *(model, options.revision, images, source, options.out.absolute(), len(data), settings),
            *(batch_size, options.max_new_tokens, wanted, options.shard_size, options.engine, options.allow_text),
        )
        outcome = answer_on_ray(options.ray, task, folder)
    else:
        same = earlier_settings(settings, answerer) if options.revision is None else None
        record_keys(options.out, [each for each in (settings, same) if each])  # refuses it before a model is loaded
        answerer = answerer_with(
            answerer, folder, options.engine, wanted, lambda line: _say(f"{options.model} on {line}")
        )
        outcome = answer_records(
            *(answerer, data, options.out, settings, batch_size, options.max_new_tokens, same),
            allow_text=options.allow_text,
        )
    _say(f"{options.out}: {outcome}")
    outcome.require_all("record", "")


def _check(options: argparse.Namespace) -> None:
    """Raises: ValueError, OSError: if a number is invalid, OUT cannot be written or is something else, or a package is
    missing.
    """
    if not options.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{options.out}: there is no folder {options.out.absolute().parent}.")
    if options.out.exists() and Path(options.data).exists() and options.out.samefile(options.data):
        raise ValueError(f"{options.out} is the data itself. Choose another file for the answers.")
    if options.out.is_dir() is not bool(options.ray) and options.out.exists():
        kind = "a folder of shards is for --ray" if options.out.is_dir() else "--ray writes a folder of shards"
        raise ValueError(f"{options.out}: {kind}. Choose another name for the answers.")
    require_packages("answer", ("psutil",) if Path(options.data).is_file() else ("psutil", "datasets"))
    if options.ray and find_spec("ray") is None:
        raise ValueError("--ray needs ray, which is not installed: pip install 'ray[data]'")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx answer",
        description="Write training data with a model's own answers: each record that ends with the user's turn gets "
        "the model's greedy answer, and the others are copied. A later run with the same arguments resumes.",
        epilog="internvlx answer TEACHER questions.jsonl answers.jsonl; "
        "internvlx train ... --train_data answers.jsonl --teacher TEACHER",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder or Hub id, as for `internvlx chat`")
    parser.add_argument("data", metavar="DATA", help="records in any format of `train_data`, without the last answer")
    parser.add_argument("out", metavar="OUT", type=Path, help="the JSONL file to append the records to, with answers")
    parser.add_argument(
        "--image-root", help="folder that relative paths of images refer to (default: the folder of the annotations)"
    )
    parser.add_argument("--split", default="train", help="split of DATA, a folder or Hub id (default: train)")
    add_options(parser, CommonOptions, ("batch_size", "max_new_tokens", "engine", "shard_size"))
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="answer on a Ray cluster, host:port, ray://host:port or auto (default: a Ray of this machine's cores or "
        "GPUs); OUT is a folder of shards part-*.jsonl, on a file system that all machines share",
    )
    parser.add_argument(
        "--allow-text", action="store_true", help="also ask questions that have no image or video (default: refuse)"
    )
    parser.add_argument("--share-tiles", action="store_true", help="as `share_tiles` of `internvlx train`")
    add_options(parser.add_argument_group("images"), ImageSettings)
    add_device_options(parser)
    return parser
