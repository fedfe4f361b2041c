# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx answer`."""

import sys
from pathlib import Path

from .chat import BATCH_SIZE_ON_GPU, MAX_NEW_TOKENS
from .model_options import add_device_options, add_image_options, image_options
from .parser import CommandParser
from .train import require_packages


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the data, the model or a number is invalid, or a record has no answer."""
    options = _parser().parse_args(arguments)
    for name in ("max_new_tokens", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}={value}, expected at least 1.")
    if not options.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{options.out}: there is no folder {options.out.absolute().parent}.")
    if options.out.exists() and Path(options.data).exists() and options.out.samefile(options.data):
        raise ValueError(f"{options.out} is the data itself. Choose another file for the answers.")
    require_packages("answer")
    from ..chat import load_answerer
    from ..chat.answers import earlier_settings, model_settings
    from ..chat.record_answers import absolute_roots, answer_records
    from ..data import load_training_data

    answerer = load_answerer(
        options.model,
        options.revision,
        image_options(options).given,
        say=_say,
        device=options.device,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
    )
    data = load_training_data(
        options.data,
        answerer.processor,
        image_root=options.image_root,
        split=options.split,
        share_tiles=options.share_tiles,
    )
    absolute_roots(data)  # type: ignore[arg-type]  # not a stream
    settings = {
        **model_settings(options.model, answerer),
        "share_tiles": options.share_tiles,
        "max_new_tokens": options.max_new_tokens,
    }
    batch_size = options.batch_size or (1 if answerer.model.device.type == "cpu" else BATCH_SIZE_ON_GPU)
    same = earlier_settings(settings, answerer) if options.revision is None else None
    counts = answer_records(answerer, data, options.out, settings, batch_size, options.max_new_tokens, same)  # type: ignore[arg-type]
    more = {"had an answer": counts.copied, "are from earlier runs": counts.earlier}
    others = "".join(f", {count} {what}" for what, count in more.items() if count)
    _say(f"{options.out}: {counts.answered} answers{others}")
    if counts.failed:
        raise ValueError(f"{counts.failed} records have no answer; the warnings above have the reasons.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx answer",
        description="Write training data with a model's own answers: each record that ends with the user's turn gets the model's "
        "greedy answer, and the others are copied. A later run with the same arguments resumes.",
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
    parser.add_argument(
        "--batch-size", type=int, help=f"records per batch (default: 1 on a CPU, {BATCH_SIZE_ON_GPU} otherwise)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=MAX_NEW_TOKENS,
        help=f"records with a longer answer are left out (default: {MAX_NEW_TOKENS})",
    )
    parser.add_argument("--share-tiles", action="store_true", help="as `share_tiles` of `internvlx train`")
    add_image_options(parser.add_argument_group("images"))
    add_device_options(parser)
    return parser
