"""PARM's benchmark: its arithmetic by hand, and one small run."""

import pytest
import torch

from reprise.backend.core.errors import BadInput
from reprise.backend.core.types import Candidate, RewardSpec
from reprise.backend.lab.bench.parm import (
    Pool,
    bench,
    measure,
    rank_correlations,
    ratio_interval,
    schedule_within_budget,
)
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.search.pruning import FullSchedule, HalvingSchedule
from reprise.backend.shapeworld.prompts import sample_prompts


class Brightness(BaseReward):
    spec = RewardSpec("brightness", 0.0, 1.0)

    def score(self, images, prompts):
        return images.mean((1, 2, 3)).tolist()


def pool(finals, previews):
    candidates = [
        Candidate(i, i, "p", score=f, image=torch.zeros(1), preview_scores={2: p})
        for i, (f, p) in enumerate(zip(finals, previews, strict=True))
    ]
    return Pool(sample_prompts("train", 1)[0], candidates, steps=4, rows_each=2.0)


def test_gain_kept_and_rows_equal_those_computed_by_hand():
    # Finals .2 .4 .6 .8; the previews would keep candidates 3 and 1, then the best of them is .8.
    right = measure([pool([0.2, 0.4, 0.6, 0.8], [0.1, 0.5, 0.2, 0.9])], 4, HalvingSchedule({2: 2}))
    assert right["kept"][0] == 1.0 and right["rows"] == 2 * (2 * 4 + 2 * 2) and right["rows_share"] == 0.75
    # Misleading previews keep 0 and 1: gain .4 - .5 of .8 - .5.
    wrong = measure([pool([0.2, 0.4, 0.6, 0.8], [0.9, 0.8, 0.2, 0.1])], 4, HalvingSchedule({2: 2}))
    assert wrong["kept"][0] == pytest.approx(-1 / 3, abs=1e-3)
    assert measure([pool([0.2, 0.8], [0.0, 0.0])], 2, FullSchedule())["kept"][0] == 1.0


def test_ratio_is_of_sums_not_a_mean_of_ratios():
    assert ratio_interval([1.0, 0.0], [1.0, 1.0])[0] == 0.5


def test_a_step_with_equal_scores_has_no_correlation():
    ranked, flat = pool([0.2, 0.4, 0.6], [0.1, 0.5, 0.9]), pool([0.2, 0.4, 0.6], [0.5, 0.5, 0.5])
    for candidates in (ranked.candidates, flat.candidates):
        for candidate in candidates:
            candidate.preview_scores[1] = 0.0  # all scores are equal at first
    assert rank_correlations([ranked, flat]) == {"2": [1.0, 1.0, 1.0]}
    assert rank_correlations([flat]) == {}


def test_a_pool_of_one_search_has_each_row_once():
    result = bench(renderer=FakeRenderer(steps=8), judge=Brightness(), per_task=1, n=4, pool=4, timed=0)
    names = [row["name"] for row in result["rows"]]
    assert names == ["best of 4, full", "best of 4, pruned", "one candidate"]


def test_a_pool_beyond_the_budget_is_refused_before_anything_is_drawn():
    renderer = FakeRenderer(steps=8)
    with pytest.raises(BadInput, match="no schedule for 64 candidates fits into 8 rows"):
        bench(renderer=renderer, judge=Brightness(), n=1, pool=64)
    assert renderer.calls == []


@pytest.mark.parametrize("n", [32, 64])
def test_wide_search_stays_within_the_budget(n):
    schedule = schedule_within_budget(n, 16, 16 * 16)
    assert schedule.rows(n, 16) <= 256


def test_a_small_benchmark_times_real_searches():
    result = bench(renderer=FakeRenderer(steps=16), judge=Brightness(), per_task=1, n=4, pool=8, timed=2)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["best of 4, full"]["rows_share"] == 1.0
    assert rows["best of 4, pruned"]["rows_share"] < 1.0
    assert result["timing"]["survivors_max_difference"] == 0.0
    assert result["timing"]["rows_pruned"] < result["timing"]["rows_full"]
    assert set(result["rank_correlation"]) == {"1", "2", "3", "4", "5", "6", "7", "8", "10", "12", "14"}


def test_a_pool_that_is_no_multiple_is_refused():
    with pytest.raises(BadInput, match="--pool must be a multiple"):
        bench(renderer=FakeRenderer(), judge=Brightness(), n=16, pool=40)
