"""Pruning by a judge's potential compared with halving by a reward, at equal denoiser rows.

PARM (arXiv 2501.13926) stops candidates whose potential, by its judge, is low; halving stops the lower part
at each look. Both then choose among the finished candidates by the same reward, so they differ only in which
candidates are stopped.

The threshold on the potential is fitted to cost as many rows as halving, on prompts that are used neither to
train judges nor for the figures. Its cost on the held-out prompts is reported. A judge that waits for clear
previews may cost more at any threshold. So halving is also measured at that cost, with the cuts of that cost
that score best on the fitting prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported
from ...core.interfaces import PreviewReward, Renderer, Reward
from ...core.scoring import clarities, image_scores, judge_for_previews, reward_fingerprint
from ...core.types import Candidate
from ...evaluation.statistics import mean_interval
from ...rewards.base import BaseReward
from ...search.pruning import (
    CLARITY_THRESHOLD,
    POTENTIAL_STEP_SHARES,
    FullSchedule,
    HalvingSchedule,
    PruningSchedule,
    ThresholdSchedule,
    default_halving,
    steps_at_shares,
)
from ...shapeworld.prompts import PromptCase, prompts, sample_prompts
from .parm import Pool, draw_pools

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = [n / 100 for n in range(100)]


class RewardWithPotential(BaseReward):
    """A reward of previews that also records the potential and clarity which another judge gives them."""

    def __init__(self, reward: Reward, other: PreviewReward):
        self.spec, self.reward, self.other = reward.spec, reward, other
        self.judged_previews: list[tuple[list[float], list[float] | None]] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """See `interfaces.Reward`."""
        self.judged_previews.append(
            (image_scores(self.other, images, prompts), clarities(self.other, images, prompts))
        )
        return image_scores(self.reward, images, prompts)


def compare(
    *,
    renderer: Renderer,
    reward: Reward,
    judge: Reward,
    fitting_prompts: Sequence[str],
    per_task: int = 8,
    n: int = 8,
    pool: int = 16,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5). The threshold is fitted on `fitting_prompts`.

    Raises Unsupported for a judge that does not estimate the potential of previews.
    """
    other = judge_for_previews(judge)
    if not isinstance(other, PreviewReward):
        raise Unsupported(
            f"{judge.spec.name!r} gives no probability that a preview comes out right; take a "
            "vision-language judge, vlm:…"
        )
    steps, cuts = renderer.steps, default_halving(n, renderer.steps)
    looks = steps_at_shares(POTENTIAL_STEP_SHARES, steps)
    known = {case.prompt: case for case in prompts("train")}
    fitting = _draw_pools(
        renderer,
        reward,
        other,
        [known[prompt] for prompt in fitting_prompts],
        pool,
        seed + 10**6,
        looks | cuts.preview_steps,
        progress,
    )
    budget = _rows(fitting, "reward", n, cuts)
    plans = [ThresholdSchedule(looks, threshold) for threshold in THRESHOLDS]
    # The higher the threshold, the fewer rows.
    likely = min(plans, key=lambda plan: abs(_rows(fitting, "clear", n, plan) - budget))
    cases = sample_prompts("held-out", per_task, seed)
    pools = _draw_pools(renderer, reward, other, cases, pool, seed, looks | cuts.preview_steps, progress)
    name, first = other.spec.name, f"halving by {reward.spec.name}"
    as_costly = _cuts_for(fitting, n, looks | cuts.preview_steps, _rows(pools, "clear", n, likely))
    plain: dict[str, tuple[str, PruningSchedule]] = {
        first: ("reward", cuts),
        f"halving by {name}": ("judge", cuts),
        f"{name} below {likely.threshold:g} stops": ("clear", likely),
        f"{reward.spec.name} stops as many": ("reward", as_costly),
        "none is stopped": ("reward", FullSchedule()),
    }
    scores = {row: _scores(pools, kind, n, plan) for row, (kind, plan) in plain.items()}
    spent = {row: _rows(pools, kind, n, plan) for row, (kind, plan) in plain.items()}
    scores["one candidate"] = [sum(c.score or 0.0 for c in one["reward"].candidates) / pool for one in pools]
    spent["one candidate"] = pools[0]["reward"].rows_each * steps
    rows: list[dict[str, Any]] = [
        {
            "name": row,
            "overall": mean_interval(values),
            "tasks": {},
            "cost": {"denoiser_rows": round(spent[row], 1)},
        }
        for row, values in scores.items()
    ]
    for row in rows[1:]:
        # Pruning by potential is compared with halving at the same cost.
        over = rows[3]["name"] if row is rows[2] else first
        gains = [a - b for a, b in zip(scores[row["name"]], scores[over], strict=True)]
        row["gain"] = {"over": over, "interval": mean_interval(gains), "tasks": {}}
    settings = {
        "split": "held-out",
        "prompts": len(cases),
        "per_task": per_task,
        "best_of": n,
        "pool": pool,
        "steps": steps,
        "seed": seed,
        "cuts": {str(k): v for k, v in cuts.cuts.items()},
        "cuts_as_many": {str(k): v for k, v in as_costly.cuts.items()},
        "looks": sorted(looks),
        "threshold": likely.threshold,
        "fitted_on": len(fitting_prompts),
        "rows_while_fitting": [round(budget, 1), round(_rows(fitting, "clear", n, likely), 1)],
        "renderer": renderer.fingerprint,
        "judge": reward.spec.name,
        "previews": reward_fingerprint(other),
    }
    return {"name": "parm", "rows": rows, "settings": settings}


