"""The notebook runs from its first cell to its last, on a tiny checkpoint and without a network."""

import json
import os
import subprocess
import sys

import pytest

from paths import GOLDEN, ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
OVERLAY = ROOT / "build" / "notebook"

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.mark.integration
@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python", "language": "python"}))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(OVERLAY), os.environ.get("PYTHONPATH")])),
        "JUPYTER_PATH": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "INTERNVL": str(GOLDEN / "checkpoints" / "internvl2_qwen2"),
        "HF_HUB_OFFLINE": "1",
    }
    executed = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path), str(executed)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in json.loads(executed.read_text())["cells"] for output in cell.get("outputs", [])]
    printed = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")
    for expected in (
        "holds the converted model",
        "work before the first token",
        "step 3/3  loss ",
        "nothing was sent",
    ):
        assert expected in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "out" / "quickstart" / "tuned" / "model.safetensors").is_file()


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
