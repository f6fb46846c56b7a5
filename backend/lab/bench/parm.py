"""Cost and gain of pruning: best of N in full and pruned, from the same seeds, in one run.

There are two parts. The *sweep* draws a pool of candidates of each prompt once, to the end, and judges all
their previews; the choice of every schedule follows from these recorded scores. The *timing* runs full and
pruned searches of some prompts, compares the survivors' pictures, and gives the ratio of wall times.

The gain of a search is its mean final score minus the mean score of a single candidate. "Share kept" is the
gain of the pruned search over that of the full search with the same candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...core.errors import BadInput
from ...core.interfaces import Renderer, Reward
from ...core.types import Candidate
from ...evaluation.shapeworld import RecordingSchedule, replay, replayed_rows
from ...evaluation.statistics import mean_interval
from ...search.best_of_n import search
from ...search.pruning import FullSchedule, HalvingSchedule, PruningSchedule, default_halving
from ...shapeworld.prompts import PromptCase, sample_prompts

LOOKS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)


def sweep_schedules(n: int, steps: int) -> dict[str, HalvingSchedule]:
    """The schedules that `--sweep` compares for `n` candidates, by their cuts as "step:candidates" text."""
    found = {}
    first_cuts = ((1, 0.5), (1, 0.75), (2, 0.5), (2, 0.375))
    seconds = ((2, 0.3125), (3, 0.25), (3, 0.3125), (4, 0.25), (4, 0.3125))
    thirds = ((5, 0.125), (5, 0.1875), (6, 0.125), (6, 0.1875), (8, 0.125))
    lasts = ((8, 0.0625), (10, 0.0625), (10, 0.125))
    for first in first_cuts:
        for second in seconds:
            for third in thirds:
                for last in lasts:
                    cuts: dict[int, int] = {}
                    for step, share in (first, second, third, last):
                        at, kept = max(1, round(step * steps / 16)), max(1, round(share * n))
                        if at not in cuts and kept < min([n, *cuts.values()]):
                            cuts[at] = kept
                    if list(cuts) == sorted(cuts):
                        schedule = HalvingSchedule(cuts)
                        found[" ".join(f"{s}:{k}" for s, k in cuts.items())] = schedule
    return found


class Pool:
    """Candidates of one prompt, all finished, with the scores of all previews."""

    def __init__(self, case: PromptCase, candidates: list[Candidate], steps: int, rows_each: float):
        self.case, self.candidates, self.steps, self.rows_each = case, candidates, steps, rows_each

    def final(self, group: Sequence[Candidate], schedule: PruningSchedule) -> tuple[float, float]:
        """(final score of the chosen candidate, denoiser rows) of a search over `group`."""
        pruned = replay(group, schedule)
        score = max(c.score or 0.0 for c, at in zip(group, pruned, strict=True) if at is None)
        return score, replayed_rows(pruned, self.steps, self.rows_each)

    def finals(self, n: int, schedule: PruningSchedule) -> list[tuple[float, float]]:
        """`final` of each disjoint group of `n` candidates."""
        return [self.final(group, schedule) for group in self.groups(n)]

    def groups(self, n: int) -> list[list[Candidate]]:
        return [self.candidates[i : i + n] for i in range(0, len(self.candidates) - n + 1, n)]


def draw_pools(
    renderer: Renderer,
    judge: Reward,
    cases: Sequence[PromptCase],
    size: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    looks: Iterable[int] = LOOKS,
    previews: Reward | None = None,
) -> list[Pool]:
    """One pool of `size` candidates for each case; prompts are drawn as typed. `previews` (default:
    the judge) scores the previews after the steps `looks`."""
    seen = RecordingSchedule(HalvingSchedule({step: 1 for step in sorted(looks) if step < renderer.steps}))
    pools = []
    for number, case in enumerate(cases, start=1):
        found = search(
            renderer,
            judge,
            case.prompt,
            [case.prompt],
            n=size,
            seed=seed,
            schedule=seen,
            preview_reward=previews,
        )
        rows_each = found.cost.denoiser_rows_full / (renderer.steps * size)
        for candidate in found.candidates:
            candidate.image = None  # only the scores are needed from here on
        pools.append(Pool(case, found.candidates, renderer.steps, rows_each))
        if progress:
            progress("pools", number, len(cases))
    return pools


def measure(pools: Sequence[Pool], n: int, schedule: PruningSchedule) -> dict[str, Any]:
    """A schedule's score, rows and share of the gain kept, over all disjoint groups of `n` in the pools."""
    scores, fulls, singles, rows = [], [], [], []
    for pool in pools:
        picked = pool.finals(n, schedule)
        scores.append(_mean([score for score, _ in picked]))
        rows.append(_mean([r for _, r in picked]))
        fulls.append(_mean([score for score, _ in pool.finals(n, FullSchedule())]))
        singles.append(_mean([c.score or 0.0 for group in pool.groups(n) for c in group]))
    gains = [f - s for f, s in zip(fulls, singles, strict=True)]
    kept = [p - s for p, s in zip(scores, singles, strict=True)]
    full_rows = n * pools[0].steps * pools[0].rows_each
    return {
        "score": mean_interval(scores),
        "full": mean_interval(fulls),
        "single": mean_interval(singles),
        "kept": ratio_interval(kept, gains),
        "rows": round(_mean(rows), 1),
        "rows_share": round(_mean(rows) / full_rows, 4),
    }


