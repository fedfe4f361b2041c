"""Saved (every save carries the code), then loaded with trust_remote_code by a process that cannot
import the project. Not part of the default run (`--parts remote`)."""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

import targets

TARGET = targets.current()


class TestRemoteCode(unittest.TestCase):
    hfsuite_kind = "model"

    def test_harness_trust_remote_code(self):
        if TARGET.name == "native":
            self.skipTest("native classes are part of transformers")
        variant = TARGET.variants[-1]
        model, processor = TARGET.build_model_and_processor(variant)
        script = textwrap.dedent(
            """
            import sys, torch
            from PIL import Image
            from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

            folder, package, reference = sys.argv[1:]
            assert package not in sys.modules
            try:
                __import__(package)
                sys.exit("the project can be imported here, so this proves nothing")
            except ImportError:
                pass
            config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
            model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
            picture = Image.new("RGB", (70, 40), (200, 30, 90))
            inputs = processor(images=picture, text=f"{processor.image_token} what", return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).logits
            torch.testing.assert_close(logits, torch.load(reference))
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            """
        )
        import torch
        from PIL import Image

        picture = Image.new("RGB", (70, 40), (200, 30, 90))
        inputs = processor(images=picture, text=f"{processor.image_token} what", return_tensors="pt")
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home:
            with torch.no_grad():
                torch.save(model(**inputs).logits, os.path.join(home, "logits.pt"))
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HFSUITE_PATH")}
            env["HF_HOME"] = home
            done = subprocess.run(
                [sys.executable, "-c", script, folder, targets.PROJECT_MODULE, os.path.join(home, "logits.pt")],
                env=env,
                cwd=home,
                capture_output=True,
                text=True,
            )
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
