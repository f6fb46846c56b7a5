"""Best of N: draw candidates that differ in seed, prompt or both; judge them; keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.errors import BadInput
from ..core.interfaces import Renderer, Reward
from ..core.scoring import image_scores, judge_for_previews, rank
from ..core.types import SEED_RANGE, Candidate, Cost, InitImage, Job
from .pruning import FullSchedule, PruningSchedule, PruningWatcher


@dataclass
class SearchResult:
    """Candidates in the order of their seeds, and the index of the best of those that finished."""

    candidates: list[Candidate]
    best: int
    cost: Cost


def check_search(n: int, seed: int) -> None:
    """Raises BadInput for a number of candidates or a base seed that cannot be."""
    if n < 1:
        raise BadInput(f"best-of must be at least 1, got {n}")
    if not 0 <= seed < SEED_RANGE or seed + n > SEED_RANGE:
        raise BadInput(f"seed must be in 0 … 2^63 - {n} (the number of candidates), got {seed}")


def search(
    renderer: Renderer,
    judge: Reward,
    prompt: str,
    drawn: Sequence[str],
    *,
    n: int,
    seed: int,
    schedule: PruningSchedule | None = None,
    previews: Reward | None = None,
    init: InitImage | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """The best of `n` pictures for `prompt`, judged against it, drawn with the prompts `drawn` in turn.

    Candidate i has seed `seed + i` and prompt `drawn[i % len(drawn)]`. With a schedule, candidates are
    pruned on their x0 previews, which `previews` or, by default, the judge scores (`judge_for_previews`);
    the finished ones are the same pictures as without. With `init`, all of them start from that picture.
    """
    check_search(n, seed)
    schedule = schedule or FullSchedule()
    candidates = [Candidate(i, seed + i, drawn[i % len(drawn)]) for i in range(n)]
    cost = Cost()
    looking = PruningWatcher(judge_for_previews(previews or judge), prompt, candidates, schedule, cost)
    watcher = looking if schedule.looks else None
    started = time.perf_counter()
    rendered = renderer.render([Job(c.prompt, c.seed, init) for c in candidates], watcher, progress)
    judging = cost.seconds.get("judge", 0.0)  # the watcher's looks, which are no rendering
    cost.add_seconds("render", time.perf_counter() - started - judging)
    cost.denoiser_rows += rendered.denoiser_rows
    cost.denoiser_rows_full += rendered.denoiser_rows_full
    for candidate, image, pruned in zip(candidates, rendered.images, rendered.pruned_at, strict=True):
        candidate.image, candidate.pruned_at = image, pruned
    started = time.perf_counter()
    judge_candidates(judge, prompt, [c for c in candidates if c.image is not None], cost)
    cost.add_seconds("judge", time.perf_counter() - started)
    return SearchResult(candidates, best_of(candidates, judge), cost)


def judge_candidates(judge: Reward, prompt: str, finished: list[Candidate], cost: Cost) -> None:
    """Score finished candidates against the user's prompt; a mix leaves its parts in `scores` too."""
    import torch

    images = torch.stack([c.image for c in finished if c.image is not None])
    prompts = [prompt] * len(finished)
    parts, combine = getattr(judge, "parts", None), getattr(judge, "combine", None)
    if parts and combine:  # judged once: a mix's score follows from its parts
        named = parts(images, prompts)
        scores = combine(named)
    else:
        scores = image_scores(judge, images, prompts)
        named = {judge.spec.name: scores}
    cost.judge_calls += len(finished)
    for i, candidate in enumerate(finished):
        candidate.score = scores[i]
        candidate.scores = {name: values[i] for name, values in named.items()}


def best_of(candidates: Sequence[Candidate], judge: Reward) -> int:
    """Index of the best finished candidate; a tie goes to the earlier one."""
    scores = {c.index: c.score for c in candidates if c.image is not None and c.score is not None}
    return rank(judge.spec, scores)[0]
