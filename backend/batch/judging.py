"""The judge of a set, and the rewriter of its prompts: both are called between pictures that servers draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.interfaces import Reward, Rewriter
from ..core.scoring import named_scores, reward_fingerprint
from ..storage.images import read_picture
from .journal import Journal


class Judging:
    """Scores picture files by `reward`, a few at a time."""

    def __init__(self, reward: Reward):
        self.reward = reward
        self.name = reward.spec.name
        self.higher_is_better = reward.spec.higher_is_better
        self.mark = hashlib.sha256(f"{self.name} {reward_fingerprint(reward)}".encode()).hexdigest()[:16]

    def score(self, path: Path, prompt: str) -> tuple[dict[str, float], float]:
        """(the scores of a mix's parts, or its own by its name; the score that counts) of a picture.

        Raises BadInput where the judge cannot read this prompt or picture, and as `image_scores`.
        """
        named, [score] = named_scores(self.reward, read_picture(path)[None], [prompt])
        return {name: values[0] for name, values in named.items()}, score


class Rewriting:
    """`variants` rewrites of each prompt, written once and then kept in the journal."""

    def __init__(self, rewriter: Rewriter, name: str, variants: int, seed: int, journal: Journal):
        self.rewriter, self.variants, self.seed, self.journal = rewriter, variants, seed, journal
        self._mark = [rewriter.fingerprint or name, variants, seed]

    def known(self, prompt: str) -> bool:
        return self._key(prompt) in self.journal.rewrites

    def write(self, prompts: Sequence[str]) -> None:
        """Rewrite those that are not known, together. Raises as the rewriter does."""
        todo = [prompt for prompt in dict.fromkeys(prompts) if not self.known(prompt)]
        if not todo:
            return
        for prompt, rewrites in zip(todo, self.rewriter.rewrite(todo, self.variants, seed=self.seed)):
            rows = [
                {
                    "prompt": one.prompt,
                    "reason": one.reason,
                    **({"fallback": one.fallback} if one.fallback else {}),
                }
                for one in rewrites
            ]
            self.journal.rewrite(self._key(prompt), rows)

    def of(self, prompt: str, variant: int) -> dict[str, Any]:
        """A known rewrite: its prompt, its reason, and why it is the user's own where it is."""
        found = self.journal.rewrites[self._key(prompt)]
        try:
            return {"prompt": str(found[variant % len(found)]["prompt"]), **found[variant % len(found)]}
        except (LookupError, TypeError, ZeroDivisionError) as error:
            raise BadInput(
                f"rewrites.jsonl has no whole rewrites of {prompt[:80]!r}; delete the file"
            ) from error

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([*self._mark, prompt]).encode()).hexdigest()[:16]
