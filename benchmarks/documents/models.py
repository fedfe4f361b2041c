"""The models: assembled from a tower and a language model by `internvlx init`, with new projectors for every run."""

from pathlib import Path

import torch
from settings import GRID, PATCH, Row
from torch import nn
from transformers import InternVLVisionModel

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.conversion import init_checkpoint
from internvlx_hf.modeling.projectors import build_projector
from internvlx_hf.processing.chat_templates import DEFAULT_CHAT_TEMPLATE

# without the system message of SmolLM2's own template, which is longer than a page's tokens
TEMPLATE = "chat_template.jinja"


class ProjectorPerWindow(nn.Module):
    """Projectors for windows of M x M patches, one of which works at a time: a base favours none of them.

    To what a projector gives, the mean of a window's patches is added in the directions in which `token_head`, trained with the
    tower, points to the embeddings of the printed tokens. Without it a language model does not begin to read in a hundred steps.
    """

    def __init__(
        self,
        config: InternVLXConfig,
        windows: tuple[int, ...],
        token_head: nn.Linear,
        embedding_norm: float,
        projector_type: str = "pixel_shuffle",
    ):
        super().__init__()
        self.of_window = nn.ModuleDict(
            {str(window): build_projector(config, projector_type, 1 / window) for window in windows}
        )
        self.token_head, self.norm = token_head, nn.Parameter(torch.tensor(embedding_norm))
        self.window = windows[0]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        directions = nn.functional.normalize(self.token_head(features[:, 1:]), dim=-1)  # [B, GRID², C]
        windows, side = GRID // self.window, self.window
        named = directions.unflatten(1, (windows, side, windows, side)).mean((2, 4)).flatten(1, 2)
        return self.of_window[str(self.window)](features) + self.norm * named


def assemble(out: Path, vision: Path, language: Path, row: Row, seed: int) -> None:
    """Make the checkpoint of a row from the parts of other checkpoints; its projectors and LVTC's modules are new."""
    template = out.parent / TEMPLATE
    template.write_text(DEFAULT_CHAT_TEMPLATE, encoding="utf-8")
    if row.tile != InternVLVisionModel.config_class.from_pretrained(vision).image_size[0]:
        vision = resized_tower(vision, row.tile, out.parent / "resized_tower")
    init_checkpoint(
        out,
        vision=vision,
        language=language,
        projector=row.projector,
        lvtc=row.lvtc or False,
        downsample_ratio=1 / row.window,
        template=str(template),
        dtype="float32",
        seed=seed,
    )


def resized_tower(source: Path, tile: int, folder: Path) -> Path:
    """The tower of a checkpoint for tiles of another size: its position embeddings are interpolated."""
    tower = InternVLXForConditionalGeneration.from_pretrained(source).model.vision_tower
    tower.config.image_size = [tile, tile]
    positions, side = tower.embeddings.position_embeddings, tile // PATCH
    grid = positions.data[:, 1:].unflatten(1, (GRID, GRID)).movedim(-1, 1)
    grid = nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    tower.embeddings.position_embeddings = nn.Parameter(
        torch.cat([positions.data[:, :1], grid.flatten(2).movedim(1, -1)], dim=1)
    )
    tower.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[InternVLXForConditionalGeneration, InternVLXProcessor]:
    """A model to be trained, but for its token embeddings (and the head, which is tied to them), and its processor."""
    model = InternVLXForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.get_input_embeddings().requires_grad_(False)
    return model, InternVLXProcessor.from_pretrained(folder)
