"""Text that every machine has after `pip install`: Python's own documentation, and docstrings of installed packages.

Nothing is downloaded or stored here. A paragraph is in the training, validation or test part by its own hash, so that it
is in one part only, whatever the versions of the packages are.
"""

import ast
import hashlib
import json
import pydoc_data.topics
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from settings import COMMON, WORD, key_of

PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib", "torch")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
SHARES = {"test": 6, "validation": 4}  # of 100 paragraphs; the others are for training
SHORTEST, LARGEST_NON_PROSE = 80, 0.07  # characters; share of characters that are no letters, spaces or commas
_ROLE = re.compile(r":[\w:+-]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+")


def load_corpus(cache: Path) -> dict[str, list[str]]:
    """The paragraphs of each part, read once into `cache`."""
    path = corpus_path(cache)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(with_common_words(split(paragraphs()))), encoding="utf-8")
        unfinished.rename(path)
    return json.loads(path.read_text(encoding="utf-8"))


def corpus_path(cache: Path) -> Path:
    return cache / f"prose-{key_of(WORD, COMMON, versions())}.json"


def split(found: Iterator[str]) -> dict[str, list[str]]:
    """Sort paragraphs into parts by their hashes; each is kept once."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in dict.fromkeys(found):
        parts[part_of(text)].append(text)
    return parts


def with_common_words(parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same parts, but those for validation and testing only have the words that occur at least `COMMON` times in training texts."""
    counts = Counter(word for text in parts["train"] for word in bare(text))
    for name in ("validation", "test"):
        words = [zip(text.split(), bare(text), strict=True) for text in parts[name]]
        texts = [" ".join(word for word, known in pairs if counts[known] >= COMMON) for pairs in words]
        parts[name] = [text for text in texts if len(text) >= SHORTEST]
    return parts


def bare(text: str) -> list[str]:
    """Its words without marks and capitals."""
    return [word.rstrip(".,;:").lower() for word in text.split()]


def part_of(text: str) -> str:
    number = int(hashlib.sha256(text.lower().encode()).hexdigest(), 16) % 100
    if number < SHARES["test"]:
        return "test"
    return "validation" if number < SHARES["test"] + SHARES["validation"] else "train"


def paragraphs() -> Iterator[str]:
    """Paragraphs of prose."""
    for text in pydoc_data.topics.topics.values():
        yield from prose(text)
    folders = [Path(sysconfig.get_path("stdlib"))]
    folders += [Path(find_spec(name).submodule_search_locations[0]) for name in PACKAGES]
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            if not {"site-packages", "test", "tests"} & set(file.relative_to(folder).parts):
                for docstring in docstrings(file):
                    yield from prose(docstring)


def docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return  # a template or a file of an older Python
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            text = ast.get_docstring(node)
            if text:
                yield text


def prose(text: str) -> Iterator[str]:
    """The plain words of a text's paragraphs that are English sentences in ASCII, without reStructuredText's marks."""
    for block in re.split(r"\n\s*\n", text):
        block = _LINK.sub(r"\1", _ROLE.sub(r"\1", block)).replace("`", "").replace("*", "")
        block = " ".join(block.split())
        if len(block) < SHORTEST or not block.isascii() or not block[0].isupper() or block[-1] not in ".!?":
            continue
        if " : " in block:  # a parameter and its type
            continue
        if sum(not (char.isalpha() or char in " ,.") for char in block) > LARGEST_NON_PROSE * len(block):
            continue
        plain = " ".join(word for word in block.split() if re.fullmatch(WORD, word))
        if len(plain) >= SHORTEST:
            yield plain


def versions() -> dict[str, str]:
    """The versions of the packages whose texts are read."""
    return {name: version(DISTRIBUTIONS.get(name, name)) for name in PACKAGES}
