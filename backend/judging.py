"""The one place where a reward is called: what it returns is checked, what it raises is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .errors import RepriseError, RewardFailed
from .interfaces import Reward, TextReward
from .types import RewardSpec, Rewrite

if TYPE_CHECKING:
    from torch import Tensor


def image_scores(reward: Reward, images: Tensor, prompts: Sequence[str]) -> list[float]:
    """Scores of `images` (B, H, W, 3), one finite number each.

    Raises RewardFailed with the reward's name where it raises, miscounts or returns NaN; errors of
    our own tree (a prompt the judge cannot read) pass through as they are.
    """
    return _checked(reward.spec.name, lambda: reward.score(images, prompts), len(prompts))


def text_scores(reward: TextReward, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]:
    """Scores of rewrites, checked alike."""
    return _checked(reward.spec.name, lambda: reward.score_text(rewrites, prompts), len(prompts))


def ranking(spec: RewardSpec, scores: Mapping[int, float]) -> list[int]:
    """Indexes of `scores` from best to worst; a tie goes to the earlier one."""
    sign = 1.0 if spec.higher_is_better else -1.0
    return sorted(scores, key=lambda i: (-sign * scores[i], i))


def _checked(name: str, call, expected: int) -> list[float]:
    try:
        scores = [float(score) for score in call()]
    except RepriseError:
        raise
    except Exception as cause:
        raise RewardFailed(name, f"{type(cause).__name__}: {cause}") from cause
    if len(scores) != expected:
        raise RewardFailed(name, f"expected {expected} scores, got {len(scores)}")
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            raise RewardFailed(name, f"score {i + 1} of {expected} is {score}")
    return scores
