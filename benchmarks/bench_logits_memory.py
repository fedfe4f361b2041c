"""Peak memory that the logits add to a training step: supervised rows only, against all rows.

5 tiles, 60 supervised tokens, a vocabulary of 92,553. Each way runs in a process of its own, since a process's peak
never falls. One supervised token is the zero to count from.

    python benchmarks/bench_logits_memory.py
"""

import resource
import subprocess
import sys

import torch
from rows import Row, run_script
from timing import print_table, use_one_thread

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration

TILES, TEXT, VOCABULARY = 5, 80, 92_553
WAYS = {"one": 1, "supervised": 60, "full": 60}


def step(way: str) -> None:
    use_one_thread()
    config = InternVLXConfig(
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 448,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        projector_config={"projector_type": "pixel_shuffle"},
        image_token_id=5,
    )
    model = InternVLXForConditionalGeneration(config).train()
    image_rows = TILES * config.image_seq_length
    input_ids = torch.cat([torch.full((1, image_rows), 5), torch.randint(10, VOCABULARY, (1, TEXT))], dim=1)
    labels = input_ids.clone()
    labels[:, : -WAYS[way]] = -100
    pixel_values = torch.randn(TILES, 3, 448, 448)
    if way == "full":
        model.eval()  # all logits, as a model does that has no other way
    model(input_ids=input_ids, pixel_values=pixel_values, labels=labels).loss.backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(args) -> list[Row]:
    peak = {
        way: float(subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout)
        for way in WAYS
    }
    supervised, full = peak["supervised"] - peak["one"], peak["full"] - peak["one"]
    table = [["supervised rows", peak["supervised"], supervised], ["all rows", peak["full"], full]]
    print_table(["logits of", "peak MiB", "logits MiB"], table)
    return [Row("logits' memory, supervised rows / all rows", supervised / full, target=0.05)]


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        step(sys.argv[1])
    else:
        run_script(__doc__, measure)
