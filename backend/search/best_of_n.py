"""Best of N: draw candidates that differ in seed, prompt or both, score them, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.errors import BadInput
from ..core.interfaces import Renderer, Reward
from ..core.scoring import judge_for_previews, named_scores, rank
from ..core.types import SEED_RANGE, Candidate, Cost, InitImage, Job
from .pruning import FullSchedule, PruningSchedule, PruningWatcher


@dataclass
class SearchResult:
    """Candidates in the order of their seeds, and the index of the best one that was drawn to the end."""

    candidates: list[Candidate]
    best: int
    cost: Cost


def check_search(n: int, seed: int) -> None:
    """Raises BadInput for fewer than one candidate, or a seed out of range for any of the `n` candidates."""
    if n < 1:
        raise BadInput(f"best-of must be at least 1, got {n}")
    if not 0 <= seed < SEED_RANGE or seed + n > SEED_RANGE:
        raise BadInput(f"seed must be in 0 … 2^63 - {n} (the number of candidates), got {seed}")


def search(
    renderer: Renderer,
    judge: Reward,
    prompt: str,
    render_prompts: Sequence[str],
    *,
    n: int,
    seed: int,
    schedule: PruningSchedule | None = None,
    preview_reward: Reward | None = None,
    init: InitImage | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """The best of `n` pictures, drawn from `render_prompts` in turn and judged against the user's `prompt`.

    Candidate i has seed `seed + i` and prompt `render_prompts[i % len(render_prompts)]`. With a schedule,
    candidates are pruned by the scores of their x0 previews; the finished ones are the same pictures as
    without. `preview_reward` (default: the judge) scores the previews, through its `judge_for_previews`. With
    `init`, all candidates start from that picture. `progress(step, steps)` may raise Interrupted.
    """
    check_search(n, seed)
    schedule = schedule or FullSchedule()
    candidates = [Candidate(i, seed + i, render_prompts[i % len(render_prompts)]) for i in range(n)]
    cost = Cost()
    watcher = PruningWatcher(judge_for_previews(preview_reward or judge), prompt, candidates, schedule, cost)
    started = time.perf_counter()
    rendered = renderer.render(
        [Job(c.prompt, c.seed, init) for c in candidates],
        watcher if schedule.preview_steps else None,
        progress,
    )
    preview_seconds = cost.seconds.get("judge", 0.0)  # the watcher scores previews while rendering
    cost.add_seconds("render", time.perf_counter() - started - preview_seconds)
    cost.denoiser_rows += rendered.denoiser_rows
    cost.denoiser_rows_full += rendered.denoiser_rows_full
    for candidate, image, pruned in zip(candidates, rendered.images, rendered.pruned_at, strict=True):
        candidate.image, candidate.pruned_at = image, pruned
    started = time.perf_counter()
    score_candidates(judge, prompt, [c for c in candidates if c.image is not None], cost)
    cost.add_seconds("judge", time.perf_counter() - started)
    return SearchResult(candidates, best_index(candidates, judge), cost)


def score_candidates(judge: Reward, prompt: str, finished: list[Candidate], cost: Cost) -> None:
    """Sets `score` and `scores` of finished candidates, judged against the user's prompt.

    `scores` holds the parts of a mix by name, or else the judge's own score.
    """
    import torch

    images = torch.stack([c.image for c in finished if c.image is not None])
    named, scores = named_scores(judge, images, [prompt] * len(finished))
    cost.judge_calls += len(finished)
    for i, candidate in enumerate(finished):
        candidate.score = scores[i]
        candidate.scores = {name: values[i] for name, values in named.items()}


def best_index(candidates: Sequence[Candidate], judge: Reward) -> int:
    """Index of the best finished candidate. Of equal scores, the earlier one wins."""
    scores = {c.index: c.score for c in candidates if c.image is not None and c.score is not None}
    return rank(judge.spec, scores)[0]
