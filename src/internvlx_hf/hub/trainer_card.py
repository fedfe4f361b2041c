# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What `TrainingArguments(push_to_hub=True)` needs to push a model that loads, with our card."""

import shutil
from pathlib import Path

from .model_card import write_card


class PushesCheckpoint:
    """For a `Trainer` that pushes: `class MyTrainer(PushesCheckpoint, Trainer)`.

    A plain `Trainer` replaces the model card by transformers' own whenever it pushes, with all that was written into it,
    and leaves the model's code out of what it pushes while it trains, which then does not load.
    """

    def create_model_card(self, *args, **kwargs) -> None:
        """Renew our card; of an adapter, write transformers' and peft's."""
        out = Path(self.args.output_dir)
        if (out / "adapter_config.json").is_file():
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_card(out, name=self.hub_model_id)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            for module in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(module, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)
