"""PARM's pruning: which candidates continue, judged by their x0 previews.

Source: Guo et al. 2025 (arXiv 2501.13926): judge while drawing, stop hopeless paths, keep the best of
those that finish.
Departs from it: a stopped path costs nothing more (the renderer masks its row); at least one path always
continues; "potential" may be any reward's score of the preview.

A vision-language judge answers PARM's two questions about a preview: is it clear enough to judge (clarity),
and will the finished picture be right (potential). The `potential` schedule compares the second probability
with a threshold; previews that are not clear yet continue. The `halving` schedule has a fixed budget and asks
only for potential.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.interfaces import PreviewReward, Reward
from ..core.scoring import clarities, image_scores
from ..core.types import Candidate, Cost

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULES = ("none", "halving", "potential")
POTENTIAL_THRESHOLD = 0.5  # of P(the candidate will be right): PARM's yes or no


class PruningSchedule(Protocol):
    """At which steps previews are judged, and which of the rows alive continue."""

    @property
    def preview_steps(self) -> frozenset[int]:
        """1-based steps after which previews are judged."""
        ...

    @property
    def needs_clarity(self) -> bool:
        """Whether rows whose previews are not clear yet continue without being scored."""
        ...

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        """{row: score} of the scored rows (higher is better) -> the rows that continue, at least one."""
        ...


@dataclass(frozen=True)
class FullSchedule:
    """Every candidate is drawn to the end."""

    preview_steps: frozenset[int] = frozenset()
    needs_clarity: bool = field(default=False, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return list(scores)


@dataclass(frozen=True)
class HalvingSchedule:
    """Successive halving by rank: after step s, the best `cuts[s]` rows continue."""

    cuts: dict[int, int] = field(hash=False)
    needs_clarity: bool = field(default=False, init=False)

    def __post_init__(self):
        steps, kept = list(self.cuts), list(self.cuts.values())
        if steps != sorted(steps) or kept != sorted(kept, reverse=True) or min(kept, default=1) < 1:
            raise BadInput(
                f"cuts must keep ever fewer rows, at least 1, at ever later steps; got {self.cuts}"
            )

    @property
    def preview_steps(self) -> frozenset[int]:
        return frozenset(self.cuts)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return _ranked(scores)[: self.cuts[step]]

    def rows(self, n: int, steps: int) -> int:
        """Denoiser rows that `n` candidates cost over `steps` steps, without classifier-free guidance."""
        alive, spent = n, 0
        for step in range(1, steps + 1):
            spent += alive
            alive = min(alive, self.cuts.get(step, alive))
        return spent


@dataclass(frozen=True)
class ShiftedSchedule:
    """Another schedule, moved back by `offset` steps: for drawing that skips its first `offset` steps."""

    schedule: PruningSchedule
    offset: int

    @property
    def preview_steps(self) -> frozenset[int]:
        return frozenset(step + self.offset for step in self.schedule.preview_steps)

    @property
    def needs_clarity(self) -> bool:
        return self.schedule.needs_clarity

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return self.schedule.keep(step - self.offset, scores)


@dataclass
class MarginSchedule:
    """For any reward: at each preview step, rows that score far below the best one stop.

    `margin` is in standard deviations of the scores at the first preview step, so that it fits any reward's
    scale. At least `min_rows` rows continue. The object keeps that deviation: use one per search.
    """

    preview_steps: frozenset[int]
    margin: float = 0.5
    min_rows: int = 1
    needs_clarity: bool = field(default=False, init=False)
    spread: float | None = field(default=None, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        if self.spread is None:
            self.spread = statistics.pstdev(scores.values())
        ranked = _ranked(scores)
        bar = scores[ranked[0]] - self.margin * self.spread
        return [row for i, row in enumerate(ranked) if i < self.min_rows or scores[row] >= bar]


@dataclass(frozen=True)
class ThresholdSchedule:
    """PARM's schedule: rows whose P(will be right) is below `threshold` stop; at least `min_rows`
    continue."""

    preview_steps: frozenset[int]
    threshold: float = POTENTIAL_THRESHOLD
    min_rows: int = 1
    needs_clarity: bool = field(default=True, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        ranked = _ranked(scores)
        return [row for i, row in enumerate(ranked) if i < self.min_rows or scores[row] >= self.threshold]


def _ranked(scores: dict[int, float]) -> list[int]:
    """Rows from best to worst; of equal scores, the earlier row first."""
    return sorted(scores, key=lambda row: (-scores[row], row))


def default_halving(n: int, steps: int, gentleness: float = 1.0) -> HalvingSchedule:
    """The default cuts for `n` candidates and `steps` steps; `gentleness` > 1 keeps more candidates.

    They were chosen by `reprise lab bench parm --sweep` on the embedded renderer; see docs/lab-book.md.
    """
    cuts: dict[int, int] = {}
    for when, share in DEFAULT_CUTS:
        step, kept = max(1, round(when * steps)), max(1, math.ceil(share * n * gentleness))
        if step < steps and kept < min([n, *cuts.values()]):
            cuts[step] = kept
    return HalvingSchedule(cuts)


# (share of the steps done, share of the candidates kept)
DEFAULT_CUTS = ((0.125, 0.5), (0.25, 0.25), (0.5, 0.125))


# Shares of the steps after which the `potential` schedule judges previews.
POTENTIAL_STEP_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)
CLARITY_THRESHOLD = 0.5  # of P(the preview is clear enough to judge)


def steps_at_shares(shares: Iterable[float], steps: int) -> frozenset[int]:
    """The 1-based steps, before the last, after which these shares of `steps` are done."""
    return frozenset(step for share in shares if (step := max(1, round(share * steps))) < steps)


def read_pruning(text: str) -> tuple[str, float | None]:
    """Parses `--prune`, one of SCHEDULES or potential:THRESHOLD, into (name, threshold or None).

    Raises BadInput and UnknownName.
    """
    name, colon, number = text.partition(":")
    if name not in SCHEDULES:
        raise UnknownName("pruning", name, SCHEDULES)
    if not colon:
        return name, None
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if name != "potential" or not 0 <= threshold <= 1:
        raise BadInput(f"expected potential:THRESHOLD with a probability of 0 to 1, got {text!r}")
    return name, threshold


def schedule_from(pruning: str, n: int, steps: int, preview_reward: Reward | None = None) -> PruningSchedule:
    """The schedule that `--prune` names, for `n` candidates over `steps` steps.

    `preview_reward` is the reward that will score the previews. Raises Unsupported for a threshold with a
    reward that gives no probabilities.
    """
    name, threshold = read_pruning(pruning)
    gives_probabilities = isinstance(preview_reward, PreviewReward)
    if threshold is not None and preview_reward is not None and not gives_probabilities:
        raise Unsupported(
            f"--prune {pruning} compares a probability with its threshold, and "
            f"{preview_reward.spec.name!r} gives none; take --prune potential, or a judge vlm:…"
        )
    if name == "none" or n == 1:
        return FullSchedule()
    if name == "halving":
        return default_halving(n, steps)
    preview_steps = steps_at_shares(POTENTIAL_STEP_SHARES, steps)
    if not gives_probabilities:
        return MarginSchedule(preview_steps)
    return ThresholdSchedule(preview_steps, POTENTIAL_THRESHOLD if threshold is None else threshold)


class PruningWatcher:
    """Scores previews with `reward`, applies a schedule, and notes scores and clarity in `candidates`.

    `reward` is the judge's `core.scoring.judge_for_previews`.
    """

    def __init__(
        self, reward: Reward, prompt: str, candidates: list[Candidate], schedule: PruningSchedule, cost: Cost
    ):
        self.reward, self.prompt, self.candidates = reward, prompt, candidates
        self.schedule, self.cost = schedule, cost
        self.steps = schedule.preview_steps

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        started = time.perf_counter()
        clear = self._clear(step, rows, previews)
        scores: dict[int, float] = {}  # row -> score, higher is better
        if any(clear):
            clear_rows = [row for row, is_clear in zip(rows, clear, strict=True) if is_clear]
            pictures = previews if all(clear) else previews[clear]
            values = image_scores(self.reward, pictures, [self.prompt] * len(clear_rows))
            sign = 1 if self.reward.spec.higher_is_better else -1
            for row, value in zip(clear_rows, values, strict=True):
                self.candidates[row].preview_scores[step] = value
                scores[row] = sign * value
            self.cost.judge_calls += len(clear_rows)
        self.cost.add_seconds("judge", time.perf_counter() - started)
        continuing = set(self.schedule.keep(step, scores)) if scores else set()
        kept = [row for row in rows if row in continuing or row not in scores]
        for row, preview in zip(rows, previews, strict=True):
            if row not in kept:
                self.candidates[row].preview = preview.clone()  # a view would hold all rows in memory
        return kept

    def _clear(self, step: int, rows: list[int], previews: Tensor) -> list[bool]:
        """Per row, whether its preview can be judged. True for all if schedule or reward know no clarity."""
        probabilities = None
        if self.schedule.needs_clarity and isinstance(self.reward, PreviewReward):
            probabilities = clarities(self.reward, previews, [self.prompt] * len(rows))
        if probabilities is None:
            return [True] * len(rows)
        self.cost.judge_calls += len(rows)
        for row, p in zip(rows, probabilities, strict=True):
            self.candidates[row].preview_clarity[step] = p
        return [p >= CLARITY_THRESHOLD for p in probabilities]
