"""Uses a package with the projector of `mean_projector.py` for all that a projector is used for, and reports on it.

python sixth_projector_process.py FOLDER
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from internvlx_hf import cost
from internvlx_hf.conversion import convert_checkpoint
from internvlx_hf.cost.measure import measure
from internvlx_hf.hub import write_card
from tiny import LVTC, tiny_batch, tiny_config, tiny_model, tiny_processor

MEAN = {"projector_config": {"projector_type": "mean"}}


def main(folder: Path) -> None:
    report = {}
    with pytest.raises(ValueError, match="is 'linear'"):
        tiny_config(**MEAN, downsample_ratio=1.0)
    with pytest.raises(ValueError, match=r"`projector_type` must be one of .*'mean', got 'median'"):
        tiny_config(projector_config={"projector_type": "median"})

    model = tiny_model(**MEAN).train()
    report["scale"] = model.model.multi_modal_projector.scale.mean().item()
    report["no_split"] = sorted(name for name in model.model._no_split_modules if "Projector" in name)
    batch = tiny_batch(model.config, [[3, "tile", 5]])
    weight = model.model.multi_modal_projector.linear.weight
    before = weight.detach().clone()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    report["trained"] = not torch.equal(before, weight)

    model.eval().save_pretrained(folder / "saved")
    tiny_processor(model.config).save_pretrained(folder / "saved")
    report["saved"] = sorted(path.name for path in (folder / "saved").glob("*.py"))
    with torch.no_grad():
        expected = model(**batch).logits
        again = AutoModel.from_pretrained(folder / "saved")(**batch).logits
        remote_class = get_class_from_dynamic_module(
            "modeling_internvlx.InternVLXForConditionalGeneration", str(folder / "saved")
        )
        remote = remote_class.from_pretrained(folder / "saved")(**batch).logits
    report["remote"] = remote_class.__module__.partition(".")[0]
    report["equal"] = [torch.equal(expected, again), torch.equal(expected, remote)]

    sizes = measure(model.config)
    report["flops"] = sizes.tile_flops["multi_modal_projector"]
    report["peak"] = cost.CostModel(cost.load_setup(folder / "saved")).of_size(64, 64).peak_bytes
    report["card"] = write_card(str(folder / "saved")).text

    native = tiny_model(projector_config={"projector_type": "pixel_shuffle"}, downsample_ratio=0.25)
    native.save_pretrained(folder / "native")
    tiny_processor(native.config).save_pretrained(folder / "native")
    lvtc = {**LVTC["lvtc_config"], "lr_projector_type": "mean"}
    convert_checkpoint(folder / "native", folder / "upgraded", lvtc=lvtc)
    upgraded = AutoModel.from_pretrained(folder / "upgraded")
    added = upgraded.model.lvtc.lr_projectors[0]
    report["starts at zero"] = not added.linear.weight.any()
    report["upgraded scale"] = added.scale.mean().item()
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
