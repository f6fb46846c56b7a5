"""How far a run of many prompts is: counts, scores, cost and the time left, for pages and terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..storage.records import Record
from .build import number_text


@dataclass
class Tally:
    """Counts the prompts of a run as they are finished, and holds none of their records."""

    total: int
    drawn: int = 0
    kept: int = 0
    """Finished by an earlier call."""
    passed_over: int = 0
    lowest: tuple[float, str] | None = None
    """Of the best pictures' scores, with its prompt."""
    highest: tuple[float, str] | None = None
    higher_is_better: bool = True
    _scored: int = 0
    _sum: float = 0.0
    _rows: int = 0
    _rows_full: int = 0
    _seconds: float = 0.0  # spent on what was not kept
    _since: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.drawn + self.kept + self.passed_over

    def add(self, record: Record, kept: bool) -> None:
        """Count a finished prompt; `kept` if an earlier call drew it."""
        self.kept += kept
        self.drawn += not kept
        self._rows += record.cost.denoiser_rows
        self._rows_full += record.cost.denoiser_rows_full
        score = record.winner.score
        if score is not None:
            self.higher_is_better &= score >= max(c.score for c in record.candidates if c.score is not None)
            self._scored, self._sum = self._scored + 1, self._sum + score
            if self.lowest is None or score < self.lowest[0]:
                self.lowest = (score, record.prompt)
            if self.highest is None or score > self.highest[0]:
                self.highest = (score, record.prompt)
        self._lap(worked=not kept)

    def pass_over(self) -> None:
        """Count a prompt that could not be drawn."""
        self.passed_over += 1
        self._lap(worked=True)

    def _lap(self, worked: bool) -> None:
        now = time.monotonic()
        self._seconds += (now - self._since) * worked
        self._since = now

    def left(self) -> float | None:
        """Seconds that the rest will take; None as long as nothing was drawn."""
        worked = self.drawn + self.passed_over
        return self._seconds / worked * (self.total - self.done) if worked else None

    def progress(self) -> str:
        """As "412 of 2,000 prompts, about 3 h 12 min left"; "2,000 prompts" in the end."""
        if self.done == self.total:
            return f"{self.total:,} prompts"
        left = self.left()
        rest = f", about {duration(left)} left" if left is not None else ""
        return f"{self.done:,} of {self.total:,} prompts{rest}"

    def facts(self) -> list[tuple[str, str]]:
        """(value, name) of what the finished prompts are like; only what there is."""
        facts = []
        if self.lowest and self.highest:
            facts.append((number_text(self._sum / self._scored), "mean score"))
            if self._scored > 1:
                both = (number_text(score) for score, _ in (self.lowest, self.highest))
                facts.append((" to ".join(both), "scores"))
        if 0 < self._rows < self._rows_full:
            facts.append((f"{self._rows / self._rows_full:.0%}", "of the full cost"))
        return facts


def duration(seconds: float) -> str:
    """A time in the one or two units that matter: "48 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
