"""The paper in one file, `examples/internvlx_in_one_file.py`, as the reference that fast code is tied to."""

import importlib.util

import torch

from paths import ROOT

_spec = importlib.util.spec_from_file_location("internvlx_in_one_file", ROOT / "examples/internvlx_in_one_file.py")
one_file = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one_file)


def reference_logits(model, input_ids, pixel_values=None):
    """Logits of one sample by the one file with the parameters of `model`, to which gradients go.

    Args:
        input_ids: (n,), without padding.

    Returns:
        (n, vocabulary), where a placeholder has the logits of the last row that it became, or of that which it was merged
        into; and the lengths of the two stages.
    """
    reference, text = _with_modules_of(model), model.config.text_config
    attention, text._attn_implementation = text._attn_implementation, "sdpa"
    features = None if pixel_values is None else reference.encode(pixel_values)
    rows, sources = reference(input_ids, features)
    text._attn_implementation = attention
    last = _last_rows(model.config, input_ids == model.config.image_token_id, sources)
    return reference.lm_head(rows[last]), (len(input_ids), len(rows))


def _with_modules_of(model):
    """The one file's model with the tower, the language model and the projectors' parameters of `model`."""
    with torch.device("meta"):
        reference = one_file.InternVLX(model.config.to_dict())
    shared = {"vision_tower": model.model.vision_tower, "language_model": model.model.language_model}
    for name, module in {**shared, "lm_head": model.lm_head}.items():
        setattr(reference, name, module)
    assert {name for name, _ in reference.named_parameters()} == {
        name.removeprefix("model.") for name, _ in model.named_parameters()
    }
    for prefix in ("multi_modal_projector", "lvtc"):
        for name, _ in [*(getattr(reference, prefix) or torch.nn.Module()).named_parameters(prefix)]:
            owner, _, leaf = name.rpartition(".")
            setattr(reference.get_submodule(owner), leaf, model.get_parameter(f"model.{name}"))
    return reference


def _last_rows(config, is_image, sources):
    """(n,) the last row of stage two that is from each row of stage one."""
    before, after = config.token_grid, config.expanded_token_grid
    last = torch.zeros(len(is_image), dtype=torch.long)
    for row, source in enumerate(sources.tolist()):
        last[source] = row
        if is_image[source] and after < before:
            block = torch.arange(before // after)
            last[source + block[:, None] * before + block] = row
    return last
