# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model card's text: generated metadata and sections, mixed with manual content, which is kept.

A generated section stands between two marks, the first with a digest of the section's text:

    <!-- internvlx:begin cost 1a2b3c4d -->
    ...
    <!-- internvlx:end cost -->

A third mark after the metadata holds a digest of each generated value. A value or section that still matches its
digest is renewed; any other counts as manual.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from ..checkpoints.folders import is_hub_id

HINT = (
    "The text between the marks `begin` and `end` is generated. Write anywhere else. Sections that you edit are kept "
    "as they are; delete a section with its marks to have it generated again."
)
CARD_MARK = re.compile(r"<!-- internvlx:card [^\n]*?metadata:(?P<digests>(?: [\w-]+=[0-9a-f]{8})*) -->")
# anything that looks like a mark, complete or not
MARK = re.compile(r"<!--[^\n]*internvlx:|internvlx:(?:begin|end|card)\b")
SECTION = re.compile(
    r"^[ \t]*<!-- internvlx:begin (?P<name>[\w-]+) (?P<digest>[0-9a-f]{8}) -->[ \t]*\n"
    rf"(?P<text>(?:(?!{MARK.pattern}).)*)<!-- internvlx:end (?P=name) -->[ \t]*(?:\n+|\Z)",
    re.MULTILINE | re.DOTALL,
)
TITLE = "title"


class CardError(ValueError):
    """A model card cannot be renewed or is not valid. The message names the place and what would be right."""


@dataclass(frozen=True)
class Card:
    """A model card.

    Args:
        text: the whole of README.md.
        edited: names of the generated sections and metadata that a person changed and that were kept.
    """

    text: str
    edited: list[str] = field(default_factory=list)


def is_generated(text: str) -> bool:
    """Whether a card has generated parts, which can be renewed."""
    return MARK.search(text) is not None


def manual_content(text: str) -> set[str]:
    """What a person wrote into a card: paragraphs, edited sections, and added, changed or deleted metadata.

    Raises:
        CardError: if a mark is damaged or the metadata is not a YAML mapping.
    """
    block, digests, body = _split_card(text)
    metadata = _load_yaml(block)
    values = {f"{name}: {metadata.get(name)!r}" for name in _manual_names(metadata, digests)}
    edited = {f"{section['name']}: {section['text']}" for section in SECTION.finditer(body) if _is_edited(section)}
    paragraphs = {paragraph.strip("\n") for paragraph in SECTION.sub("\n\n", body).split("\n\n")}
    return values | edited | paragraphs - {""}


def renew_card(previous: str, metadata: dict, make_sections: Callable[[dict], dict[str, str]]) -> Card:
    """Put generated metadata and sections into a card, replacing those that were generated before.

    Args:
        previous: the current card; empty for none.
        metadata: generated metadata, with the names of [`~huggingface_hub.ModelCardData`].
        make_sections: returns the generated sections in order, Markdown by name, empty to omit a section. It is called
            with the metadata that the card will have, manual values included. A new section goes after its
            predecessor.

    Raises:
        CardError: if a mark is damaged or the metadata is not valid, so that renewing could lose something.
    """
    block, digests, body = _split_card(previous)
    block, digests, edited = _renew_metadata(block, digests, metadata)
    body, edited_sections = _renew_sections(body, make_sections(_load_yaml(block)))
    marks = "".join(f" {name}={digest}" for name, digest in digests.items())
    text = f"---\n{block}\n---\n\n<!-- internvlx:card {HINT} metadata:{marks} -->\n\n{body}".rstrip() + "\n"
    validate_card(text)
    return Card(text, edited + edited_sections)


def validate_card(text: str) -> None:
    """Check a card with `huggingface_hub`'s own checks, as far as they need no network.

    Raises:
        CardError: if the metadata is not a YAML mapping or not a valid `ModelCardData`, if a base model or data set is
            not a Hub id, or if a mark is damaged.
    """
    _load_yaml(_split_card(text)[0])
    try:
        data = ModelCard(text.removeprefix("\ufeff")).data
    except (ValueError, TypeError, KeyError) as error:
        raise CardError(f"README.md: its metadata is not valid: {error}") from error
    for name in ("base_model", "datasets"):
        value = data.get(name) or []
        for repo in value if isinstance(value, list) else [value]:
            if not is_hub_id(repo, needs_owner=False):
                raise CardError(f"README.md: {name}={repo!r} in its metadata is not a Hub id.")


