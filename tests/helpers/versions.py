"""What the installed transformers can do."""

import pytest
import transformers
from packaging.version import parse


def is_older(version: str) -> bool:
    return parse(transformers.__version__) < parse(version)


def needs_transformers(version: str, why: str) -> pytest.MarkDecorator:
    """Skip a test with what is older."""
    return pytest.mark.skipif(is_older(version), reason=f"before {version} {why}")
