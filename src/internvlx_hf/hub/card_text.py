# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model card's text: sections and metadata that are generated, among what a person wrote, which stays.

A generated section stands between two marks, a digest of its text in the first:

    <!-- internvlx:begin cost 1a2b3c4d -->
    ...
    <!-- internvlx:end cost -->

and a third mark, behind the metadata, holds a digest of each generated value. So it can be told what a person changed:
a section or a value that is as it was generated is replaced; one that was edited is the person's from then on.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id, yaml_dump

HINT = (
    "What stands between the marks `begin` and `end` is generated. Write anywhere else. What you edit there stays as you "
    "leave it; delete a part with its marks to have it generated again."
)
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?)(?:\n|\A)---[ \t]*(?:\n|\Z)", re.DOTALL)
CARD_MARK = re.compile(r"<!-- internvlx:card [^\n]*?metadata:(?P<digests>(?: [\w-]+=[0-9a-f]{8})*) -->")
BEGIN = re.compile(r"<!-- internvlx:begin (?P<name>[\w-]+) (?P<digest>[0-9a-f]{8}) -->")
END = re.compile(r"<!-- internvlx:end (?P<name>[\w-]+) -->")
# anything that looks like a mark, whole or not
MARK = re.compile(r"<!--.*internvlx:|internvlx:(?:begin|end|card)\b")
TOP_LEVEL_KEY = re.compile(r"^(?=[^\s#-])", re.MULTILINE)
TITLE = "title"


class CardError(ValueError):
    """A model card that cannot be renewed or is not valid; the message names the place and what would be right."""


@dataclass(frozen=True)
class Section:
    """A generated section as it stands in a card."""

    name: str
    text: str
    digest: str

    @property
    def is_edited(self) -> bool:
        """Whether a person changed the text after it was generated."""
        return _digest(self.text) != self.digest

    def __str__(self) -> str:
        return f"<!-- internvlx:begin {self.name} {self.digest} -->\n{self.text}\n<!-- internvlx:end {self.name} -->"


@dataclass(frozen=True)
class Card:
    """A model card.

    Args:
        text: the whole of README.md.
        edited: names of the generated sections and metadata that a person changed and that were left so.
    """

    text: str
    edited: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Writing:
    """What a person wrote into a card.

    Args:
        metadata: the person's own and edited values by name; None for one that was deleted.
        parts: the text outside generated sections, and sections that were edited.
    """

    metadata: dict
    parts: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.metadata or self.parts)

    def is_in(self, other: "Writing") -> bool:
        """Whether nothing of it is missing from another card's."""
        has_metadata = all(
            name in other.metadata and other.metadata[name] == self.metadata[name] for name in self.metadata
        )
        return has_metadata and set(self.parts) <= set(other.parts)


def is_generated(text: str) -> bool:
    """Whether a card has generated parts, which may be renewed."""
    return MARK.search(text) is not None


def writing(text: str) -> Writing:
    """What a person wrote into a card.

    Raises:
        CardError: a mark is damaged, or the metadata is no YAML mapping.
    """
    text = _normalised(text)
    block, digests, body = _split(text)
    current = _load_yaml(block)
    metadata = {name: value for name, value in current.items() if _digest(value) != digests.get(name)}
    metadata |= dict.fromkeys(digests.keys() - current.keys())
    parts = _parse(body, _first_line(text, body))
    return Writing(metadata, tuple(str(part) for part in parts if isinstance(part, str) or part.is_edited))


def renew_card(previous: str, metadata: dict, make_sections: Callable[[dict], dict[str, str]]) -> Card:
    """Put generated metadata and sections into a card, in the place of those that were generated before.

    Args:
        previous: the card as it is; empty for none.
        metadata: generated metadata, as [`~huggingface_hub.ModelCardData`] names it.
        make_sections: gives the generated sections in their order, Markdown by name, for the metadata that the card will
            have, a person's included. A section that the card lacks is put behind the one before it in this order, or at
            the end.

    Raises:
        CardError: a mark is damaged, or the metadata is not valid. Nothing can be renewed then without losing something.
    """
    previous = _normalised(previous)
    block, digests, body = _split(previous)
    front, record, edited_keys = _renew_metadata(block, digests, metadata)
    parts = _parse(body, _first_line(previous, body))
    parts, edited_sections = _renew_sections(parts, make_sections(_load_yaml(front)))
    marks = "".join(f" {name}={digest}" for name, digest in record.items())
    text = "\n\n".join(part for part in (f"---\n{front}\n---", _card_mark(marks), *map(str, parts)) if part)
    card = Card(text.rstrip() + "\n", edited_keys + edited_sections)
    validate_card(card.text)
    return card


def validate_card(text: str) -> None:
    """Check a card by `huggingface_hub`'s own means, as far as they need no network.

    Raises:
        CardError: the metadata is no YAML mapping, or does not make a `ModelCardData`; a base model or data set is not
            named as on the Hub; a mark is damaged.
    """
    text = _normalised(text)
    block, _, body = _split(text)
    _load_yaml(block)
    _parse(body, _first_line(text, body))
    try:
        data = ModelCard(text).data
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise CardError(f"README.md: its metadata is not valid: {error}") from error
    for name in ("base_model", "datasets"):
        value = data.get(name) or []
        for repo in [value] if isinstance(value, str) else value:
            try:
                validate_repo_id(repo)
            except HFValidationError as error:
                raise CardError(f"README.md: {name}={repo!r} in its metadata is not a Hub id: {error}") from error


def _normalised(text: str) -> str:
    return text.replace("\r\n", "\n").removeprefix("\ufeff")


