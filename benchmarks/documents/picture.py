"""The picture of what the models read: pages, answers with their errors marked, and the words right on all pages."""

from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
from corpus import corpus_path, load_corpus
from lessons import evaluation_pages
from matplotlib import pyplot as plt
from pages import Page
from reading import edits, marked
from settings import GRID, ROWS, TILE

PICTURE = "pages.png"
SEED = 0  # the runs whose answers are shown
SHOWN = {"N": "pixel shuffle", "PVTC": "PVTC", "LVTC": "LVTC", "4N": "pixel shuffle"}
PAGES = 4
RED, GREY, BLACK = "#d1242f", "#6e7781", "#1f2328"
WIDE = 20  # letters per line of an answer


def draw(runs: dict[str, list[dict]], cache: Path, path: Path) -> bool:
    """Draw the picture, if the runs that it shows are finished and the text of their pages is in the cache."""
    found = {name: [run for run in runs.get(name, []) if run["split"] == "test"] for name in SHOWN}
    answers = {name: run["paragraphs"] for name, known in found.items() for run in known if run["seed"] == SEED}
    if answers.keys() != SHOWN.keys() or not corpus_path(cache).exists():
        return False
    count = min(len(answer["read"]) for answer in answers.values())
    pages = evaluation_pages(load_corpus(cache)["test"], count)
    shares = {name: 100 * fmean(run["paragraphs"]["words"] for run in known) for name, known in found.items()}
    chosen = choose(pages, {name: answer["read"] for name, answer in answers.items()})
    figure, axes = plt.subplots(
        len(chosen),
        1 + len(SHOWN),
        figsize=(12, 1.4 * len(chosen) + 0.75),
        squeeze=False,
        width_ratios=[0.65, *[1.2] * len(SHOWN)],
    )
    for line, number in enumerate(chosen):
        axes[line][0].imshow(pages[number].image, interpolation="nearest")
        axes[line][0].axis("off")
        for column, name in enumerate(SHOWN, start=1):
            write(axes[line][column], pages[number].text.split(), answers[name]["read"][number].split())
    axes[0][0].set_title(f"page,\n{TILE}×{TILE} pixels", fontsize=11, color=GREY, pad=6)
    for column, (name, projector) in enumerate(SHOWN.items(), start=1):
        axes[0][column].set_title(
            f"{projector}, {tokens(name)}\n{shares[name]:.0f} % of the words right", fontsize=11, color=BLACK, pad=6
        )
    figure.subplots_adjust(
        left=0.01, right=0.995, top=1 - 0.62 / figure.get_figheight(), bottom=0.01, wspace=0.06, hspace=0.12
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def tokens(name: str) -> str:
    counts = dict.fromkeys((GRID // window) ** 2 for window in (ROWS[name].window, ROWS[name].expanded_window))
    return f"{' → '.join(map(str, counts))} tokens"


def choose(pages: list[Page], reads: dict[str, list[str]]) -> list[int]:
    """The pages whose errors are nearest to the mean of all, model by model: typical ones, not the best."""
    wrong = {
        name: [
            edits(page.text.split(), read.split()) / len(page.text.split())
            for page, read in zip(pages, known, strict=False)
        ]
        for name, known in reads.items()
    }
    means = {name: fmean(shares) for name, shares in wrong.items()}

    def distance(number: int) -> float:
        return sum(abs(shares[number] - means[name]) for name, shares in wrong.items())

    return sorted(sorted(range(len(pages)), key=distance)[:PAGES])


def write(axes, truth: list[str], read: list[str]) -> None:
    """The words read, in lines, with errors in red and a dot for a missing word."""
    lines: list[list[tuple[str, bool]]] = [[]]
    for word, is_right in marked(truth, read):
        if lines[-1] and sum(len(other) + 1 for other, _ in lines[-1]) + len(word) > WIDE:
            lines.append([])
        lines[-1].append((word, is_right))
    for row, line in enumerate(lines):
        place = 0
        for word, is_right in line:
            box = {"bbox": {"facecolor": "#ffe3e3", "edgecolor": "none", "pad": 1}} if not is_right else {}
            axes.text(
                place,
                row,
                word,
                color=BLACK if is_right else RED,
                family="monospace",
                fontsize=13,
                va="top",
                **box,
            )
            place += len(word) + 1
    axes.set(xlim=(-0.5, WIDE + 1.5), ylim=(4, -0.3))
    axes.axis("off")
