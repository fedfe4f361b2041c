"""What a visitor to the repository meets: workflows, templates, citation; they are valid and agree with each other."""

import os
import re
import subprocess
import sys
from configparser import ConfigParser

import pytest
import yaml

from internvlx_hf import __version__
from paths import ROOT

pytestmark = pytest.mark.any_transformers

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"})
TOOLS = ROOT / "build/workshop"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check(*command) -> None:
    if not TOOLS.exists():
        pytest.skip("check-jsonschema and zizmor are not in build/workshop, where `make test-integration` puts them")
    run = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE/config.yml"]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_follow_their_schema(schema, files):
    assert files
    check(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files)


@pytest.mark.integration
def test_workflows_pass_the_security_audit():
    check(TOOLS / "bin/zizmor", "--offline", "--quiet", "--persona", "pedantic", GITHUB)


def test_actions_are_pinned_to_one_commit_each():
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))}
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
    assert len(used) == len({line.split("@")[0] for line in used})


def test_workflows_call_targets_that_exist():
    rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    called = {name for path in WORKFLOWS for name in re.findall(r"run: make (\S+)", path.read_text(encoding="utf-8"))}
    assert called
    assert called <= targets


def test_workflows_try_the_python_versions_that_the_package_names():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert read(GITHUB / "workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == named


def test_the_version_is_the_same_everywhere():
    citation = read(ROOT / "CITATION.cff")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == newest[1] == __version__


def test_the_environment_that_a_bug_report_asks_for_can_be_printed(capsys):
    described = [
        field["attributes"].get("description", "") for field in read(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"]
    ]
    (code,) = re.findall(r'python -c "(.*)"', "\n".join(described))
    exec(code, {})
    assert capsys.readouterr().out.startswith(f"{__version__}\n")
