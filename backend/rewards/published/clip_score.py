"""CLIPScore: cosine similarity of a picture and its prompt, by openai's CLIP ViT-L/14.

Source: CLIPScore (arXiv 2104.08718) as package image-reward 1.5 computes it: the cosine alone, pictures
preprocessed as openai/CLIP does.
Departs from the paper: its factor 2.5 and its clipping at 0 are left out, as in that package. An empty prompt
is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.types import RewardSpec
from .clip import cosines
from .pick_score import PickScore
from .preprocess import center_crop

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class ClipScore(PickScore):
    """A cosine, mostly .2 to .4, higher is better. Insensitive to counts."""

    spec = RewardSpec("clip-score", 0.2, 0.4)
    vision = (1024, 24)

    def prepare(self, picture: Image) -> Tensor:
        return center_crop(picture, self.size)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return cosines(self.model, pixels, prompts)
