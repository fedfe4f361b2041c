"""Run by `make wheel` with an interpreter that has the wheel and what it requires, and nothing else.

A model is built, saved, loaded, asked about an image; the command line answers; what belongs in the wheel is in it.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoProcessor, PreTrainedTokenizerFast

import internvlx_hf


def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>")


def model_and_processor():
    text = tokenizer()
    config = internvlx_hf.InternVLXConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 4,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": len(text),
        },
        image_token_id=text.convert_tokens_to_ids("<IMG_CONTEXT>"),
        projector_config={"num_heads": 4},
        lvtc_config={},
    )
    images = internvlx_hf.InternVLXImageProcessor(size={"height": 32, "width": 32})
    processor = internvlx_hf.InternVLXProcessor(images, text, image_seq_length=config.image_seq_length)
    return internvlx_hf.InternVLXForConditionalGeneration(config).eval(), processor


def ask(model, processor) -> torch.Tensor:
    part = {"type": "image", "image": Image.linear_gradient("L").resize((64, 32))}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)


def internvlx(*arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    command = Path(sys.executable).with_name("internvlx")
    done = subprocess.run([command, *arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


def main() -> None:
    package = Path(internvlx_hf.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the wheel's"
    assert find_spec("torchvision") is None
    assert version("internvlx-hf") == internvlx_hf.__version__
    assert (package / "py.typed").exists()
    assert "internvlx" in {script.name for script in entry_points(group="console_scripts")}

    model, processor = model_and_processor()
    answer = ask(model, processor)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        loaded = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
        assert torch.equal(ask(*loaded), answer)

    for name in ("card", "convert", "cost", "push", "show"):
        assert name in internvlx("--help").stdout
        assert "usage" in internvlx(name, "--help").stdout
    assert "13" in internvlx("cost", "--size", "640x480", "--model", "internvl2-2b", "--slicing", "ratio").stdout
    assert ": pip install " in internvlx("train", "settings.yaml", status=1).stderr
    assert "pip install matplotlib" in internvlx("show", "photo.jpg", "--out", "tiles.png", status=1).stderr
    print(f"internvlx-hf {internvlx_hf.__version__}: the wheel works")


if __name__ == "__main__":
    main()
