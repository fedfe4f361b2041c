"""Build the reference of all public names from their docstrings: python docs/build_reference.py build/docs"""

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

MODULES = [
    "internvlx_hf",
    "internvlx_hf.conversion",
    "internvlx_hf.data",
    "internvlx_hf.training",
    "internvlx_hf.cost",
    "internvlx_hf.pictures",
    "internvlx_hf.hub",
    "internvlx_hf.evaluation",
    "internvlx_hf.serving",
    "internvlx_hf.quantization",
]


def public_names() -> dict[str, dict[str, object]]:
    """What each module says is public, by name."""
    modules = {name: import_module(name) for name in MODULES}
    return {name: {each: getattr(module, each) for each in module.__all__} for name, module in modules.items()}


def main(folder: str) -> None:
    for module, names in public_names().items():
        vars(sys.modules[module]).update(names)  # pdoc does not find what a module imports when it is asked for
    warnings.filterwarnings("ignore", "Error parsing type annotation Literal")  # inherited from transformers
    warnings.filterwarnings("error", "Found .* does not resolve")
    pdoc.render.configure(docformat="google")
    # what needs lmms-eval to be imported is left out
    pdoc.pdoc(*MODULES, "!internvlx_hf.evaluation.lmms_eval_models", output_directory=Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
