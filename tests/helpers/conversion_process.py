"""Run by test_conversion_golden.py in a process of its own: `python conversion_process.py GOLDEN OUT CONVERTED...`.

It loads each converted checkpoint with AutoModel and `trust_remote_code=True`, where this package cannot be imported, runs
what the golden files hold the reference's answers to, and writes its own answers into OUT as `<name>.safetensors`.
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from hiding import hide

hide({"internvlx_hf"})


def generate(model, ids, mask, **images):
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **images)
    return output[:, ids.shape[1] :]


def answers(fresh_model, golden):
    """Our numbers under the golden file's names.

    As for the reference's, every prompt gets a model of its own: dynamic NTK remembers the longest prompt seen.
    """
    model = copy.deepcopy(fresh_model)
    pixels, ids, mask = (golden[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    features = model.get_image_features(pixels, return_dict=True)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    yield "vision_hidden_state", features.last_hidden_state
    yield "vision_features", features.pooler_output
    yield "logits", logits[:, golden["logits_positions"]]
    yield "logits_argmax", logits.argmax(-1)
    yield "logits_logsumexp", logits.logsumexp(-1)
    yield "generated_ids", generate(model, ids, mask, pixel_values=pixels)
    model = copy.deepcopy(fresh_model)
    ids, mask = golden["text.input_ids"], golden["text.attention_mask"]
    yield "text.logits_last2", model(input_ids=ids, attention_mask=mask).logits[:, -2:]
    yield "text.generated_ids", generate(model, ids, mask)
    if "batch.input_ids" in golden:
        ids, mask, pixels = (golden[f"batch.{name}"] for name in ("input_ids", "attention_mask", "pixel_values"))
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        yield "batch.logits_last2", logits[:, -2:]
        yield "batch.generated_ids", generate(model, ids, mask, pixel_values=pixels)


def main(golden_folder: Path, out: Path, folders: list[Path]) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    torch.set_grad_enabled(False)
    for folder in folders:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
        golden = load_file(golden_folder / f"{folder.name}.golden.safetensors")
        found = {name: tensor.contiguous() for name, tensor in answers(model, golden)}
        save_file(found, out / f"{folder.name}.safetensors", {"class": type(model).__name__})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), [Path(name) for name in sys.argv[3:]])
