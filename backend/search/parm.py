"""PARM's pruning: which candidates go on after a look at their x0 previews.

Source: Guo et al. 2025 (arXiv 2501.13926): judge while drawing, stop hopeless paths, keep the best of
those that finish. Departs from it: a stopped path costs nothing more (the renderer masks its row);
the cut is by rank, so it is never empty; "potential" is any reward's score of the preview.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..errors import BadInput
from ..interfaces import Reward
from ..judging import image_scores
from ..types import Candidate, Cost

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULES = ("none", "halving", "potential")


class Schedule(Protocol):
    """When to look, and which of the rows alive go on."""

    @property
    def looks(self) -> frozenset[int]:
        """1-based steps after which previews are judged."""
        ...

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        """`scores` of the rows alive -> the rows that go on, never none."""
        ...


@dataclass(frozen=True)
class Full:
    """Every candidate is drawn to the end."""

    looks: frozenset[int] = frozenset()

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return list(scores)


@dataclass(frozen=True)
class Halving:
    """Successive halving by rank: after step s, the best `cuts[s]` go on."""

    cuts: dict[int, int] = field(hash=False)

    def __post_init__(self):
        steps, kept = list(self.cuts), list(self.cuts.values())
        if steps != sorted(steps) or kept != sorted(kept, reverse=True) or min(kept, default=1) < 1:
            raise BadInput(f"cuts must keep ever fewer, at least 1, at later steps; got {self.cuts}")

    @property
    def looks(self) -> frozenset[int]:
        return frozenset(self.cuts)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return _ranked(scores)[: self.cuts[step]]

    def rows(self, n: int, steps: int) -> int:
        """Denoiser rows (without guidance's doubling) for `n` candidates over `steps` steps."""
        alive, spent = n, 0
        for step in range(1, steps + 1):
            spent += alive
            alive = min(alive, self.cuts.get(step, alive))
        return spent


@dataclass(frozen=True)
class Later:
    """Another schedule, for pictures whose first `by` steps are left out."""

    schedule: Schedule
    by: int

    @property
    def looks(self) -> frozenset[int]:
        return frozenset(step + self.by for step in self.schedule.looks)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return self.schedule.keep(step - self.by, scores)


@dataclass(frozen=True)
class Potential:
    """A threshold on potential: at each look, rows far below the best one stop.

    `margin` is in units of the scores' spread at the first look (its standard deviation), so that it
    fits any reward's scale; at least `least` rows go on.
    """

    looks: frozenset[int]
    margin: float = 0.5
    least: int = 1

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        ranked = _ranked(scores)
        values = list(scores.values())
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        bar = scores[ranked[0]] - self.margin * spread
        return [row for i, row in enumerate(ranked) if i < self.least or scores[row] >= bar]


def _ranked(scores: dict[int, float]) -> list[int]:
    """Rows from best to worst; ties go to the earlier row."""
    return sorted(scores, key=lambda row: (-scores[row], row))


def halving(n: int, steps: int, gentleness: float = 1.0) -> Halving:
    """The default cuts, as shares of the candidates and of the steps; `gentleness` > 1 keeps more.

    Found by `reprise bench parm --sweep` on the embedded renderer; see EXPERIMENTS.md.
    """
    cuts: dict[int, int] = {}
    for when, share in DEFAULT_CUTS:
        step, kept = max(1, round(when * steps)), max(1, math.ceil(share * n * gentleness))
        if step < steps and kept < min([n, *cuts.values()]):
            cuts[step] = kept
    return Halving(cuts)


# (share of the steps done, share of the candidates kept)
DEFAULT_CUTS = ((0.125, 0.5), (0.25, 0.25), (0.5, 0.125))


def schedule_from(name: str, n: int, steps: int) -> Schedule:
    """The schedule behind `--prune NAME` for `n` candidates over `steps` steps."""
    if name == "none" or n == 1:
        return Full()
    if name == "halving":
        return halving(n, steps)
    if name == "potential":
        looks = {max(1, round(when * steps)) for when, _ in DEFAULT_CUTS}
        return Potential(frozenset(step for step in looks if step < steps))
    raise BadInput(f"unknown pruning {name!r}; expected one of {', '.join(SCHEDULES)}")


class PruningWatcher:
    """Judges previews and applies a schedule; remembers what it saw, for the record and the bench."""

    def __init__(self, judge: Reward, prompt: str, candidates: list[Candidate], schedule: Schedule,
                 cost: Cost):
        self.judge, self.prompt, self.candidates = judge, prompt, candidates
        self.schedule, self.cost = schedule, cost
        self.steps = schedule.looks

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        started = time.perf_counter()
        higher = self.judge.spec.higher_is_better
        scores = image_scores(self.judge, previews, [self.prompt] * len(rows))
        self.cost.judge_calls += len(rows)
        self.cost.add_seconds("judge", time.perf_counter() - started)
        for row, score in zip(rows, scores, strict=True):
            self.candidates[row].preview_scores[step] = score
        signed = {row: s if higher else -s for row, s in zip(rows, scores, strict=True)}
        kept = sorted(self.schedule.keep(step, signed))
        for row, preview in zip(rows, previews, strict=True):
            if row not in kept:
                self.candidates[row].preview = preview.clone()  # a view would hold all rows in memory
        return kept
