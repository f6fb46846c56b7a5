"""A weighted mix of rewards on one scale.

Each reward is brought to 0..1 by its usual range, turned round where lower is better, and averaged by
weight. A range is a constant, so an image's score never depends on its batch. Training normalises
within groups instead; that is `group_normalised`, per reward, before the weights (GDPO, as in TRL's
`normalize_then_sum`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..interfaces import Critic, Reward
from ..judging import image_scores
from ..types import RewardSpec, Verdict

if TYPE_CHECKING:
    from torch import Tensor


class Mix:
    """0..1 as far as the parts keep to their usual ranges; higher is better."""

    def __init__(self, rewards: Sequence[tuple[Reward, float]]):
        if not rewards:
            raise BadInput("a mix needs at least one reward; name one, such as --reward shapeworld=1")
        names = [reward.spec.name for reward, _ in rewards]
        if len(set(names)) < len(names):
            raise BadInput(f"a reward is named twice in the mix: {', '.join(names)}; name each once")
        for reward, weight in rewards:
            if not weight > 0 or weight == float("inf"):
                raise BadInput(f"the weight of reward {reward.spec.name!r} must be above 0, got {weight:g}")
        self.rewards = list(rewards)
        self.spec = RewardSpec("mix" if len(names) > 1 else names[0], 0.0, 1.0)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, list[float]]:
        """Each reward's own scores, in its own units."""
        return {reward.spec.name: image_scores(reward, images, prompts) for reward, _ in self.rewards}

    def combine(self, parts: dict[str, list[float]]) -> list[float]:
        """Scores of `parts` on the common scale, averaged by weight."""
        total = sum(weight for _, weight in self.rewards)
        columns = []
        for reward, weight in self.rewards:
            columns.append([scaled(reward.spec, value) * weight / total for value in parts[reward.spec.name]])
        return [sum(row) for row in zip(*columns, strict=True)]

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        return self.combine(self.parts(images, prompts))


class CriticMix(Mix):
    """A mix in which a reward can say what is wrong: the first that can does."""

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        critic = next(reward for reward, _ in self.rewards if isinstance(reward, Critic))
        return critic.criticize(images, prompts)


def mixed(rewards: Sequence[tuple[Reward, float]]) -> Mix:
    """The mix of (reward, weight) pairs. Raises BadInput for none, for doubles and for odd weights."""
    return (CriticMix if any(isinstance(reward, Critic) for reward, _ in rewards) else Mix)(rewards)


def scaled(spec: RewardSpec, value: float) -> float:
    """A score brought to 0..1 by its usual range, higher always better; not clipped."""
    share = (value - spec.low) / (spec.high - spec.low)
    return share if spec.higher_is_better else 1 - share


def group_normalised(scores: Sequence[float], floor: float = 1e-4) -> list[float]:
    """(x - mean) / std within one prompt's group; zeros where the group's std is below `floor`."""
    mean = sum(scores) / len(scores)
    std = (sum((x - mean) ** 2 for x in scores) / max(1, len(scores) - 1)) ** 0.5
    return [(x - mean) / std if std > floor else 0.0 for x in scores]
