"""InternVL-X (arXiv 2503.21307) for Hugging Face Transformers. Importing it registers the Auto classes."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .modeling.version import VERSION

__version__ = VERSION

__all__ = [
    "InternVLXConfig",
    "InternVLXForConditionalGeneration",
    "InternVLXImageProcessor",
    "InternVLXLVTCConfig",
    "InternVLXModel",
    "InternVLXProcessor",
    "InternVLXProjectorConfig",
    "InternVLXVideoProcessor",
]

# The program `internvlx` registers the classes only when a command needs models, so that its help is quick.
if TYPE_CHECKING or not getattr(sys.modules.get("internvlx_cli"), "is_program", False):
    from . import registration as registration
    from .modeling import (
        InternVLXConfig,
        InternVLXForConditionalGeneration,
        InternVLXLVTCConfig,
        InternVLXModel,
        InternVLXProjectorConfig,
    )
    from .processing import InternVLXImageProcessor, InternVLXProcessor, InternVLXVideoProcessor
else:

    def __getattr__(name: str):
        if name in __all__:
            import_module(".registration", __name__)
            for module in (import_module(".modeling", __name__), import_module(".processing", __name__)):
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