def ratio_interval(tops: Sequence[float], bottoms: Sequence[float], seed: int = 0) -> list[float]:
    """The sum of `tops` over the sum of `bottoms`, [value, low, high], bootstrapped over their items."""
    import numpy as np

    top, bottom = np.asarray(tops), np.asarray(bottoms)
    chosen = np.random.default_rng(seed).integers(0, len(top), (4000, len(top)))
    ratios = top[chosen].sum(1) / np.maximum(bottom[chosen].sum(1), 1e-9)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return [round(float(v), 4) for v in (top.sum() / max(bottom.sum(), 1e-9), low, high)]


def rank_correlations(pools: Sequence[Pool]) -> dict[str, list[float]]:
    """Step -> Spearman's rank correlation of preview and final scores, [mean, low, high] over prompts.

    Prompts with equal scores are left out, and so are steps at which no prompt remains.
    """
    import numpy as np
    from scipy.stats import spearmanr

    out = {}
    for step in sorted(pools[0].candidates[0].preview_scores):
        values = []
        for pool in pools:
            previews = [c.preview_scores[step] for c in pool.candidates]
            finals = [c.score or 0.0 for c in pool.candidates]
            if len(set(previews)) > 1 and len(set(finals)) > 1:
                values.append(float(np.asarray(spearmanr(previews, finals))[0]))
        if values:
            out[str(step)] = mean_interval(values)
    return out


def timing(
    renderer: Renderer,
    judge: Reward,
    cases: Sequence[PromptCase],
    n: int,
    schedule: PruningSchedule,
    seed: int,
) -> dict[str, Any]:
    """Full and pruned searches in turn: wall times, rows, and the largest difference of survivors' pixels."""
    spent = {"full": 0.0, "pruned": 0.0}
    rows = {"full": 0, "pruned": 0}
    largest = 0.0
    search(renderer, judge, cases[0].prompt, [cases[0].prompt], n=2, seed=seed)  # warm-up
    for case in cases:
        pictures = {}
        for name, plan in (("full", FullSchedule()), ("pruned", schedule)):
            started = time.perf_counter()
            found = search(renderer, judge, case.prompt, [case.prompt], n=n, seed=seed, schedule=plan)
            spent[name] += time.perf_counter() - started
            rows[name] += found.cost.denoiser_rows
            pictures[name] = found.candidates
        for a, b in zip(pictures["full"], pictures["pruned"], strict=True):
            if b.image is not None and a.image is not None:
                largest = max(largest, float((a.image - b.image).abs().max()))
    return {
        "prompts": len(cases),
        "seconds_full": round(spent["full"], 2),
        "seconds_pruned": round(spent["pruned"], 2),
        "wall_share": round(spent["pruned"] / spent["full"], 4),
        "rows_full": rows["full"],
        "rows_pruned": rows["pruned"],
        "rows_share": round(rows["pruned"] / rows["full"], 4),
        "survivors_max_difference": round(largest, 6),
    }


