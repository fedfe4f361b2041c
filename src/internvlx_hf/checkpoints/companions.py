# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Files of a checkpoint that hold for what is made of it, its licences above all."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .links import LinkError, resolve_inside

# a folder `LICENSES/` holds several, by the convention of reuse.software
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


def find_companions(source: str | Path, patterns: Iterable[str] = LICENCES) -> dict[str, Path]:
    """Real paths of a folder's files that match, by their names in it; of what is no folder, none.

    Look for them before heavy work: what cannot be copied raises here.

    Raises:
        LinkError: a file is a link that leads out of the folder or to nothing, or is neither a file nor a folder. A
            `ValueError`.
    """
    folder = Path(source).expanduser()
    paths = [path for pattern in patterns for place in sorted(folder.glob(pattern)) for path in _files(place)]
    return {path.relative_to(folder).as_posix(): _regular(folder, path) for path in paths}


def copy_companions(files: dict[str, Path], out: Path) -> None:
    """Copy what [`find_companions`] found to the same names in another folder."""
    for name, file in files.items():
        target = out / name
        target.parent.mkdir(exist_ok=True, parents=True)
        if not (target.exists() and target.samefile(file)):
            shutil.copyfile(file, target)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir())
    else:
        yield path


def _regular(folder: Path, path: Path) -> Path:
    target = resolve_inside(folder, path)
    if not target.is_file():
        raise LinkError(f"{path} is not a file. Put the file itself there, or remove it.")
    return target
