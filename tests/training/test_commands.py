"""From InternVL2 to a trained model by the commands alone, as the documentation has them."""

import json

import pytest
import torch
import yaml

from conversion_helpers import GOLDEN
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.cli import main
from training_helpers import changed, saved_weights, write_data


@pytest.mark.slow
@pytest.mark.parametrize("source", ["internvl2_internlm2", "internvl2_phi3"])
def test_a_converted_checkpoint_goes_through_both_stages_lora_and_merging(source, tmp_path, capsys):
    converted = str(tmp_path / "converted")
    assert (
        main(["convert", str(GOLDEN / source), converted, "--projector", "pvtc", "--lvtc", "--slicing", "edge"]) == 0
    )
    settings = {
        "train_data": str(write_data(tmp_path / "data")),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_patches": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))

    def train(start, name, *flags):
        folder = tmp_path / name
        flags = ("--model_name_or_path", str(start), "--output_dir", str(folder), *flags)
        assert main(["train", str(tmp_path / "config.yaml"), *flags]) == 0
        what = f"adapter. `internvlx merge {folder} MERGED`" if "--lora_rank" in flags else "model."
        assert f"{folder} holds the trained {what}" in capsys.readouterr().out
        return folder

    first = train(converted, "one", "--stage", "1")
    second = train(first, "two", "--stage", "2")
    adapter = train(second, "lora", "--lora_rank", "4")
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0

    moved = changed(saved_weights(tmp_path / "converted"), saved_weights(first))
    assert moved
    assert all(".lvtc." in name or "multi_modal_projector" in name for name in moved)
    assert changed(saved_weights(first), saved_weights(second)) > moved
    recipe = json.loads((tmp_path / "merged" / "training_recipe.json").read_text())
    assert recipe["base_model"] == "two"
    model = InternVLXForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    processor = InternVLXProcessor.from_pretrained(tmp_path / "merged")
    prompt = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(prompt, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
    # what the conversion found out about the original travels on
    assert (tmp_path / "two" / "conversion_report.json").is_file()
