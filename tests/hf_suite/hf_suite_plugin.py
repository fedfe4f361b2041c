"""pytest plugin: apply the harness's own skips, name the mixin each test comes from, collect the outcomes."""

import json
import os
import re

import pytest
import skips

RESULTS = {}
WORST = {"failed": 3, "passed": 2, "skipped": 1}

# tests defined in the case classes that belong to a shared helper all the same
BY_NAME = {"test_config": "ConfigTester", "test_training_overfit": "TrainingTesterMixin"}


def group_of(cls, name: str) -> str:
    if name.startswith("test_harness_"):
        return "harness"
    if name in BY_NAME:
        return BY_NAME[name]
    # the mixins copy their tests into every subclass, so the first class inside `tests.*` is the one that counts
    for base in cls.__mro__:
        if base.__module__.startswith("tests.") and name in vars(base):
            return base.__name__
    return "harness"


def pytest_configure(config):
    for mark in [
        "generate",
        "torch_compile_test",
        "torch_export_test",
        "onnx_export_test",
        "executorch_export_test",
        "flash_attn_test",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "accelerate_tests",
        "is_training_test",
        "is_tensor_parallel_test",
        "order",
        "timeout",
    ]:
        config.addinivalue_line("markers", f"{mark}: from the shared tests")


def pytest_collection_modifyitems(config, items):
    use_skips = os.environ.get("HFSUITE_NO_SKIPS") != "1"
    project = os.environ.get("HFSUITE_TARGET") != "native"
    for item in items:
        cls = getattr(item, "cls", None)
        if cls is None:
            continue
        name = item.originalname if getattr(item, "originalname", None) else item.name
        item.user_properties.append(("hf_group", group_of(cls, name)))
        item.user_properties.append(("hf_case", cls.__name__))
        # what the shared tests skip by a decorator (slow, missing package) keeps its own reason
        if use_skips and not getattr(item.obj, "__unittest_skip__", False):
            has_stages = getattr(cls, "hfsuite_variant", None) in ("lvtc_on", "dial")
            why = skips.reason(getattr(cls, "hfsuite_kind", "model"), name, project, has_stages)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


def _text(report) -> str:
    long = report.longrepr
    if isinstance(long, tuple):
        return str(long[2])
    crash = getattr(long, "reprcrash", None)
    return str(getattr(crash, "message", None) or long or "")


def pytest_runtest_logreport(report):
    props = dict(report.user_properties)
    entry = RESULTS.setdefault(
        report.nodeid,
        {"outcome": None, "sub": [], "why": "", "group": None, "case": None, "seconds": 0.0},
    )
    entry["group"] = props.get("hf_group") or entry["group"]
    entry["case"] = props.get("hf_case") or entry["case"]
    is_sub = type(report).__name__ == "SubtestReport"
    if not is_sub:
        entry["seconds"] += getattr(report, "duration", 0.0)
    if report.when != "call" and report.outcome == "passed":
        return
    if is_sub:
        entry["sub"].append(report.outcome)
    elif entry["outcome"] is None or WORST[report.outcome] > WORST[entry["outcome"]]:
        entry["outcome"] = report.outcome
    if report.outcome == "failed" or (report.outcome == "skipped" and not entry["why"]):
        entry["why"] = re.sub(r"\s+", " ", _text(report)).removeprefix("Skipped: ").strip()[:400]


def _settle(entry) -> str:
    if "failed" in entry["sub"]:
        return "failed"
    if entry["outcome"] == "passed" and entry["sub"] and set(entry["sub"]) == {"skipped"}:
        return "skipped"
    return entry["outcome"] or "failed"


def pytest_sessionfinish(session):
    path = os.environ.get("HFSUITE_RESULTS")
    if not path or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    tests = []
    for nodeid, entry in RESULTS.items():
        tests.append(
            {
                "test": nodeid.rsplit("::", 1)[-1],
                "case": entry["case"] or nodeid.split("::")[-2] if "::" in nodeid else nodeid,
                "group": entry["group"] or "harness",
                "outcome": _settle(entry),
                "why": entry["why"],
                "seconds": round(entry["seconds"], 2),
            }
        )
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tests, file, indent=0)
