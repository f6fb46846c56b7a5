"""Reflection: the judge says what is wrong, the rewriter corrects the prompt, the picture is drawn again.

Source: PARM++ (arXiv 2501.13926, section 3.4): verdict, textual reason, at most three rounds.
Departs from it: the critique goes to the rewriter and a small search, not to a self-correcting generator. The
best picture so far is never lost. The renderer may start from it, as PARM++'s generator sees the rejected
picture: corrections are then drawn over it (image to image) and keep what was right in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..core.errors import BadInput
from ..core.interfaces import Critic, Renderer, Reward, Rewriter
from ..core.scoring import verdicts
from ..core.types import Candidate, Cost, InitImage, ReflectionRound, Rewrite, Verdict
from .best_of_n import SearchResult, best_index, search
from .pruning import PruningSchedule


class Correction(str, Enum):
    """How a round of reflection draws its pictures. The values are recorded in `record.json`."""

    DRAW_AGAIN = "draw again"  # new pictures, from noise
    IMAGE_TO_IMAGE = "image to image"  # the best picture so far, drawn over

    def __str__(self) -> str:
        return self.value


@dataclass
class Reflection:
    """All candidates (the first search's come first), the index of the best, the rounds and their cost."""

    candidates: list[Candidate]
    best: int
    rounds: list[ReflectionRound]
    rewrites: list[Rewrite]  # the corrected ones
    cost: Cost


def reflect(
    first: SearchResult,
    prompt: str,
    *,
    rewriter: Rewriter,
    renderer: Renderer,
    judge: Reward,
    rounds: int,
    n: int,
    seed: int,
    variants: int,
    schedule: Callable[[int], PruningSchedule],
    preview_reward: Reward | None = None,
    correction: Correction | str = Correction.DRAW_AGAIN,
    strength: float = 0.75,
    progress: Callable[[int, int], None] | None = None,
) -> Reflection:
    """Up to `rounds` rounds of correction of a search's result. Stops as soon as the judge is satisfied.

    Each round draws `n` candidates with new seeds from `variants` corrected rewrites. `schedule(n)` gives the
    pruning; `preview_reward` scores the previews instead of the judge. Image to image draws over the best
    picture so far with `strength`. Raises BadInput if the judge is no critic.
    """
    correction = Correction(correction)
    critic = check_critic(judge)
    state = Reflection(list(first.candidates), first.best, [], [], Cost())
    verdict = _record(state, 0, state.candidates[state.best], critic, prompt)
    for number in range(1, rounds + 1):
        if verdict.satisfied:
            break
        started = time.perf_counter()
        corrected = rewriter.rewrite([prompt], variants, seed=seed + number, critiques=[verdict.critique])[0]
        state.cost.add_seconds("rewrite", time.perf_counter() - started)
        state.rewrites += corrected
        base = seed + len(state.candidates)  # seeds that no earlier round has used
        best = state.candidates[state.best].image
        init = None
        if correction is Correction.IMAGE_TO_IMAGE and best is not None:
            init = InitImage(best, strength)
        result = search(
            renderer,
            judge,
            prompt,
            [r.prompt for r in corrected],
            n=n,
            seed=base,
            schedule=schedule(n),
            preview_reward=preview_reward,
            init=init,
            progress=progress,
        )
        state.cost += result.cost
        for candidate in result.candidates:
            candidate.index += len(first.candidates) + n * (number - 1)
            candidate.round = number
        best_of_round = result.candidates[result.best]
        state.candidates += result.candidates
        round_verdict = _record(state, number, best_of_round, critic, prompt)
        state.best = best_index(state.candidates, judge)
        # The next round corrects the best picture so far, which may be from an earlier round.
        if state.best == best_of_round.index:
            verdict = round_verdict
    return state


def critique_warning(corrector: Rewriter) -> str | None:
    """A warning for the user if the corrector ignores critiques, else None."""
    if corrector.capabilities.reads_critiques:
        return None
    return (
        f"the rewriter {corrector.name!r} does not read what the judge finds wrong: rounds of reflection "
        "draw from words that do not respond to it"
    )


def check_critic(judge: Reward) -> Critic:
    """The judge as a critic. Raises BadInput if it cannot say what is wrong."""
    if not isinstance(judge, Critic):
        name = judge.spec.name
        raise BadInput(f"reflection needs a judge that can say what is wrong; {name!r} only scores")
    return judge


def _record(state: Reflection, number: int, candidate: Candidate, judge: Critic, prompt: str) -> Verdict:
    """Asks for the verdict on a finished candidate and adds the round to `state`."""
    import torch

    assert candidate.image is not None and candidate.score is not None
    started = time.perf_counter()
    (verdict,) = verdicts(judge, torch.stack([candidate.image]), [prompt])
    state.cost.judge_calls += 1
    state.cost.add_seconds("judge", time.perf_counter() - started)
    answer = "yes" if verdict.satisfied else "no"
    state.rounds.append(
        ReflectionRound(number, answer, verdict.critique, candidate.prompt, candidate.score, candidate.index)
    )
    return verdict
