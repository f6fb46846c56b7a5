"""RePrompt's text rewards: the structure of the answer, and the length of the rewritten prompt.

Source: RePrompt (arXiv 2505.17540), structure and length rewards.
Departs from its code: a missing prompt scores below a wrong length, which scores below a right length (there,
a missing prompt got 0 and beat a long one's -1). Lengths are inclusive, 15 to 77 words. In scripts without
spaces each character counts as a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.errors import RewardFailed
from ..core.types import RewardSpec, Rewrite

# Han, kana, Thai, Lao, Khmer, Burmese: written without spaces.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class Structure:
    """+1 if the answer could be parsed and has a prompt (and, with `reasoning`, a reason), else -1."""

    spec = RewardSpec("structure", -1.0, 1.0, reads="rewrites")

    def __init__(self, reasoning: bool = True):
        self.reasoning = reasoning

    def score_text(self, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]:
        """One score per rewrite, in -1 or 1. `prompts` are the users' own, one per rewrite."""
        _check(self.spec.name, rewrites, prompts)
        return [
            1.0 if not _missing(r) and (r.reason.strip() or not self.reasoning) else -1.0 for r in rewrites
        ]


class Length:
    """+1 for a prompt of `low` to `high` words, 0 for a shorter or longer one, -1 for a missing one."""

    spec = RewardSpec("length", -1.0, 1.0, reads="rewrites")

    def __init__(self, low: int = 15, high: int = 77):
        if not 0 < low <= high:
            raise ValueError(f"expected 0 < low <= high words, got low={low}, high={high}")
        self.low, self.high = low, high

    def score_text(self, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]:
        """One score per rewrite, in -1, 0 or 1. `prompts` are the users' own, one per rewrite."""
        _check(self.spec.name, rewrites, prompts)
        return [
            -1.0 if _missing(r) else float(self.low <= count_words(r.prompt) <= self.high) for r in rewrites
        ]


def count_words(text: str) -> int:
    """Number of words: between spaces, or one per character in scripts without spaces."""
    return len(_UNSPACED.sub(" x ", text).split())


def _missing(rewrite: Rewrite) -> bool:
    return rewrite.fallback is not None or not rewrite.prompt.strip()


def _check(name: str, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> None:
    if len(rewrites) != len(prompts):
        raise RewardFailed(name, f"expected one prompt per rewrite, got {len(prompts)} for {len(rewrites)}")
