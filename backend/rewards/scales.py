"""Scores of different rewards made comparable: by range, within a group, over all that was seen.

Source of the running figures: Welford, Technometrics 4 (1962), 419-420.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..core.errors import BadInput
from ..core.types import RewardSpec

FLAT = 1e-4  # a standard deviation up to this is none: dividing by it would blow up roundings


def scaled(spec: RewardSpec, value: float) -> float:
    """A score brought to 0..1 by its usual range, higher always better; not clipped."""
    share = (value - spec.low) / (spec.high - spec.low)
    return share if spec.higher_is_better else 1 - share


def group_normalised(scores: Sequence[float], floor: float = FLAT) -> list[float]:
    """(x - mean) / std within one prompt's group; zeros where the group's std is below `floor`."""
    mean, std = _moments(scores)
    return [(x - mean) / std if std > floor else 0.0 for x in scores]


@dataclass
class RunningNorm:
    """Mean and standard deviation of one reward over all scores seen so far.

    A training that is stopped goes on to the bit: `state` holds Python floats, which JSON keeps exactly.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed squares of the distances from the mean
    floor: float = FLAT

    @property
    def std(self) -> float:
        """Of the sample (n - 1); 0 before the second score."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0

    def update(self, scores: Iterable[float]) -> None:
        """Take scores in, one after the other. Raises BadInput for one that is no finite number, and takes
        none in then."""
        values = [float(score) for score in scores]
        for score in values:
            if not math.isfinite(score):
                raise BadInput(f"a running mean takes finite scores, got {score}")
        for score in values:
            self.count += 1
            away = score - self.mean
            self.mean += away / self.count
            self.squares += away * (score - self.mean)

    def normalised(self, scores: Iterable[float]) -> list[float]:
        """(x - mean) / std by what was seen so far; zeros while that does not vary."""
        std = self.std
        return [(x - self.mean) / std if std > self.floor else 0.0 for x in scores]

    def state(self) -> dict[str, float]:
        """All there is to it, for a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, float]) -> RunningNorm:
        """The one that `state` was taken of. Raises BadInput for what is no such state."""
        try:
            made = cls(int(state["count"]), *(float(state[key]) for key in ("mean", "squares", "floor")))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"expected the state of a running mean, got {dict(state)}") from error
        if made.count < 0 or not (math.isfinite(made.mean) and 0 <= made.squares < math.inf):
            raise BadInput(f"expected the state of a running mean, got {dict(state)}")
        return made


@dataclass(frozen=True)
class Report:
    """One reward's scores in a few figures."""

    mean: float
    std: float  # of the sample (n - 1)
    low: float
    high: float
    flat: float  # share of the groups whose scores do not vary: nothing is learnt from them


def report(groups: Sequence[Sequence[float]]) -> Report:
    """What one reward gave to groups of pictures, a group for each prompt. Raises BadInput for none."""
    scores = [score for group in groups for score in group]
    if not scores or not all(groups):
        raise BadInput("a report needs groups of at least one score")
    mean, std = _moments(scores)
    flat = sum(_moments(group)[1] <= FLAT for group in groups) / len(groups)
    return Report(mean, std, min(scores), max(scores), flat)


def reports(parts: Mapping[str, Sequence[float]], size: int) -> dict[str, Report]:
    """A report for each part of a mix (`Mix.parts`), whose scores lie in groups of `size`."""
    for name, scores in parts.items():
        if size < 1 or len(scores) % size:
            raise BadInput(f"{len(scores)} scores of {name!r} are no groups of {size}")
    return {
        name: report([scores[i : i + size] for i in range(0, len(scores), size)])
        for name, scores in parts.items()
    }


def _moments(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one score)."""
    mean = sum(scores) / len(scores)
    return mean, (sum((x - mean) ** 2 for x in scores) / max(1, len(scores) - 1)) ** 0.5
