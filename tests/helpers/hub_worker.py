"""A user's process for test_hub.py: `python hub_worker.py [bare]` runs Python that it is sent, a JSON line a piece.

With `bare` it is one in which the package cannot be imported, only what transformers needs.
"""

import io
import json
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout

from hiding import hide

HIDDEN = {"internvlx_hf", "torchvision", "timm", "flash_attn", "peft", "accelerate", "datasets", "scipy", "sklearn"}


def run(code: str, namespace: dict) -> dict:
    out, err, error = io.StringIO(), io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            exec(compile(code, "sent", "exec"), namespace)
        except BaseException:
            error = traceback.format_exc()
    return {"result": namespace.get("result"), "out": out.getvalue(), "err": err.getvalue(), "error": error}


def main() -> None:
    if "bare" in sys.argv:
        hide(HIDDEN)
    answers, namespace = sys.stdout, {"__name__": "user"}
    for line in sys.stdin:
        namespace.pop("result", None)
        answers.write(json.dumps(run(json.loads(line), namespace)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
