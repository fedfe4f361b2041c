# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How much a model can save on its user's images before its answers change."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from ..chat.answers import model_settings
from ..chat.loading import load_answerer
from ..checkpoints.atomic_folder import refuse_existing, resolve_out
from ..checkpoints.folders import require_apart, source_name
from ..checkpoints.numbers import FLOP_UNITS, counted, duration, scaled
from ..conversion import ConversionOptions, convert_checkpoint
from ..conversion.upgrades import build_upgrade
from ..cost import CostModel, ModelSetup
from ..evaluation.answering import Answerer
from ..modeling import InternVLXConfig
from .answers import Asker
from .items import Item, Items, load_items
from .options import TuneOptions, split_options
from .report import CERTIFIED, NOISY, NOTHING, Row, TuneReport, certificate, make_row, verdict_on
from .search import handful, most_changed, search
from .settings import OWN, Costs, Setting, changed_config, named

KEEP = 0.98  # the promise that a first look is measured against
FIRST_LOOK = 20  # images
MOST_NOISE = 32  # images that are read twice
BATCH_SIZE_ON_GPU = 8
ANSWERS, REPORT, PAGE, PICTURE = "answers.jsonl", "tune.json", "index.html", "tune.png"

Say = Callable[[str], None]


def tune(
    model: str,
    images: Sequence[str | os.PathLike | PIL.Image.Image] = (),
    *,
    say: Say = print,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    **options,
) -> TuneReport:
    """Measure how much cheaper image settings change a model's greedy answers; the model itself is the reference.

    Without `keep`, a first look: a handful of settings on at most 20 images. With it, a search on half of all images,
    whose result is certified on the other half, with exact bounds at 95 % confidence. Answers are stored in `out` as
    they are given; a later call with the same arguments goes on.

    Args:
        model: a checkpoint's folder or Hub id, as for `internvlx chat`.
        images: files, folders, patterns, PDFs (each page is an image) or Pillow images.
        say: called with each line of information for the user.
        revision: branch, tag or commit on the Hub; `device`, `dtype`, `attn_implementation`: see `chat.Choice`.
        options: fields of [`TuneOptions`]: `question`, `data`, `keep`, `out`, `save`, `accept_estimate`, `overwrite`,
            `skip_broken`, `most`, `metric`, `batch_size`, `max_new_tokens`; further arguments of `generate`, without
            sampling and beams.

    Raises:
        ValueError: if an argument is invalid or images cannot be read. This is checked before the model is loaded.
        FileExistsError: if `out` or `save` holds something else.
    """
    chosen, generation = split_options(options)
    if chosen.data is not None and len(images):
        raise ValueError(f"data={str(chosen.data)!r} has its own images: leave out {len(images)} images.")
    folder = _output_folder(Path(chosen.out))
    if chosen.save is not None:
        _require_apart(folder, chosen.save)
        refuse_existing(resolve_out(chosen.save), chosen.overwrite)
        require_apart(resolve_out(chosen.save), model)
    try:
        from .page import draw, write_page
    except ImportError as error:
        raise ValueError(str(error)) from error
    most = chosen.most or (None if chosen.keep is not None else FIRST_LOOK)
    given = load_items(images, chosen.question, chosen.data, chosen.skip_broken, most)
    answerer = load_answerer(
        model, revision, say=say, device=device, dtype=dtype, attn_implementation=attn_implementation
    )
    folder.mkdir(parents=True, exist_ok=True)
    tuning = _tuning(model, answerer, given, folder, chosen, generation, say)
    try:
        report = tuning.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the answers so far are in {folder}, where the same call goes on") from None
    report.model = f"{source_name(model)} on {_place(answerer)}"
    report.asked = repr(chosen.question) if chosen.data is None else Path(chosen.data).name
    report.listed = given.listed
    report.notes = [*given.notes(), *_unused(given, chosen)]
    if chosen.save is not None:
        _save(report, model, answerer.model.config, chosen, revision)
    _write(folder, report, draw(report), write_page(report, _changed_images(report, _flat(tuning.units))))
    return report


