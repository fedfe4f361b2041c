"""A report of a conversion and a recipe of a training, with all that a model card reads."""

REPORT = {
    "source": "internvl2-1b",
    "base_model": "owner/base",
    "revision": "0123",
    "source_card": {"license": "other", "license_name": "qwen", "license_link": "LICENSE", "language": ["en"]},
    "language_model": {"source": "Qwen2ForCausalLM", "model_type": "qwen2"},
    "options": {"init": "warm"},
    "parameters": 123456,
    "dtype": "bfloat16",
    "tokens": {"tile_size": 448, "per_tile": 256, "max_tiles": 7, "slicing": "ratio"},
    "dropped_tensors": {"a.b": "not used"},
    "untrained_modules": ["model.lvtc.hr_projector", "model.multi_modal_projector"],
    "exact": False,
    "notes": ["A note."],
    "versions": {"internvlx_hf": "0.1.0"},
}
RECIPE = {
    "base_model": "internvl2-1b-x",
    "revision": "4567",
    "data": [{"name": "pages", "samples": 10, "repeat_time": 2, "hub_id": "owner/pages"}],
    "evaluation_data": [{"name": "held out", "samples": 10, "hub_id": "owner/held"}],
    "trained_modules": {"model.multi_modal_projector": 5},
    "settings": {"learning_rate": 1e-4, "freeze": ["vision"]},
    "steps": 1,
    "epochs": 1.0,
    "tokens": 100,
    "metrics": {"eval_loss": 0.5, "train_loss": 1.5},
    "versions": {"internvlx_hf": "0.1.0"},
}