def _split_card(text: str) -> tuple[str, dict[str, str], str]:
    """The YAML block, the digests of generated metadata, and the rest of a card. Checks that the marks are in
    order.
    """
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    front = REGEX_YAML_BLOCK.match(text)
    block, body = (front[2], text[front.end() :]) if front else ("", text)
    mark = CARD_MARK.search(body)
    digests = dict(pair.split("=") for pair in mark["digests"].split()) if mark else {}
    body = CARD_MARK.sub("", body, count=1)
    names = [section["name"] for section in SECTION.finditer(body)]
    outside = SECTION.sub(lambda section: "\n" * section[0].count("\n"), body)
    if damaged := MARK.search(outside):
        line = text.count("\n") - body.count("\n") + outside.count("\n", 0, damaged.start()) + 1
        raise CardError(
            f"README.md, line {line}: the mark {outside[damaged.start() :].splitlines()[0]!r} or its other half is "
            "damaged or misplaced, expected `<!-- internvlx:begin NAME DIGEST -->` and then `<!-- internvlx:end NAME "
            "-->`, each on its own line. Repair the mark, or delete the section with both marks to have it generated "
            "again."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CardError(f"README.md: the section {twice[0]!r} appears twice. Delete one with both its marks.")
    return block, digests, body.strip("\n")


def _load_yaml(block: str) -> dict:
    try:
        metadata = yaml.safe_load(block) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise CardError(f"README.md: its metadata is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(metadata, dict):
        raise CardError(
            f"README.md: its metadata is a {type(metadata).__name__}, expected a mapping of names to values."
        )
    return metadata


def _manual_names(metadata: dict, digests: dict[str, str]) -> set[str]:
    """Names of the metadata that a person added, changed or deleted."""
    same = {name for name, digest in digests.items() if name in metadata and _digest(metadata[name]) == digest}
    return (metadata.keys() | digests.keys()) - same


def _renew_metadata(block: str, digests: dict[str, str], generated: dict) -> tuple[str, dict[str, str], list[str]]:
    """The new YAML block, the digests of its generated values, and the generated names that a person changed.

    All lines of the block are kept, including comments, except generated values that are out of date. New values are
    appended.
    """
    metadata = _load_yaml(block)
    manual = _manual_names(metadata, digests)
    edited = {name: digest for name, digest in digests.items() if name in manual}
    renewed = {name: _digest(value) for name, value in generated.items() if name not in manual}
    for name in digests.keys() - manual:
        if renewed.get(name) != digests[name]:
            del metadata[name]
            lines = rf"^{re.escape(name)}[ \t]*:.*(?:\n+[ \t-].*)*(?:\n|\Z)"
            block = re.sub(lines, "", block, count=1, flags=re.MULTILINE)
    new = {name: generated[name] for name in renewed if name not in metadata}
    block = "\n".join(filter(None, (block.rstrip("\n"), _dump(new))))
    metadata |= new
    if not _holds(block, metadata):
        block = _dump(metadata)
    return block, edited | renewed, list(edited)


def _holds(block: str, metadata: dict) -> bool:
    try:
        return repr(_load_yaml(block)) == repr(metadata)
    except CardError:
        return False


def _dump(metadata: dict) -> str:
    return yaml_dump(metadata, sort_keys=False).rstrip("\n") if metadata else ""


def _renew_sections(body: str, sections: dict[str, str]) -> tuple[str, list[str]]:
    """The body with old sections replaced by new ones, and the names of sections that a person changed."""
    if re.search("^# ", SECTION.sub("", body), re.MULTILINE):
        sections = sections | {TITLE: ""}
    body = body and f"{body}\n\n"
    first = SECTION.search(body)
    place = first.start() if first else len(body)
    for name, text in sections.items():
        old = next((section for section in SECTION.finditer(body) if section["name"] == name), None)
        start, end = old.span() if old else (place, place)
        section = old[0] if old and _is_edited(old) else _section(name, text) if text else ""
        body = body[:start] + section + body[end:]
        place = start + len(section)
    return body, [section["name"] for section in SECTION.finditer(body) if _is_edited(section)]


def _section(name: str, text: str) -> str:
    """A generated section with its marks. Marks inside the text are escaped."""
    text = MARK.sub(lambda mark: mark[0].replace("internvlx:", "internvlx&#58;"), text.strip("\n"))
    return f"<!-- internvlx:begin {name} {_digest(text)} -->\n{text}\n<!-- internvlx:end {name} -->\n\n"


def _is_edited(section: re.Match) -> bool:
    return _digest(section["text"]) != section["digest"]


def _digest(value) -> str:
    """Eight hexadecimal digits of a text without surrounding whitespace, or of a metadata value."""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
