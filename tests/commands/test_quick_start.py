"""Commands import only what they need: help does not import torch, an image's cost neither."""

import subprocess
import sys

import pytest
from PIL import Image

import forked
from internvlx_hf import __all__ as PUBLIC_NAMES
from internvlx_hf import __version__
from internvlx_hf.checkpoints.names import DTYPES
from internvlx_hf.cli import COMMANDS
from internvlx_hf.commands import convert, push
from internvlx_hf.conversion.options import INITS, PROJECTOR_CHOICES, TARGETS
from internvlx_hf.hub.push import CARDS
from internvlx_hf.processing.rvtc import SLICING_WORDS
from paths import GOLDEN

# run the console script `internvlx`, then print which of the modules after -- were imported
PROGRAM = """
import sys
import internvlx_cli

split = sys.argv.index("--")
sys.argv[:], asked = ["internvlx", *sys.argv[1:split]], sys.argv[split + 1 :]
try:
    status = internvlx_cli.main()
except SystemExit as stop:
    status = stop.code
print("imported", *(name for name in asked if name in sys.modules))
sys.exit(status)
"""


def python(*arguments: str) -> str:
    done = forked.python(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(*arguments: str, looking_for: tuple[str, ...]) -> tuple[str, list[str]]:
    """The program's output, and which of the modules it imported: in a process that starts without any."""
    command = [sys.executable, "-c", PROGRAM, *arguments, "--", *looking_for]
    *lines, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(lines), last.split()[1:]


# the options of training are those of transformers
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS if name != "train")], ids=" ".join)
def test_help_imports_no_library(command):
    text, imported = program(*command, "--help", looking_for=("torch", "transformers", "huggingface_hub", "numpy"))
    assert text.startswith(" ".join(("usage: internvlx", *command)))
    assert imported == []
    if "--slicing" in text:
        assert [words for words in SLICING_WORDS.values() if words not in " ".join(text.split())] == []


def test_version_imports_no_library():
    assert program("--version", looking_for=("torch", "transformers")) == (f"internvlx-hf {__version__}", [])


def test_the_cost_of_an_image_imports_no_library(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg")
    libraries = ("torch", "transformers", "huggingface_hub", "numpy", "asyncio")
    text, imported = program("cost", str(tmp_path / "photo.jpg"), "--size", "9x9", looking_for=libraries)
    assert "Mean of 2 images" in text
    assert imported == []


@pytest.mark.slow
def test_a_command_that_loads_checkpoints_has_the_auto_classes(tmp_path):
    source, out = str(GOLDEN / "checkpoints/internvl2_qwen2"), str(tmp_path / "out")
    text = python("-c", PROGRAM, "convert", source, out, "--verify", "--")
    assert "verified reference" in text


@pytest.mark.slow
def test_public_names_register_the_auto_classes_in_the_program_too():
    script = (
        "import internvlx_cli; internvlx_cli.is_program = True; from internvlx_hf import *; import transformers; "
        f"assert all(map(globals().get, {PUBLIC_NAMES})); print(transformers.AutoConfig.for_model('internvl_x').model_type)"
    )
    assert python("-c", script) == "internvl_x\n"


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        (convert, "--to", TARGETS),
        (convert, "--projector", PROJECTOR_CHOICES),
        (convert, "--init", INITS),
        (convert, "--dtype", DTYPES),
        (push, "--card", CARDS),
    ],
)
def test_choices_equal_those_of_the_function(command, option, choices):
    assert command._parser()._option_string_actions[option].choices == tuple(choices)
