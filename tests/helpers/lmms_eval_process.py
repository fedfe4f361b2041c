"""Run by test_evaluation_lmms.py in a process of its own, since importing lmms-eval changes PIL, torch and logging.

Evaluates the model in FOLDER/model on the tasks in FOLDER/tasks, one way after another, and writes what came out to
FOLDER/report.json.
"""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from accelerate import DistributedType
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from internvlx_hf.evaluation import BENCHMARKS
from internvlx_hf.evaluation.lmms_eval_models import InternVLXChat, images_then_text

RUNS = {
    "chat, one by one": {"batch_size": 1},
    "chat, batches of 8": {"batch_size": 8},
    "simple, batches of 8": {"batch_size": 8, "force_simple": True},
}


def evaluate(folder: Path, manager: TaskManager, tasks: list[str], model_args: str = "", **kwargs) -> dict:
    results = simple_evaluate(
        model="internvlx",
        model_args=f"pretrained={folder / 'model'}{model_args}",
        tasks=tasks,
        task_manager=manager,
        log_samples=True,
        **kwargs,
    )
    return {
        task: {
            "answers": [sample["resps"] for sample in sorted(results["samples"][task], key=lambda s: s["doc_id"])],
            "metrics": {name: value for name, value in results["results"][task].items() if "stderr" not in name},
        }
        for task in tasks
    }


def describe(manager: TaskManager, task: str) -> dict | None:
    """The instructions and metrics of one of lmms-eval's own tasks; None if there is none such."""
    if task not in manager.all_tasks:
        return None
    config = manager._get_config(task)
    instructions = (config.get("lmms_eval_specific_kwargs") or {}).get("default") or {}
    return {
        "instructions": [value for value in instructions.values() if isinstance(value, str)],
        "source": inspect.getsource(config["doc_to_text"]),
        "metrics": [metric["metric"] for metric in config["metric_list"]],
        "output_type": config["output_type"],
    }


def message_of(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except (ValueError, NotImplementedError) as error:
        return str(error)
    return "no error"


def refusals(path: str) -> dict[str, str]:
    """What is said to a user who asks for what there is not."""
    model = InternVLXChat(path)
    model.task_dict = {"films": {"test": [{}]}}
    two = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2, distributed_type=DistributedType.FSDP))
    film = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    return {
        "automatic batch size": message_of(InternVLXChat, path, batch_size="auto"),
        "unknown argument": message_of(InternVLXChat, path, max_tiles=3),
        "no tiles": message_of(InternVLXChat, path, max_patches=0),
        "video": message_of(model._conversation, ("", lambda doc: film, {}, 0, "films", "test")),
        "video of a simple task": message_of(images_then_text, ["film.mp4"], "", "films"),
        "a device for two processes": message_of(InternVLXChat._placement, two, "cuda:0", None),
        "shards of a model": message_of(InternVLXChat._placement, two, None, None),
        "rounds": message_of(model.generate_until_multi_round, []),
    }


def main(folder: Path) -> None:
    manager = TaskManager(include_path=str(folder / "tasks"))
    generated = ["pages_read", "pages_first_line"]
    report = {name: evaluate(folder, manager, generated, **kwargs) for name, kwargs in RUNS.items()}
    report["choices"] = evaluate(folder, manager, ["pages_choose"], force_simple=True, batch_size=3)
    report["one tile"] = evaluate(folder, manager, ["pages_read"], ",max_patches=1", batch_size=8)
    report["benchmarks"] = {benchmark.task: describe(manager, benchmark.task) for benchmark in BENCHMARKS}
    report["refusals"] = refusals(str(folder / "model"))
    report["with a system prompt"] = InternVLXChat(str(folder / "model"), system_prompt="Be brief.")._prepared(
        images_then_text([], "Why?", "pages")
    )
    report["torchvision"] = "torchvision" in sys.modules
    (folder / "report.json").write_text(json.dumps(report, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