def _place(answerer: Answerer) -> str:
    return f"{answerer.model.device.type}, {str(answerer.model.dtype).removeprefix('torch.')}"


def _tuning(
    model: str, answerer: Answerer, given: Items, folder: Path, options: TuneOptions, generation: dict, say: Say
) -> "Tuning":
    units = _shuffled(given)
    asker = Asker(
        answerer,
        Costs(answerer, _flat(units)),
        folder / ANSWERS,
        {**model_settings(model, answerer), "runs": _place(answerer)},
        options.batch_size or (1 if answerer.model.device.type == "cpu" else BATCH_SIZE_ON_GPU),
        max_new_tokens=options.max_new_tokens,
        **generation,
    )
    is_look, keep = options.keep is None, options.keep or KEEP
    return Tuning(asker, units, keep, options.metric, is_look, say)


@dataclass
class Tuning:
    """A tuning of a loaded model.

    Args:
        asker: asks the model, and keeps its answers.
        units: the questions, by images; the first half chooses, the other half certifies.
        keep: the share of images that are to keep their answers.
        metric: of answers, where the data have any.
        is_look: try a handful of settings on all images instead of searching.
        say: called with each line of information for the user.
    """

    asker: Asker
    units: list[list[Item]]
    keep: float
    metric: str = "exact_match"
    is_look: bool = False
    say: Say = print

    def __post_init__(self):
        if len(self.units) < 2:
            raise ValueError("There is 1 image, expected at least 2: one half to choose on, the other to certify.")
        half = len(self.units) // 2
        self.choosing, self.held_out = self.units[:half], self.units[half:]
        self.allowed = most_changed(half, len(self.held_out), self.keep)
        self.tried: dict[Setting, int] = {}  # on how many units

    def run(self) -> TuneReport:
        """Measure the noise floor, choose on one half, certify on the other."""
        noise = self._noise()
        is_noisy = noise["changed"] > (1 - self.keep) * noise["images"] + 1e-9
        chosen = OWN
        if self.is_look:
            chosen = self._look()
        elif not is_noisy:
            chosen = search(self.asker.costs, len(self.choosing), self.allowed, self.measure)
        found = None
        if chosen != OWN and not is_noisy:
            self.asker.ask([chosen], _flat(self.held_out), f"Certifying {named(chosen)}")
            self.tried[chosen] = len(self.units)
            found = certificate(len(self.held_out) - self._changed(chosen, self.held_out), len(self.held_out))
        return self._report(noise, is_noisy, chosen, found)

    def measure(self, settings: Sequence[Setting], count: int) -> list[int]:
        """How many of the first `count` units of the choosing half change their answers under each setting."""
        units = self.choosing[:count]
        self.asker.ask(settings, _flat(units), f"{counted(len(settings), 'setting')} on {count} images")
        self.tried |= {setting: max(count, self.tried.get(setting, 0)) for setting in settings}
        return [self._changed(setting, units) for setting in settings]

    def _noise(self) -> dict[str, Any]:
        started = time.perf_counter()
        twice = self.choosing[:MOST_NOISE]
        first = self.units if self.is_look else self.choosing
        self.asker.ask([], _flat(first), "The model's own settings")
        reading = self.asker.ask_again(_flat(twice))
        changed = sum(not all(self.asker.compare(OWN, item, reading).same for item in unit) for unit in twice)
        if self.asker.asked:
            self._say_estimate(time.perf_counter() - started)
        return {"reading": reading, "images": len(twice), "changed": changed}

    def _say_estimate(self, seconds: float) -> None:
        """What the rest takes at most, as so much work took so many seconds so far."""
        costs = self.asker.costs
        settings = handful(costs) if self.is_look else [s for axis in costs.axes for s in costs.cheaper(OWN, axis)]
        count = len(self.units) if self.is_look else len(self.choosing)
        more = sum(map(costs.flops, settings)) * count
        more += 0 if self.is_look else 2 * costs.flops(OWN) * len(self.held_out)
        rate = seconds / (costs.flops(OWN) * self.asker.asked)
        named = counted(len(settings), "cheaper setting")
        self.say(f"{named}: about {duration(rate * more)}, less where answers can be shared")

    def _look(self) -> Setting:
        """The cheapest setting of a handful that passes on the choosing half; all are asked about all images."""
        settings = handful(self.asker.costs)
        self.asker.ask(settings, _flat(self.units), counted(len(settings), "cheaper setting"))
        self.tried |= dict.fromkeys(settings, len(self.units))
        passing = [each for each in settings if self._changed(each, self.choosing) <= self.allowed]
        return passing[0] if passing else OWN

    def _changed(self, setting: Setting, units: Sequence[list[Item]]) -> int:
        return sum(not all(self.asker.compare(setting, item).same for item in unit) for unit in units)

    def _report(self, noise: dict, is_noisy: bool, chosen: Setting, found: dict | None) -> TuneReport:
        costs = self.asker.costs
        own = self._row(OWN, len(self.units) if self.is_look or found else len(self.choosing))
        rows = {each: self._row(each, count) for each, count in self.tried.items()}
        ordered = [own, *(rows[each] for each in sorted(rows, key=costs.flops, reverse=True))]
        if is_noisy:
            verdict, sentences = NOISY, [self._noisy(noise)]
        elif found is None:
            verdict, sentences = NOTHING, [self._nothing(list(rows.values())), training_hint(costs)]
        else:
            verdict, sentences = verdict_on(rows[chosen], own, found, self.keep, len(self.units))
            # else the held-out half contradicts the choice
            is_kept = rows[chosen].same >= self.keep * rows[chosen].asked
        return TuneReport(
            model="",
            asked="",
            keep=self.keep,
            images=len(self.units),
            listed=len(self.units),
            held_out=len(self.held_out),
            noise=noise,
            rows=ordered,
            verdict=verdict,
            sentences=sentences,
            recommended=chosen.changes if found and is_kept else None,
            certificate=found,
            metric=self.metric if own.score is not None else None,
        )

    def _row(self, setting: Setting, count: int) -> Row:
        return make_row(self.asker, setting, self.units[:count], self.metric)

    def _noisy(self, noise: dict) -> str:
        return (
            f"noisy: read again {noise['reading']}, the model changes its own answers about {noise['changed']} of "
            f"{noise['images']} images, more than {1 - self.keep:.2g} of them; no setting can keep more"
        )

    def _nothing(self, rows: list[Row]) -> str:
        if not rows:
            return "nothing to save: no image setting is cheaper on these images"
        best = max(rows, key=lambda row: row.same / row.asked)
        choosing, held_out = len(self.choosing), len(self.held_out)
        return (
            f"nothing to save: every cheaper setting changed the answers about more than {self.allowed} of the "
            f"{choosing} images to choose on, all that {self.keep:g} allows with {held_out} held out; the nearest, "
            f"{best.name}, kept {best.same} of {best.asked}"
        )