def bench(
    *,
    renderer: Renderer,
    judge: Reward,
    per_task: int = 8,
    n: int = 16,
    pool: int = 64,
    seed: int = 0,
    sweep: bool = False,
    timed: int = 6,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5) of best of `n`, full and pruned. With a larger `pool` there is also best of
    `pool`, full, and pruned to the row budget of best of `n`.

    With `sweep`, schedules are first compared on training prompts, and the best one that needs at most a
    quarter of the rows is used. The figures are of held-out prompts in any case. Raises BadInput if `pool` is
    not a multiple of `n`.
    """
    if pool % n or pool < n:
        raise BadInput(f"--pool must be a multiple of --best-of, got {pool} and {n}")
    steps = renderer.steps
    wide_cuts = schedule_within_budget(pool, steps, n * steps) if pool > n else None
    chosen, swept = default_halving(n, steps), []
    if sweep:
        cases = sample_prompts("train", per_task, seed + 1)
        train = draw_pools(renderer, judge, cases, pool, seed + 10**6, progress)
        swept = [{"cuts": name, **measure(train, n, s)} for name, s in sweep_schedules(n, steps).items()]
        swept.sort(key=lambda row: (row["rows_share"] > 0.25, -row["kept"][0]))
        chosen = sweep_schedules(n, steps)[swept[0]["cuts"]]
    cases = sample_prompts("held-out", per_task, seed)
    pools = draw_pools(renderer, judge, cases, pool, seed, progress)
    narrow = measure(pools, n, chosen)
    whole = measure(pools, n, FullSchedule())
    rows = [
        _row(f"best of {n}, full", whole["score"], whole["rows"], 1.0, [1.0, 1.0, 1.0], None),
        _row(
            f"best of {n}, pruned",
            narrow["score"],
            narrow["rows"],
            narrow["rows_share"],
            narrow["kept"],
            chosen,
        ),
    ]
    if wide_cuts:
        wide = measure(pools, pool, wide_cuts)
        rows += [
            _row(f"best of {pool}, full", wide["full"], pool * whole["rows"] / n, pool / n, None, None),
            _row(
                f"best of {pool}, pruned",
                wide["score"],
                wide["rows"],
                wide["rows"] / whole["rows"],
                wide["kept"],
                wide_cuts,
            ),
        ]
    rows.append(_row("one candidate", whole["single"], whole["rows"] / n, 1 / n, None, None))
    timed_cases = cases[:: max(1, len(cases) // timed)][:timed] if timed else []
    return {
        "name": "parm",
        "rows": rows,
        "rank_correlation": rank_correlations(pools),
        "timing": timing(renderer, judge, timed_cases, n, chosen, seed) if timed_cases else None,
        "sweep": swept[:20],
        "settings": {
            "prompts": len(cases),
            "per_task": per_task,
            "pool": pool,
            "best_of": n,
            "steps": steps,
            "seed": seed,
            "cuts": {str(k): v for k, v in chosen.cuts.items()},
            "renderer": renderer.fingerprint,
            "judge": judge.spec.name,
        },
    }


def schedule_within_budget(n: int, steps: int, budget: int) -> HalvingSchedule:
    """The default halving for `n` candidates, as gentle as the row `budget` allows. Raises BadInput."""
    for gentleness in (2.0, 1.75, 1.5, 1.25, 1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3):
        schedule = default_halving(n, steps, gentleness)
        if schedule.rows(n, steps) <= budget:
            return schedule
    raise BadInput(f"no schedule for {n} candidates fits into {budget} rows; give fewer candidates")


def _row(
    name: str, overall, rows: float, share: float, kept, schedule: HalvingSchedule | None
) -> dict[str, Any]:
    return {
        "name": name,
        "overall": overall,
        "tasks": {},
        "cost": {"denoiser_rows": round(rows, 1)},
        "rows_share": round(share, 4),
        "gain_kept": kept,
        "cuts": {str(k): v for k, v in schedule.cuts.items()} if schedule else None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
