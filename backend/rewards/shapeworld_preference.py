"""The preference of ShapeWorld's people: the picture shows what was asked for, in their preferred style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.types import RewardSpec
from ..shapeworld.prompts import parse_prompt
from ..shapeworld.style_detector import read_styled
from ..shapeworld.styles import preferred_style
from ..storage.images import to_pil
from .base import BaseReward
from .shapeworld import soft_score

if TYPE_CHECKING:
    from torch import Tensor


class ShapeWorldPreference(BaseReward):
    """0..1, higher is better. Half the detector's soft score, half the share of the four style facets that
    are as preferred (`styles.preferred`)."""

    spec = RewardSpec("shapeworld-preference", 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and users' prompts in GenEval's words -> B scores."""
        scores = []
        for picture, prompt in zip(to_pil(images), prompts, strict=True):
            case = parse_prompt(prompt)
            reading, style = read_styled(np.asarray(picture))
            scores.append(0.5 * soft_score(case, reading) + 0.5 * preferred_style(case).agreement(style))
        return scores
