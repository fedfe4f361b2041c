# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The model card of a converted checkpoint: README.md with the Hub's metadata."""

from pathlib import Path

from huggingface_hub import ModelCardData, metadata_load

from .report import ConversionReport

LICENSE_FIELDS = ("license", "license_name", "license_link")
USAGE = {
    "internvl_x": """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True, dtype="auto")
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
content = [{{"type": "image", "url": "picture.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

InternVL's own `model.chat(tokenizer, pixel_values, question, generation_config)` works too.""",
    "internvl": """\
```python
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
```""",
}


def model_card(report: ConversionReport, folder: Path) -> str:
    """README.md of a converted checkpoint.

    Args:
        report: what was done.
        folder: the source, whose own card tells the licence.
    """
    title = report.source.rpartition("/")[-1]
    kind = "transformers' native InternVL" if report.options["to"] == "internvl" else "InternVL-X for Transformers"
    sections = [
        f"---\n{_metadata(report, folder)}\n---",
        f"# {title}, converted to {kind}",
        _what(report),
        _training(report),
        _cost(report),
        "## Use\n\n" + USAGE[report.options["to"]].format(name=title),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(report: ConversionReport, folder: Path) -> str:
    card = folder / "README.md"
    source = (metadata_load(card) if card.is_file() else None) or {}
    is_ours = report.options["to"] == "internvl_x"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=report.base_model,
        base_model_relation="finetune" if report.base_model else None,
        tags=["internvl", "vision-language", *(["internvl_x", "custom_code"] if is_ours else [])],
        language=source.get("language"),
        **{name: source[name] for name in LICENSE_FIELDS if name in source},
    )
    return data.to_yaml()


def _what(report: ConversionReport) -> str:
    revision = f" at revision `{report.revision}`" if report.revision else ""
    lines = [
        f"Converted from `{report.base_model or report.source}`{revision} by internvlx-hf "
        f"{report.versions['internvlx_hf']}: {report.parameters / 1e9:.2f} billion parameters in {report.dtype}, language "
        f"model `{report.language_model['source']}` as `{report.language_model['model_type']}`."
    ]
    if report.exact:
        lines.append(
            "The weights are those of the original, and so are the answers to the same tiles. The image processor turns "
            "pictures upright and resizes them by torch, at most one level of 255 from Pillow; "
            "`do_exif_transpose=False, resize_backend='pillow'` give the original's very pixels."
        )
    if report.dropped_tensors:
        lines.append("Tensors left out: " + "; ".join(f"`{k}` ({v})" for k, v in report.dropped_tensors.items()) + ".")
    return "\n\n".join([*lines, *report.notes])


def _training(report: ConversionReport) -> str:
    if report.exact:
        return ""
    modules = "\n".join(f"- `{module}`" for module in report.untrained_modules)
    start = {
        "warm": "They start close to what the original knows; `conversion_report.json` says tensor by tensor how.",
        "paper": "They start at random: before training the model's answers mean nothing.",
    }
    return f"## Not trained yet\n\nThese modules need training:\n\n{modules}\n\n{start[report.options['init']]}"


def _cost(report: ConversionReport) -> str:
    tokens = report.tokens
    expanded = ""
    if tokens["per_tile_expanded"] != tokens["per_tile"]:
        expanded = f", and {tokens['per_tile_expanded']} in the layers behind LVTC's expansion"
    return (
        "## What a picture costs\n\n"
        f"A tile of {tokens['tile_size']}x{tokens['tile_size']} pixels takes {tokens['per_tile']} tokens{expanded}. A picture "
        f"is cut into at most {tokens['max_tiles']} tiles (slicing `{tokens['slicing']}`), and a thumbnail if there is more "
        "than one."
    )
