"""Put together an importable `tests` package out of the transformers source distribution.

The wheel of transformers carries no tests; its source distribution carries the shared test mixins
(`tests/test_*_common.py`, `tests/test_*_mixin.py`) but not the modules that these import from
`tests/generation`, `tests/exporters` and `tests/utils`.  This module fetches the source distribution of
the *installed* transformers version from PyPI at run time, unpacks only its `tests` folder into a cache
folder, and fills the holes with small stubs.  Nothing of transformers is stored beside this file.

Environment:
  HFSUITE_CACHE   folder for downloads and the assembled package (default: build/hf_suite of the repository)
  HFSUITE_SDIST   an sdist archive or an unpacked sdist folder to use instead of downloading
  HFSUITE_EXTRA   folder holding `tests/...` (and `utils/...`) files laid over the stubs, for instance the
                  real `tests/generation/test_utils.py`; files of the sdist itself are never replaced
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path


class AssembleError(RuntimeError):
    pass


def cache_root() -> Path:
    root = Path(os.environ.get("HFSUITE_CACHE") or Path(__file__).resolve().parents[2] / "build" / "hf_suite")
    root.mkdir(parents=True, exist_ok=True)
    return root


def installed_version() -> str:
    from importlib.metadata import version

    return version("transformers")


# ----------------------------------------------------------------------------- sdist


def _pip_download(version: str, dest: Path) -> Path:
    dest.mkdir(parents=True, exist_ok=True)
    base = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "transformers"]
    tried = []
    for extra in (["--no-build-isolation"], []):
        cmd = [*base, *extra, "-d", str(dest), f"transformers=={version}"]
        done = subprocess.run(cmd, capture_output=True, text=True)
        found = sorted(dest.glob("transformers-*.tar.gz"))
        if found:
            return found[-1]
        tried.append(done.stderr.strip()[-800:])
    raise AssembleError("pip could not download the transformers sdist:\n" + "\n---\n".join(tried))


def ensure_sdist(version: str) -> Path:
    """The folder holding the sdist's `tests` folder."""
    given = os.environ.get("HFSUITE_SDIST")
    if given and Path(given).is_dir():
        return Path(given)
    root = cache_root() / f"transformers-{version}"
    unpacked = root / "sdist"
    if (unpacked / "tests" / "test_modeling_common.py").is_file():
        return unpacked
    archive = Path(given) if given else _pip_download(version, root / "download")
    part = root / "sdist.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.split("/", 1)[-1]
            if member.isfile() and inside.startswith("tests/") and ".." not in inside:
                target = part / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    if not (part / "tests" / "test_modeling_common.py").is_file():
        raise AssembleError(f"{archive} holds no tests/test_modeling_common.py")
    shutil.rmtree(unpacked, ignore_errors=True)
    part.rename(unpacked)
    return unpacked


# ----------------------------------------------------------------------------- stubs (all written for this harness)

STUB_EXPORT = '''
"""Stub: the export tests are not part of the source distribution."""


class ExportTesterMixin:
    HFSUITE_STUB = True


class ExportGenerateTesterMixin(ExportTesterMixin):
    HFSUITE_STUB = True
'''

STUB_GENERATION = '''
"""Stub: the generation tests are not part of the source distribution."""
from tests.exporters.test_export import ExportGenerateTesterMixin


class GenerationTesterMixin(ExportGenerateTesterMixin):
    HFSUITE_STUB = True
    max_new_tokens = 3
'''

STUB_CONFIGURATION = '''
"""Stub: some non-default values of attributes that every configuration accepts."""
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "architectures": ["SomeModel"],
    "problem_type": "regression",
}
'''

STUB_FETCH = '''
"""Stub: turn the address of a test picture into a locally made picture; leave every other address alone."""
import hashlib
from pathlib import Path

_HERE = Path(__file__).resolve().parent / "made_pictures"


def url_to_local_path(url, return_url_if_not_found=True):
    name = str(url).split("?")[0].rsplit("/", 1)[-1]
    if not name.lower().endswith((".png", ".jpg", ".jpeg")):
        return url
    path = _HERE / name
    if not path.is_file():
        import numpy as np
        from PIL import Image

        _HERE.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        pixels = np.random.default_rng(seed).integers(0, 256, size=(12, 16, 3), dtype="uint8")
        Image.fromarray(pixels).resize((640, 480), Image.BICUBIC).save(path)
    return str(path)
'''

STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": STUB_EXPORT,
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": STUB_GENERATION,
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": STUB_CONFIGURATION,
    "tests/utils/tiny_model_summary.json": "{}\n",
    # only needed so that tests/test_pipeline_mixin.py can be imported; the installed package is what is tested
    "src/transformers/__init__.py": "",
    "utils/fetch_hub_objects_for_ci.py": STUB_FETCH,
}


def assemble(dest: Path | None = None, extra: str | None = None, quiet: bool = False) -> Path:
    """Build the package and return the folder to put on `sys.path`."""
    version = installed_version()
    source = ensure_sdist(version)
    extra = extra if extra is not None else os.environ.get("HFSUITE_EXTRA") or None
    if extra and not (Path(extra) / "tests").is_dir():
        raise AssembleError(f"HFSUITE_EXTRA={extra} holds no `tests` folder")
    if dest is None:
        tag = hashlib.sha256(str(Path(extra).resolve()).encode()).hexdigest()[:8] if extra else "stubs"
        dest = cache_root() / f"transformers-{version}" / f"suite-{tag}"
    dest = Path(dest)
    for sub in ("tests", "utils"):
        shutil.rmtree(dest / sub, ignore_errors=True)

    origin = {}
    for path in sorted((source / "tests").rglob("*.py")):
        name = path.relative_to(source).as_posix()
        origin[name] = "sdist"
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, dest / name)
    if extra:
        for sub in ("tests", "utils"):
            for path in sorted((Path(extra) / sub).rglob("*.py")):
                name = path.relative_to(extra).as_posix()
                if name in origin:
                    continue
                origin[name] = "extra"
                (dest / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, dest / name)
    for name, text in STUBS.items():
        if name not in origin:
            origin[name] = "stub"
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            (dest / name).write_text(text.lstrip("\n"), encoding="utf-8")
    (dest / "origin.json").write_text(json.dumps({"version": version, "files": origin}, indent=1), encoding="utf-8")
    if not quiet:
        count = {k: sum(v == k for v in origin.values()) for k in ("sdist", "extra", "stub")}
        print(f"assembled transformers {version} test mixins: {count}", flush=True)
    return dest


def ensure_parameterized() -> str | None:
    """The mixins need the `parameterized` package. Returns a folder to add to `sys.path`, if one was needed."""
    try:
        import parameterized  # noqa: F401

        return None
    except ImportError:
        pass
    site = cache_root() / "site"
    if not (site / "parameterized").is_dir():
        cmd = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), "parameterized"]
        done = subprocess.run(cmd, capture_output=True, text=True)
        if done.returncode:
            raise AssembleError("pip could not install `parameterized`:\n" + done.stderr[-800:])
    return str(site)


if __name__ == "__main__":
    print(assemble(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
