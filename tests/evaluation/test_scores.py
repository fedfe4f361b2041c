"""A score is of the whole answer; and the tiles that InternVL2's own scripts give to a benchmark's images."""

import torch

from internvlx_hf.evaluation.answering import Answerer, cut_at
from internvlx_hf.evaluation.benchmarks import BENCHMARKS
from tiny import tiny_model, tiny_processor


def test_an_answer_of_which_only_the_end_is_what_the_model_would_write_is_not_greedy():
    model = tiny_model()
    answerer = Answerer(model, tiny_processor(model.config))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[answerer.processor.tokenizer.eos_token_id] = 1e-6
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].abs(),))  # so that every step writes the end
    asked = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    ended, longer = answerer.score([asked, asked], ["", "7"])
    assert (ended.is_greedy, ended.num_tokens) == (True, 1)
    assert (longer.is_greedy, longer.num_tokens) == (False, 2)


def test_documents_and_charts_get_more_tiles():
    tiles = {benchmark.name: benchmark.max_patches for benchmark in BENCHMARKS if benchmark.max_patches != 6}
    assert tiles == {"DocVQA": 18, "ChartQA": 12, "InfoVQA": 24}


def test_an_answer_is_cut_at_what_comes_first_in_it_and_not_in_the_list():
    """A single token may complete both."""
    assert cut_at("Yes.\nNo", ["No", "\n", "?"]) == "Yes."
    assert cut_at("Yes.", ["No", "\n", "?"]) == "Yes."
