"""PickScore v1: predicts which of two pictures users of a web page picked, by a tuned CLIP ViT-H/14.

Source: Pick-a-Pic (arXiv 2305.01569), checkpoint yuvalkirstain/PickScore_v1 with transformers' CLIPProcessor.
Departs from it: no softmax over the batch, which would make a score depend on its neighbours. An empty prompt
is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import CheckpointError
from ...core.types import RewardSpec
from ..base import LearnedJudge
from .checkpoint import fill, placement, read_weights
from .clip import cosines, is_position_ids, read_config, same_name
from .files import locate
from .preprocess import center_crop

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class PickScore(LearnedJudge):
    """A cosine times CLIP's scale of 100, mostly 19 to 24, higher is better."""

    spec = RewardSpec("pick-score", 19.0, 24.0)
    vision = (1280, 32)  # width and layers of its ViT, to recognise another CLIP

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
    ):
        """`path`: a folder in Hugging Face's layout, or the weights in it; by default where `files.find`
        looks.

        `device` and `dtype` as in `checkpoint.placement`. Raises CheckpointError.
        """
        from transformers import CLIPModel

        weights, settings = locate(self.spec.name, path)
        config = read_config(settings)
        found = (config.vision_config.hidden_size, config.vision_config.num_hidden_layers)
        if found != self.vision:
            raise CheckpointError(
                f"{settings} is not {self.spec.name}'s: its vision tower has width and "
                f"layers {found}, expected {self.vision}"
            )
        self.batch_size = batch_size
        self.size = config.vision_config.image_size
        where, kind = placement(device, dtype)
        self.model = fill(
            lambda: CLIPModel(config),
            read_weights(weights),
            same_name,
            is_position_ids,
            description=f"the CLIP that {settings} describes",
            path=weights,
            device=where,
            dtype=kind,
        )

    def prepare(self, picture: Image) -> Tensor:
        return center_crop(picture, self.size, floor=True)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.model.logit_scale.float().exp() * cosines(self.model, pixels, prompts, clean=False)
