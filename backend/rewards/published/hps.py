"""HPSv2.1 and HPSv2: predicts which picture people would choose, by a tuned CLIP ViT-H/14.

Source: HPS v2 (arXiv 2306.09341), package hpsv2 1.2.0 (`hpsv2.score`), checkpoints xswu/HPSv2. The score is
the cosine alone. Pictures are not cropped but padded with black to a square.
Departs from it: an empty prompt is refused; the model is loaded once, not at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.types import RewardSpec
from ..base import LearnedJudge
from .checkpoint import fill, placement, read_weights
from .clip import cosines, is_position_ids, open_clip_source
from .files import locate
from .preprocess import pad_to_square

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

SIZE = 224


class HPSv21(LearnedJudge):
    """A cosine, mostly .25 to .31, higher is better. Not comparable with HPSv2's scores."""

    spec = RewardSpec("hps-v2.1", 0.25, 0.31)
    title = "HPS v2.1"
    config: ClassVar[dict[str, Any]] = {
        "projection_dim": 1024,
        "vision_config": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": SIZE,
            "hidden_act": "gelu",
            "projection_dim": 1024,
        },
        "text_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "hidden_act": "gelu",
            "projection_dim": 1024,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 0,
        },
    }

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
    ):
        """`path`: the published .pt file or its folder; by default where `files.find` looks.

        `device` and `dtype` as in `checkpoint.placement`. Raises CheckpointError.
        """
        (weights,) = locate(self.spec.name, path)
        self.batch_size = batch_size
        self.model = self.load(read_weights(weights), weights, *placement(device, dtype))

    @classmethod
    def load(cls, tensors: dict[str, Tensor], path: Path, device, dtype) -> nn.Module:
        """The model with the published tensors. Raises CheckpointError for other tensors."""
        from transformers import CLIPConfig, CLIPModel

        return fill(
            lambda: CLIPModel(CLIPConfig(**cls.config)),
            tensors,
            open_clip_source,
            is_position_ids,
            description=f"{cls.title} (open_clip's ViT-H-14)",
            path=path,
            device=device,
            dtype=dtype,
        )

    def prepare(self, picture: Image) -> Tensor:
        return pad_to_square(picture, SIZE)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return cosines(self.model, pixels, prompts)


class HPSv2(HPSv21):
    """The first version: a cosine, mostly .23 to .30, higher is better."""

    spec = RewardSpec("hps-v2", 0.23, 0.30)
    title = "HPS v2"
