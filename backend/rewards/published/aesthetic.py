"""LAION's aesthetic predictor v2: predicts people's ratings of a picture from 1 to 10, by CLIP ViT-L/14.

Source: github.com/christophschuhmann/improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE.pth`
(simple_inference.py): CLIP's normalised image embedding through five linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.types import RewardSpec
from ..base import LearnedJudge, linear_head
from .checkpoint import Source, fill, placement, read_weights
from .clip import image_embeddings, is_position_ids, read_config
from .files import locate
from .preprocess import center_crop

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class Aesthetic(LearnedJudge):
    """Mostly 4 to 7, higher is better. Ignores the prompt: used alone, it drops what users asked for."""

    spec = RewardSpec("aesthetic", 4.0, 7.0)
    reads_prompt = False
    head = (1024, 128, 64, 16)  # widths of the head's layers

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
    ):
        """`path`: the .pth file or its folder; by default, like CLIP's files, where `files.find` looks.

        `device` and `dtype` as in `checkpoint.placement`. Raises CheckpointError.
        """
        head, clip, settings = locate(self.spec.name, path)
        config = read_config(settings)
        self.batch_size = batch_size
        self.size = config.vision_config.image_size
        where, kind = placement(device, dtype)
        tensors = {f"clip.{key}": value for key, value in read_weights(clip).items()}
        tensors |= {f"head.{key}": value for key, value in read_weights(head).items()}
        self.model = fill(
            lambda: self.build(config),
            tensors,
            source,
            unused,
            device=where,
            dtype=kind,
            description="the aesthetic predictor v2 on CLIP ViT-L/14",
            path=head,
        )

    @classmethod
    def build(cls, config) -> nn.Module:
        from torch import nn
        from transformers import CLIPVisionModelWithProjection

        config.vision_config.projection_dim = config.projection_dim
        return nn.ModuleDict(
            {
                "clip": CLIPVisionModelWithProjection(config.vision_config),
                "layers": linear_head(config.projection_dim, cls.head),
            }
        )

    def prepare(self, picture: Image) -> Tensor:
        return center_crop(picture, self.size)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        embedded = image_embeddings(self.model["clip"], pixels)
        return self.model["layers"](embedded.to(pixels.dtype))[:, 0]


def source(name: str) -> Source:
    return (name if name.startswith("clip.") else f"head.{name}"), lambda t: t


def unused(key: str) -> bool:
    """CLIP's text tower, which is not needed."""
    return key.startswith(("clip.text_", "clip.logit_scale")) or is_position_ids(key)
