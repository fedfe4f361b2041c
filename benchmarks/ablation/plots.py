"""Plots of the finished runs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from estimates import accuracy, mean
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

INK, GREY = "#24292f", "#6e7781"
COLOURS = {
    "pvtc": "#d9730d",
    "pixel_shuffle": "#0969da",
    "token_packer": "#1a7f37",
    "ldpv2": "#8250df",
    "average": "#8c959f",
}
LABELS = {
    "pvtc": "PVTC",
    "pixel_shuffle": "pixel shuffle",
    "token_packer": "TokenPacker",
    "ldpv2": "LDPv2",
    "average": "average pooling",
}
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
    "grid.color": "#eaeef2",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def draw(name: str, runs: dict[str, list[dict]], path: Path) -> None:
    with plt.rc_context(STYLE):
        figure = {"table2": table_2, "table5": table_5, "figure7": figure_7, "figure8": figure_8}[name](runs)
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def with_errors(axes, x: list, groups: list[list[dict]], **style) -> None:
    points = [accuracy(records) for records in groups]
    axes.errorbar(x, [p.mean for p in points], [p.error or 0 for p in points], capsize=3, linewidth=1.8, **style)


def log_axis(axes, ticks: list, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_xlabel(label)
    axes.set_ylabel("digits read, %")


def figure_7(runs):
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for kind, colour in COLOURS.items():
        found = {64 // ratio: runs[f"{kind} x{ratio}"] for ratio in (64, 16, 4) if f"{kind} x{ratio}" in runs}
        style = {"linestyle": "--", "zorder": 2} if kind == "average" else {"zorder": 3}
        with_errors(axes, list(found), list(found.values()), color=colour, marker="o", label=LABELS[kind], **style)
    if linear := runs.get("linear x1"):
        with_errors(axes, [64], [linear], color=INK, marker="s", linestyle="", label="linear, no compression")
    axes.axhline(10, color=GREY, linewidth=1, linestyle=":")
    axes.annotate("chance", (64, 10), xytext=(0, 4), textcoords="offset points", ha="right", color=GREY, fontsize=9)
    log_axis(axes, [1, 4, 16, 64], "visual tokens per tile (64 patches)")
    axes.set_title("Projectors under compression")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def figure_8(runs):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    m2 = {window: runs[f"M1=4 M2={window}"] for window in (8, 4, 2, 1) if f"M1=4 M2={window}" in runs}
    m1 = {window: runs[f"M1={window} M2=2"] for window in (8, 4, 2) if f"M1={window} M2=2" in runs}
    with_errors(left, list(m2), list(m2.values()), color=COLOURS["pvtc"], marker="o", label="M₂, with M₁ = 4")
    with_errors(left, list(m1), list(m1.values()), color=COLOURS["pixel_shuffle"], marker="s", label="M₁, with M₂ = 2")
    log_axis(left, [1, 2, 4, 8], "window side M")
    left.invert_xaxis()
    left.set_title("Window sides before (M₁) and after (M₂)")
    left.legend(loc="best")
    layers = {int(name[2:]): records for name, records in runs.items() if name.startswith("k=")}
    layers = dict(sorted(layers.items()))
    if never := runs.get("never"):
        layers[8] = never
    shares = [f"{k}/8" if k < 8 else "never" for k in layers]
    with_errors(right, list(layers), list(layers.values()), color=COLOURS["pvtc"], marker="o")
    right.set_xticks(list(layers), shares)
    right.invert_xaxis()
    right.set_xlabel("layer k of the expansion, as a share of the layers")
    right.set_title("Where tokens are expanded, 4 → 16")
    return figure


# offset of a name from its point in points, and its alignment; by default, names are above and to the right
BESIDE = {
    "Base": ((8, -11), "left"),
    "+ LVTC": ((-8, -3), "right"),
    "+ PVTC + LVTC": ((0, -17), "center"),
    "Base, 4N tokens": ((9, -3), "left"),
    "Full model": ((-9, -3), "right"),
    "Base-HD": ((-9, -3), "right"),
    "+ RVTC": ((-8, -8), "right"),
    "ratio": ((-9, 3), "right"),
    "area": ((-9, -4), "right"),
}


def scatter(axes, runs, x, styles: dict[str, dict]) -> None:
    """Plot accuracy over `x(records)`, with the name of each configuration beside its point."""
    for name, records in runs.items():
        with_errors(axes, [x(records)], [records], marker="o", markersize=7, linestyle="", **styles.get(name, {}))
        offset, alignment = BESIDE.get(name, ((8, 4), "left"))
        axes.annotate(
            name,
            (x(records), accuracy(records).mean),
            xytext=offset,
            ha=alignment,
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )


def table_2(runs):
    figure, axes = plt.subplots(figsize=(7.6, 4.6))
    hd = {"Base-HD", "+ RVTC", "+ PVTC + RVTC", "Full model"}
    ours = {name for name in runs if name.startswith(("+", "Full"))}
    styles = {
        name: {"color": COLOURS["pvtc"] if name in ours else GREY, "mfc": None if name in hd else "white"}
        for name in runs
    }
    scatter(axes, runs, lambda records: mean(records, "forward_mflops"), styles)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = [50, 100, 200, 400, 800]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels(map(str, ticks))
    axes.set_xlabel("MFLOPs of a page's forward")
    axes.set_ylabel("digits read, %")
    axes.set_title("The modules, alone and together (filled: several tiles a page)")
    axes.margins(x=0.1, y=0.1)
    return figure


def table_5(runs):
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    styles = {name: {"color": GREY if name == "ratio" else COLOURS["pvtc"]} for name in runs}
    scatter(axes, runs, lambda records: mean(records, "cpu_seconds"), styles)
    axes.set_xlabel("training, seconds of one thread")
    axes.set_ylabel("digits read, %")
    axes.set_title("How pages are cut into tiles")
    axes.margins(y=0.15)
    axes.set_xlim(0)
    return figure
