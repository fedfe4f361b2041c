"""Train a small InternVL-X with the Trainer to transcribe pages of handwritten digits, and save it with its processor.

The model has all three ideas of the paper: PVTC projectors, LVTC in the language model, RVTC in the image processor.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from pages import LAYOUTS, Digits, compose_page
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXProcessor,
)
from internvlx_hf.checkpoints.atomic_folder import atomic_folder, refuse_existing
from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.training.console import ConsoleCallback

QUESTION = "Transcribe this page."
TILE = 64  # pixels; 8x8 patches of 8x8 pixels
WINDOWS = 4, 2  # patches per side of a token in stages one and two: 2x2, then 4x4 tokens per tile
BATCH = 24
SHARES = [0.15, 0.25, 0.25, 0.35]  # share of each page size of LAYOUTS


def build_tokenizer(questions: str = QUESTION) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with InternVL's special tokens. Each digit is a token, as are common words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    image_tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *image_tokens.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"system\nuser\n{questions}\nassistant\n0123456789"] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=image_tokens,
        padding_side="left",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> InternVLXForConditionalGeneration:
    config = InternVLXConfig(
        vision_config={
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 288,
            "image_size": TILE,
            "patch_size": 8,
            "use_absolute_position_embeddings": True,
            "layer_scale_init_value": 1.0,
            "initializer_range": 0.1,
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tokenizer),
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 40,
            "intermediate_size": 320,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},  # prompts are short
            "initializer_range": 0.04,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=1 / WINDOWS[0],
        projector_config={"projector_type": "pvtc", "num_heads": 4, "drop_path_rate": 0.0},
        lvtc_config={"expand_layer": 2, "downsample_ratio": 1 / WINDOWS[1], "hr_projector_type": "pvtc"},
    )
    return InternVLXForConditionalGeneration(config)


class Lessons(torch.utils.data.Dataset):
    """Training pages, each one new, from easy to hard. A batch has pages of one size, so nothing is padded.

    The first quarter has pages of one tile, the rest all sizes. For each size, random pages gradually replace repeated
    ones (see `compose_page`).
    """

    def __init__(self, digits: Digits, steps: int, seed: int):
        self.digits, self.steps, self.seed = digits, steps, seed

    def __len__(self):
        return self.steps * BATCH

    def __getitem__(self, index: int):
        step = index // BATCH
        only_small, progress = step < self.steps / 4, step / self.steps
        size = 0 if only_small else np.random.default_rng((self.seed, step)).choice(len(LAYOUTS), p=SHARES)
        layout = LAYOUTS[size]
        since_start = progress if layout == LAYOUTS[0] else progress - 0.25
        rng = np.random.default_rng((self.seed, step, index))
        page = compose_page(self.digits, layout, rng, repeated=rng.random() < 0.8 - 1.3 * since_start)
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": page.text}]
        return {"messages": messages, "images": [page.image]}


def write_test_pages(digits: Digits, pages_per_size: int, folder: Path, seed: int) -> None:
    """Write test pages as images to `folder`, and their texts to `folder/pages.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 1, 2, 3))
    listed = []
    for layout in LAYOUTS:
        for number in range(pages_per_size):
            page = compose_page(digits, layout, rng)
            name = f"{page.image.width}x{page.image.height}-{number:02}.png"
            page.image.save(folder / name)
            listed.append({"file": name, "text": page.text})
    (folder / "pages.json").write_text(json.dumps({"question": QUESTION, "pages": listed}, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: out/demo)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    parser.add_argument("--test-pages", type=int, default=24, help="test pages of each size (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pages and the model (default: 0)")
    args = parser.parse_args()
    if not sys.stderr.isatty():
        disable_progress_bar()  # a log file would keep every redraw
    refuse_existing(args.out / "model", overwrite=True)  # unless an earlier run wrote it
    torch.set_num_threads(min(4, torch.get_num_threads()))  # more do not help a model this small
    set_seed(args.seed)

    train_digits, test_digits = Digits.load(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    processor = InternVLXProcessor(
        InternVLXImageProcessor(size={"height": TILE, "width": TILE}, max_patches=6, slicing="edge"),
        tokenizer,
        image_seq_length=model.config.image_seq_length,
    )
    print(
        f"{model.num_parameters() / 1e6:.1f}M parameters, {model.config.image_seq_length} tokens per tile in stage one, "
        f"{model.config.expanded_image_seq_length} in stage two; "
        f"{len(train_digits.labels)} handwritten digits for training, {len(test_digits.labels)} others for testing"
    )

    training = TrainingArguments(
        output_dir=args.out / "checkpoints",
        max_steps=args.steps,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        learning_rate=1e-3,  # with a higher rate, the model learns late or never where to look
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": int(0.4 * args.steps)},
        warmup_steps=0.05,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=max(1, args.steps // 24),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=args.seed,
    )
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=InternVLXDataCollator(processor),
        train_dataset=Lessons(train_digits, args.steps, args.seed),
    )
    ConsoleCallback.attach(trainer)
    trainer.train()

    # both carry their code, so that they load where this package is not installed
    with atomic_folder(args.out / "model", overwrite=True) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    write_test_pages(test_digits, args.test_pages, args.out / "pages", args.seed)
    print(f"saved {args.out / 'model'}")


if __name__ == "__main__":
    main()
