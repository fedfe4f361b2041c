"""Run by test_runtimes.py in a process of its own, where llm-compressor can be imported: its tracing, as for GPTQ.

Prints as JSON, for tiny models, into how many subgraphs the model was traced, and whether the layers of the language model give
in them what they give in a forward.
"""

import json

import torch
from llmcompressor.args import DatasetArguments
from llmcompressor.pipelines.sequential.helpers import trace_subgraphs

from tiny import LVTC, tiny_batch, tiny_model

IGNORED = DatasetArguments().tracing_ignore


def layer_outputs(model, run) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    layers = model.model.language_model.layers
    hooks = [layer.register_forward_hook(lambda _, inputs, output: found.append(output)) for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def run_subgraphs(model, subgraphs, batch: dict):
    known = dict(batch)
    for subgraph in subgraphs:
        known |= subgraph.forward(model, **{name: known[name] for name in subgraph.input_names})


def describe(ignored: list[str], **kwargs) -> dict:
    model = tiny_model("llama", **kwargs)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    subgraphs = trace_subgraphs(model, batch, ["LlamaDecoderLayer"], ignored)
    found = layer_outputs(model, lambda: run_subgraphs(model, subgraphs, batch))
    expected = layer_outputs(model, lambda: model(**batch, use_cache=False))
    same = len(found) == len(expected) and all(map(torch.allclose, found, expected))
    return {"subgraphs": len(subgraphs), "same": same}


print(json.dumps({"one stage": describe(IGNORED), "LVTC": describe([*IGNORED, "layerwise_forward"], **LVTC)}))
