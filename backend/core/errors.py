"""The error tree. Every error a user can cause says what was expected, what came, and what to do.

RepriseError                 exit code 1 unless a subclass says otherwise
├── BadInput                 2: the user's words, files or options
│   └── UnknownName          2: a name no registry knows, with the near match
├── CheckpointError          2: a folder or file of weights that is not what it should be
├── Unsupported              2: asked of a model, renderer or reward that cannot do it
├── RewardFailed             1: a reward raised or returned something that is no score
├── RenderFailed             1: a renderer broke
├── EndpointError            1: a chat endpoint is down, slow, refuses or answers rubbish
│   └── AnswerRefused        1: it refuses this one request, or has no text for it
├── TrainingFailed           1: a training cannot go on
└── Interrupted              1: the user or the host stopped the work
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 8  # names that a message lists even where one of them is near
LONGEST = 160  # characters of another library's error that a message of ours repeats


class RepriseError(Exception):
    """Base of all errors of this package. The message is one line for the user."""

    exit_code = 1


class BadInput(RepriseError):
    """The input is not usable; nothing was written."""

    exit_code = 2


class UnknownName(BadInput):
    """A name that no registry knows: the near match is given, and all names where they are few."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hints = [f"did you mean {near[0]!r}?"] if near else []
        if not near or len(known) <= FEW:
            hints.append(f"expected one of {', '.join(known)}")
        super().__init__(f"unknown {kind} {name!r}; {' '.join(hints)}")
        self.kind, self.name, self.near = kind, name, near[0] if near else None


class CheckpointError(RepriseError):
    """Weights or their folder are missing, truncated, tampered with or of another kind."""

    exit_code = 2


class Unsupported(RepriseError):
    """Asked for something that this model, renderer or reward cannot do."""

    exit_code = 2


class RewardFailed(RepriseError):
    """A reward raised, or returned no finite score. Names the reward and the cause."""

    def __init__(self, reward: str, cause: object):
        super().__init__(f"reward {reward!r} failed: {cause}; no score was recorded")
        self.reward, self.cause = reward, cause


class RenderFailed(RepriseError):
    """A renderer broke while drawing."""


class EndpointError(RepriseError):
    """A chat endpoint cannot be reached, is slow, refuses the request or answers with no text."""


class AnswerRefused(EndpointError):
    """A chat endpoint refuses what one request asks, or answers it with no text; others it may answer."""


class TrainingFailed(RepriseError):
    """A training cannot go on: a loss that is no number, a checkpoint that cannot be written."""


class Interrupted(RepriseError):
    """The work was stopped on request; what was finished is kept."""


def plain(said: str, most: int | None = None) -> str:
    """A stranger's words on one line, without what a terminal would obey; cut to `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]
