# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a model card says of a training run, from its `training_recipe.json`."""

import html
from dataclasses import dataclass
from types import NoneType

from huggingface_hub import EvalResult
from huggingface_hub.utils import HFValidationError, validate_repo_id

TEXT, NUMBER = (str, NoneType), (int, float, NoneType)
DATA = [{"name": str, "samples?": (int, str, NoneType), "repeat_time?": (int, float), "hub_id?": TEXT}]
RECIPE_FIELDS = {
    "base_model?": TEXT,
    "revision?": TEXT,
    "data?": DATA,
    "evaluation_data?": DATA,
    "trained_modules?": {str: int},
    "settings?": {},
    "metrics?": {},
    "steps?": NUMBER,
    "epochs?": NUMBER,
    "tokens?": NUMBER,
    "versions?": {"internvlx_hf?": str},
}
EVALUATION = "eval_"
# of Trainer's metrics, those about speed
SPEED = ("_runtime", "_per_second", "_flos")


@dataclass(frozen=True)
class TrainingFacts:
    """A training run.

    Args:
        recipe: the contents of `training_recipe.json`. All of them are optional:
            `base_model` (str): Hub id, or name of the folder, that was trained; `revision` (str).
            `data`, `evaluation_data`: a list of `{"name", "samples", "repeat_time", "hub_id"}`.
            `trained_modules`: trained parameters by module. `settings`: by name. `metrics`: as the `Trainer` names them.
            `steps`, `epochs`, `tokens`: how long it was. `versions`: of the libraries.
    """

    recipe: dict

    @property
    def base_model(self) -> str | None:
        return self.recipe.get("base_model")

    @property
    def trained_modules(self) -> dict[str, int]:
        return self.recipe.get("trained_modules") or {}

    def has_trained(self, module: str) -> bool:
        """Whether a module, or one that it is in, was trained."""
        return any(f"{module}.".startswith(f"{trained}.") for trained in self.trained_modules)

    @property
    def hub_datasets(self) -> list[str]:
        """Ids of those data sets that are on the Hub."""
        data = self.recipe.get("data", [])
        return list(dict.fromkeys(entry["hub_id"] for entry in data if _is_repo_id(entry.get("hub_id"))))

    @property
    def quality(self) -> dict[str, float]:
        """Metrics that say something of the model, and not of the machine."""
        metrics = self.recipe.get("metrics") or {}
        return {
            name: value
            for name, value in metrics.items()
            if type(value) in (int, float) and not name.endswith(SPEED) and name not in ("epoch", "total_flos")
        }

    @property
    def eval_results(self) -> list[EvalResult]:
        """Metrics of the evaluation data, as the Hub lists them."""
        data = self.recipe.get("evaluation_data") or []
        if not data:
            return []
        name, hub_id = ", ".join(entry["name"] for entry in data), data[0].get("hub_id")
        return [
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=hub_id if _is_repo_id(hub_id) else "custom",
                dataset_name=name,
                metric_type=metric.removeprefix(EVALUATION),
                metric_value=value,
            )
            for metric, value in self.quality.items()
            if metric.startswith(EVALUATION) and metric != EVALUATION
        ]

    def summary(self) -> str:
        recipe = self.recipe
        base = f" from {code(self.base_model)}" if self.base_model else ""
        base += f" at revision {code(recipe['revision'])}" if recipe.get("revision") else ""
        spans = [
            f"{_number(recipe[name])} {name.removesuffix('s') if recipe[name] == 1 else name}"
            for name in ("steps", "epochs", "tokens")
            if recipe.get(name)
        ]
        length = f" for {', '.join(spans)}" if spans else ""
        versions = recipe.get("versions", {})
        by = f" by internvlx-hf {one_line(versions['internvlx_hf'])}" if "internvlx_hf" in versions else ""
        return f"Trained{base}{by}{length}."

    def data_section(self) -> str:
        data = self.recipe.get("data") or []
        if not data:
            return ""
        rows = ["| data set | samples | times |", "| --- | --- | --- |"]
        for entry in data:
            hub_id, times = entry.get("hub_id"), entry.get("repeat_time", 1)
            name = one_line(entry["name"])
            if _is_repo_id(hub_id):
                name = f"[{name}](https://huggingface.co/datasets/{hub_id})"
            rows.append(f"| {name} | {_number(entry.get('samples', ''))} | {_number(times)} |")
        return "## Data\n\n" + "\n".join(rows)

    def recipe_section(self) -> str:
        trained = [f"- {code(name)}: {_number(count)} parameters" for name, count in self.trained_modules.items()]
        settings = [
            f"| {code(name)} | {one_line(value)} |"
            for name, value in (self.recipe.get("settings") or {}).items()
            if value != ""
        ]
        parts = []
        if trained:
            parts.append("Trained were:\n\n" + "\n".join(trained))
        if settings:
            parts.append("\n".join(["| setting | value |", "| --- | --- |", *settings]))
        return "\n\n".join(["## Recipe", *parts]) if parts else ""

    def metrics_section(self) -> str:
        if not self.quality:
            return ""
        data = ", ".join(one_line(entry["name"]) for entry in self.recipe.get("evaluation_data") or [])
        about = f"`{EVALUATION}` was measured on {data}.\n\n" if data else ""
        rows = [f"| {code(name)} | {_number(value)} |" for name, value in self.quality.items()]
        return "## Metrics\n\n" + about + "\n".join(["| metric | value |", "| --- | --- |", *rows])


def _is_repo_id(name: str | None) -> bool:
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return True


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else one_line(value)


def one_line(value) -> str:
    """A value in a card's text or in a cell of a table, which a bar, a tag or a line's end would break."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")


def code(value) -> str:
    """A value as code in a card's text. HTML means nothing there; a backtick would end it."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
