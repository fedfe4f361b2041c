# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluating models: batched answers, the paper's benchmarks, and a model class for lmms-eval (docs/evaluation.md)."""

from .answering import Answer, Answerer, AnswerScore, marks_as_text
from .benchmarks import BENCHMARKS, Benchmark

__all__ = ["BENCHMARKS", "Answer", "AnswerScore", "Answerer", "Benchmark", "marks_as_text"]
