"""A writer of a checkpoint in small, and what its folders hold."""

from pathlib import Path

from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.checkpoints.manifest import MANIFEST

PERSONS = "Written by a person.\n"


def write(out, text: str, overwrite: bool = False) -> None:
    """A writer of a checkpoint in small: some files, a folder, and a card that a person may have written into."""
    out = Path(out)
    with atomic_folder(out, overwrite=overwrite) as partial:
        for name in ("config.json", "model.safetensors", "LICENSES/MIT.txt"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)
        card = out / "README.md"
        (partial / "README.md").write_text(card.read_text() if card.exists() else "Generated.\n")


def content(folder: Path) -> dict[str, str]:
    names = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in names}


def whole(text: str, card: str = "Generated.\n") -> dict[str, str]:
    files = ("config.json", "model.safetensors", "LICENSES/MIT.txt")
    return {**dict.fromkeys(files, text), "README.md": card}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
