# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The report of `internvlx cost`, as text for a terminal, as JSON and as CSV."""

import csv
import io
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..checkpoints.numbers import BYTE_UNITS, FLOP_UNITS, PARAMETER_UNITS, counted, scaled, unit
from ..processing.rvtc import SLICING_STRATEGIES, SLICING_WORDS, TilePlan
from .estimate import Cost, CostModel
from .flops import STAGE_ONE, STAGES
from .images import ImageSizes

MOST_LISTED = 20  # more images than this are not listed one by one in a terminal
BAR, BLOCKS = 14, " ▏▎▍▌▋▊▉█"
SUMMARY_WIDTH = 80  # characters
LEAST_NAME = 24  # characters that an image's name keeps before other columns are left out


@dataclass
class Report:
    """The cost of images with several setups, of which the first is the requested one.

    Args:
        images: names and sizes of the images.
        models: cost models, one per setup.
        together: put all images into one prompt instead of one prompt each (default: no).
        notes: setups that are left out, and why.
        width: maximum characters per line of [`to_text`], where narrow tables have fewer columns (default: no limit).
    """

    images: ImageSizes
    models: list[CostModel]
    together: bool = False
    notes: tuple[str, ...] = ()
    width: int | None = None

    def __post_init__(self):
        found = {}
        for model in self.models:
            try:
                found[model] = self._costs_with(model)
            except ValueError as error:  # fewer images fit the budget where a tile has more tokens
                if not found:
                    raise
                self.notes += (f"{model.setup.name}: {error}",)
        self.models, self.costs = list(found), list(found.values())

    def _costs_with(self, model: CostModel) -> list[Cost]:
        sizes = self.images.sizes
        return [model.together(sizes)] if self.together else model.of_sizes(sizes)

    @property
    def prompt_names(self) -> list[str]:
        return [f"{len(self.images.names)} images together"] if self.together else self.images.names

    def to_summary(self) -> str:
        """At most eight lines of 80 characters, and the [`remarks`]: a row for each setup, named by its slicing."""
        averages = [_average(costs) for costs in self.costs]
        flops, flop = unit([cost.prefill_flops for cost in averages], FLOP_UNITS)
        memory, byte = unit([cost.weight_bytes for cost in averages], BYTE_UNITS)
        rows = {}
        for model, costs, mean in zip(self.models, self.costs, averages, strict=True):
            slicing = model.setup.tiling.slicing
            tokens = [f"{count:,.0f}" for count in (mean.stage_one_tokens, mean.stage_two_tokens)]
            rows[slicing] = [
                f"{'->' if model is self.models[0] else '  '} {slicing}",
                SLICING_WORDS[slicing],
                f"{mean.tiles:.4g}",
                " -> ".join(tokens[: 1 + model.setup.has_lvtc]),
                f"{mean.prefill_flops / flop:,.2f}",
                f"{max(cost.peak_bytes for cost in costs) / byte:,.2f}",
            ]
        width = min(self.width or SUMMARY_WIDTH, SUMMARY_WIDTH)
        header = ["   slicing", "", "tiles", "tokens", flops, memory]
        ordered = [rows[slicing] for slicing in reversed(SLICING_STRATEGIES) if slicing in rows]
        shown = table(header, ordered, (0, 1), width, [memory, ""])
        foot = f"{flops}: work before the first token."
        if memory in shown:
            foot += f" {memory}: weights and peak memory (estimate)."
        lines = [foot, "--full has more: each image, each part of the model, other methods.", *self.remarks()]
        lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
        return "\n".join([self._summary_title(width), shown, *lines])

    def _summary_title(self, width: int) -> str:
        model, sizes = self.models[0], self.images.sizes
        tile = f"{model.setup.tiling.tile_width}x{model.setup.tiling.tile_height} pixels"
        rest = f", {_without_middle(model.setup.name, LEAST_NAME)}; a tile: {tile}, {model.tile_tokens} tokens"
        if model.setup.max_image_tokens is not None:
            rest = (
                f", {_without_middle(model.setup.name, LEAST_NAME)}; at most {model.setup.max_image_tokens:,} tokens"
            )
        if len(sizes) > 1:
            return (
                f"{len(sizes):,} images in one prompt" if self.together else f"Mean of {len(sizes):,} images"
            ) + rest
        size = "x".join(map(str, sizes[0]))
        if self.images.names[0] == size:
            return size + rest
        return f"{_without_middle(self.images.names[0], max(8, width - len(size + rest) - 2))}, {size}{rest}"

    def to_text(self) -> str:
        parts = [self._head(), self._comparison()]
        if len(self.images.names) <= MOST_LISTED and not self.together:
            parts.append(self._listing())
        elif len(self.images.names) <= MOST_LISTED and self.models[0].setup.max_image_tokens is not None:
            parts.append(self._shares())
        if len(self.images.names) > 1:
            parts.append(self._histogram())
        parts.append(self._modules())
        if remarks := self.remarks():
            parts.append("\n".join(map(self._wrapped, remarks)))
        return "\n\n".join(parts)

    def _head(self) -> str:
        model = self.models[0]
        parameters = f"{scaled(model.parameters, PARAMETER_UNITS)} parameters"
        if model.sizes.active_parameters < model.parameters:
            parameters += f" ({scaled(model.sizes.active_parameters, PARAMETER_UNITS)} active per token)"
        tokens = model.setup.tokens_of_tiles(f" of {model.sizes.text_config.num_hidden_layers}")
        dtype = model.dtype
        weights = scaled(self.costs[0][0].weight_bytes, BYTE_UNITS)
        lines = [
            f"{model.setup.name}: {parameters}, {weights} in {dtype}; {tokens}",
            f"A prompt has {'all images' if self.together else 'one image'} and {model.text_tokens} tokens of text, "
            f"an answer {model.answer_tokens} tokens.",
        ]
        if model.setup.max_image_tokens is not None:
            lines.append(
                f"The images of a prompt share a budget of {model.setup.max_image_tokens:,} visual tokens; native "
                "InternVL has none."
            )
        return "\n".join(map(self._wrapped, lines))

    def _wrapped(self, line: str) -> str:
        if self.width is None:
            return line
        return textwrap.fill(line, self.width, break_long_words=False, break_on_hyphens=False)

    def _comparison(self) -> str:
        averages = [_average(costs) for costs in self.costs]
        flops = unit([cost.prefill_flops for cost in averages], FLOP_UNITS)
        answer = unit([cost.answer_flops for cost in averages], FLOP_UNITS)
        cache = unit([cost.cache_bytes for cost in averages], BYTE_UNITS)
        memory = unit([cost.weight_bytes for cost in averages], BYTE_UNITS)
        split = " " if self.width is None else "\n"
        header = ["", "slicing", "max", "projector", "LVTC", "tiles", "tokens", f"stage{split}two"]
        names = (("prefill", flops[0]), ("answer", answer[0]), ("cache", cache[0]), ("peak", f"{memory[0]}*"))
        header += [split.join(name) for name in names]
        rows = []
        for i, (model, costs, mean) in enumerate(zip(self.models, self.costs, averages, strict=True)):
            setup, tiling = model.setup, model.setup.tiling
            expanded = f"{mean.stage_two_tokens:,.0f}" if setup.has_lvtc else "-"
            tiles = f"{mean.tiles:.3f}" if len(costs) > 1 else str(costs[0].tiles)
            label = "-> this model" if i == 0 else "   native" if setup.is_native else ""
            label = label if self.width is None else label.replace(" this model", "").strip()
            lvtc, tokens = "on" if setup.has_lvtc else "off", f"{mean.stage_one_tokens:,.0f}"
            peak = max(cost.peak_bytes for cost in costs)
            numbers = [
                f"{mean.prefill_flops / flops[1]:,.2f}",
                f"{mean.answer_flops / answer[1]:,.2f}",
                f"{mean.cache_bytes / cache[1]:,.1f}",
                f"{peak / memory[1]:,.2f}",
            ]
            cut = (tiling.slicing, tiling.max_tiles)
            rows.append([label, *cut, setup.projector, lvtc, tiles, tokens, expanded, *numbers])
        count = len(self.costs[0])
        foot = "* estimated: weights and activations of a prefill, without the overhead of allocator and CUDA"
        less_wanted = ["LVTC", *header[9:11], "tiles", *header[11:], "max"]  # without LVTC "stage two" has a dash
        shown = table(header, rows, (0, 1, 3, 4), self.width, less_wanted)
        has_peak = "*" in shown
        averages_of = f": averages of {count:,} images" + ", and the largest peak" * has_peak
        title = self._wrapped("Side by side" + averages_of * (count > 1))
        return "\n".join([title, shown, *[self._wrapped(foot)] * has_peak])

    def _listing(self) -> str:
        costs = self.costs[0]
        flops = unit([cost.prefill_flops for cost in costs], FLOP_UNITS)
        cache = unit([cost.cache_bytes for cost in costs], BYTE_UNITS)
        rows = []
        for name, size, cost in zip(self.images.names, self.images.sizes, costs, strict=True):
            (plan,) = self.models[0].plans([size])
            tokens = f"{cost.stage_one_tokens:,}"
            changes = self.models[0].setup.has_lvtc or cost.stage_two_tokens != cost.stage_one_tokens
            tokens += f" -> {cost.stage_two_tokens:,}" if changes else ""
            numbers = (f"{cost.prefill_flops / flops[1]:,.2f}", f"{cost.cache_bytes / cache[1]:,.1f}")
            rows.append([name, f"{size[0]}x{size[1]}", _grid(plan), cost.tiles, tokens, *numbers])
        header = ["image", "size", "grid", "tiles", "tokens", f"prefill {flops[0]}", f"cache {cache[0]}"]
        shown = table(header, rows, (0, 2), self.width, [header[6], "grid", "size", header[5]], elastic=0)
        return f"Each image with this model\n{shown}"

    def _shares(self) -> str:
        """How the images of a prompt share its budget of tokens."""
        model, sizes = self.models[0], self.images.sizes
        rows = [
            [
                name,
                f"{size[0]}x{size[1]}",
                _grid(plan),
                plan.num_tiles,
                f"{sum(model.sizes.tiles[tile].in_stages[0] for tile in tiles):,}",
            ]
            for name, size, (plan, tiles) in zip(self.images.names, sizes, model.sized_plans(sizes), strict=True)
        ]
        shown = table(
            ["image", "size", "grid", "tiles", "tokens"], rows, (0, 2), self.width, ["grid", "size"], elastic=0
        )
        return f"Each image's share of the budget\n{shown}"

    def _histogram(self) -> str:
        """Shares of the images by number of tiles, with a column of bars for each slicing strategy."""
        sizes, setup = self.images.sizes, self.models[0].setup
        tiling, shares = setup.tiling, {}
        for slicing in reversed(SLICING_STRATEGIES):
            sliced = CostModel(replace(setup, tiling=replace(tiling, slicing=slicing)))
            plans = sliced.plans(sizes) if self.together else [plan for size in sizes for plan in sliced.plans([size])]
            shares[slicing] = Counter(plan.num_tiles for plan in plans)
        rows = []
        # beside its bar a strategy has a share of at most 4 characters and two gaps
        most = BAR if self.width is None else max(4, min(BAR, (self.width - len("tokens")) // len(shares) - 8))
        largest = max(max(counts.values()) for counts in shares.values()) / len(sizes)
        for tiles in sorted(set().union(*shares.values())):
            row: list = [tiles]
            for counts in shares.values():
                share = counts[tiles] / len(sizes)
                row += [bar(share / largest, most), f"{share:.0%}" if counts[tiles] else ""]
            rows.append(row)
        means = [sum(tiles * n for tiles, n in counts.items()) / len(sizes) for counts in shares.values()]
        tokens = self.models[0].tile_tokens
        rows.append(["mean", *(cell for mean in means for cell in (f"{mean:.3f}", ""))])
        rows.append(["tokens", *(cell for mean in means for cell in (f"{mean * tokens:,.0f}", ""))])
        header = ["tiles", *(cell for slicing in shares for cell in (slicing, ""))]
        title = f"Images by number of tiles, thumbnail included; at most {tiling.max_tiles} without it"
        return f"{self._wrapped(title)}\n{table(header, rows, left=(1, 3, 5))}"

    def _modules(self) -> str:
        cost = _average(self.costs[0])
        total, (name, divisor) = cost.prefill_flops, unit([cost.prefill_flops], FLOP_UNITS)
        labels = {stage: f"language model, {stage.rpartition('.')[2].replace('_', ' ')}" for stage in STAGES}
        if not self.models[0].sizes.boundaries:
            labels[STAGE_ONE] = "language model"
        rows = [
            [labels.get(module, module), f"{count / divisor:,.3f}", f"{count / total:.1%}"]
            for module, count in cost.flops.items()
            if count or module == "lm_head"
        ]
        rows.append(["prefill", f"{total / divisor:,.3f}", "100.0%"])
        mean = ", on average" if len(self.costs[0]) > 1 else ""
        title = self._wrapped(f"Where the prefill's FLOPs go in this model{mean}")
        return f"{title}\n{table(['module', name, 'share'], rows, (0,), self.width, elastic=0)}"

    def remarks(self) -> list[str]:
        """What the numbers do not say: a line for each kind of image or setup that they lack or that exceeds a
        limit.
        """
        images, lines, sizes = self.images, self._past_limits(), self.models[0].sizes
        if "tile_router" in sizes.tile_flops:
            large, small = sizes.tiles
            lines.append(
                f"Upper bounds: the tile router gives a tile {small} tokens instead of {large} where its content "
                "allows it."
            )
        lines += [f"Left out: {note}" for note in self.notes]
        lines += [f"Skipped: {why}" for why in images.broken.values()]
        if images.ignored:
            endings = sorted({name.rpartition(".")[2] for name in images.ignored})
            kinds = ", ".join(endings[:5]) + (", ..." if len(endings) > 5 else "")
            lines.append(f"Ignored: {counted(len(images.ignored), 'file')} of other kinds in the folders ({kinds}).")
        return lines

    def _past_limits(self) -> list[str]:
        """A line for each setup with which prompts exceed the language model's positions."""
        lines = []
        for model, costs in zip(self.models, self.costs, strict=True):
            limit, count = model.sizes.position_limit, _past_limit(model, costs)
            if count:
                tiling, lvtc = model.setup.tiling, "with" if model.setup.has_lvtc else "without"
                lines.append(
                    f"Over the limit: {count:,} of {len(costs):,} prompts with their answer, with slicing "
                    f"{tiling.slicing!r}, at most {tiling.max_tiles} tiles, {model.setup.projector} and {lvtc} LVTC, "
                    f"take up to {max(cost.positions for cost in costs):,} positions; the language model supports "
                    f"{limit:,}."
                )
        return lines

    def to_json(self) -> str:
        """All numbers, for every image with every setup; bytes and FLOPs are whole numbers."""
        model = self.models[0]
        setups = []
        for m, costs in zip(self.models, self.costs, strict=True):
            tiling, mean = m.setup.tiling, _average(costs)
            setups.append(
                {
                    "name": m.setup.name,
                    "slicing": tiling.slicing,
                    "min_tiles": tiling.min_tiles,
                    "max_tiles": tiling.max_tiles,
                    "max_image_tokens": m.setup.max_image_tokens,
                    "tokens_per_tile": m.setup.settings.tokens_per_tile,
                    "projector": m.setup.projector,
                    "lvtc": None if m.sizes.lvtc_config is None else asdict(m.sizes.lvtc_config),
                    "parameters": m.parameters,
                    "active_parameters": m.sizes.active_parameters,
                    "position_limit": m.sizes.position_limit,
                    "prompts_past_limit": _past_limit(m, costs),
                    "average_tiles": mean.tiles,
                    "average_tokens": mean.stage_one_tokens,
                    "average_prefill_flops": mean.prefill_flops,
                    "prompts": [
                        {"pictures": name, **cost.to_dict()}
                        for name, cost in zip(self.prompt_names, costs, strict=True)
                    ],
                }
            )
        images = zip(self.images.names, self.images.sizes, strict=True)
        return json.dumps(
            {
                "model": model.setup.name,
                "text_tokens": model.text_tokens,
                "answer_tokens": model.answer_tokens,
                "dtype": model.dtype,
                "estimated": ["peak_bytes"],
                "pictures": [{"name": name, "width": w, "height": h} for name, (w, h) in images],
                "settings": setups,
                "skipped": self.images.broken,
                "not_pictures": self.images.ignored,
                "notes": list(self.notes),
            },
            indent=1,
        )

    def to_csv(self) -> str:
        """A row for each image with each setup, without the [`remarks`]."""
        modules = list(dict.fromkeys(name for costs in self.costs for name in costs[0].flops))
        rows = []
        for m, costs in zip(self.models, self.costs, strict=True):
            tiling = m.setup.tiling
            for i, (name, cost) in enumerate(zip(self.prompt_names, costs, strict=True)):
                width, height = ("", "") if self.together else self.images.sizes[i]
                flops = {f"flops.{module}": cost.flops.get(module, 0) for module in modules}
                numbers = {key: value for key, value in cost.to_dict().items() if key != "flops"}
                setup = {"setting": m.setup.name, "slicing": tiling.slicing, "max_tiles": tiling.max_tiles}
                setup |= {"projector": m.setup.projector, "lvtc": "on" if m.setup.has_lvtc else "off"}
                rows.append({"picture": name, "width": width, "height": height} | setup | numbers | flops)
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip("\n")


def _grid(plan: TilePlan) -> str:
    return f"{plan.columns}x{plan.rows}" + " + thumbnail" * plan.has_thumbnail


def _past_limit(model: CostModel, costs: list[Cost]) -> int:
    return sum(cost.positions > model.sizes.position_limit for cost in costs)


def _average(costs: list[Cost]) -> Cost:
    """The average of every number, including the numbers of modules."""
    if len(costs) == 1:
        return costs[0]

    def mean(values) -> Any:  # a float, even for whole numbers
        return sum(values) / len(costs)

    numbers = {name: mean(getattr(c, name) for c in costs) for name in vars(costs[0]) if name != "flops"}
    return Cost(**numbers, flops={name: mean(c.flops[name] for c in costs) for name in costs[0].flops})


def bar(share: float, most: int = BAR) -> str:
    """A bar with a resolution of an eighth of a character, `most` characters long for 1."""
    eighths = max(round(share * most * 8), 1 if share else 0)
    return BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8].strip()


def _without_middle(text: str, most: int) -> str:
    """`text` in at most `most` characters; of a path the end says more than the start."""
    if len(text) <= most:
        return text
    end = (most - 1) * 2 // 3
    return text[: most - 1 - end] + "…" + text[len(text) - end :]


def table(
    header: list[str],
    rows: list[list],
    left: tuple[int, ...] = (),
    width: int | None = None,
    less_wanted: Sequence[str] = (),
    elastic: int | None = None,
) -> str:
    """A table whose columns are aligned to the right, except those in `left`.

    Args:
        header: column names; a cell may have several lines.
        width: maximum characters per line. If a line is longer, the columns in `less_wanted` are dropped, in this
            order.
        elastic: a column whose cells are shortened in the middle first; other columns are dropped only where it would
            have fewer than `LEAST_NAME` characters.
    """
    columns = [str(name).split("\n") for name in header]
    height = max(map(len, columns))
    head = [[*[""] * (height - len(lines)), *lines] for lines in columns]
    cells = [list(row) for row in zip(*head, strict=True)] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    shown, surplus = list(range(len(header))), list(less_wanted)
    full = widths[elastic] if elastic is not None else 0
    if elastic is not None:
        widths[elastic] = min(full, LEAST_NAME)
    while width is not None and sum(widths[i] + 2 for i in shown) - 2 > width and surplus:
        shown.remove(header.index(surplus.pop(0)))
    if elastic is not None:
        room = full if width is None else width - sum(widths[i] + 2 for i in shown if i != elastic)
        widths[elastic] = max(min(full, room), 1)
        for row in cells:
            row[elastic] = _without_middle(row[elastic], widths[elastic])
    lines = [
        "  ".join(row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in shown).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:height], rule, *lines[height:]])
