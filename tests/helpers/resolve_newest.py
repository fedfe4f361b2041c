"""Write `tests/overlays/newest.txt`: the newest releases of the dependencies that setup.cfg allows, for `make test-newest`."""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
NEWEST = ROOT / "tests/overlays/newest.txt"
# tested with overlays of their own (eval, web), pinned by setup.cfg (documents), or built for GPUs
LEFT_OUT = {"eval", "web", "documents", "flash", "deepspeed"}
HEADER = """\
# The newest releases that setup.cfg allows of what this package depends on, and of what these need beyond constraints.txt.
# `make newest` writes this file. torch stays pinned; lmms-eval and Gradio have overlays of their own.
"""


def read_options() -> ConfigParser:
    options = ConfigParser()
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    return options


def extras() -> list[str]:
    return sorted(set(read_options()["options.extras_require"]) - LEFT_OUT)


def setup_cfg_requirements() -> dict[str, str]:
    """Version specifiers by name of the dependencies in setup.cfg, but for those of `LEFT_OUT` and the package itself."""
    options = read_options()
    texts = [options["options"]["install_requires"], *(options["options.extras_require"][extra] for extra in extras())]
    requirements = [Requirement(line) for text in texts for line in text.split("\n") if line.strip()]
    named = {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in requirements}
    return {name: specifier for name, specifier in named.items() if name != "internvlx-hf"}


def pins(text: str) -> dict[str, str]:
    """Versions by name in a requirements file."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def newest_lines(installed: dict[str, str], direct: set[str], pinned: dict[str, str]) -> list[str]:
    """Lines of the file: direct dependencies, and others where their version is not the pinned one."""
    wanted = {name for name, version in installed.items() if name in direct or pinned.get(name, version) != version}
    return [f"{name}=={installed[name]}" for name in sorted(wanted | (installed.keys() - pinned.keys()))]


def resolve(extras: list[str], torch: str) -> dict[str, str]:
    """Versions by name of what pip would install into an empty environment."""
    target = f"{ROOT}[{','.join(extras)}]"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-", f"torch=={torch}"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, target], stdout=subprocess.PIPE, check=True
    )
    packages = (entry["metadata"] for entry in json.loads(run.stdout)["install"])
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def main() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    installed = resolve(extras(), pinned["torch"])
    del installed["internvlx-hf"], installed["torch"]
    lines = newest_lines(installed, set(setup_cfg_requirements()), pinned)
    NEWEST.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
