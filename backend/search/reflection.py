"""Reflection: the judge says what is wrong, the rewriter corrects, the picture is drawn again.

Source: PARM++ (arXiv 2501.13926, section 3.4): verdict, textual reason, at most three rounds. Departs
from it: the critique goes to the rewriter and a small search, not to a self-correcting generator; the
best picture so far is never lost. It may be shown to the renderer, too, as PARM++ shows the rejected one:
corrections are then drawn over it (image to image) and keep what was right in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import BadInput
from ..core.interfaces import Critic, Renderer, Reward, Rewriter
from ..core.scoring import verdicts
from ..core.types import Candidate, Cost, InitImage, ReflectionRound, Rewrite, Verdict
from .best_of_n import SearchResult, best_of, search
from .pruning import PruningSchedule

CORRECTIONS = ("draw again", "image to image")  # a new picture; the best one so far, drawn over


@dataclass
class Reflection:
    """All candidates, the search's own first; the best of all; the rounds and what they cost."""

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
    previews: Reward | None = None,
    correction: str = CORRECTIONS[0],
    strength: float = 0.75,
    progress: Callable[[int, int], None] | None = None,
) -> Reflection:
    """Up to `rounds` rounds over the result of a search; stops as soon as the judge is satisfied.

    Each round draws `n` candidates with new seeds, from `variants` corrected rewrites. `schedule(n)`
    gives the pruning, and `previews` judges its previews in the judge's place. `correction` is one of
    CORRECTIONS; image to image draws over the best picture so far with `strength`. Raises BadInput where the
    judge cannot say what is wrong.
    """
    critic = check_critic(judge)
    state = Reflection(list(first.candidates), first.best, [], [], Cost())
    shown = state.candidates[state.best]
    verdict = _record(state, 0, shown, critic, prompt)
    for number in range(1, rounds + 1):
        if verdict.satisfied:
            break
        started = time.perf_counter()
        corrected = rewriter.rewrite([prompt], variants, seed=seed + number, critiques=[verdict.critique])[0]
        state.cost.add_seconds("rewrite", time.perf_counter() - started)
        state.rewrites += corrected
        base = seed + len(state.candidates)  # seeds no earlier round has used
        best = state.candidates[state.best].image
        over = InitImage(best, strength) if correction == CORRECTIONS[1] and best is not None else None
        again = search(
            renderer,
            judge,
            prompt,
            [r.prompt for r in corrected],
            n=n,
            seed=base,
            schedule=schedule(n),
            previews=previews,
            init=over,
            progress=progress,
        )
        state.cost += again.cost
        for candidate in again.candidates:
            candidate.index += len(first.candidates) + n * (number - 1)
            candidate.round = number
        drawn = again.candidates[again.best]
        state.candidates += again.candidates
        drawn_verdict = _record(state, number, drawn, critic, prompt)
        state.best = best_of(state.candidates, judge)
        # What is still to be mended is the best picture so far, not always the last one drawn.
        if state.best == drawn.index:
            verdict = drawn_verdict
    return state


def critique_warning(corrector: Rewriter) -> str | None:
    """What to tell who lets a rewriter correct that changes no words for a critique; None where it does."""
    if getattr(corrector, "reads_critiques", True):
        return None
    return (
        f"the rewriter {corrector.name!r} does not read what the judge finds wrong: rounds of reflection "
        "draw from words that owe it nothing"
    )


def check_critic(judge: Reward) -> Critic:
    """The judge, as one that can say what is wrong. Raises BadInput where it cannot."""
    if not isinstance(judge, Critic):
        name = judge.spec.name
        raise BadInput(f"reflection needs a judge that can say what is wrong; {name!r} only scores")
    return judge


def _record(state: Reflection, number: int, candidate: Candidate, judge: Critic, prompt: str) -> Verdict:
    """Ask for the verdict on a finished candidate and note the round."""
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
