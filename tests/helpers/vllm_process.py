"""Run by tests/engines in vLLM's environment: `python vllm_process.py JOBS.json OUT.json`.

A job is an engine: `model`, `options` of `vllm.LLM`, an optional `adapter`, and rounds of prompts that are given at once. A
prompt has `text`, `images` (paths), `settings` for the image processor, `tokens` to generate, and optionally `sampling`
(further sampling parameters) and `abort` (the step after which it is withdrawn). `fault` names a change of vllm_faults.py
under which the engine runs.

Two kinds of jobs start no engine: with `refused`, options by name, the result is the error that each gives, with `simulated`,
numbers of runs and of requests, what vllm_scheduling.py counts.

With `--steps` a round's result is its answers and what the scheduler did (vllm_steps.py).
"""

import gc
import json
import sys
import traceback
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

HELPERS = Path(__file__).parent
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "enforce_eager": True,
    "limit_mm_per_prompt": {"image": 4},
    "block_size": 32,
    "enable_prefix_caching": True,
}


def answer_round(llm, prompts: list[dict], adapter) -> list[dict]:
    """What the engine answers, in the order of the prompts; a withdrawn one gets None."""
    from PIL import Image
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    aborts = {str(i): prompt["abort"] for i, prompt in enumerate(prompts) if "abort" in prompt}
    for i, prompt in enumerate(prompts):
        request = {"prompt": prompt["text"]}
        if prompt["images"]:
            request["multi_modal_data"] = {"image": [Image.open(path) for path in prompt["images"]]}
        if prompt["settings"]:
            request["mm_processor_kwargs"] = prompt["settings"]
        settings = {"temperature": 0, "ignore_eos": True, "logprobs": 0} | prompt.get("sampling", {})
        sampling = SamplingParams(max_tokens=prompt["tokens"], output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        engine.add_request(str(i), request, sampling, lora_request=adapter)
    outputs, step = {}, 0
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
        step += 1
        if late := [name for name, last in aborts.items() if last == step]:
            engine.abort_request(late)
    return [answer(outputs.get(str(i))) for i in range(len(prompts))]


def answer(output) -> dict | None:
    if output is None:
        return None
    samples = sorted(output.outputs, key=lambda sample: sample.index)
    found = [
        {
            "tokens": list(sample.token_ids),
            "logprobs": [step[token].logprob for token, step in zip(sample.token_ids, sample.logprobs, strict=True)],
        }
        for sample in samples
    ]
    return {"prompt": list(output.prompt_token_ids), "cached": output.num_cached_tokens, "samples": found, **found[0]}


def run(job: dict, steps=None) -> list | str:
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    try:
        llm = LLM(job["model"], **OPTIONS | job["options"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    adapter = LoRARequest("adapter", 1, job["adapter"]) if job.get("adapter") else None
    found: list | str = []
    try:
        for prompts in job["rounds"]:
            answers = answer_round(llm, prompts, adapter)
            found.append(answers if steps is None else {"answers": answers} | steps.take())
    except Exception:
        found = traceback.format_exc()
        if steps is not None:
            steps.take()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


def refusals(job: dict) -> dict[str, str]:
    from vllm.engine.arg_utils import EngineArgs

    found = {}
    for name, options in job["refused"].items():
        try:
            EngineArgs(job["model"], **OPTIONS | options).create_engine_config()
            found[name] = "no error"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def simulated(job: dict) -> dict[str, int] | str:
    from vllm_scheduling import simulate

    return simulate(job["model"], *job["simulated"])


def fault(name: str | None):
    if name is None:
        return nullcontext()
    from vllm_faults import FAULTS

    return FAULTS[name]()


def main(jobs: str, out: str, *flags: str) -> None:
    steps = None
    if flags:
        sys.path.append(str(HELPERS))
        from vllm_steps import Steps

        steps = Steps()
    results: dict = {}
    for name, job in json.loads(Path(jobs).read_text()).items():
        with fault(job.get("fault")):
            if "refused" in job:
                results[name] = refusals(job)
            elif "simulated" in job:
                results[name] = simulated(job)
            else:
                results[name] = run(job, steps)
    assert flags or "internvlx_hf" not in sys.modules
    results["version"] = version("vllm")
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
