"""Run by tests/engines in vLLM's environment, which has no package of ours: `python -I vllm_process.py JOBS.json OUT.json`.

A job is an engine: `model`, `options` of `vllm.LLM`, an optional `adapter`, and rounds of prompts that are given at once. A
prompt has `text`, `images` (paths), `settings` for the image processor, and `tokens` to generate.
"""

import gc
import json
import sys
from pathlib import Path

OPTIONS = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "enforce_eager": True,
    "trust_remote_code": True,
    "limit_mm_per_prompt": {"image": 4},
    "block_size": 32,
    "enable_prefix_caching": True,
}


def answers(llm, prompts: list[dict], adapter) -> list[dict]:
    from PIL import Image
    from vllm import SamplingParams

    requests, sampling = [], []
    for prompt in prompts:
        request = {"prompt": prompt["text"]}
        if prompt["images"]:
            request["multi_modal_data"] = {"image": [Image.open(path) for path in prompt["images"]]}
        if prompt["settings"]:
            request["mm_processor_kwargs"] = prompt["settings"]
        requests.append(request)
        sampling.append(SamplingParams(temperature=0, max_tokens=prompt["tokens"], ignore_eos=True))
    return [
        {
            "prompt": list(output.prompt_token_ids),
            "tokens": list(output.outputs[0].token_ids),
            "cached": output.num_cached_tokens,
        }
        for output in llm.generate(requests, sampling, use_tqdm=False, lora_request=adapter)
    ]


def run(job: dict) -> list | str:
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    try:
        llm = LLM(job["model"], **OPTIONS | job["options"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    adapter = LoRARequest("adapter", 1, job["adapter"]) if job.get("adapter") else None
    found = [answers(llm, prompts, adapter) for prompts in job["rounds"]]
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    results = {name: run(job) for name, job in json.loads(Path(sys.argv[1]).read_text()).items()}
    assert "internvlx_hf" not in sys.modules
    Path(sys.argv[2]).write_text(json.dumps(results))
