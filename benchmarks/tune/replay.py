"""Does the promise of `internvlx tune` hold? Replays it on many draws of images, from answers that are stored once.

    python benchmarks/tune/models.py OUT     # trains the models from the demo's, once
    OMP_WAIT_POLICY=passive python benchmarks/tune/replay.py OUT   # asks them about each page, once under each setting that is tried

A draw takes N of the pages with replacement, so that the pages are the population and the true share of answers that stay the same
is known. The search is `internvlx_hf.tuning.search`, the bound that of `internvlx_hf.tuning.bounds`.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from kinds_of_pages import KINDS, draw
from models import LESSONS, MODELS, QUESTION

from internvlx_hf.chat.answers import model_settings
from internvlx_hf.chat.loading import load_answerer
from internvlx_hf.tuning.answers import Asker
from internvlx_hf.tuning.bounds import lower_bound
from internvlx_hf.tuning.items import load_items
from internvlx_hf.tuning.search import most_changed, search
from internvlx_hf.tuning.settings import OWN, Costs, Setting, named

RESULTS = Path(__file__).parents[1] / "results/tune"
PLANS = ((24, 0.98), (120, 0.9), (298, 0.4), (298, 0.75), (298, 0.9), (298, 0.98), (598, 0.98))
DIAL_PLANS = ((298, 0.9), (298, 0.98))
BATCH, NEW_TOKENS, SEED, TWICE = 16, 16, 0, 8
cached_bound = cache(lower_bound)


class PoolCosts(Costs):
    """Costs of all pages, with what a search asks for computed once for all draws."""

    def __init__(self, answerer, items):
        super().__init__(answerer, items)
        self._flops_of, self._tiles_of, self._cheaper_from = {}, {}, {}

    def flops(self, setting: Setting) -> float:
        if setting not in self._flops_of:
            self._flops_of[setting] = super().flops(setting)
        return self._flops_of[setting]

    def all_tiles(self, setting: Setting) -> tuple:
        if setting not in self._tiles_of:
            self._tiles_of[setting] = hash(super().all_tiles(setting))
        return self._tiles_of[setting]

    def cheaper(self, start, axis, seen=None):
        key = start, axis, frozenset(seen or ())
        if key not in self._cheaper_from:
            self._cheaper_from[key] = super().cheaper(start, axis, seen)
        return list(self._cheaper_from[key])


class Pool:
    """The pages of a kind, and under which settings each keeps the model's answer."""

    def __init__(self, model: Path, kind: str, pages: int):
        answerer = load_answerer(str(model))
        drawn = [draw(kind, "test", number) for number in range(pages)]
        loaded = load_items([page.image for page in drawn], QUESTION)
        self.items = [item for unit in loaded.units.values() for item in unit]
        texts = {item.key: drawn[int(item.name.split()[1]) - 1].text for item in self.items}
        self.costs = PoolCosts(answerer, self.items)
        self.what = f"{model.name}, {kind}"
        file = model.parent / "answers" / f"{model.name}-{kind.replace(' ', '-')}.jsonl"
        file.parent.mkdir(exist_ok=True)
        version = model_settings(str(model), answerer)
        self.asker = Asker(answerer, self.costs, file, version, BATCH, max_new_tokens=NEW_TOKENS)
        self.asker.ask([], self.items, self.what)
        again = self.asker.ask_again(self.items[:TWICE])
        self.noise = sum(not self.asker.compare(OWN, item, again).same for item in self.items[:TWICE])
        own = [self.asker.answer(OWN, item)["answer"] == texts[item.key] for item in self.items]
        self.accuracy = float(np.mean(own))
        self.tried: dict[Setting, np.ndarray] = {}

    def kept(self, setting: Setting) -> np.ndarray:
        """Which pages keep their answers. The model is asked about those that it was not asked about yet."""
        if setting not in self.tried:
            self.asker.ask([setting], self.items, self.what)
            self.tried[setting] = np.array([self.asker.compare(setting, item).same for item in self.items])
        return self.tried[setting]

    def most_saved(self, keep: float) -> float:
        """What the cheapest setting that was tried saves under which at least `keep` of all pages keep their answers."""
        passing = [OWN, *(setting for setting, kept in self.tried.items() if kept.mean() >= keep)]
        return 1 - min(map(self.costs.flops, passing)) / self.costs.flops(OWN)

    def replay(self, count: int, keep: float, draws: int) -> dict:
        """Coverage and savings over many draws of `count` pages."""
        rng = np.random.default_rng((SEED, count))
        half, own = count // 2, self.costs.flops(OWN)
        allowed = most_changed(half, count - half, keep)
        verdicts = {"certified": 0, "cannot tell": 0, "nothing to save": 0}
        bounds, wrong, saved, recommended, names = 0, 0, [], [], Counter()
        for _ in range(draws):
            places = rng.integers(len(self.items), size=count)
            choosing, held_out = places[:half], places[half:]

            def measure(settings, size, choosing=choosing):
                return [int((~self.kept(setting)[choosing[:size]]).sum()) for setting in settings]

            chosen = search(self.costs, half, allowed, measure)
            if chosen == OWN:
                verdicts["nothing to save"] += 1
                continue
            true, same = self.kept(chosen).mean(), int(self.kept(chosen)[held_out].sum())
            bound = cached_bound(same, len(held_out))
            bounds += bound <= true
            recommended.append(1 - self.costs.flops(chosen) / own)
            is_certified = bound >= keep
            verdicts["certified" if is_certified else "cannot tell"] += 1
            if is_certified:
                wrong += true < keep
                saved.append(recommended[-1])
                names[named(chosen)] += 1
        tried = len(recommended)
        return {
            "images": count,
            "keep": keep,
            "draws": draws,
            **{name.replace(" ", "_"): number / draws for name, number in verdicts.items()},
            "bound_holds": bounds / tried if tried else None,
            "wrongly_certified": wrong / draws,
            "saved_when_certified": float(np.mean(saved)) if saved else None,
            "saved_when_recommended": float(np.mean(recommended)) if tried else None,
            "most_certified": max(names, key=names.__getitem__, default=None),
        }


