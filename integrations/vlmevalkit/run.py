# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Start VLMEvalKit's own run.py with an InternVL-X model added to its models.

python run.py VLMEVALKIT NAME CHECKPOINT [SETTING=VALUE ...] -- --data MMBench_DEV_EN ...
"""

import json
import runpy
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: list[str]) -> None:
    if "--" not in arguments or arguments.index("--") < 3:
        sys.exit(__doc__)
    own, others = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    folder, name, checkpoint, *settings = own
    script = Path(folder) / "run.py"
    if not script.is_file():
        sys.exit(f"{folder} is not a copy of VLMEvalKit: there is no {script}")
    sys.path[:0] = [str(HERE), str(script.parent)]
    from internvlx_vlm import InternVLX
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(InternVLX, model_path=checkpoint, **dict(map(setting, settings)))
    sys.argv = [str(script), "--model", name, *others]
    runpy.run_path(str(script), run_name="__main__")


def setting(text: str) -> tuple[str, object]:
    """`max_patches=12` -> ("max_patches", 12). A value that is not JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals:
        sys.exit(f"{text!r} is no setting, expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    main(sys.argv[1:])
