"""How far a set is: counts, pictures a minute, and the time left."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from ..reports.tally import duration

RECENT = 100  # finished runs from which the pace is taken


@dataclass
class BatchTally:
    """Counts the runs of a call. `total` runs are asked for."""

    total: int
    kept: int = 0
    """Finished by an earlier call."""
    drawn: int = 0
    pictures: int = 0
    """Files of the drawn ones."""
    failed: int = 0
    judged: int = 0
    started: float = field(default_factory=time.monotonic)
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def done(self) -> int:
        return self.kept + self.drawn + self.failed

    def add(self, pictures: int) -> None:
        """Count a run that was drawn just now."""
        self.drawn += 1
        self.pictures += pictures
        self._recent.append((time.monotonic(), self.pictures))

    def per_minute(self) -> float | None:
        """Pictures a minute, of late; None before the first."""
        if not self._recent:
            return None
        since, before = self._recent[0] if len(self._recent) == RECENT else (self.started, 0)
        now = max(self._recent[-1][0], time.monotonic())
        return 60 * (self.pictures - before) / max(1e-3, now - since)

    def left(self) -> float | None:
        """Seconds that the rest will take; None before the first."""
        pace = self.per_minute()
        if not pace or not self.drawn:
            return None
        return 60 * (self.total - self.done) * (self.pictures / self.drawn) / pace

    def summary(self) -> str:
        """How far it is when the command ends: "412 of 2,000 runs, stopped"."""
        if self.done >= self.total:
            return f"{self.total:,} runs" + (f", {self.failed:,} failed" if self.failed else "")
        return f"{self.done:,} of {self.total:,} runs, stopped"

    def progress(self) -> str:
        """As "412 of 2,000 runs, 12.4 pictures a minute, about 2 h 08 min left"."""
        if self.done >= self.total:
            return f"{self.total:,} runs"
        parts = [f"{self.done:,} of {self.total:,} runs"]
        pace, left = self.per_minute(), self.left()
        if pace is not None:
            parts.append(f"{pace:.1f} pictures a minute" if pace < 100 else f"{pace:,.0f} pictures a minute")
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)
