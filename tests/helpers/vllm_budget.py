"""Run by tests/engines in vLLM's environment: `python vllm_budget.py JOB.json OUT.json`.

A job has a `model`, the engine's `mm_processor_kwargs` and `requests`, each of `images` (paths), `settings`, and whether it is
`cached`. The result is, for each request, the tiles that are read for each of its images and its placeholders, or the error;
and the most tokens of an image.
"""

import json
import sys
from pathlib import Path


def main(job_file: str, out_file: str) -> None:
    from PIL import Image
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache
    from vllm.plugins import load_general_plugins

    job = json.loads(Path(job_file).read_text())
    load_general_plugins()
    config = ModelConfig(
        job["model"], dtype="float32", mm_processor_kwargs=job["mm_processor_kwargs"], max_model_len=1024
    )
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    cache = MultiModalProcessorOnlyCache(config)
    token = processor.info.get_hf_processor().image_token_id
    found = []
    for request in job["requests"]:
        images = [Image.open(path) for path in request["images"]]
        try:
            processed = processor(
                "<IMG_CONTEXT>" * len(images) + "What?",
                mm_items=processor.info.parse_mm_data({"image": images}),
                hf_processor_mm_kwargs=request["settings"],
                cache=cache if request["cached"] else None,
            )
        except ValueError as error:
            found.append(str(error))
            continue
        tiles = [int(item["num_patches"].data) for item in processed["mm_kwargs"]["image"]]
        rows = [len(item["pixel_values"].data) for item in processed["mm_kwargs"]["image"]]
        assert rows == tiles
        found.append([tiles, processed["prompt_token_ids"].count(token)])
    most = processor.info.get_mm_max_tokens_per_item(1024, {"image": 1})["image"]
    Path(out_file).write_text(json.dumps({"requests": found, "most": most}))


if __name__ == "__main__":
    main(*sys.argv[1:])
