"""lmms-eval itself, on pages of digits and a model trained to read them: the answers are those of our own loop."""

import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import AutoModel, AutoProcessor

import forked
from evaluation_pages import conversation, train_reader, write_tasks
from internvlx_hf.evaluation import BENCHMARKS
from json_files import json_of, lines_of
from paths import HELPERS, ROOT

OVERLAY = ROOT / "build/lmms_eval"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.any_transformers,
    pytest.mark.slow,
    pytest.mark.skipif(
        not OVERLAY.exists(), reason="lmms-eval is not in build/lmms_eval, where `make test-integration` puts it"
    ),
]


def run(folder: Path, *command, **env) -> str:
    paths = [OVERLAY, HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",  # where openai is installed, lmms-eval makes a client of it before any task asks for one
        **env,
    }
    done = forked.python(*command, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model/`, `tasks/` and `report.json`, made once for all workers of a test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "lmms_eval"
    with FileLock(f"{folder}.lock"):
        if not (folder / "report.json").exists():
            write_tasks(folder / "tasks")
            train_reader(folder / "model")
            run(folder, HELPERS / "lmms_eval_process.py", folder)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json_of(folder / "report.json")


@pytest.fixture(scope="module")
def pages(folder):
    return Dataset.from_parquet(str(folder / "tasks/pages.parquet"), cache_dir=str(folder / "hf"))


@pytest.fixture(scope="module")
def own_answers(folder, pages):
    """What `apply_chat_template` and `generate` answer, page by page."""
    model, processor = (cls.from_pretrained(folder / "model") for cls in (AutoModel, AutoProcessor))

    def ask(page, **images_kwargs):
        inputs = processor.apply_chat_template(
            conversation(page["image"]),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=images_kwargs,
        )
        output = model.eval().generate(**inputs, max_new_tokens=24)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return cache(lambda **images_kwargs: [ask(page, **images_kwargs) for page in pages])


def answers(results: dict) -> list[str]:
    return [answer for ((answer,),) in results["answers"]]


def test_the_model_has_learnt_to_read(report, pages):
    """Otherwise equal answers would say little. A guess is right in one case of ten."""
    read = answers(report["chat, one by one"]["pages_read"])
    taught = [  # tall pages were in no lesson
        (found, page["answer"]) for found, page in zip(read, pages, strict=True) if page["image"].size != (64, 96)
    ]
    right = [digit == expected for pair in taught for digit, expected in zip(*map(str.split, pair), strict=False)]
    assert sum(right) > 0.5 * sum(len(answer.split()) for _, answer in taught)
    assert len(set(read)) >= 6


@pytest.mark.parametrize("way", ["chat, one by one", "chat, batches of 8", "simple, batches of 8"])
def test_answers_are_those_of_our_own_loop(way, report, own_answers, pages):
    results = report[way]["pages_read"]
    assert answers(results) == own_answers()
    share = sum(read == page["answer"] for read, page in zip(answers(results), pages, strict=True)) / len(pages)
    assert results["metrics"]["exact_match,none"] == pytest.approx(share)


@pytest.mark.parametrize("way", ["chat, one by one", "chat, batches of 8"])
def test_an_answer_ends_where_the_task_says_until(way, report, own_answers):
    assert answers(report[way]["pages_first_line"]) == [answer.partition("\n")[0] for answer in own_answers()]


def test_image_settings_of_the_command_line_reach_the_image_processor(report, own_answers):
    read = answers(report["one tile"]["pages_read"])
    assert read == own_answers(max_patches=1)
    assert read != own_answers()


def test_the_choice_taken_is_the_one_with_the_smallest_loss(report, folder, pages):
    model, processor = (cls.from_pretrained(folder / "model") for cls in (AutoModel, AutoProcessor))
    results = report["choices"]["pages_choose"]
    right = 0
    for page, scores in zip(pages, results["answers"], strict=True):
        found = [float(loss) for ((loss, _),) in scores]
        expected = []
        for choice in page["choices"]:
            inputs = processor.apply_chat_template(
                conversation(page["image"], choice), return_labels=True, return_tensors="pt"
            )
            with torch.no_grad():
                expected.append(model.eval()(**inputs).loss.item())
        assert found == pytest.approx(expected, abs=1e-4)  # float32, in a batch of three and alone
        right += found.index(min(found)) == page["right_choice"]
    assert results["metrics"]["acc,none"] == pytest.approx(right / len(pages))
    assert right > len(pages) / 2


def test_two_processes_of_the_command_line_share_the_work_and_answer_the_same(folder, own_answers):
    run(
        folder,
        *(HELPERS / "launch_process.py", "lmms_eval.evaluator,internvlx_hf.evaluation.lmms_eval_models"),
        *("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "lmms_eval"),
        *("--model", "internvlx", "--model_args", f"pretrained={folder / 'model'}", "--batch_size", "4"),
        *("--tasks", "pages_read", "--include_path", folder / "tasks"),
        *("--log_samples", "--output_path", folder / "out"),
        ACCELERATE_USE_CPU="1",
    )
    (samples,) = (folder / "out").rglob("*_samples_pages_read.jsonl")
    samples = lines_of(samples)
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
    assert [found[number] for number in sorted(found)] == own_answers()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_each_benchmark_is_a_task_with_that_prompt_and_metric(benchmark, report):
    task = report["benchmarks"][benchmark.task]
    assert task is not None
    assert task["output_type"] == "generate_until"
    assert benchmark.metric in task["metrics"]
    texts = [re.sub(r"\s+", " ", text) for text in [*task["instructions"], task["source"]]]
    assert any(re.sub(r"\s+", " ", benchmark.prompt) in text for text in texts)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("automatic batch size", "batch_size='auto', expected a positive whole number"),
        ("unknown argument", "internvlx has no model_args ['max_tiles']; image settings are ['slicing', "),
        ("no tiles", "max_patches"),
        ("video", "Task 'films' has video or audio, expected text and images."),
        ("video of a simple task", "Task 'films' has a str as visual, expected Pillow images."),
        ("a device for two processes", "device='cuda:0', device_map=None with 2 processes: expected neither"),
        ("shards of a model", "expected plain `accelerate launch --multi_gpu`, or one process with device_map=auto"),
        ("rounds", "internvlx supports only tasks of one round"),
    ],
)
def test_what_there_is_not_is_refused_by_name(what, message, report):
    assert message in report["refusals"][what]


def test_a_system_prompt_comes_first(report):
    system, user = report["with a system prompt"]
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert user == {"role": "user", "content": [{"type": "text", "text": "Why?"}]}


def test_nothing_of_it_needs_torchvision(report):
    assert report["torchvision"] is False
