# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The twelve benchmarks of the paper's Table 1, with the corresponding tasks of lmms-eval.

The paper names the benchmarks but not their splits or prompts. These splits can be scored without submitting answers;
the prompts are lmms-eval's own for each task.
"""

from dataclasses import dataclass

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and how to run it.

    name: name in the paper's Table 1.
    task, metric: names in lmms-eval.
    prompt: the instruction that the task adds to the question.
    max_patches: maximum number of tiles, without the thumbnail, in InternVL2's own evaluation scripts.
    as_internvl: whether those scripts give the same instruction.
    needs_judge: whether a model behind an API judges the answers.
    """

    name: str
    task: str
    metric: str
    prompt: str
    max_patches: int = 6
    as_internvl: bool = True
    needs_judge: bool = False


BENCHMARKS = (
    Benchmark("TextVQA", "textvqa_val", "exact_match", SHORT_ANSWER),
    Benchmark("DocVQA", "docvqa_val", "anls", SHORT_ANSWER, max_patches=18),
    # InternVL: "using a single word or phrase"
    Benchmark(
        "ChartQA",
        "chartqa",
        "relaxed_overall",
        "Answer the question with a single word.",
        max_patches=12,
        as_internvl=False,
    ),
    Benchmark("InfoVQA", "infovqa_val", "anls", SHORT_ANSWER, max_patches=24),
    Benchmark("GQA", "gqa", "exact_match", SHORT_ANSWER),
    Benchmark("VQAv2", "vqav2_val", "exact_match", SHORT_ANSWER),
    Benchmark(
        "VizWiz",
        "vizwiz_vqa_val",
        "exact_match",
        f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER}",
    ),
    # the judge is asked only about answers without a recognisable letter
    Benchmark("MMBench", "mmbench_en_dev", "gpt_eval_score", LETTER, needs_judge=True),
    # InternVL: the question alone
    Benchmark(
        "MM-Vet",
        "mmvet",
        "gpt_eval_score",
        "First please perform reasoning, and think step by step to provide best answer to the following question:",
        as_internvl=False,
        needs_judge=True,
    ),
    Benchmark("MMMU", "mmmu_val", "mmmu_acc", LETTER),
    Benchmark("POPE", "pope", "pope_f1_score", SHORT_ANSWER),
    # the paper's SEED-IMG is the metric over the images; the task also has SEED's videos
    Benchmark("SEED-IMG", "seedbench", "seed_image", LETTER),
)
"""The twelve benchmarks of the paper's Table 1."""
