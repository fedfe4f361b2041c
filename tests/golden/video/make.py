"""Makes what native InternVL makes of videos: `cases.safetensors` and `sampled.json` beside this file.

    make build/torchvision/.installed && python tests/golden/video/make.py
"""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

from torchvision_overlay import PROBLEM  # isort: skip  # before transformers, which looks for torchvision once

import torch
from safetensors.torch import save_file
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, InternVLVideoProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.video_utils import VideoMetadata

from tiny import tiny_tokenizer
from video_cases import CASES, SAMPLED, TILE, frames_of


def native_processor() -> InternVLProcessor:
    pixels = {"size": {"height": TILE, "width": TILE}, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    tokenizer = tiny_tokenizer()
    tokenizer.video_token = "<video>"
    for name in ("start_image_token", "end_image_token", "context_image_token"):
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)))
    image_processor = GotOcr2ImageProcessorPil(crop_to_patches=True, max_patches=2, **pixels)
    return InternVLProcessor(image_processor, tokenizer, InternVLVideoProcessor(**pixels), image_seq_length=4)


def main():
    if PROBLEM:
        raise SystemExit(PROBLEM)
    processor, arrays = native_processor(), {}
    for name, case in CASES.items():
        videos = [torch.from_numpy(frames_of(video)) for video in case["videos"]]
        sampling = {key: case[key] for key in ("num_frames", "fps") if key in case}
        if sampling:
            metadata = [VideoMetadata(total_num_frames=len(video), fps=case.get("video_fps")) for video in videos]
            sampling |= {"do_sample_frames": True, "video_metadata": metadata}
        images = [frames_of(image)[0] for image in case.get("images", [])] or None
        inputs = processor(
            images=images, text=case["text"], videos=videos, return_tensors="pt", padding=True, **sampling
        )
        arrays |= {f"{name}.{key}": inputs[key].contiguous() for key in ("input_ids", "pixel_values")}
    save_file(arrays, FOLDER / "cases.safetensors")
    sampled = [
        processor.video_processor.sample_frames(VideoMetadata(total_num_frames=total), num_frames=num).tolist()
        for total, num in SAMPLED
    ]
    (FOLDER / "sampled.json").write_text(json.dumps(sampled) + "\n")


if __name__ == "__main__":
    main()
