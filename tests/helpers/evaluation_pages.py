"""Pages of handwritten digits, a model small enough to learn to read them in seconds, and lmms-eval tasks about them."""

import importlib.util
import sys
from pathlib import Path

import datasets
import numpy as np
import torch

from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXProcessor,
)
from paths import ROOT
from tiny import tiny_tokenizer

DEMO_PAGES = ROOT / "demo/pages.py"
TILE = 64
SMALL, WIDE, TALL = (4, 4), (8, 4), (4, 8)  # columns and rows of digits: 1, 3 and 3 tiles
TRAINING_STEPS, BATCH = 150, 16
QUESTION = "Read the digits."

TASKS = {
    "_pages": """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {folder}/pages.parquet
test_split: test
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
""",
    "read.yaml": """
include: _pages
task: pages_read
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 24
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "first_line.yaml": """
include: _pages
task: pages_first_line
output_type: generate_until
doc_to_target: first_digit
generation_kwargs:
  until:
    - "\\n"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "choose.yaml": """
include: _pages
task: pages_choose
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: right_choice
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "utils.py": """
def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]
""",
}


def load_demo_pages():
    """`demo/pages.py` as a module."""
    if "demo_pages" not in sys.modules:
        spec = importlib.util.spec_from_file_location("demo_pages", DEMO_PAGES)
        sys.modules["demo_pages"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["demo_pages"])
    return sys.modules["demo_pages"]


def draw_page(digits, layout: tuple[int, int], rng: np.random.Generator):
    """A page whose rows repeat one digit each, and that digit for every row."""
    while True:
        page = load_demo_pages().compose_page(digits, layout, rng, repeated=True)
        rows = page.text.split("\n")
        if all(len(set(row)) == 1 for row in rows):
            return page.image, "\n".join(row[0] for row in rows)


def conversation(image, answer: str | None = None) -> list[dict]:
    asked = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return [asked] if answer is None else [asked, answered]


def train_reader(folder: Path) -> None:
    """Train a reader of small and wide pages, and save it with its processor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = InternVLXForConditionalGeneration(
        InternVLXConfig(
            vision_config={
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "image_size": TILE,
                "patch_size": 8,
                "use_absolute_position_embeddings": True,
                "layer_scale_init_value": 1.0,
                "initializer_range": 0.06,
            },
            text_config={
                "model_type": "qwen3",
                "vocab_size": len(tokenizer),
                "hidden_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 24,
                "intermediate_size": 192,
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
                "initializer_range": 0.06,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            downsample_ratio=0.5,
            projector_config={"projector_type": "pvtc", "num_heads": 4, "drop_path_rate": 0.0},
        )
    )
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, max_patches=6, slicing="edge")
    processor = InternVLXProcessor(image_processor, tokenizer, image_seq_length=model.config.image_seq_length)

    digits, _ = load_demo_pages().Digits.load()
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=TRAINING_STEPS, pct_start=0.1)
    model.train()
    for step in range(TRAINING_STEPS):
        layout = WIDE if step % 4 == 3 else SMALL
        conversations = [conversation(*draw_page(digits, layout, rng)) for _ in range(BATCH)]
        batch = processor.apply_chat_template(
            conversations, return_labels=True, return_tensors="pt", processor_kwargs={"padding": True}
        )
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def write_tasks(folder: Path) -> None:
    """lmms-eval tasks about twelve pages written with digits that are on no training page."""
    _, digits = load_demo_pages().Digits.load()
    rng = np.random.default_rng(1)
    rows = []
    for layout in [SMALL, WIDE, SMALL, TALL] * 3:
        image, answer = draw_page(digits, layout, rng)
        wrong = str((int(answer[0]) + 3) % 10) + answer[1:]
        right_choice = int(rng.integers(2))
        choices = [wrong, answer] if right_choice else [answer, wrong]
        row = {"image": image, "question": QUESTION, "answer": answer, "first_digit": answer[0]}
        rows.append(row | {"choices": choices, "right_choice": right_choice})
    pages = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    folder.mkdir(parents=True, exist_ok=True)
    pages.to_parquet(folder / "pages.parquet")
    for name, text in TASKS.items():
        (folder / name).write_text(text.replace("{folder}", str(folder)).lstrip())
