"""What the conversion tests share: the golden checkpoints, and copies of them with something changed."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.conversion import CheckpointError, convert_checkpoint
from json_files import edit_json
from paths import GOLDEN as GOLDEN_ROOT
from refusals import refused

GOLDEN = GOLDEN_ROOT / "checkpoints"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
FEATURES, LOGITS = 5e-5, 1e-4


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.golden.safetensors")


def copy_of(name: str, folder: Path, **config) -> Path:
    """A copy of a golden checkpoint in `folder`, with other values in its config.json."""
    shutil.copytree(GOLDEN / name, folder)
    edit_json(folder / "config.json", **config)
    return folder


def edit_config(folder: Path, edit) -> None:
    edit_json(folder / "config.json", edit)


def edit_tensors(folder: Path, edit) -> None:
    """Change a checkpoint of one file: `edit` gets its {name: tensor}."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def load(folder: Path) -> InternVLXForConditionalGeneration:
    return InternVLXForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two tensors of as many values."""
    return (a.reshape(b.shape) - b).abs().max().item()


@torch.no_grad()
def golden_logits(model, name: str) -> torch.Tensor:
    """Our logits for the golden image prompt, at the positions whose logits are golden."""
    inputs = {
        key: value for key, value in golden(name).items() if key in ("input_ids", "attention_mask", "pixel_values")
    }
    return model(**inputs).logits[:, golden(name)["logits_positions"]]


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def require_same_tensors(*sources) -> None:
    """Two folders of weights, or their tensors by name, are the same."""
    found, expected = (load_all(source) if isinstance(source, Path) else source for source in sources)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def not_converted(source: Path, said: str, by=CheckpointError, **options) -> None:
    """The conversion is refused, and leaves nothing where the result would be."""
    out = source.parent / "somewhere" / "out"
    with refused(said, by=by):
        convert_checkpoint(source, out, **options)
    assert not out.parent.exists() or not list(out.parent.iterdir())
