"""InternVL checkpoints, original, native or InternVL-X's own, become checkpoints of this package, and back."""

from ..checkpoints.checkpoint_files import CheckpointError
from .convert import convert_checkpoint
from .report import ConversionReport
from .templates import chat_template
from .tokenizers import convert_tokenizer

__all__ = ["CheckpointError", "ConversionReport", "chat_template", "convert_checkpoint", "convert_tokenizer"]
