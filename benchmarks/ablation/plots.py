"""Plots of the finished runs. Bars are 95 % intervals."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from estimates import accuracies, mean
from evidence.claims import APPEARS, DOES_NOT, OTHER_WAY, Finding
from evidence.intervals import interval
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator
from settings import LAYERS, PATCHES

PLOTS = {
    "table2": "accuracy and FLOPs, one tile",
    "attribution": "accuracy and FLOPs, pages of several tiles",
    "table5": "accuracy and tokens by how pages are cut",
    "figure7": "accuracy of projectors and baselines at three ratios",
    "k_curve": "accuracy over the layer of expansion or merging",
    "figure8": "accuracy over M₁ and M₂",
}
INK, GREY, ORANGE, BLUE = "#24292f", "#6e7781", "#d9730d", "#0969da"
PROJECTORS = {
    "pvtc": ("PVTC", ORANGE),
    "pixel_shuffle": ("pixel shuffle", BLUE),
    "token_packer": ("TokenPacker", BLUE),
    "ldpv2": ("LDPv2", BLUE),
    "linear": ("linear, no compression", INK),
    "average": ("average pooling", GREY),
    "downsampled": ("downsampled image", GREY),
    "cls_pruning": ("pruned by CLS attention", GREY),
    "random_pruning": ("pruned at random", GREY),
}
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


def draw(group: str, runs: dict[str, list[dict]], path: Path) -> None:
    drawers = {
        "table2": over_flops,
        "attribution": over_flops,
        "table5": table_5,
        "figure7": figure_7,
        "k_curve": k_curve,
        "figure8": figure_8,
    }
    with plt.rc_context(STYLE):
        _save(drawers[group](runs), path)


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


def figure_7(runs):
    """One panel per ratio, since each ratio has pages of its own."""
    ratios = [ratio for ratio in (4, 16, 64) if any(name.endswith(f" x{ratio}") for name in runs)] or [16]
    figure, panels = plt.subplots(
        1, len(ratios), figsize=(3.1 * len(ratios) + 1.5, 3.6), sharex=True, sharey=True, squeeze=False
    )
    names = [name for name in PROJECTORS if any(row.split(" x")[0] == name for row in runs)]
    for axes, ratio in zip(panels[0], ratios, strict=True):
        for place, name in enumerate(names):
            key = f"{name} x1" if name == "linear" and ratio == 4 else f"{name} x{ratio}"
            if key in runs:
                known = interval(accuracies(runs[key]))
                half = known.half_width if known.count > 1 else 0
                axes.errorbar(known.mean, place, xerr=half, fmt="o", color=PROJECTORS[name][1], capsize=3)
        tokens = PATCHES**2 // ratio
        axes.set_title(f"{ratio}x: {tokens} token{'s' * (tokens > 1)} per tile")
        axes.set_xlabel(ACCURACY)
    panels[0][0].set_xlim(0, 100)
    panels[0][0].set_yticks(range(len(names)), [PROJECTORS[name][0] for name in names], color=INK)
    panels[0][0].set_ylim(len(names) - 0.5, -0.5)
    figure.tight_layout()
    return figure


def k_curve(runs):
    figure, axes = plt.subplots(figsize=(6.6, 4.2))
    curves = (
        ("N → 4N", ORANGE, "o", "LVTC: N, from layer k on 4N"),
        ("4N → N", BLUE, "s", "merged: 4N, from layer k on N"),
    )
    for start, colour, marker, label in curves:
        found = {int(name.split("k=")[1]): records for name, records in runs.items() if name.startswith(start)}
        found = dict(sorted(found.items()))
        if found:
            with_intervals(axes, list(found), found.values(), color=colour, marker=marker, label=label)
    for name in ("4N", "N"):
        if name in runs:
            known = interval(accuracies(runs[name]))
            axes.axhline(known.mean, color=GREY, linewidth=1, linestyle="--")
            axes.annotate(f"{name} in all layers", (LAYERS, known.mean), xytext=(0, 3), textcoords="offset points",
                          ha="right", color=GREY, fontsize=9)  # fmt: skip
            if known.count > 1:
                axes.axhspan(known.low, known.high, color="#eaeef2", zorder=0)
    axes.set_xlim(0.6, LAYERS + 0.05)
    axes.set_xticks(range(1, LAYERS), [f"{k}/{LAYERS}" for k in range(1, LAYERS)])
    axes.set_xlabel("layer k, as a share of the layers")
    axes.set_ylabel(ACCURACY)
    axes.set_title("Where tokens are expanded, or merged")
    axes.legend(loc="best")
    return figure


def figure_8(runs):
    figure, axes = plt.subplots(figsize=(5.6, 4))
    for label, colour, marker, row, sides in (
        ("M₂, with M₁ = 4", ORANGE, "o", "M1=4 M2={}", (8, 4, 2, 1)),
        ("M₂, with M₁ = 4, three times the steps", ORANGE, "^", "M1=4 M2={}, 3x steps", (2, 1)),
        ("M₁, with M₂ = 2", BLUE, "s", "M1={} M2=2", (8, 4, 2)),
    ):
        found = {side: runs[row.format(side)] for side in sides if row.format(side) in runs}
        if found:
            line = "--" if "steps" in label else "-"
            with_intervals(axes, list(found), found.values(), color=colour, marker=marker, linestyle=line, label=label)
    log_axis(axes, [1, 2, 4, 8], "window side M")
    axes.set_ylabel(ACCURACY)
    axes.invert_xaxis()
    axes.set_title("Window sides before (M₁) and after (M₂)")
    axes.legend(loc="best")
    return figure


def beside(runs: dict[str, list[dict]], field: str, label: str):
    """The accuracies of the rows, and beside them what they cost: a field of the records, with its label."""
    figure, panels = plt.subplots(
        1, 2, figsize=(8.6, 0.34 * len(runs) + 1.3), sharey=True, gridspec_kw={"width_ratios": (3, 2)}
    )
    left, right = panels
    for place, (name, records) in enumerate(runs.items()):
        known = interval(accuracies(records))
        half = known.half_width if known.count > 1 else 0
        colour = GREY if name in ("Base", "Base, 4N tokens", "ratio") or name.startswith("one tile") else ORANGE
        left.errorbar(known.mean, place, xerr=half, fmt="o", color=colour, capsize=3)
        right.barh(place, mean(records, field), height=0.5, color=colour, alpha=0.5)
    left.set_yticks(range(len(runs)), list(runs), color=INK)
    left.set_ylim(len(runs) - 0.5, -0.5)
    left.set_xlabel(ACCURACY)
    right.set_xlim(left=0)
    right.set_xlabel(label)
    figure.tight_layout()
    return figure


def over_flops(runs):
    return beside(runs, "forward_mflops", "MFLOPs of a page's forward")


def table_5(runs):
    return beside(runs, "tokens", "visual tokens a page")
