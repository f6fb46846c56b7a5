"""Seeds, prompts in turn, ties, directions, bad input, failing judges."""

import pytest
import torch

from reprise.backend.core.errors import BadInput, RewardFailed
from reprise.backend.core.types import RewardSpec
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.mix import Mix
from reprise.backend.search.best_of_n import search
from reprise.backend.search.pruning import HalvingSchedule


def test_candidate_i_has_seed_base_plus_i_and_prompts_in_turn(brightness):
    found = search(FakeRenderer(), brightness, "p", ["a", "b", "c"], n=5, seed=40)
    assert [c.seed for c in found.candidates] == [40, 41, 42, 43, 44]
    assert [c.prompt for c in found.candidates] == ["a", "b", "c", "a", "b"]


def test_the_winner_rendered_alone_is_the_same_picture(brightness):
    found = search(FakeRenderer(), brightness, "p", ["p"], n=6, seed=3, schedule=HalvingSchedule({2: 3}))
    best = found.candidates[found.best]
    alone = search(FakeRenderer(), brightness, "p", [best.prompt], n=1, seed=best.seed)
    assert alone.candidates[0].image.equal(best.image)


def test_ties_go_to_the_earlier_and_lower_may_be_better(brightness):
    flat = FakeRenderer(draw=lambda prompt, seed: torch.full((8, 8, 3), 0.25 * (seed % 2)))
    assert search(flat, brightness, "p", ["p"], n=4, seed=0).best == 1
    brightness.spec = RewardSpec("darkness", 0.0, 1.0, higher_is_better=False)
    assert search(flat, brightness, "p", ["p"], n=4, seed=0).best == 0


def test_a_mix_is_scored_once_and_its_parts_are_recorded(brightness):
    found = search(FakeRenderer(), Mix([(brightness, 2.0)]), "p", ["p"], n=3, seed=0)
    assert brightness.seen == [3]
    assert all(c.scores == {"brightness": pytest.approx(c.score)} for c in found.candidates)


@pytest.mark.parametrize("n, seed", [(0, 0), (-3, 0), (1, -1), (1, 2**63), (8, 2**63 - 4)])
def test_impossible_numbers_are_refused(brightness, n, seed):
    with pytest.raises(BadInput, match="best-of must be|seed must be"):
        search(FakeRenderer(), brightness, "p", ["p"], n=n, seed=seed)


def test_the_largest_seed_can_be_used(brightness):
    assert search(FakeRenderer(), brightness, "p", ["p"], n=1, seed=2**63 - 1).best == 0


@pytest.mark.parametrize("schedule", [None, HalvingSchedule({2: 1})])
def test_a_judge_that_returns_nan_stops_the_search(schedule):
    class Broken(BaseReward):
        spec = RewardSpec("broken", 0, 1)

        def score(self, images, prompts):
            return [float("nan")] * len(prompts)

    with pytest.raises(RewardFailed, match="'broken'.*nan"):
        search(FakeRenderer(), Broken(), "p", ["p"], n=2, seed=0, schedule=schedule)
