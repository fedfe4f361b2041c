"""Run by test_remote_code.py in a process of its own: `python -s bare_process.py FOLDER...`.

It loads each folder's checkpoint with `trust_remote_code=True` where the package and the optional ones cannot be imported,
no socket can be opened, and no file outside HF_HOME (also its TMPDIR) be written. It leaves what it found in HF_HOME.
"""

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ["HF_HOME"]).resolve()
HIDDEN = {
    "internvlx_hf",
    "torchvision",
    "timm",
    "flash_attn",
    "peft",
    "accelerate",
    "datasets",
    "scipy",
    "sklearn",
    "av",
}
refused = []


def refuse(event: str, args: tuple) -> None:
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        refused.append((event, repr(args)))
        raise PermissionError(f"no network: {event}{args}")
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"):
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes or isinstance(args[0], int) or os.fsdecode(args[0]) == os.devnull:
                return
        places = args[:2] if event in ("os.rename", "os.symlink", "os.link") else args[:1]
        for place in places:
            if HOME not in (resolved := Path(os.fsdecode(place)).resolve()).parents and resolved != HOME:
                refused.append((event, repr(args)))
                raise PermissionError(f"no writing outside HF_HOME: {event}{args}")


sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))
from hiding import hide  # noqa: E402

hide(HIDDEN)
sys.addaudithook(refuse)


def main(folders: list[str]) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    report = {}
    for folder in map(Path, folders):
        found = report[folder.name] = {"classes": {}}
        found["config"] = type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__module__
        batch = load_file(folder / "batch.safetensors")
        image = batch.pop("image").numpy()
        results = {}

        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        found["classes"] |= {
            "AutoProcessor": type(processor).__name__,
            "AutoImageProcessor": type(image_processor).__name__,
            "AutoProcessor's image processor": type(processor.image_processor).__name__,
        }
        results["pixels"] = image_processor(image, return_tensors="pt")["pixel_values"]
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What is on the picture?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        results["prompt"] = prompt["input_ids"]
        results["video"] = processor(text="<video>", videos=[image, image], return_tensors="pt")["pixel_values"]

        def run(name, model, batch=batch, prompt=prompt, results=results):
            with torch.no_grad():
                results[f"{name}.logits"] = model(**batch).logits
                results[f"{name}.answer"] = model.generate(**prompt, max_new_tokens=8, do_sample=False)

        for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
            model = auto_class.from_pretrained(folder, trust_remote_code=True)
            found["classes"][auto_class.__name__] = type(model).__name__
            found["model"] = type(model).__module__
            run(auto_class.__name__, model)

        again = HOME / f"{folder.name}_again"
        model.save_pretrained(again)
        processor.save_pretrained(again)
        found["saved again"] = sorted(path.name for path in again.iterdir())
        found["auto_map saved again"] = json.loads((again / "config.json").read_text())["auto_map"]
        run("saved again", AutoModel.from_pretrained(again, trust_remote_code=True))
        AutoProcessor.from_pretrained(again, trust_remote_code=True)
        save_file({name: value.contiguous() for name, value in results.items()}, HOME / f"{folder.name}.safetensors")

    report["refused"] = refused
    report["imported"] = sorted({name.split(".")[0] for name in sys.modules} & HIDDEN)
    (HOME / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