def _split(text: str) -> tuple[str, dict[str, str], str]:
    """The YAML block, the digests of generated metadata, and the rest of a card."""
    match = FRONT_MATTER.match(text)
    block, body = (match["yaml"], text[match.end() :]) if match else ("", text)
    mark = CARD_MARK.search(body)
    if mark is None:
        return block, {}, body
    digests = dict(pair.split("=") for pair in mark["digests"].split())
    # its line stays, so that line numbers do
    return block, digests, body[: mark.start()] + body[mark.end() :]


def _first_line(text: str, body: str) -> int:
    return text.count("\n") - body.count("\n") + 1


def _card_mark(digests: str) -> str:
    return f"<!-- internvlx:card {HINT} metadata:{digests} -->"


# -- metadata


def _renew_metadata(block: str, digests: dict[str, str], generated: dict) -> tuple[str, dict[str, str], list[str]]:
    """The new YAML block, the digests of what is generated in it, and the generated names that a person changed."""
    current = _load_yaml(block)
    chunks = _yaml_chunks(block, current)
    record, edited, lines = {}, [], []
    for name in [*current, *(name for name in generated if name not in current)]:
        is_here, was_generated = name in current, name in digests
        if was_generated and (not is_here or _digest(current[name]) != digests[name]):
            record[name] = digests[name]
            edited.append(name)
            if is_here:
                lines.append(chunks[name])
        elif is_here and (not was_generated or current[name] == generated.get(name)):
            record |= {name: digests[name]} if was_generated else {}
            lines.append(chunks[name])
        elif name in generated:
            record[name] = _digest(generated[name])
            lines.append(_dump({name: generated[name]}))
    return "\n".join(lines), record, edited


def _load_yaml(block: str) -> dict:
    try:
        current = yaml.safe_load(block) or {}
    except yaml.YAMLError as error:
        raise CardError(f"README.md: its metadata is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(current, dict):
        raise CardError(f"README.md: its metadata is a {type(current).__name__}, expected names with values.")
    return current


def _yaml_chunks(block: str, current: dict) -> dict[str, str]:
    """The lines of each top-level name, as a person may have written them, with comments."""
    chunks = {}
    for chunk in TOP_LEVEL_KEY.split(block):
        try:
            found = yaml.safe_load(chunk)
        except yaml.YAMLError:
            continue
        if isinstance(found, dict):
            chunks |= {name: chunk.rstrip("\n") for name in found if found == {name: current.get(name)}}
    return {name: chunks.get(name) or _dump({name: value}) for name, value in current.items()}


def _dump(values: dict) -> str:
    return yaml_dump(values, sort_keys=False).strip()


# -- sections


def _parse(body: str, first_line: int) -> list[str | Section]:
    """A card's body as text and generated sections in their order.

    Args:
        first_line: number of the body's first line in the card, for messages.
    """
    parts: list[str | Section] = []
    lines: list[str] = []
    open_mark = None
    for number, line in enumerate(body.split("\n"), first_line):
        begin, end = (mark.fullmatch(line.strip()) for mark in (BEGIN, END))
        is_expected = (begin and not open_mark) or (end and open_mark and end["name"] == open_mark["name"])
        if MARK.search(line) and not is_expected:
            inside = f" inside the section {open_mark['name']!r}" if open_mark else ""
            raise CardError(
                f"README.md, line {number}: the mark {line.strip()!r}{inside} is damaged or out of place, expected "
                "`<!-- internvlx:begin NAME DIGEST -->` and then `<!-- internvlx:end NAME -->`, each on a line of its own. "
                "Mend the mark, or delete the section with both its marks to have it generated again."
            )
        if begin or end:
            text = "\n".join(lines).strip("\n")
            parts.append(Section(open_mark["name"], text, open_mark["digest"]) if end else text)
            open_mark, lines = begin, []
        else:
            lines.append(line)
    if open_mark:
        raise CardError(
            f"README.md: the section {open_mark['name']!r} begins and does not end, expected "
            f"`<!-- internvlx:end {open_mark['name']} -->` behind it."
        )
    names = [part.name for part in parts if isinstance(part, Section)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CardError(f"README.md: the section {twice[0]!r} stands there twice. Delete one with both its marks.")
    return [part for part in (*parts, "\n".join(lines).strip("\n")) if part]


def _renew_sections(parts: list[str | Section], sections: dict[str, str]) -> tuple[list[str | Section], list[str]]:
    """The parts with new sections in the place of old ones, and the names of those that a person changed."""
    texts = {name: _without_marks(text).strip("\n") for name, text in sections.items() if text}
    fresh = {name: Section(name, text, _digest(text)) for name, text in texts.items()}
    if any(isinstance(part, str) and re.search(r"^# ", part, re.MULTILINE) for part in parts):
        fresh.pop(TITLE, None)
    renewed: list[str | Section] = []
    for part in parts:
        if isinstance(part, str) or part.is_edited:
            renewed.append(part)
        elif part.name in fresh:
            renewed.append(fresh[part.name])
    for name, section in fresh.items():
        places = {part.name: place for place, part in enumerate(renewed) if isinstance(part, Section)}
        if name not in places:
            renewed.insert(_place(name, list(fresh), places, len(renewed)), section)
    return renewed, [part.name for part in renewed if isinstance(part, Section) and part.is_edited]


def _without_marks(text: str) -> str:
    """A generated text in which a name that holds a mark shows it, and is none."""
    return MARK.sub(lambda match: match[0].replace("internvlx:", "internvlx&#58;"), text)


def _place(name: str, order: list[str], places: dict[str, int], end: int) -> int:
    before = [places[other] for other in order[: order.index(name)] if other in places]
    behind = [places[other] for other in order[order.index(name) :] if other in places]
    return before[-1] + 1 if before else behind[0] if behind else end


def _digest(value) -> str:
    """Eight hexadecimal digits of a text, whitespace at its ends aside, or of a value of the metadata."""
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