def training_hint(costs: Costs) -> str:
    """What a trained projector with a quarter of the tokens would cost on the same images."""
    config = costs.own.config
    ratio = config.downsample_ratio / 2
    projector = "keep" if config.projector_config.projector_type == "pvtc" else "pvtc"
    try:
        smaller, _ = build_upgrade(config, ConversionOptions(projector=projector, downsample_ratio=ratio))
        setup = ModelSetup("trained", smaller, costs.own.tiling, settings=costs.own.settings)
        model = CostModel(setup)
        flops = sum(model.together(sizes).prefill_flops for sizes in costs.sizes.values()) / len(costs.sizes)
    except ValueError:
        return "training a smaller projector could save more: see `internvlx convert --help`"
    options = f"--projector {projector} --downsample-ratio 1/{round(1 / ratio)}"
    return (
        f"training could save: `internvlx convert` with {options}, then `internvlx train`, takes "
        f"{scaled(flops, FLOP_UNITS)} instead of {scaled(costs.flops(OWN), FLOP_UNITS)}"
    )


def _output_folder(folder: Path) -> Path:
    """Hidden files, such as the part of a report whose writing was stopped, are left alone.

    Raises:
        FileExistsError: if the folder holds anything else but an earlier tuning.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, expected a folder for the report.")
    known = {ANSWERS, REPORT, PAGE, PICTURE}
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    others = sorted(name for name in names if name not in known and not name.startswith("."))
    if others:
        raise FileExistsError(
            f"{folder} holds something else: {', '.join(others[:5])}. Choose an empty or new folder with --out."
        )
    return folder


def _require_apart(folder: Path, save: str) -> None:
    """Raises: FileExistsError: if the folders of the report and of the checkpoint are in one another."""
    out, saved = resolve_out(folder), resolve_out(save)
    if out == saved or out in saved.parents or saved in out.parents:
        raise FileExistsError(
            f"--save={str(save)!r} and --out={str(folder)!r} are in one another. Choose separate folders."
        )


def _shuffled(items: Items) -> list[list[Item]]:
    """The units in an order that depends on their pixels only."""
    ordered = sorted(items.units.items(), key=lambda unit: hashlib.sha256(f"order {unit[0]}".encode()).digest())
    return [unit for _, unit in ordered]


def _flat(units: Sequence[list[Item]]) -> list[Item]:
    return [item for unit in units for item in unit]


def _unused(given: Items, options: TuneOptions) -> list[str]:
    used = sum(map(len, given.units.values())) + given.copies + len(given.broken)
    if used == given.listed:
        return []
    hint = f"; --keep {KEEP} asks about all" if options.keep is None and options.most is None else ""
    return [f"{used} of {given.listed} images were used{hint}."]


def _changed_images(report: TuneReport, items: Sequence[Item]) -> dict[str, PIL.Image.Image]:
    from .page import SHOWN

    names = {change["image"] for row in report.rows for change in row.changed[:SHOWN]}
    return {item.name: item.open()[0] for item in items if item.name in names}


def _save(report: TuneReport, model: str, config: InternVLXConfig, options: TuneOptions, revision: str | None) -> None:
    """Write a checkpoint whose image settings are the certified ones, the estimated ones if asked for, or the
    source's.
    """
    settings, rests_on = report.recommended or {}, report.verdict
    if report.verdict != CERTIFIED:
        settings = settings if options.accept_estimate else {}
        rests_on = "estimate" if settings else "source"
    words = {
        CERTIFIED: "The image settings are those that `internvlx tune` certified.",
        "estimate": "The image settings are those that `internvlx tune` recommended by an estimate; they are not "
        "certified.",
        "source": "The image settings are the source's: `internvlx tune` certified no cheaper ones.",
    }[rests_on]
    note = f"{words} It reported: {'; '.join(report.sentences)}."
    size, layer = settings.get("tokens_per_tile"), settings.get("merge_layer")
    changed = {name: value for name, value in settings.items() if name not in ("tokens_per_tile", "merge_layer")}
    if layer is not None:
        changed |= {"tokens_per_tile": changed_config(config, Setting(**settings)).tokens_per_tile, "merge_at": layer}
    conversion = ConversionOptions(revision=revision, overwrite=options.overwrite, **changed)
    convert_checkpoint(model, options.save or "", conversion, notes=[note], size=size)
    report.saved = {"folder": Path(options.save or "").name, "settings": settings, "rests_on": rests_on}


def _write(folder: Path, report: TuneReport, figure, page: str) -> None:
    """Write the files of a report, each of them whole or not at all."""
    from ..pictures.canvas import save

    save(figure, folder / PICTURE)
    for name, text in ((PAGE, page), (REPORT, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")):
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / name)
