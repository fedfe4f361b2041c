"""What pip leaves beside an installed package: by it other programs find the package's entry points."""

from configparser import ConfigParser
from pathlib import Path

from internvlx_hf.modeling.version import VERSION
from paths import ROOT


def write_metadata(folder: Path) -> None:
    """Write this package's version and entry points, as setup.cfg has them, into `folder`, which is then put on the path."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name = settings["metadata"]["name"]
    metadata = folder / f"{name.replace('-', '_')}-{VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
    groups = settings["options.entry_points"]
    (metadata / "entry_points.txt").write_text("\n".join(f"[{group}]\n{groups[group].strip()}\n" for group in groups))
