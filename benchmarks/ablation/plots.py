"""Plots of the finished runs. Bars are 95 % intervals."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from estimates import accuracies, mean, untrained
from evidence.claims import APPEARS, DOES_NOT, OTHER_WAY, Finding
from evidence.intervals import interval
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator
from settings import CURVES, LAYERS, SLICINGS, WAYS

PLOTS = {
    "steps": "accuracy over the FLOPs of the training",
    "knocked_out": "accuracy without the image from a layer on",
    "slicing": "accuracy over the tokens of a page",
}
INK, GREY, ORANGE, BLUE = "#24292f", "#6e7781", "#d9730d", "#0969da"
VERDICT_COLOURS = {APPEARS: ORANGE, OTHER_WAY: BLUE, DOES_NOT: INK}
ACCURACY = "digits read, %"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def draw(name: str, runs: dict[str, list[dict]], path: Path) -> None:
    """A curve of the runs of all rows that have some."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.6, 4.2))
        {"steps": steps, "knocked_out": knocked_out, "slicing": tokens}[name](axes, runs)
        axes.set_ylabel(ACCURACY)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=8)
        _save(figure, path)


def draw_claims(findings: dict[str, list[Finding]], titles: dict[str, str], path: Path) -> None:
    """A row per claim that has two seeds: the mean difference, its interval, the means of the bases, and the bound."""
    groups = {group: [f for f in found if len(f.differences) > 1] for group, found in findings.items()}
    groups = {group: found for group, found in groups.items() if found}
    height = sum(len(found) + 1.4 for found in groups.values())
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(7, max(1.5, 0.215 * height)))
        y, places = 0.0, {}
        for group, found in groups.items():
            axes.text(
                -0.008,
                y,
                titles[group],
                fontweight="bold",
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
            )
            for finding in found:
                y += 1
                places[y] = finding.claim.text
                draw_finding(axes, y, finding)
            y += 1.4
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.set_xscale("symlog", linthresh=1, linscale=0.6)
        axes.set_xlim(-130, 130)
        ticks = [-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks])
        axes.set_yticks(list(places), list(places.values()), fontsize=9, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(max(y, 1.5), -0.8)
        axes.set_xlabel("points of accuracy")
        _save(figure, path)


def draw_recovery(runs: dict[str, list[dict]], upgrades: Iterable[str], recovered: float, path: Path) -> None:
    """A panel per upgrade: accuracy over steps, with and without a teacher, and the share `recovered` of the source's."""
    runs = {row: found for row, found in runs.items() if found}
    upgrades = [name for name in upgrades if any(row.split(", ")[0] == name for row in runs)]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(upgrades), figsize=(3.6 * len(upgrades) + 1, 3.6), squeeze=False)
        for axes, upgrade in zip(panels[0], upgrades, strict=True):
            _recovery_panel(
                axes, {row: found for row, found in runs.items() if row.split(", ")[0] == upgrade}, recovered
            )
            axes.set_title(upgrade)
        panels[0][0].set_ylabel(ACCURACY)
        figure.tight_layout()
        _save(figure, path)


def _recovery_panel(axes, runs: dict[str, list[dict]], recovered: float) -> None:
    heights = []
    for row, found in runs.items():
        steps, how = list(found[0]["accuracy"]), row.split(", ")[1:]
        known = [interval([100 * record["accuracy"][step] for record in found]) for step in steps]
        style = {"color": ORANGE if "warm" in how else BLUE, "linestyle": "-" if "teacher" in how else "--"}
        axes.plot([k.mean for k in known], marker="o", markersize=3, label=", ".join(how) or "no teacher", **style)
        if len(found) > 1:
            low, high = ([k.mean + sign * k.half_width for k in known] for sign in (-1, 1))
            axes.fill_between(range(len(steps)), low, high, color=style["color"], alpha=0.12, linewidth=0)
        enough = 100 * recovered * mean(found, "source_accuracy")
        heights += [enough, *(k.mean for k in known)]
    axes.axhline(enough, color=INK, linestyle=":", linewidth=1.2)
    axes.annotate(f"{100 * recovered:g} % of the source", (0, enough), (2, 3), textcoords="offset points")
    axes.set_xticks(range(len(steps)), steps)
    axes.set_ylim(0, 1.12 * max(heights))
    axes.set_xlabel("steps")
    axes.legend(loc="lower right", fontsize=8)


def draw_finding(axes, y: float, finding: Finding) -> None:
    known, colour = finding.interval, VERDICT_COLOURS.get(str(finding.verdict), "#afb8c1")
    assert known is not None
    axes.barh(y, 2 * finding.bound, left=-finding.bound, height=0.8, color="#eaeef2", zorder=-1)
    axes.plot([known.low, known.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot(known.mean, y, "o", color=colour, markersize=5)
    axes.plot(
        list(finding.by_base.values()), [y] * len(finding.by_base), "|", color=INK, markersize=5, markeredgewidth=0.7
    )


def _save(figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def with_intervals(axes, x: list, rows: Iterable[list[dict]], **style) -> None:
    known = [interval(accuracies(runs)) for runs in rows]
    halves = [k.half_width if k.count > 1 else 0 for k in known]
    axes.errorbar(x, [k.mean for k in known], halves, capsize=3, linewidth=1.8, **style)


def log_axis(axes, ticks: list, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_xlabel(label)


def steps(axes, runs: dict[str, list[dict]]) -> None:
    """Points of one colour have 1, 2 and 4 times the steps; two points above one another cost the same."""
    for colour, (name, rows) in zip((BLUE, ORANGE, GREY), CURVES.items(), strict=True):
        found = [runs[row] for row in rows if row in runs]
        flops = [training_teraflops(records) for records in found]
        with_intervals(axes, flops, found, color=colour, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("TFLOPs of the training")


def training_teraflops(records: list[dict]) -> float:
    """Of all steps, a backward counted as two forwards."""
    schedule, times = records[0]["schedule"], records[0]["configuration"]["stage2_times"]
    pages = (schedule["stage1_steps"] + times * schedule["stage2_steps"]) * schedule["batch"]
    return 3 * pages * mean(records, "forward_mflops") / 1e6


def knocked_out(axes, runs: dict[str, list[dict]]) -> None:
    rows = {
        name: ways for name, ways in WAYS.items() if name in runs and all(isinstance(k, int) for k in ways.values())
    }
    for number, (name, ways) in enumerate(rows.items()):
        known = [interval(untrained(runs[name], way)).mean for way in ways] + [interval(accuracies(runs[name])).mean]
        axes.plot(range(LAYERS + 1), known, marker="o", markersize=4, color=f"C{number}", label=name)
    axes.set_xticks(range(LAYERS + 1), [*map(str, range(LAYERS)), "never"])
    axes.set_xlabel("first layer in which text does not see the image")


def tokens(axes, runs: dict[str, list[dict]]) -> None:
    """A curve per slicing, through the rows with N and with 4N tokens per tile."""
    for number, name in enumerate(name for name in SLICINGS if ", " not in name):
        found = [runs[row] for row in (name, f"{name}, 4N") if row in runs]
        costs = [mean(records, "tokens") for records in found]
        with_intervals(axes, costs, found, color=f"C{number}", marker="o", label=name)
    log_axis(axes, [4, 8, 16, 32, 64], "visual tokens a page")
