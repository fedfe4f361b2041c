"""The attention of a training on packed rows: which is chosen, and masks that would be too large are refused."""

import pytest
import torch

from internvlx_hf.data.packing import PackedStream
from internvlx_hf.training import attention, load_training_data
from internvlx_hf.training.arguments import DataArguments, InternVLXTrainingArguments
from internvlx_hf.training.attention import check_masks, packed_attention
from internvlx_hf.training.run_data import load_run_data, longest_batch
from tiny import LVTC, tiny_config, tiny_model, tiny_processor
from training_helpers import run, save_checkpoint, write_data

GPU, CPU = torch.device("cuda"), torch.device("cpu")
KERNEL = attention.FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"]


def has(*parts):
    return parts


@pytest.mark.parametrize(
    ("installed", "where", "expected"),
    [
        (has("fa3", "fa2", "varlen", "kernels"), (GPU, torch.bfloat16), "flash_attention_3"),
        (has("fa3", "fa2", "varlen", "kernels"), (GPU, torch.bfloat16, 0.1), "flash_attention_2"),
        (has("fa2", "varlen", "kernels"), (GPU, torch.float16), "flash_attention_2"),
        (has("varlen", "kernels", "hub"), (GPU, torch.bfloat16), "varlen_sdpa"),
        (has("kernels", "hub"), (GPU, torch.bfloat16), KERNEL),
        (has("kernels"), (GPU, torch.bfloat16), "varlen_sdpa"),
        (has(), (GPU, torch.bfloat16), "varlen_sdpa"),
        (has("fa3", "fa2", "varlen", "kernels", "hub"), (GPU, torch.float32), "varlen_sdpa"),
        (has("fa3", "fa2", "varlen", "kernels", "hub"), (CPU, torch.bfloat16), "varlen_sdpa"),
    ],
)
def test_the_fastest_attention_that_needs_no_mask_is_chosen(installed, where, expected, monkeypatch):
    def load(kernel):
        if "hub" not in installed:
            raise OSError("no network")

    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: "fa3" in installed)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: "fa2" in installed)
    monkeypatch.setattr(attention, "is_kernels_available", lambda: "kernels" in installed)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda device, dtype: "varlen" in installed)
    monkeypatch.setattr(attention, "lazy_import_flash_attention", load)
    assert packed_attention(*where) == expected


def test_masks_are_measured_for_both_stages_and_refused_above_the_limit(monkeypatch):
    said = []
    monkeypatch.setattr(attention.logger, "warning", said.append)
    config = tiny_config(**LVTC)
    check_masks(config, "sdpa", (8192, 32768), 4, limit=2**30 + 2**26)
    assert "packed row of 8192 tokens, 32768 after LVTC's expansion, with dense masks of 1,088.0 MiB." in said[0]
    with pytest.raises(
        ValueError, match=rf"1,088.0 MiB, more than `max_mask_bytes`={2**30}. Leave `attn_impl.* unset"
    ):
        check_masks(config, "sdpa", (8192, 32768), 4, limit=2**30)
    with pytest.raises(ValueError, match=r"'eager'.* of 8192 tokens with dense masks of 256.0 MiB"):
        check_masks(tiny_config(), "eager", (8192, 8192), 4, limit=1)
    check_masks(config, "flash_attention_2", (8192, 32768), 4, limit=1)
    assert len(said) == 1


def test_the_longest_batch_is_that_of_the_longest_rows_in_each_stage(tmp_path):
    model = tiny_model(**LVTC)
    processor = tiny_processor(model.config, max_patches=3, slicing="edge")
    arguments = DataArguments(train_data=str(write_data(tmp_path)), packing_tokens=90, pad_to_multiple_of=8)
    data = load_run_data(arguments, InternVLXTrainingArguments(str(tmp_path)), processor, model.config)
    rows = [data.collator([data.train[i]]) for i in range(len(data.train))]
    lengths = [row["input_ids"].shape[1] for row in rows]
    gain = model.config.expanded_image_seq_length - model.config.image_seq_length
    expanded = [length + gain * len(row.get("pixel_values", ())) for length, row in zip(lengths, rows, strict=True)]
    assert longest_batch(data, 1, model.config)[0] == max(lengths)
    assert max(expanded) <= longest_batch(data, 1, model.config)[1] < max(expanded) + 8
    two = longest_batch(data, 2, model.config)
    assert sum(sorted(lengths)[-2:]) - 16 <= two[0] <= sum(sorted(lengths)[-2:])

    data.train = PackedStream(load_training_data(arguments.train_data, processor, streaming=True), 90)
    assert longest_batch(data, 2, model.config) == (184, 180 + 7 + gain * 45)
    assert longest_batch(data, 2, tiny_config()) == (184, 187)


def test_a_packed_run_says_which_attention_it_chose(tmp_path, capsys):
    save_checkpoint(tmp_path / "base")
    run(tmp_path, packing_tokens=60, max_steps=1)
    assert "Attention: varlen_sdpa" in capsys.readouterr().out
    assert "varlen_sdpa" not in (tmp_path / "out" / "config.json").read_text()
