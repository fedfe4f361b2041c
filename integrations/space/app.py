"""The page of `internvlx web` as a Space of the Hugging Face Hub.

Variables: MODEL, a Hub id; OPTIONS, further options of `internvlx web`.
"""

import os
import shlex
import sys

from internvlx_hf.cli import main

# only the Hub's proxy reaches a Space; it gives the visitors' addresses
os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")

MODEL = os.environ.get("MODEL")
if not MODEL:
    sys.exit("The variable MODEL is not set, expected a Hub id, such as you/internvl-x-2b.")
sys.exit(
    main(
        [
            *("web", MODEL, *shlex.split(os.environ.get("OPTIONS", ""))),
            *("--host", os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")),
            *("--port", os.environ.get("GRADIO_SERVER_PORT", "7860")),
        ]
    )
)
