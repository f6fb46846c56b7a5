"""Evaluations while training: fixed prompts, paraphrases, a reward that is not trained on, and when to stop.

The rewriter writes greedily and every prompt has its own fixed seed, so that two evaluations differ by the
weights alone. An answer that cannot be read is drawn as the user typed it, as in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RewardFailed
from ..rewards.text import words
from ..types import Job, Rewrite
from .prompts import Asked
from .rollouts import Rollouts, seed_of

SHOWN = 6  # prompts of an evaluation whose pictures the report shows


def evaluate(rollouts: Rollouts, sets: Mapping[str, Sequence[Asked]],
             unchanged: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(figures "set/reward" of every set, samples of the first set for the report).

    With `unchanged` the prompts of the first set are drawn as typed, too. Raises RewardFailed for a reward
    that scored nothing.
    """
    figures: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    for number, (name, asked) in enumerate(sets.items()):
        with rollouts.phases("write"):
            rewrites = [row[0] for row in rollouts.rewriter.rewrite([one.prompt for one in asked])]
        found, seen = _look(rollouts, name, asked, rewrites)
        figures |= found
        figures[f"{name}/unparsable"] = sum(r.fallback is not None for r in rewrites) / len(rewrites)
        figures[f"{name}/words"] = sum(words(r.prompt) for r in rewrites) / len(rewrites)
        if number == 0:
            samples = [seen[i * len(seen) // SHOWN] for i in range(SHOWN)] if len(seen) > SHOWN else seen
            if unchanged:
                typed = [Rewrite("", one.prompt, "none") for one in asked]
                figures |= _look(rollouts, "unchanged", asked, typed)[0]
    return figures, samples


def _look(rollouts: Rollouts, name: str, asked: Sequence[Asked],
          rewrites: Sequence[Rewrite]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    jobs = [Job(rewrite.prompt, seed_of("evaluate", i)) for i, rewrite in enumerate(rewrites)]
    judged = rollouts.studio.look(jobs, [one.meaning for one in asked])
    figures = {}
    for reward in rollouts.studio.rewards:
        scores = [view.scores[reward] for view in judged if reward in view.scores]
        if not scores:
            raise RewardFailed(reward, f"it scored nothing of an evaluation: {judged[0].failed[reward]}")
        figures[f"{name}/{reward}"] = sum(scores) / len(scores)
    samples = [
        {"prompt": one.prompt, "reason": rewrite.reason, "rewrite": rewrite.prompt,
         "fallback": rewrite.fallback, "picture": view.picture, "scores": view.scores}
        for one, rewrite, view in zip(asked, rewrites, judged, strict=True)
    ]  # fmt: skip
    return figures, samples


def better(value: float, than: float, higher: bool) -> bool:
    return value > than if higher else value < than


def hacking(evaluations: Sequence[Mapping[str, Any]], watched: str, higher: bool, patience: int) -> bool:
    """Whether over the last `patience` evaluations training reward rose and the `watched` fell each time.

    `evaluations` carry `training_reward`, the mean since the one before (None before the first step).
    """
    recent = evaluations[-patience - 1 :]
    if patience < 1 or len(recent) <= patience:
        return False
    training = [row["training_reward"] for row in recent if row["training_reward"] is not None]
    held = [row[watched] for row in recent]
    falls = all(better(before, after, higher) for before, after in zip(held, held[1:]))
    return falls and len(training) > 1 and training[-1] > training[0]
