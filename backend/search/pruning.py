"""PARM's pruning: which candidates go on after a look at their x0 previews.

Source: Guo et al. 2025 (arXiv 2501.13926): judge while drawing, stop hopeless paths, keep the best of
those that finish. Departs from it: a stopped path costs nothing more (the renderer masks its row); some
path always goes on; "potential" may be any reward's score of the preview.

A vision-language judge looks at previews in PARM's own way: whether one is clear enough to judge, and then
whether its picture will come out right. Its probability is held against a threshold, and what is not clear
yet goes on. Halving is a budget that is fixed beforehand, and asks for the second alone.
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
THRESHOLD = 0.5  # of the probability that a candidate comes out right: PARM's yes or no


class PruningSchedule(Protocol):
    """When to look, and which of the rows alive go on."""

    @property
    def looks(self) -> frozenset[int]:
        """1-based steps after which previews are judged."""
        ...

    @property
    def needs_clarity(self) -> bool:
        """Whether rows whose previews are not clear yet go on without being judged."""
        ...

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        """`scores` of the rows that are judged -> those that go on, never none."""
        ...


@dataclass(frozen=True)
class FullSchedule:
    """Every candidate is drawn to the end."""

    looks: frozenset[int] = frozenset()
    needs_clarity: bool = field(default=False, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return list(scores)


@dataclass(frozen=True)
class HalvingSchedule:
    """Successive halving by rank: after step s, the best `cuts[s]` go on."""

    cuts: dict[int, int] = field(hash=False)
    needs_clarity: bool = field(default=False, init=False)

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
class ShiftedSchedule:
    """Another schedule, for pictures whose first `by` steps are left out."""

    schedule: PruningSchedule
    by: int

    @property
    def looks(self) -> frozenset[int]:
        return frozenset(step + self.by for step in self.schedule.looks)

    @property
    def needs_clarity(self) -> bool:
        return self.schedule.needs_clarity

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return self.schedule.keep(step - self.by, scores)


@dataclass
class MarginSchedule:
    """For any reward: at each look, rows far below the best one stop.

    `margin` is in units of the scores' standard deviation at the first look, so that it fits any reward's
    scale; at least `least` rows go on. An object is of one search.
    """

    looks: frozenset[int]
    margin: float = 0.5
    least: int = 1
    needs_clarity: bool = field(default=False, init=False)
    spread: float | None = field(default=None, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        if self.spread is None:
            self.spread = statistics.pstdev(scores.values())
        ranked = _ranked(scores)
        bar = scores[ranked[0]] - self.margin * self.spread
        return [row for i, row in enumerate(ranked) if i < self.least or scores[row] >= bar]


@dataclass(frozen=True)
class ThresholdSchedule:
    """PARM's: rows that will come out right with less than `threshold` stop; at least `least` go on."""

    looks: frozenset[int]
    threshold: float = THRESHOLD
    least: int = 1
    needs_clarity: bool = field(default=True, init=False)

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        ranked = _ranked(scores)
        return [row for i, row in enumerate(ranked) if i < self.least or scores[row] >= self.threshold]


def _ranked(scores: dict[int, float]) -> list[int]:
    """Rows from best to worst; ties go to the earlier row."""
    return sorted(scores, key=lambda row: (-scores[row], row))


def default_halving(n: int, steps: int, gentleness: float = 1.0) -> HalvingSchedule:
    """The default cuts, as shares of the candidates and of the steps; `gentleness` > 1 keeps more.

    Found by `reprise lab bench parm --sweep` on the embedded renderer; see docs/lab-book.md.
    """
    cuts: dict[int, int] = {}
    for when, share in DEFAULT_CUTS:
        step, kept = max(1, round(when * steps)), max(1, math.ceil(share * n * gentleness))
        if step < steps and kept < min([n, *cuts.values()]):
            cuts[step] = kept
    return HalvingSchedule(cuts)


# (share of the steps done, share of the candidates kept)
DEFAULT_CUTS = ((0.125, 0.5), (0.25, 0.25), (0.5, 0.125))


# Shares of the steps after which potential is asked for.
LOOKS = (0.125, 0.25, 0.375, 0.5, 0.75)
CLEAR = 0.5  # of the probability that a preview is clear enough to judge


def steps_at(shares: Iterable[float], steps: int) -> frozenset[int]:
    """The steps, 1-based and before the last, after which these shares of a drawing in `steps` are done."""
    return frozenset(step for share in shares if (step := max(1, round(share * steps))) < steps)


def read_pruning(text: str) -> tuple[str, float | None]:
    """--prune: one of SCHEDULES, or potential:THRESHOLD. Raises BadInput and UnknownName."""
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


def schedule_from(pruning: str, n: int, steps: int, looking: Reward | None = None) -> PruningSchedule:
    """The schedule behind `--prune` for `n` candidates over `steps` steps, `looking` at previews. Raises
    Unsupported for a threshold that nobody's probability is held against."""
    name, threshold = read_pruning(pruning)
    probable = isinstance(looking, PreviewReward)
    if threshold is not None and looking is not None and not probable:
        raise Unsupported(
            f"--prune {pruning} holds a probability against its threshold, and "
            f"{looking.spec.name!r} gives none; take --prune potential, or a judge vlm:…"
        )
    if name == "none" or n == 1:
        return FullSchedule()
    if name == "halving":
        return default_halving(n, steps)
    looks = steps_at(LOOKS, steps)
    if not probable:
        return MarginSchedule(looks)
    return ThresholdSchedule(looks) if threshold is None else ThresholdSchedule(looks, threshold)


class PruningWatcher:
    """Judges previews and applies a schedule; remembers what it saw, for the record and the bench. `looking`
    is who judges them, see `judging.of_previews`."""

    def __init__(
        self, looking: Reward, prompt: str, candidates: list[Candidate], schedule: PruningSchedule, cost: Cost
    ):
        self.looking, self.prompt, self.candidates = looking, prompt, candidates
        self.schedule, self.cost = schedule, cost
        self.steps = schedule.looks

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        started = time.perf_counter()
        clear = self._clear(step, rows, previews)
        signed: dict[int, float] = {}
        if any(clear):
            seen = [row for row, is_clear in zip(rows, clear, strict=True) if is_clear]
            pictures = previews if all(clear) else previews[clear]
            scores = image_scores(self.looking, pictures, [self.prompt] * len(seen))
            sign = 1 if self.looking.spec.higher_is_better else -1
            for row, score in zip(seen, scores, strict=True):
                self.candidates[row].preview_scores[step] = score
                signed[row] = sign * score
            self.cost.judge_calls += len(seen)
        self.cost.add_seconds("judge", time.perf_counter() - started)
        going = set(self.schedule.keep(step, signed)) if signed else set()
        kept = [row for row in rows if row in going or row not in signed]
        for row, preview in zip(rows, previews, strict=True):
            if row not in kept:
                self.candidates[row].preview = preview.clone()  # a view would hold all rows in memory
        return kept

    def _clear(self, step: int, rows: list[int], previews: Tensor) -> list[bool]:
        """Which rows can be judged, where the schedule waits for it and the judge knows."""
        found = None
        if self.schedule.needs_clarity and isinstance(self.looking, PreviewReward):
            found = clarities(self.looking, previews, [self.prompt] * len(rows))
        if found is None:
            return [True] * len(rows)
        self.cost.judge_calls += len(rows)
        for row, likely in zip(rows, found, strict=True):
            self.candidates[row].preview_clarity[step] = likely
        return [likely >= CLEAR for likely in found]
