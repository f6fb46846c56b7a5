"""The error tree. An error that a user can cause says what was expected, what came, and what to do.

RepriseError                 exit code 1, unless a subclass sets another
├── BadInput                 2: wrong options, files or prompts
│   └── UnknownName          2: a name that is not in a registry; gives the closest match
├── CheckpointError          2: weights are missing, damaged or of another kind
├── Unsupported              2: this model, renderer or reward cannot do what was asked for
├── RewardFailed             1: a reward raised, or returned something that is no score
├── RenderFailed             1: a renderer failed
├── EndpointError            1: a chat endpoint is unreachable or slow, refuses, or answers nonsense
│   └── AnswerRefused        1: it refuses this one request, or answers it with no text
├── TrainingFailed           1: a training cannot continue
├── DiskFull                 1: there is no room to write; what was finished is kept
└── Interrupted              1: the user or the host stopped the work
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 8  # up to so many names are all listed in a message, even if one is a close match
LONGEST = 160  # characters of another library's error that are quoted at most
LONGEST_MESSAGE = 2_000  # characters of a message of ours: a name in it may be a whole file
LONGEST_NAME = 100  # characters of an unknown name in a message


class RepriseError(Exception):
    """Base of all errors of this package. The message is one line for the user, whatever it quotes."""

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(plain(str(message), LONGEST_MESSAGE))


class BadInput(RepriseError):
    """The input is not usable; nothing was written."""

    exit_code = 2


class UnknownName(BadInput):
    """A name that is not known. The message gives the closest match, and all names if they are few.

    `kind` is the word for what was named, such as "reward". `near` is the closest match, or None.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known, name = sorted(known), plain(name, LONGEST_NAME)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hints = [f"did you mean {near[0]!r}?"] if near else []
        if not near or len(known) <= FEW:
            hints.append(f"expected one of {', '.join(known)}")
        super().__init__(f"unknown {kind} {name!r}; {' '.join(hints)}")
        self.kind, self.name, self.near = kind, name, near[0] if near else None


class CheckpointError(RepriseError):
    """Weights or their folder are missing, truncated, altered or of another kind."""

    exit_code = 2


class Unsupported(RepriseError):
    """This model, renderer or reward cannot do what was asked for."""

    exit_code = 2


class RewardFailed(RepriseError):
    """A reward raised, or returned something that is no finite score. Names the reward and the cause."""

    def __init__(self, reward: str, cause: object):
        super().__init__(f"reward {reward!r} failed: {cause}; no score was recorded")
        self.reward, self.cause = reward, cause


class RenderFailed(RepriseError):
    """A renderer failed."""


class EndpointError(RepriseError):
    """A chat endpoint is unreachable or slow, refuses the request, or its answer cannot be read."""


class AnswerRefused(EndpointError):
    """A chat endpoint refuses one request, or answers it with no text; it may answer others."""


class TrainingFailed(RepriseError):
    """A training cannot continue: the loss is NaN or infinite, or a checkpoint cannot be written."""


class DiskFull(RepriseError):
    """The disk has no room for a file; nothing half-written is left."""


class Interrupted(RepriseError):
    """The work was stopped on request; finished parts are kept."""


def plain(text: str, most: int | None = None) -> str:
    """Foreign text as one line of printable characters (no terminal codes), cut to `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, cut to `LONGEST` characters, for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]
