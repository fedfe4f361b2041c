# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Loading a teacher, and checking that it can teach the student."""

from dataclasses import replace

import torch

from ..checkpoints.folders import source_name
from ..data import SampleEncoder
from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..processing import InternVLXProcessor
from .arguments import DataArguments, InternVLXTrainingArguments, ModelArguments, TeacherArguments
from .attention import packed_attention
from .loading import check_model_type, load_model, load_processor

# settings by which the student's image processor decodes an image for both models
_DECODING = ("alpha", "do_convert_rgb", "do_exif_transpose", "do_rescale", "jpeg_draft", "rescale_factor")
# a conversation that shows whether both chat templates mark the same answer
_PROBE = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A page of digits."}]


def load_teacher_processor(
    teacher_arguments: TeacherArguments,
    config: InternVLXConfig,
    processor: InternVLXProcessor,
) -> InternVLXProcessor:
    """The teacher's processor, with `teacher_slicing`, after all checks that need no weights.

    Images are decoded by the settings of the student's processor.

    Raises:
        ValueError: if the teacher is no InternVL-X checkpoint, or has another vocabulary, other image tokens or other
            labels for a conversation than the student.
        OSError: if there is no such checkpoint or it has no processor.
    """
    source = model_arguments(teacher_arguments)
    name = source.model_name_or_path
    teacher_config = InternVLXConfig.from_dict(
        check_model_type(name, source.model_revision, convert="--projector keep")
    )
    try:
        teacher_processor = load_processor(source)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"`teacher` is {name}, whose processor cannot be loaded: {reason}") from error
    _check_vocabularies(name, (config, teacher_config), (processor, teacher_processor))
    for setting in _DECODING:
        if hasattr(processor.image_processor, setting):
            setattr(teacher_processor.image_processor, setting, getattr(processor.image_processor, setting))
    try:
        SampleEncoder(processor, teacher_processor=teacher_processor)({"messages": _PROBE})
    except ValueError as error:
        raise ValueError(f"`teacher` is {name}; of a short conversation, {error}.") from error
    return teacher_processor


def _check_vocabularies(
    name: str,
    configs: tuple[InternVLXConfig, InternVLXConfig],
    processors: tuple[InternVLXProcessor, InternVLXProcessor],
) -> None:
    """Raises `ValueError` if a token of the student is not the same token of the teacher."""
    start = f"`teacher` is {name}, which"
    sizes = [config.text_config.vocab_size for config in configs]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{start} has logits of {sizes[1]:,} tokens, expected the student's {sizes[0]:,}.")
    own, others = ({index: token for token, index in each.tokenizer.get_vocab().items()} for each in processors)
    if own != others:
        index = min(index for index in own.keys() | others.keys() if own.get(index) != others.get(index))
        found, expected = (repr(each[index]) if index in each else "no token" for each in (others, own))
        raise ValueError(
            f"{start} has another vocabulary: its token {index} is {found}, expected {expected}, as in the student."
        )
    own_tokens, other_tokens = (each.image_tokens for each in processors)
    if own_tokens != other_tokens:
        raise ValueError(f"{start} has the image tokens {other_tokens}, expected the student's {own_tokens}.")


def load_teacher(
    teacher_arguments: TeacherArguments,
    data_arguments: DataArguments,
    arguments: InternVLXTrainingArguments,
    attn_implementation: str | None,
) -> InternVLXForConditionalGeneration:
    """The teacher, frozen and in evaluation mode.

    Args:
        attn_implementation: its attention, unless samples are packed: then it is the fastest that needs no mask, since
            the teacher's rows are longer than the student's.

    Raises:
        ValueError: see `load_model`.
    """
    source = model_arguments(teacher_arguments)
    if data_arguments.packing_tokens:
        dtype = getattr(torch, source.dtype, torch.float32)
        attn_implementation = packed_attention(arguments.device, dtype)
    source = replace(source, attn_implementation=attn_implementation)
    teacher = load_model(source).eval().requires_grad_(False)
    if hasattr(teacher.config.text_config, "output_router_logits"):
        teacher.config.text_config.output_router_logits = False
    return teacher


def model_arguments(teacher_arguments: TeacherArguments) -> ModelArguments:
    """The teacher as a model to load."""
    return ModelArguments(
        teacher_arguments.teacher or "",
        model_revision=teacher_arguments.teacher_revision,
        dtype=teacher_arguments.teacher_dtype,
        slicing=teacher_arguments.teacher_slicing,
    )


def teacher_record(teacher_arguments: TeacherArguments) -> dict:
    """The teacher in the record of a run, without a folder's path; empty without a teacher."""
    if not teacher_arguments.teacher:
        return {}
    return vars(teacher_arguments) | {"teacher": source_name(teacher_arguments.teacher)}
