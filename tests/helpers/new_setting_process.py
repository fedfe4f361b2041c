"""Uses a package with a setting of images more, `shade`, in all places that settings of images reach, and reports on it.

python new_setting_process.py FOLDER
"""

import json
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import gradio
from PIL import Image
from transformers import AutoProcessor

from internvlx_hf import InternVLXProcessor
from internvlx_hf.cli import COMMANDS, main
from internvlx_hf.commands import cost as cost_command
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.evaluation.answering import Answerer
from internvlx_hf.serving.server import _OneModel
from internvlx_hf.training.arguments import ModelArguments, parse_arguments
from internvlx_hf.training.loading import load_processor
from internvlx_hf.web import page
from internvlx_hf.web.limits import Limits
from tiny import save_tiny
from vllm_stand_in import stand_in


def said(*words: str) -> str:
    """What a command prints before it ends."""
    out = StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main(list(words))
    return out.getvalue()


def refusal(act) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def on_page(model) -> list[str]:
    """The names of the page's inputs of settings, and what a visitor's values become."""
    callbacks = SimpleNamespace(shared=SimpleNamespace(defaults=Answerer(model, model.processor).image_settings))
    callbacks.limits = Limits()
    with gradio.Blocks():
        inputs = page._settings(callbacks)
    names = [each.elem_id for each in inputs]
    chosen = Limits().check_settings(*(each.value if each.elem_id != "shade" else 7 for each in inputs))
    return [*names, chosen.shade]


def in_vllm(processor) -> list:
    with stand_in():
        from internvlx_hf.vllm.processing import InternVLXProcessingInfo

        info = InternVLXProcessingInfo()
        info.ctx = SimpleNamespace(get_merged_mm_kwargs=lambda _: {"shade": 7})
        info.get_hf_processor = lambda: processor
        return [info.image_settings({}), refusal(lambda: info.image_settings({"shade": 11}))]


def report_on(folder: Path) -> dict:
    saved = save_tiny(folder / "saved", image_settings={"shade": 7})
    processor = InternVLXProcessor.from_pretrained(saved)
    model = SimpleNamespace(processor=processor)
    parsed = cost_command._parser().parse_args(["--model", str(saved), "--size", "64x64", "--shade", "6"])
    server = SimpleNamespace(checkpoint=str(saved), access=processor.image_processor.access)
    server.settings = Answerer(model, processor, {"shade": 5}).image_settings
    convert_checkpoint(saved, folder / "converted", shade=5)
    flags = ["--model_name_or_path", str(saved), "--shade", "4"]
    return {
        "commands": [
            name for name in COMMANDS if "shade" in said(name, "--help-all" if name == "train" else "--help")
        ],
        "saved": json.loads((saved / "processor_config.json").read_text())["image_processor"]["shade"],
        "loaded": AutoProcessor.from_pretrained(saved, shade=6).image_settings.shade,
        "converted": InternVLXProcessor.from_pretrained(folder / "converted").image_settings.shade,
        "refused": refusal(lambda: processor(images=Image.new("RGB", (9, 9)), text="<image>", shade=11)),
        "cost": cost_command.choose_setup(parsed).settings.shade,
        "served": _OneModel._load_processor(server).image_settings.shade,
        "trained": load_processor(parse_arguments(flags, (ModelArguments,))[0]).image_settings.shade,
        "answers": Answerer(model, processor, {"shade": 8}).image_settings.shade,
        "page": on_page(model),
        "vllm": in_vllm(processor),
    }


if __name__ == "__main__":
    print(json.dumps(report_on(Path(sys.argv[1]))))
