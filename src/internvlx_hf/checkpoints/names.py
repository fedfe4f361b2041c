# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Names that checkpoints use: model types, dtypes and files."""

from fnmatch import fnmatchcase

from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    CHAT_TEMPLATE_DIR,
    CHAT_TEMPLATE_FILE,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .kinds import DTYPES as DTYPES
from .kinds import LLAVA as LLAVA
from .kinds import NATIVE as NATIVE
from .kinds import OURS as OURS

# Weights are read from the first of these that exists. An index names shards.
SAFE_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
PICKLED_WEIGHTS = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
WEIGHTS = (*SAFE_WEIGHTS, *PICKLED_WEIGHTS)
SAFE_SHARDS, PICKLED_SHARDS = "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"
ADAPTER_WEIGHTS = (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)

# settings of the image processor; the first takes precedence
PROCESSOR_FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
# files whose `auto_map` may name code
CODE_MAPS = (CONFIG_NAME, *PROCESSOR_FILES, VIDEO_PROCESSOR_NAME, "tokenizer_config.json")
CARD = "README.md"
REPORT = "conversion_report.json"
RECIPE = "training_recipe.json"
# files besides weights and code
FILES = (
    *CODE_MAPS,
    GENERATION_CONFIG_NAME,
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATE_FILE,
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    REPORT,
    RECIPE,
    CARD,
    ".gitattributes",
)
# a folder `LICENSES/` holds several licences, by the convention of reuse.software
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
PATTERNS = (*FILES, f"{CHAT_TEMPLATE_DIR}/*.jinja", *LICENCES, "LICENSES/*")


def is_known(name: str) -> bool:
    """Whether a relative path is a known checkpoint file other than weights and code. A star does not match a
    slash.
    """
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in PATTERNS)


def is_weights(name: str) -> bool:
    """Whether `from_pretrained` may read weights from a file of this name."""
    return "/" not in name and any(fnmatchcase(name, each) for each in (*WEIGHTS, SAFE_SHARDS, PICKLED_SHARDS))
