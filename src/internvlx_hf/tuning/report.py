# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a tuning found: a table, the answers that changed, and one sentence that promises no more than the images
allow.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from .. import __version__
from ..checkpoints.numbers import FLOP_UNITS, scaled, unit
from ..cost.report import table
from .answers import Agreement, Asker
from .bounds import CONFIDENCE, interval, lower_bound, needed
from .items import Item
from .scores import SCORES
from .settings import OWN, Setting, named

CERTIFIED, CANNOT_TELL, NOTHING, NOISY = "certified", "cannot tell", "nothing to save", "noisy"
SHOWN = 3  # changed answers of a setting
LONGEST = 60  # characters of an answer in the table


@dataclass
class Row:
    """A setting that was tried.

    Args:
        settings: what it changes about the model's image settings.
        name: the same in words.
        tiles, tokens, flops: means over all questions: tiles and visual tokens of a prompt, FLOPs before the first
            token.
        seconds: mean over the answers that were given.
        asked, same: images that it was tried on, and those of which all answers stayed the same.
        common: mean number of tokens until the first difference, of the answers that changed; None if none did.
        divergence: mean KL divergence per token, see [`Agreement`].
        score: mean of the metric, where the data have answers.
        changed: answers that changed: the image's name, the answer before and after.
    """

    settings: dict[str, Any]
    name: str
    tiles: float
    tokens: float
    flops: float
    seconds: float
    asked: int
    same: int
    common: float | None
    divergence: float
    score: float | None
    changed: list[dict[str, str]]

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided interval of the share of images that keep their answers."""
        return interval(self.same, self.asked)


@dataclass
class TuneReport:
    """What a tuning found, as saved in `tune.json`.

    Args:
        model: the model's name, and where it ran.
        asked: the question, or the file of records.
        keep: the share of images that are to keep their answers.
        images, listed: images that were used, and images or records that were given.
        held_out: how many of them were kept for the certificate.
        noise: the second reading of the model itself: `reading`, `images`, `changed`.
        rows: the settings that were tried, the model's own first.
        verdict: "certified", "cannot tell", "nothing to save" or "noisy".
        sentences: what that means.
        recommended: settings that are certified or, if it cannot be told, those with the best estimate; None
            otherwise.
        certificate: of the recommended settings on the held-out images: `same`, `images`, `share`.
        metric: of the rows' `score`.
        notes: what was left out.
        saved: what was written with `save`: `folder`, `settings`, and what they rest on.
    """

    model: str
    asked: str
    keep: float
    images: int
    listed: int
    held_out: int
    noise: dict[str, Any]
    rows: list[Row]
    verdict: str
    sentences: list[str]
    recommended: dict[str, Any] | None
    certificate: dict[str, Any] | None
    metric: str | None = None
    notes: list[str] = field(default_factory=list)
    saved: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"internvlx_hf": __version__, "confidence": CONFIDENCE, **asdict(self)}

    def to_text(self, width: int | None = None) -> str:
        """The table, the first answers that changed under each setting, and the verdict."""
        lines = [f"{self.images} images, {self.model}; {self.asked}", self.noise_line(), "", self._table(width)]
        for row in self.rows:
            if row.changed:
                lines += ["", f"changed with {row.name}:", *map(_side_by_side, row.changed[:SHOWN])]
        return "\n".join([*lines, "", *self.sentences, *self.notes])

    def noise_line(self) -> str:
        same = self.noise["images"] - self.noise["changed"]
        return (
            f"noise floor: {same} of {self.noise['images']} images keep their answers with the same settings "
            f"{self.noise['reading']}"
        )

    def _table(self, width: int | None) -> str:
        name, size = unit([row.flops for row in self.rows], FLOP_UNITS)
        header = ["   setting", "tokens", name, "seconds", "same", *([self.metric] if self.metric else [])]
        cells = []
        for row in self.rows:
            mark = "->" if row.settings == self.recommended else "  "
            numbers = [
                f"{row.tokens:,.0f}",
                f"{row.flops / size:,.2f}",
                f"{row.seconds:.2f}",
                f"{row.same}/{row.asked}",
            ]
            cells.append([f"{mark} {row.name}", *numbers, *([] if row.score is None else [f"{row.score:.2f}"])])
        return table(header, cells, (0,), width, ["seconds"], elastic=0)


def make_row(asker: Asker, setting: Setting, units: Sequence[Sequence[Item]], metric: str) -> Row:
    """The row of a setting, from the answers about these units."""
    items = [item for unit_items in units for item in unit_items]
    everything = [asker.costs.model(setting).together(sizes) for sizes in asker.costs.sizes.values()]
    answers = {item.key: asker.answer(setting, item) for item in items}
    agreements: dict[str, Agreement] = {item.key: asker.compare(setting, item) for item in items}
    changed = [item for item in items if not agreements[item.key].same]
    scored = [(answers[item.key]["answer"], item.reference) for item in items if item.reference is not None]
    return Row(
        settings=setting.changes,
        name=named(setting),
        tiles=fmean(cost.tiles for cost in everything),
        tokens=fmean(cost.stage_one_tokens for cost in everything),
        flops=fmean(cost.prefill_flops for cost in everything),
        seconds=fmean(line["seconds"] for line in answers.values()),
        asked=len(units),
        same=sum(all(agreements[item.key].same for item in unit_items) for unit_items in units),
        common=fmean(agreements[item.key].common for item in changed) if changed else None,
        divergence=fmean(agreement.divergence for agreement in agreements.values()),
        score=fmean(SCORES[metric](answer, reference) for answer, reference in scored) if scored else None,
        changed=[
            {
                "image": item.name,
                "before": asker.answer(OWN, item)["answer"],
                "after": answers[item.key]["answer"],
            }
            for item in changed
        ],
    )


def certificate(same: int, count: int) -> dict[str, Any]:
    """What the held-out images certify."""
    return {"same": same, "images": count, "share": lower_bound(same, count)}


def verdict_on(row: Row, own: Row, found: dict[str, Any], keep: float, images: int) -> tuple[str, list[str]]:
    """The verdict and its sentences about the chosen setting, from its certificate."""
    same, count, share = found["same"], found["images"], found["share"]
    cost = f"{scaled(row.flops, FLOP_UNITS)} instead of {scaled(own.flops, FLOP_UNITS)}"
    if share >= keep:
        return CERTIFIED, [
            f"certified: {row.name}: {same} of {count} held-out images keep their answers, so that at least "
            f"{share:.3f} of images like these do, with {CONFIDENCE:.0%} confidence; {cost}"
        ]
    estimate = f"by the estimate: {row.name}: {row.same} of {row.asked} images keep their answers; {cost}"
    most = lower_bound(count, count)
    if most < keep:
        least = needed(keep)
        return CANNOT_TELL, [
            f"cannot tell: the {count} held-out of your {images} images certify at most {most:.2f}; {keep:g} needs "
            f"{least}, {2 * least} in all",
            estimate,
        ]
    return CANNOT_TELL, [
        f"cannot tell: {same} of the {count} held-out of your {images} images keep their answers with {row.name}, "
        f"which certifies {share:.2f}, not {keep:g}",
        estimate,
    ]


def _side_by_side(change: dict[str, str]) -> str:
    before, after = (_shortened(change[name]) for name in ("before", "after"))
    return f"   {change['image']}: {before!r} -> {after!r}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
