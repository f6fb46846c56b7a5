"""Puts scores of different rewards on one scale: by range, within a group, or over all scores so far.

Source of the running mean and variance: Welford, Technometrics 4 (1962), 419-420.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..core.errors import BadInput
from ..core.types import RewardSpec

FLAT = 1e-4  # a standard deviation up to this counts as 0: dividing by it would only amplify rounding


def to_unit_range(spec: RewardSpec, value: float) -> float:
    """A score mapped to 0..1 by its usual range, higher always better; not clipped."""
    share = (value - spec.low) / (spec.high - spec.low)
    return share if spec.higher_is_better else 1 - share


def normalise_group(scores: Sequence[float], floor: float = FLAT) -> list[float]:
    """(x - mean) / std within one prompt's group; zeros if the group's std is not above `floor`."""
    mean, std = _moments(scores)
    return [(x - mean) / std if std > floor else 0.0 for x in scores]


@dataclass
class RunningNorm:
    """Running mean and standard deviation of one reward's scores.

    `state` holds Python floats, which JSON keeps exactly, so a stopped training resumes bit for bit.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean
    floor: float = FLAT

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1); 0 before the second score."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0

    def update(self, scores: Iterable[float]) -> None:
        """Adds scores, in order. Raises BadInput, and adds none, if one is NaN or infinite."""
        values = [float(score) for score in scores]
        for score in values:
            if not math.isfinite(score):
                raise BadInput(f"a running mean takes finite scores, got {score}")
        for score in values:
            self.count += 1
            deviation = score - self.mean
            self.mean += deviation / self.count
            self.squares += deviation * (score - self.mean)

    def state(self) -> dict[str, float]:
        """The complete state, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> RunningNorm:
        """The object that `state()` was called on. Raises BadInput for anything else."""
        try:
            norm = cls(int(state["count"]), *(float(state[key]) for key in ("mean", "squares", "floor")))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"expected the state of a running mean, got {dict(state)}") from error
        if norm.count < 0 or not (math.isfinite(norm.mean) and 0 <= norm.squares < math.inf):
            raise BadInput(f"expected the state of a running mean, got {dict(state)}")
        return norm


@dataclass(frozen=True)
class ScoreSummary:
    """Summary of one reward's scores."""

    mean: float
    std: float  # sample standard deviation (n - 1)
    low: float  # minimum
    high: float  # maximum
    flat: float  # share of the groups whose scores do not vary, from which nothing can be learned


def summarise_groups(groups: Sequence[Sequence[float]]) -> ScoreSummary:
    """Summary of one reward's scores, one group per prompt. Raises BadInput without scores."""
    scores = [score for group in groups for score in group]
    if not scores or not all(groups):
        raise BadInput("a report needs groups of at least one score")
    mean, std = _moments(scores)
    flat = sum(_moments(group)[1] <= FLAT for group in groups) / len(groups)
    return ScoreSummary(mean, std, min(scores), max(scores), flat)


def summarise_parts(parts: Mapping[str, Sequence[float]], size: int) -> dict[str, ScoreSummary]:
    """{reward: summary} of a mix's parts (`Mix.parts`); consecutive scores form groups of `size`."""
    for name, scores in parts.items():
        if size < 1 or len(scores) % size:
            raise BadInput(f"{len(scores)} scores of {name!r} are no groups of {size}")
    return {
        name: summarise_groups([scores[i : i + size] for i in range(0, len(scores), size)])
        for name, scores in parts.items()
    }


def _moments(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one score)."""
    mean = sum(scores) / len(scores)
    return mean, (sum((x - mean) ** 2 for x in scores) / max(1, len(scores) - 1)) ** 0.5
