"""A weighted mix of rewards on one scale.

Each reward is brought to 0..1 by its usual range, turned round where lower is better, and averaged by
weight. A range is a constant, so an image's score never depends on its batch. Training normalises instead,
per reward and before the weights (GDPO, as in TRL's `normalize_then_sum`): within groups by
`group_normalised`, or over all that was seen so far by `RunningNorm` (`scales.py`).

A part that is held out is scored and reported beside the others and decides nothing: a search or training
that has learnt to please its judges shows in what this one says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadInput
from ..core.interfaces import Critic, Reward
from ..core.scoring import image_scores
from ..core.types import RewardSpec, Verdict
from .scales import scaled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MixPart:
    """A reward in a mix. Held out, it has no weight."""

    reward: Reward
    weight: float = 1.0
    held_out: bool = False

    @property
    def name(self) -> str:
        return self.reward.spec.name


class Mix:
    """0..1 as far as the parts keep to their usual ranges; higher is better."""

    def __init__(self, rewards: Sequence[tuple[Reward, float] | MixPart]):
        """Raises BadInput where none counts, for doubles and for odd weights."""
        self.members = [part if isinstance(part, MixPart) else MixPart(*part) for part in rewards]
        self.counted = [part for part in self.members if not part.held_out]
        if not self.counted:
            raise BadInput("a mix needs at least one reward that counts, such as --reward shapeworld=1")
        names = [part.name for part in self.members]
        if len(set(names)) < len(names):
            raise BadInput(f"a reward is named twice in the mix: {', '.join(names)}; name each once")
        for part in self.counted:
            if not part.weight > 0 or part.weight == float("inf"):
                raise BadInput(f"the weight of reward {part.name!r} must be above 0, got {part.weight:g}")
        self.spec = RewardSpec("mix" if len(self.counted) > 1 else self.counted[0].name, 0.0, 1.0)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, list[float]]:
        """Every reward's own scores, as it gives them, those held out too."""
        return {part.name: image_scores(part.reward, images, prompts) for part in self.members}

    def combine(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """Scores of the parts that count on the common scale, averaged by weight."""
        total = sum(part.weight for part in self.counted)
        columns = [
            [scaled(part.reward.spec, value) * part.weight / total for value in parts[part.name]]
            for part in self.counted
        ]
        return [sum(row) for row in zip(*columns, strict=True)]

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        counted = {part.name: image_scores(part.reward, images, prompts) for part in self.counted}
        return self.combine(counted)


class CriticMix(Mix):
    """A mix in which a reward that counts can say what is wrong: the first that can does."""

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        critic = next(part.reward for part in self.counted if isinstance(part.reward, Critic))
        return critic.criticize(images, prompts)


def mix_rewards(rewards: Sequence[tuple[Reward, float] | MixPart]) -> Mix:
    """The mix of parts or (reward, weight) pairs. Raises BadInput as `Mix` does."""
    mix = Mix(rewards)
    return CriticMix(rewards) if any(isinstance(part.reward, Critic) for part in mix.counted) else mix
