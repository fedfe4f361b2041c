"""Run by test_runtimes.py in a process of its own, where torchao can be imported: an int8 model on the CPU.

Quantises tiny models on loading, as a user would, and prints as JSON what became of each of their linear layers and how
far the logits moved.
"""

import json
import sys
import tempfile

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from torchao.utils import TorchAOBaseTensor
from transformers import AutoModelForImageTextToText, TorchAoConfig

from internvlx_hf.quantization import COMPRESSION_MODULES, UNQUANTIZED_MODULES
from tiny import LVTC, tiny_batch, tiny_model

LEFT_OUT = {"all but the language model": UNQUANTIZED_MODULES, "compression only": (*COMPRESSION_MODULES, "lm_head")}
LAYOUTS = [[3, "tile", 5], [9], [2, "tile", "tile", 4]]


def quantized(path: str, left_out: tuple[str, ...]):
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(left_out))
    return AutoModelForImageTextToText.from_pretrained(path, quantization_config=config, dtype="auto").eval()


def describe(model, batch: dict, expected: torch.Tensor) -> dict:
    kinds = {
        name: isinstance(module.weight, TorchAOBaseTensor)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    with torch.no_grad():
        logits = model(**batch).logits
    return {
        "quantized": [name for name, is_quantized in kinds.items() if is_quantized],
        "others": [name for name, is_quantized in kinds.items() if not is_quantized],
        "similarity": nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0).item(),
        "differs": not torch.equal(logits, expected),
        "tokens": model.generate(**batch, max_new_tokens=6, do_sample=False)[
            :, batch["input_ids"].shape[1] :
        ].tolist(),
    }


def main() -> None:
    model = tiny_model(**LVTC)
    batch = tiny_batch(model.config, LAYOUTS)
    with torch.no_grad():
        expected = model(**batch).logits
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, left_out in LEFT_OUT.items():
            report[name] = describe(quantized(folder, left_out), batch, expected)
        quantized(folder, UNQUANTIZED_MODULES).save_pretrained(f"{folder}/int8")
        loaded = AutoModelForImageTextToText.from_pretrained(f"{folder}/int8", dtype="auto").eval()
        report["saved and loaded"] = describe(loaded, batch, expected)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
