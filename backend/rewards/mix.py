"""A weighted mix of rewards on one scale.

Each reward is mapped to 0..1 by its usual range, inverted if lower is better, and averaged by weight. The
ranges are constants, so an image's score never depends on its batch. Training normalises instead, per reward
and before the weights (GDPO, as in TRL's `normalize_then_sum`): within groups by `normalise_group`, or over
all scores so far by `RunningNorm` (`scales.py`).

A held-out part is scored and reported like the others but does not count. Its score shows if a search or
training has only learned to please the other judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadInput
from ..core.interfaces import Critic, Reward
from ..core.scoring import image_scores
from ..core.types import RewardSpec, Verdict
from .base import BaseReward
from .scales import to_unit_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MixPart:
    """A reward in a mix. A held-out one is scored but has no weight."""

    reward: Reward
    weight: float = 1.0
    held_out: bool = False

    @property
    def name(self) -> str:
        return self.reward.spec.name


class Mix(BaseReward):
    """0..1 if all parts stay within their usual ranges; higher is better."""

    def __init__(self, rewards: Sequence[tuple[Reward, float] | MixPart]):
        """Raises BadInput if all are held out, one is named twice, or a weight is not positive and finite."""
        self.members = [part if isinstance(part, MixPart) else MixPart(*part) for part in rewards]
        self.weighted = [part for part in self.members if not part.held_out]
        if not self.weighted:
            raise BadInput("a mix needs at least one reward that counts, such as --reward shapeworld=1")
        names = [part.name for part in self.members]
        if len(set(names)) < len(names):
            raise BadInput(f"a reward is named twice in the mix: {', '.join(names)}; name each once")
        for part in self.weighted:
            if not part.weight > 0 or part.weight == float("inf"):
                raise BadInput(f"the weight of reward {part.name!r} must be above 0, got {part.weight:g}")
        self.spec = RewardSpec("mix" if len(self.weighted) > 1 else self.weighted[0].name, 0.0, 1.0)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, list[float]]:
        """{reward: its own scores} of all parts, including held-out ones."""
        return {part.name: image_scores(part.reward, images, prompts) for part in self.members}

    def combine(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """The scores of the weighted parts on the common scale, averaged by weight."""
        total = sum(part.weight for part in self.weighted)
        columns = [
            [to_unit_range(part.reward.spec, value) * part.weight / total for value in parts[part.name]]
            for part in self.weighted
        ]
        return [sum(row) for row in zip(*columns, strict=True)]

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        counted = {part.name: image_scores(part.reward, images, prompts) for part in self.weighted}
        return self.combine(counted)


class CriticMix(Mix):
    """A mix with a critic among its weighted parts. The first such part gives the verdicts."""

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        critic = next(part.reward for part in self.weighted if isinstance(part.reward, Critic))
        return critic.criticize(images, prompts)


def mix_rewards(rewards: Sequence[tuple[Reward, float] | MixPart]) -> Mix:
    """A mix of parts or (reward, weight) pairs; a `CriticMix` if one of them is a critic. Raises BadInput."""
    mix = Mix(rewards)
    return CriticMix(rewards) if any(isinstance(part.reward, Critic) for part in mix.weighted) else mix
