"""The settings of the runs as tables, read from what the runs themselves use."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from digit_pages import MAX_TILES, SPLITS, TILE
from evidence.tables import markdown
from settings import (
    BASE,
    CLS_LOSS,
    CURRICULUM,
    DECAY,
    FILLED,
    GROUPS,
    KINDS,
    LANGUAGE_MODEL,
    LVTC,
    OPTIMISER,
    PATCH_LOSS,
    PATCHES,
    PVTC,
    SEEDS,
    TOWER,
    Configuration,
    Schedule,
)
from task import BLOCK, QUESTIONS
from training import BASE_SLICINGS

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration

PREFACE = """\
Read from the code that the runs use. A base and both stages of a run have the same optimiser; each has its own learning rate. The
precision is float32. Norms and biases have no weight decay (as in transformers' Trainer)."""
PROJECTOR = "model.multi_modal_projector."
# of transformers' configurations: what says nothing about a model's size, training or initial values
BOOKKEEPING = {
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "transformers_version", "use_cache", "_name_or_path",
}  # fmt: skip


def model_config(configuration: Configuration) -> InternVLXConfig:
    """The configuration of a row's model, with a vocabulary as small as can be."""
    return InternVLXConfig(image_token_id=1, **configuration.model_settings(vocab_size=32, pad_token_id=0))


def shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def worth_saying(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in BOOKKEEPING}


def settings_table(settings: Mapping[str, object]) -> str:
    rows = [
        (f"`{name}`" if name.isidentifier() else name, shown(value)) for name, value in worth_saying(settings).items()
    ]
    return markdown(("setting", "value"), rows, left=2)


def rows_table() -> str:
    """What each row sets otherwise than `Configuration()`."""
    default = asdict(Configuration())
    rows = []
    for group, configurations in GROUPS.items():
        for name, configuration in configurations.items():
            other = {field: value for field, value in asdict(configuration).items() if value != default.get(field)}
            rows.append((group, name, "; ".join(f"`{field}`: {shown(value)}" for field, value in other.items())))
    return markdown(("group", "row", "settings"), rows, left=3)


def initial_values(configuration: Configuration) -> str:
    """Mean and standard deviation of each new parameter of a configuration before training, but for norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InternVLXForConditionalGeneration(model_config(configuration))
    rows = [
        (
            f"`{name.removeprefix(PROJECTOR)}`",
            "x".join(map(str, weight.shape)),
            f"{round(weight.mean().item(), 2) + 0.0:.2f}",
            f"{weight.std():.3f}",
        )
        for name, weight in model.named_parameters()
        if name.startswith(PROJECTOR) and "norm" not in name
    ]
    return markdown(("parameter", "shape", "mean", "standard deviation"), rows)


def pages_table() -> str:
    rows = [
        (
            name,
            " to ".join(map(str, kind.sides)),
            " to ".join(map(str, kind.digits)),
            "x".join(map(str, kind.most)),
            "yes" if kind.avoids_borders else "no",
        )
        for name, kind in KINDS.items()
    ]
    header = ("pages", "sides, pixels", "digit, pixels", "columns x rows at most", "clear of every slicing's borders")
    return markdown(header, rows)


def hyperparameters(schedule: dict | None = None) -> str:
    """All settings. `schedule` is that of the runs, the code's own by default."""
    run = {
        **(schedule or asdict(Schedule())),
        "decay of the learning rate, share of the steps": DECAY,
        "pages go from easy to hard over, share of the steps": CURRICULUM,
        "questions, share of the training samples (else transcriptions)": QUESTIONS,
        "samples in a row with the same kind of question and page": BLOCK,
        "loss of the CLS token in a base, of patches, weights": f"{CLS_LOSS}, {PATCH_LOSS}",
        "part of a page that has digits, at random in training": FILLED,
        "a base for pages of several tiles goes on from the base for pages of": "one",
        "slicing of a base's batches, in turn": BASE_SLICINGS,
        "bases of each kind of page, and seeds of each row": SEEDS,
        "handwriting samples": SPLITS,
        "tile, pixels; patches a side; tiles a page at most": f"{TILE}; {PATCHES}; {MAX_TILES}",
    }
    config = model_config(PVTC)
    parts = [
        PREFACE,
        "**Schedule and data**", settings_table(run),
        "**Pages**", pages_table(),
        "**Optimiser** (`TrainingArguments`)", settings_table(OPTIMISER),
        "**Vision tower**", settings_table(config.vision_config.to_diff_dict() | TOWER),
        f"**Language model** (`{LANGUAGE_MODEL['model_type']}`)", settings_table(LANGUAGE_MODEL),
        "**PVTC**", settings_table(config.projector_config.to_dict()),
        "**LVTC**", settings_table(model_config(LVTC).lvtc_config.to_dict()),
        "**Initial values of PVTC**, measured; norms start at 1", initial_values(PVTC),
        "**Initial values of pixel shuffle**, LVTC's projectors among them, measured; norms start at 1 and 0", initial_values(BASE),
        "**Rows.** What each sets otherwise than the first", rows_table(),
    ]  # fmt: skip
    return "\n\n".join(parts)
