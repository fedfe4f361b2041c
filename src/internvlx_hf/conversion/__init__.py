"""Converting InternVL checkpoints (original, native or InternVL-X) to this package's layout and back, and building models
from a vision tower and a language model."""

from ..checkpoints.errors import CheckpointError
from .convert import convert_checkpoint
from .init import init_checkpoint
from .options import ConversionOptions, InitOptions
from .report import ConversionReport
from .templates import chat_template
from .tokenizers import convert_tokenizer

__all__ = [
    "CheckpointError",
    "ConversionOptions",
    "ConversionReport",
    "InitOptions",
    "chat_template",
    "convert_checkpoint",
    "convert_tokenizer",
    "init_checkpoint",
]