def results(folder: Path, models: list[str], pages: int, draws: int) -> Iterator[dict]:
    for name, kind in itertools.product(models, KINDS):
        pool = Pool(folder / name, kind, pages)
        about = {"model": name, "kind": kind, "pages": len(pool.items), "accuracy": pool.accuracy, "noise": pool.noise}
        replayed = [pool.replay(count, keep, draws) for count, keep in (PLANS if name in LESSONS else DIAL_PLANS)]
        for each in replayed:
            row = about | {"could_save": pool.most_saved(each["keep"])} | each
            print(json.dumps(row), flush=True)
            yield row


PAGE = """\
# Does the promise of `internvlx tune` hold?

Generated by `python benchmarks/tune/replay.py OUT`, after `python benchmarks/tune/models.py OUT`, which trains the models from the
demo's. Nothing here is typed by hand.

*fixed* reads 16 tokens of each tile, cut by "edge", at most 6 of them; *varied* went on with thumbnails, "edge" or "area", and at most 1, 3 or 6
tiles. *dial-K* is *fixed* with the sizes 16:4 and 16:0: from layer K of 4 on, a tile has 4 tokens or none. (These draws were replayed before `tune`
tried layers of its own; *dial-K* stands for them.) Three kinds of pages have 1 to 6 large
digits: handwritten with *margins* around, printed ones (*documents*), and handwritten ones on one half of a *half empty* page. {pages} pages of each kind, of handwriting
that no training saw, are the population: the model was asked about each of them under every setting that a search tried. {draws:,} times, N of
them were drawn with replacement, and a tuning was replayed on them: the search on the first half, the exact bound on the other.

In %. *Certified*, *cannot tell*, *nothing to save*: the verdicts. *Bound holds*: the share of bounds that are not above the true share of
pages that keep their answers under the chosen setting; promised are 95. *Wrongly certified*: draws in which a setting was certified that keeps
fewer than promised; at most 5 are allowed. *Saved*: FLOPs before the first token, mean over the certified draws; *most often* is the setting
that was certified most often. *Could save*: the cheapest tried setting that keeps the promise on all pages. *Accuracy*: pages that the model
transcribes without a fault under its own settings. *Noise*: of {twice} pages, those whose answer changes under the same settings in other
batches, on another number of threads.

{table}
Not in here: large models, photos. These readers are small, and read pages that differ little from one another.
"""


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def as_table(rows: list[dict]) -> str:
    header = [
        "model",
        "pages",
        "accuracy",
        "noise",
        "N",
        "keep",
        "certified",
        "cannot tell",
        "nothing to save",
        "bound holds",
    ]
    header += ["wrongly certified", "saved", "could save", "most often"]
    lines = [f"| {' | '.join(header)} |", "|---|---|" + "---:|" * (len(header) - 3) + "---|"]
    for row in rows:
        shares = ("certified", "cannot_tell", "nothing_to_save", "bound_holds", "wrongly_certified")
        cells = [row["model"], row["kind"], percent(row["accuracy"]), str(row["noise"]), str(row["images"])]
        cells += [f"{row['keep']:g}", *(percent(row[share]) for share in shares)]
        cells += [percent(row["saved_when_certified"]), percent(row["could_save"]), row["most_certified"] or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the models, and of their answers")
    parser.add_argument("--pages", type=int, default=120, help="pages of each kind (default: 120)")
    parser.add_argument("--draws", type=int, default=2000, help="draws of images (default: 2000)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of replay.json and README.md")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, help="keep the others' rows (default: all)"
    )
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "replay.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = [row for row in kept if row["model"] in MODELS and row["model"] not in options.models]
    rows += results(options.out, options.models, options.pages, options.draws)
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = PAGE.format(pages=options.pages, draws=options.draws, twice=TWICE, table=as_table(rows))
    (options.results / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
