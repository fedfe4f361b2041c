"""A checkpoint's own code: it loads where the package is not, offline; and the rules that make it so."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import internvlx_hf
from internvlx_hf.modeling.configuration_internvlx import AUTO_MAP
from paths import HELPERS
from tiny import LVTC, tiny_batch, tiny_model, tiny_processor

SOURCE = Path(internvlx_hf.__file__).parent
TRAVELLING = [path for name in ("modeling", "processing") for path in sorted((SOURCE / name).glob("*.py"))]
MODULES = [path for path in TRAVELLING if path.name != "__init__.py"]
# what a machine with transformers, torch, einops and pillow has
ALLOWED = {"torch", "transformers", "einops", "PIL", "numpy", "huggingface_hub", "httpx"} | set(
    sys.stdlib_module_names
)
HIDDEN = ["torchvision", "timm", "flash_attn", "peft", "accelerate", "datasets"]
LAYOUTS = [[3, "tile", 5], [7], [2, "tile", "tile", 4]]
CASES = {"lvtc_off": {}, "lvtc_on": LVTC}


def gradient_image() -> torch.Tensor:
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    return torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(40, 70, 3)


def run_bare(script: Path | str, *arguments: str, home: Path) -> None:
    script = [str(script)] if isinstance(script, Path) else ["-c", script]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))},
        "HF_HOME": str(home),
        "TMPDIR": str(home),
        "TORCHINDUCTOR_CACHE_DIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-s", *script, *arguments], env=environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process without the package makes of the tiny checkpoints, and what it should have made."""
    folder = tmp_path_factory.mktemp("remote_code")
    home = folder / "home"
    home.mkdir()
    expected = {}
    for name, kwargs in CASES.items():
        model = tiny_model("llama", **kwargs)
        processor = tiny_processor(model.config)
        batch = tiny_batch(model.config, LAYOUTS)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        save_file({**batch, "image": gradient_image()}, folder / name / "batch.safetensors")
        with torch.no_grad():
            expected[name] = {"logits": model(**batch).logits}
        content = [
            {"type": "image", "image": gradient_image().numpy()},
            {"type": "text", "text": "What is on the picture?"},
        ]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        expected[name]["prompt"] = prompt["input_ids"]
        expected[name]["pixels"] = prompt["pixel_values"]
        frames = [gradient_image().numpy()] * 2
        expected[name]["video"] = processor(text="<video>", videos=frames, return_tensors="pt")["pixel_values"]
        expected[name]["answer"] = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    run_bare(HELPERS / "bare_process.py", *(str(folder / name) for name in CASES), home=home)
    report = json.loads((home / "report.json").read_text())
    return report, {name: load_file(home / f"{name}.safetensors") for name in CASES}, expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_loads_with_its_own_code_through_every_auto_class(elsewhere, case):
    report, _, _ = elsewhere
    model = "InternVLXForConditionalGeneration"
    assert report[case]["classes"] == {
        "AutoModel": model,
        "AutoModelForImageTextToText": model,
        "AutoModelForCausalLM": model,
        "AutoProcessor": "InternVLXProcessor",
        "AutoImageProcessor": "InternVLXImageProcessor",
        "AutoProcessor's image processor": "InternVLXImageProcessor",
    }
    assert report[case]["model"].startswith("transformers_modules.")
    assert report[case]["config"].startswith("transformers_modules.")


@pytest.mark.slow
@pytest.mark.parametrize(
    "auto_class", ["AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM", "saved again"]
)
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_gives_the_package_s_logits_and_answers(elsewhere, case, auto_class):
    """1e-4 on logits of size 1: weights mapped from a file lie at odd addresses, where kernels sum in another order."""
    _, found, expected = elsewhere
    torch.testing.assert_close(found[case][f"{auto_class}.logits"], expected[case]["logits"], atol=1e-4, rtol=0)
    assert torch.equal(found[case][f"{auto_class}.answer"], expected[case]["answer"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_s_processor_gives_the_package_s_pixels_and_prompts(elsewhere, case):
    _, found, expected = elsewhere
    assert torch.equal(found[case]["pixels"], expected[case]["pixels"])
    assert torch.equal(found[case]["prompt"], expected[case]["prompt"])
    assert torch.equal(found[case]["video"], expected[case]["video"])


@pytest.mark.slow
def test_checkpoint_s_code_asks_for_no_network_no_files_and_no_optional_package(elsewhere):
    report, _, _ = elsewhere
    assert report["refused"] == []
    assert report["imported"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_that_was_loaded_with_its_own_code_carries_everything_when_saved_again(elsewhere, case):
    report, _, _ = elsewhere
    assert {path.name for path in MODULES} <= set(report[case]["saved again"])
    assert report[case]["auto_map saved again"] == AUTO_MAP


@pytest.mark.slow
def test_package_imports_and_runs_without_optional_packages(tmp_path):
    script = f"""
import sys
sys.path.append({str(HELPERS)!r})
from hiding import hide
hide({set(HIDDEN)})
from tiny import tiny_batch, tiny_model, tiny_processor
model = tiny_model()
tiny_processor(model.config)
batch = tiny_batch(model.config, [[3, "tile", 5]])
model.train()(**batch, labels=batch["input_ids"]).loss.backward()
assert not set({HIDDEN}) & set(sys.modules)
"""
    run_bare(script, home=tmp_path)


# -- rules


def imports(path: Path) -> list[tuple[int, str | None]]:
    """Level and module of every import of a file, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module))
    return found


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_travelling_module_imports_siblings_and_allowed_packages_only(path):
    siblings = {other.stem for other in path.parent.glob("*.py")}
    for level, module in imports(path):
        if level:
            assert level == 1
            assert module in siblings, "write `from .sibling import name`"
        else:
            assert module.split(".")[0] in ALLOWED
