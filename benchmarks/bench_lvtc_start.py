"""How near to its source a checkpoint starts that was given LVTC: candidates for `init="warm"`.

Distances are those of the logits of text after an image: root mean square, and KL divergence from the source. The golden
checkpoints are random and tiny. With `--miniature` the source is a trained model of the digit study (`benchmarks/ablation`), and
the table adds the share of digits that are read, before training and after some steps on the study's pages.

python benchmarks/bench_lvtc_start.py [--miniature [--layers 1 2 5] [--steps 25 50 100] [--train NAME ...] [--seeds 1]]
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from rows import Row, run_script
from safetensors.torch import load_file
from timing import print_table, use_one_thread
from torch import nn
from transformers.utils import logging

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.modeling import lvtc as lvtc_module
from internvlx_hf.modeling import modeling_internvlx
from internvlx_hf.modeling.lvtc_layout import Plan

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "checkpoints"
CACHE = Path("out/ablation")
# the study's own takes parts only; a conversion reads the end of a turn from turns of text
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
TEST_PAGES, BATCH, RATE, WARMUP = 96, 16, 1e-3, 10


@dataclass(frozen=True)
class Start:
    """A candidate.

    Args:
        options: of the conversion.
        lvtc: settings of LVTC.
        change: changes the converted model, given the source.
        patches: attributes of modules to replace, as (module, name, value).
        is_bound: whether it is only there to see what is left to win: no checkpoint can start so.
    """

    lvtc: dict
    options: dict | None = None
    change: Callable[[nn.Module, nn.Module], None] | None = None
    patches: tuple = ()
    is_bound: bool = False

    @contextmanager
    def model(self, source: Path, original: nn.Module, **lvtc) -> Iterator[nn.Module]:
        """The converted model. It is to be used only within the context."""
        with ExitStack() as stack:
            for module, name, value in self.patches:
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"
            convert_checkpoint(source, out, lvtc=self.lvtc | lvtc, **(self.options or {}))
            model = InternVLXForConditionalGeneration.from_pretrained(out).eval()
            if self.change:
                with torch.no_grad():
                    self.change(model, original)
            yield model


# ---- Changes and patches


def hr_output(factor: float) -> Callable:
    """The HR projector's last layer is the source projector's, times a factor."""

    def change(model: nn.Module, source: nn.Module) -> None:
        own, theirs = model.model.lvtc.hr_projector.linear_2, source.model.multi_modal_projector.linear_2
        own.weight.copy_(factor * theirs.weight)
        own.bias.copy_(factor * theirs.bias)

    return change


def hr_without_coarse(model: nn.Module, source: nn.Module) -> None:
    """The HR tokens are the source's less the upsampled tokens that stage one began with."""
    lvtc, coarse = model.model.lvtc, model.model.multi_modal_projector
    fine = lvtc.hr_projector

    class Difference(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return fine(features) - lvtc.upsample(coarse(features))

    lvtc.hr_projector = Difference()


def mean_of_tokens(model: nn.Module, source: nn.Module) -> None:
    """A large window's hidden layer is the mean of its four quarters' in the source, instead of that of its block means."""
    own, theirs = model.model.multi_modal_projector, source.model.multi_modal_projector

    def repeated(tensor: torch.Tensor) -> torch.Tensor:
        window = tensor.unflatten(-1, (2, 2, -1))
        return window.repeat(*[1] * (window.ndim - 3), 2, 2, 1).flatten(-3)

    own.linear_1.weight.copy_(repeated(theirs.linear_1.weight) / 4)
    own.layer_norm.weight.copy_(repeated(theirs.layer_norm.weight))
    own.layer_norm.bias.copy_(repeated(theirs.layer_norm.bias))


def weigh_children(model: nn.Module, source: nn.Module) -> None:
    """Scores of tokens that share a position are lowered by the logarithm of their number (only without padding)."""

    def lower(layer, args, kwargs):
        rotary = kwargs["position_embeddings"][1][0]
        shared = (rotary == rotary[:, None]).all(-1).sum(1).log()
        return args, kwargs | {"attention_mask": kwargs["attention_mask"] - shared}

    model.set_attn_implementation("eager")
    for layer in model.model.language_model.layers[model.config.lvtc_config.expand_layer :]:
        layer.register_forward_pre_hook(lower, with_kwargs=True)


def one_child(others: float) -> tuple:
    """Only the last child of a token is the token; its other children are the token times `others`."""

    def upsample(self, tiles: torch.Tensor) -> torch.Tensor:
        before, after = self.config.token_grid, self.config.expanded_token_grid
        line = torch.arange(after)
        parents = (line[:, None] * before // after * before + line * before // after).flatten()
        last = (line + 1) % (after // before) == 0
        is_last = (last[:, None] & last).flatten()
        return tiles[:, parents] * torch.where(is_last, 1.0, others)[:, None]

    return (lvtc_module.LVTC, "upsample", upsample)


def change_plans(change: Callable[[Plan], Plan]) -> tuple:
    """Change the plan of every forward."""
    lay_out = modeling_internvlx.lay_out
    return (modeling_internvlx, "lay_out", lambda *args: change(lay_out(*args)))


def quarter_positions(plan: Plan) -> Plan:
    """Children count on by N₁²/N₂² instead of sharing a position, so that a tile takes as many positions as before."""
    if not plan.row_maps:
        return plan
    (first, second), (row_map,) = plan.layouts, plan.row_maps
    share = len(row_map.tiles) / len(row_map.tiles_to)
    positions = first.positions.float().gather(1, row_map.sources) + share * row_map.places
    positions = positions * row_map.is_token
    return replace(plan, layouts=[first, replace(second, positions=positions)])


def stage_two_positions(plan: Plan) -> Plan:
    """Stage one has the positions of stage two, a token that of its last child."""
    first, second = plan.layouts
    positions = second.positions
    for row_map in plan.row_maps:
        positions = row_map.undo(positions)
    return replace(plan, layouts=[replace(first, positions=positions), second])


# ---- Candidates. The sources have M = 2.

COUNTED, MORE, FINE = {"expanded_positions": "counted"}, {"downsample_ratio": 1.0}, {"downsample_ratio": 0.5}
MERGED = {"downsample_ratio": 0.25, "hr_projector_type": None, "num_lr_projectors": 1}
COARSE, PAPER = {"downsample_ratio": 0.25}, {"init": "paper"}
WARM_MORE, WARM_FEWER = "N→4N: warm", "N/4→N: warm"
STARTS = {
    WARM_MORE: Start(MORE),
    "N→4N: positions counted anew": Start(MORE | COUNTED),
    "N→4N: a quarter of a position for each child": Start(MORE, patches=(change_plans(quarter_positions),)),
    "N→4N: one child, others zero": Start(MORE, patches=(one_child(0.0),)),
    "N→4N: one child, others 1 %": Start(MORE, patches=(one_child(0.01),)),
    "N→4N: one child, others zero, counted anew": Start(MORE | COUNTED, patches=(one_child(0.0),)),
    "N→4N: bilinear": Start(MORE | {"upsample_mode": "bilinear"}),
    "N→4N: HR adds the source's tokens of patches": Start(MORE, change=hr_output(1.0)),
    "N→4N: HR adds a tenth of them": Start(MORE, change=hr_output(0.1)),
    "N→4N: paper": Start(MORE, PAPER),
    "N→4N: children weigh a quarter (bound)": Start(MORE, change=weigh_children, is_bound=True),
    WARM_FEWER: Start(FINE, COARSE),
    "N/4→N: HR adds nothing": Start(FINE, COARSE, hr_output(0.0)),
    "N/4→N: HR adds half of the source's tokens": Start(FINE, COARSE, hr_output(0.5)),
    "N/4→N: stage two's positions in both stages": Start(FINE, COARSE, patches=(change_plans(stage_two_positions),)),
    "N/4→N: coarse tokens as means of tokens": Start(FINE, COARSE, mean_of_tokens),
    "N/4→N: paper": Start(FINE, COARSE | PAPER),
    "N/4→N: HR less the coarse tokens (bound)": Start(FINE, COARSE, hr_without_coarse, is_bound=True),
    "N→N/4: warm": Start(MERGED),
    "N→N/4: positions counted anew": Start(MERGED | COUNTED),
    "N→N: warm": Start(FINE),
}
TRAINED = [
    WARM_MORE,
    "N→4N: positions counted anew",
    "N→4N: one child, others zero",
    "N→4N: paper",
    WARM_FEWER,
    "N/4→N: HR adds nothing",
    "N/4→N: paper",
]


# ---- Measures


def rms(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return (logits - expected).pow(2).mean().sqrt().item()


def divergence(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean KL divergence of the source's distribution from the model's, nats per token."""
    return nn.functional.kl_div(
        logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    ).item()


@torch.no_grad()
def golden_distances(names: list[str]) -> list[Row]:
    """The table for the golden checkpoints: rms / KL of each family."""
    table, found = [], {}
    for name in names:
        golden = load_file(GOLDEN / f"{name}.golden.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            convert_checkpoint(GOLDEN / name, Path(folder) / "out")
            original = InternVLXForConditionalGeneration.from_pretrained(Path(folder) / "out").eval()
        expected = text_logits(original, golden)
        found["(spread of the logits)", name] = expected.std().item(), 0.0
        for start, candidate in STARTS.items():
            with candidate.model(GOLDEN / name, original) as model:
                logits = text_logits(model, golden)
            found[start, name] = rms(logits, expected), divergence(logits, expected)
    for start in ["(spread of the logits)", *STARTS]:
        table.append([start, *(f"{found[start, name][0]:.3f} / {found[start, name][1]:.3f}" for name in names)])
    print_table(["rms / KL", *(name.removeprefix("internvl2_") for name in names)], table)
    counted = "N→4N: positions counted anew"
    ratio = fmean(found[WARM_MORE, name][0] / found[counted, name][0] for name in names)
    return [Row("golden checkpoints, rms of the warm start / with positions counted anew", ratio, target=0.5)]


def text_logits(model: nn.Module, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n, vocabulary) logits of the golden prompt's text after its first image."""
    ids, tiles = golden["input_ids"], len(golden["pixel_values"])
    is_image = ids[0] == model.config.image_token_id
    order, per_tile = is_image.cumsum(0) - 1, int(is_image.sum()) // tiles
    kept = ~is_image | (order % per_tile < model.config.image_seq_length)
    logits = model(input_ids=ids[:, kept], pixel_values=golden["pixel_values"]).logits[0]
    return logits[(~is_image & (order >= 0))[kept]]


class Miniature:
    """A model of the digit study, trained with windows of 2x2 patches, as a checkpoint, and the pages to measure it on."""

    def __init__(self, folder: Path):
        sys.path.insert(0, str(Path(__file__).parent / "ablation"))
        import training
        from settings import Schedule
        from task import Collator, build_processor, cached_samples

        def pages(split: str, count: int, seed: int) -> list:
            return cached_samples(CACHE, split, count, "one", "whole", seed, filled=1.0)

        self.pages, self.collator, self.evaluate = pages, Collator, training.evaluate
        self.processor, self.folder = build_processor(), folder
        trained = training.make_base("one", 0, Schedule(), CACHE)
        self.source = InternVLXForConditionalGeneration.from_pretrained(trained).eval()
        self.source.save_pretrained(folder)
        saved = build_processor()
        saved.image_seq_length = self.source.config.image_seq_length
        saved.chat_template = saved.tokenizer.chat_template = TEMPLATE
        saved.save_pretrained(folder)
        self.test = pages("validation", TEST_PAGES, training.TEST_PAGES)
        self.expected = self.answers(self.source)

    def collate(self, model: nn.Module):
        return self.collator(self.processor, model.config.image_seq_length)

    @torch.no_grad()
    def answers(self, model: nn.Module) -> torch.Tensor:
        """(n, vocabulary) logits of the answers' tokens."""
        model.eval()
        found = []
        for first in range(0, len(self.test), 32):
            batch = self.collate(model)(self.test[first : first + 32])
            labels = batch.pop("labels")[:, 1:]
            found.append(model(**batch).logits[:, :-1][labels >= 0])
        return torch.cat(found)

    def measure(self, model: nn.Module) -> tuple[float, float, float]:
        """Distances, and the share of digits in percent that greedy decoding reads."""
        logits = self.answers(model)
        accuracy = 100 * self.evaluate(model, self.test)["all"]
        return rms(logits, self.expected), divergence(logits, self.expected), accuracy

    def train(self, model: nn.Module, steps: list[int], seed: int) -> list[str]:
        """Train everything, and measure after `steps` steps: accuracy and KL."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
        pages, collate, cells = self.pages("train", BATCH * max(steps), seed), self.collate(model), []
        for step in range(max(steps)):
            model.train()
            optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARMUP)
            optimizer.zero_grad()
            model(**collate(pages[step * BATCH : (step + 1) * BATCH]), use_cache=False).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step + 1 in steps:
                _, kl, accuracy = self.measure(model)
                cells.append(f"{accuracy:.1f} / {kl:.3f}")
        return cells


def miniature(args: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        study = Miniature(Path(folder) / "source")
        accuracy = study.measure(study.source)[-1]
        print(f"\nMiniature: the source reads {accuracy:.1f} %, its logits' spread is {study.expected.std():.2f}\n")
        found = {}
        for start, candidate in STARTS.items():
            if candidate.change is weigh_children:
                continue
            for k in args.layers:
                with candidate.model(study.folder, study.source, expand_layer=k) as model:
                    found[start, k] = study.measure(model)
        starts = list(dict.fromkeys(start for start, _ in found))
        table = [
            [
                start,
                *(
                    f"{found[start, k][2]:.1f} / {found[start, k][1]:.4f} / {found[start, k][0]:.2f}"
                    for k in args.layers
                ),
            ]
            for start in starts
        ]
        print_table(["accuracy / KL / rms before training", *(f"k = {k}" for k in args.layers)], table)
        print(f"\nTraining of everything, {BATCH} pages per step, learning rate {RATE:g}: accuracy / KL\n")
        table = []
        for k in args.layers:
            for start in args.train:
                for seed in range(args.seeds):
                    with STARTS[start].model(study.folder, study.source, expand_layer=k) as model:
                        table.append([f"{start}, k = {k}", seed, *study.train(model, args.steps, seed)])
                    print("|", *table[-1], flush=True)
        if table:
            print_table(["start", "seed", *(f"{steps} steps" for steps in args.steps)], table)
    for k in args.layers:
        if math.isfinite(kl := found[WARM_MORE, k][1]):
            rows.append(Row(f"miniature, KL of the warm start N→4N, k = {k}", kl, "nats"))
            rows.append(Row(f"miniature, its accuracy, k = {k}", found[WARM_MORE, k][2], "%"))
    return rows


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--miniature", action="store_true", help="measure on a trained model too (half an hour)")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 5], metavar="K", help="expand layers, of 8")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100], help="where to measure a training")
    parser.add_argument("--train", nargs="*", choices=list(STARTS), default=TRAINED, metavar="NAME", help="candidates")
    parser.add_argument("--seeds", type=int, default=1)
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = sorted(path.name for path in GOLDEN.glob("internvl2_*") if path.is_dir())
    return golden_distances(names) + (miniature(args) if args.miniature else [])


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
