"""Which language models a claim is tested on: llama in every way, and one of each other kind in one."""

from itertools import product

import pytest

# without anything, with biases, with fused projections, with experts
KINDS = ("llama", "qwen2", "phi3", "qwen3_moe")


def on_each_backbone(texts=KINDS, **ways):
    """Tests with `text` and the ways as arguments: the first text in all combinations, the others in the first."""
    first, *others = texts
    table = [(first, *way) for way in product(*ways.values())]
    table += [(text, *(values[0] for values in ways.values())) for text in others]
    return pytest.mark.parametrize(("text", *ways), table)