def _cuts_for(
    pools: Sequence[dict[str, Pool]], n: int, looks: frozenset[int], rows: float
) -> HalvingSchedule:
    """Cuts at none, one or two of `looks` that cost `rows` denoiser rows within 2 %, and score best on
    `pools`.

    If no cuts cost that, the nearest in cost.
    """
    steps, each = pools[0]["reward"].steps, pools[0]["reward"].rows_each
    single = [{step: kept} for step in sorted(looks) for kept in range(1, n)]
    double = [{**a, **b} for a, b in combinations(single, 2) if max(a) < max(b) and a[max(a)] > b[max(b)]]
    by_distance = sorted(
        (abs(plan.rows(n, steps) * each - rows), i, plan)
        for i, plan in enumerate(map(HalvingSchedule, [{}, *single, *double]))
    )
    near = [plan for distance, _, plan in by_distance if distance <= 0.02 * rows]
    return max(near or [by_distance[0][2]], key=lambda plan: sum(_scores(pools, "reward", n, plan)))


def _draw_pools(
    renderer: Renderer,
    reward: Reward,
    other: PreviewReward,
    cases: Sequence[PromptCase],
    size: int,
    seed: int,
    looks: frozenset[int],
    progress: Callable[[str, int, int], None] | None,
) -> list[dict[str, Pool]]:
    """For each case the same candidates with three kinds of preview scores: "reward", the reward's; "judge",
    the judge's potential; "clear", the potential of previews that the judge finds clear."""
    beside = RewardWithPotential(reward, other)
    pools = draw_pools(renderer, reward, cases, size, seed, progress, looks=looks, previews=beside)
    judged_previews = iter(beside.judged_previews)
    found = []
    for pool in pools:
        kinds: dict[str, list[Candidate]] = {"reward": pool.candidates}
        for kind in ("judge", "clear"):
            kinds[kind] = [replace(c, preview_scores={}) for c in pool.candidates]
        for step in sorted(looks):
            likely, clear = next(judged_previews)
            for i, p in enumerate(likely):
                kinds["judge"][i].preview_scores[step] = p
                if clear is None or clear[i] >= CLARITY_THRESHOLD:
                    kinds["clear"][i].preview_scores[step] = p
        found.append(
            {kind: Pool(pool.case, some, pool.steps, pool.rows_each) for kind, some in kinds.items()}
        )
    return found


def _scores(pools: Sequence[dict[str, Pool]], kind: str, n: int, plan: PruningSchedule) -> list[float]:
    """The mean final score of each prompt over its groups of `n`."""
    finals = [one[kind].finals(n, plan) for one in pools]
    return [sum(score for score, _ in row) / len(row) for row in finals]


def _rows(pools: Sequence[dict[str, Pool]], kind: str, n: int, plan: PruningSchedule) -> float:
    finals = [rows for one in pools for _, rows in one[kind].finals(n, plan)]
    return sum(finals) / len(finals)
