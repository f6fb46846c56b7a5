"""Schedules by hand; pruning is exact: survivors and the winner do not change."""

import pytest

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.core.types import RewardSpec
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.search.best_of_n import search
from reprise.backend.search.chain import Chain
from reprise.backend.search.pruning import (
    FullSchedule,
    HalvingSchedule,
    MarginSchedule,
    ShiftedSchedule,
    ThresholdSchedule,
    default_halving,
    read_pruning,
    schedule_from,
)


def test_halving_keeps_the_best_by_rank_with_ties_to_the_earlier():
    schedule = HalvingSchedule({2: 2, 4: 1})
    assert schedule.preview_steps == {2, 4}
    assert schedule.keep(2, {0: 0.1, 3: 0.9, 5: 0.9, 7: 0.2}) == [3, 5]
    assert schedule.keep(4, {3: 0.5, 5: 0.5}) == [3]


def test_halving_counts_rows_as_by_hand():
    # 28 steps, 16 seeds to step 8, 4 to step 16, 2 to the end: 128 + 32 + 24 = 184 of 448 (parm.md)
    assert HalvingSchedule({8: 4, 16: 2}).rows(16, 28) == 184
    assert HalvingSchedule({}).rows(16, 28) == 448


@pytest.mark.parametrize("cuts", [{4: 2, 2: 4}, {2: 2, 4: 3}, {2: 0}])
def test_impossible_cuts_are_refused(cuts):
    with pytest.raises(BadInput, match="cuts must keep ever fewer"):
        HalvingSchedule(cuts)


def test_margin_schedule_stops_rows_far_below_the_best_but_never_all():
    schedule = MarginSchedule(frozenset({2}), margin=1.0)
    # mean .5, standard deviation .4: the bar is .9 - .4
    assert schedule.keep(2, {0: 0.9, 1: 0.9, 2: 0.1, 3: 0.1}) == [0, 1]
    assert schedule.keep(4, {0: 0.52, 1: 0.9}) == [1, 0], "the spread is the first look's, or noise would cut"
    assert schedule.keep(4, {4: 0.0}) == [4]
    alike = MarginSchedule(frozenset({2}))
    assert sorted(alike.keep(2, {0: 0.3, 1: 0.3, 2: 0.3})) == [0, 1, 2]  # no spread, no cut


def test_threshold_schedule_stops_unlikely_rows_but_never_all():
    schedule = ThresholdSchedule(frozenset({2}))
    assert schedule.keep(2, {0: 0.99, 1: 0.51, 2: 0.49}) == [0, 1]
    assert schedule.keep(2, {0: 0.01, 3: 0.02}) == [3]
    assert ThresholdSchedule(frozenset({2}), 0.1, min_rows=2).keep(2, {0: 0.01, 1: 0.0, 2: 0.02}) == [2, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 50])
def test_default_cuts_fit_every_size(n, steps):
    schedule = default_halving(n, steps)
    assert all(1 <= step < steps and 1 <= kept < n for step, kept in schedule.cuts.items())


def test_schedules_are_found_by_name():
    assert schedule_from("none", 8, 16) == FullSchedule()
    assert schedule_from("halving", 1, 16) == FullSchedule()
    assert isinstance(schedule_from("potential", 8, 16), MarginSchedule)
    with pytest.raises(BadInput, match="halving, none, potential"):
        schedule_from("third", 8, 16)


def test_a_threshold_needs_a_judge_that_gives_probabilities(brightness):
    assert read_pruning("potential:0.3") == ("potential", 0.3)
    assert read_pruning("halving") == ("halving", None)
    assert schedule_from("potential:0.3", 8, 16, Hopeful()) == ThresholdSchedule(
        frozenset({2, 4, 6, 8, 12}), 0.3
    )
    assert schedule_from("potential", 8, 16, Hopeful()).threshold == 0.5
    assert isinstance(schedule_from("potential", 8, 16, brightness), MarginSchedule)
    for wrong in ("potential:", "potential:2", "halving:0.3", "potential:x"):
        with pytest.raises(BadInput, match="potential:THRESHOLD"):
            read_pruning(wrong)
    with pytest.raises(Unsupported, match="'brightness' gives none; take --prune potential, or a judge vlm"):
        schedule_from("potential:0.3", 8, 16, brightness)


class Hopeful(BaseReward):
    """Gives prepared answers, one list per preview step. All finished pictures score .5."""

    spec = RewardSpec("hopeful", 0.0, 1.0)

    def __init__(self, clear=(), likely=()):
        self.clear, self.likely = list(clear), list(likely)

    def score(self, images, prompts):
        return self.likely.pop(0)[: len(images)] if self.likely else [0.5] * len(images)

    def clarity(self, images, prompts):
        return self.clear.pop(0) if self.clear else None


def test_unclear_previews_continue_without_being_scored(brightness):
    """As in PARM: first clarity, then the potential of the clear previews."""
    judge = Hopeful(clear=[[0.9, 0.1, 0.9, 0.4], [0.9, 0.9, 0.9]], likely=[[0.2, 0.7], [0.6, 0.1, 0.4]])
    found = search(
        FakeRenderer(),
        brightness,
        "p",
        ["p"],
        n=4,
        seed=0,
        preview_reward=judge,
        schedule=ThresholdSchedule(frozenset({2, 4})),
    )
    assert [c.pruned_at for c in found.candidates] == [2, None, 4, 4]
    assert [c.preview_scores for c in found.candidates] == [{2: 0.2}, {4: 0.6}, {2: 0.7, 4: 0.1}, {4: 0.4}]
    assert found.candidates[3].preview_clarity == {2: 0.4, 4: 0.9}
    assert found.cost.judge_calls == 4 + 2 + 3 + 3 + 1
    assert found.cost.denoiser_rows == 2 + 8 + 4 + 4


def test_previews_are_scored_by_the_preview_judge(brightness, echo):
    """Also if a `preview_reward` was given: a VLM is asked for potential, not whether a preview matches."""

    class Named(Hopeful):
        def preview_judge(self):
            return Hopeful(likely=[[0.2, 0.7, 0.1, 0.6]])

    found = search(
        FakeRenderer(),
        brightness,
        "p",
        ["p"],
        n=4,
        seed=0,
        preview_reward=Named(),
        schedule=ThresholdSchedule(frozenset({4})),
    )
    assert [c.pruned_at for c in found.candidates] == [4, None, 4, None]
    chain = Chain(echo, FakeRenderer(), brightness, preview_reward=Named(), prune="potential")
    assert type(chain.preview_reward) is Hopeful


def test_a_judge_without_clarity_scores_all_previews(brightness):
    judge = Hopeful(likely=[[0.2, 0.7, 0.1, 0.6]])
    found = search(
        FakeRenderer(),
        brightness,
        "p",
        ["p"],
        n=4,
        seed=0,
        preview_reward=judge,
        schedule=ShiftedSchedule(ThresholdSchedule(frozenset({1})), 3),
    )
    assert [c.pruned_at for c in found.candidates] == [4, None, 4, None]
    halved = search(
        FakeRenderer(),
        brightness,
        "p",
        ["p"],
        n=4,
        seed=0,
        schedule=HalvingSchedule({4: 2}),
        preview_reward=Hopeful(clear=[[0.0] * 4], likely=[[0.2, 0.7, 0.1, 0.6]]),
    )
    assert [c.pruned_at for c in halved.candidates] == [4, None, 4, None], "halving is a budget"


def test_a_shifted_schedule_counts_from_its_offset():
    late = ShiftedSchedule(HalvingSchedule({2: 2, 4: 1}), 10)
    assert late.preview_steps == {12, 14}
    assert late.keep(12, {0: 0.1, 3: 0.3, 5: 0.2}) == [3, 5] and late.keep(14, {3: 0.3, 5: 0.4}) == [5]


@pytest.mark.parametrize("schedule", [HalvingSchedule({2: 4, 4: 2}), MarginSchedule(frozenset({3}), 0.5)])
def test_survivors_are_the_same_pictures_and_rows_are_saved(brightness, schedule):
    full = search(FakeRenderer(), brightness, "p", ["p"], n=8, seed=5)
    pruned = search(FakeRenderer(), brightness, "p", ["p"], n=8, seed=5, schedule=schedule)
    survivors = [c for c in pruned.candidates if c.image is not None]
    assert survivors and len(survivors) < 8
    for candidate in survivors:
        assert candidate.image.equal(full.candidates[candidate.index].image)
        assert candidate.score == full.candidates[candidate.index].score
    rows = sum(c.pruned_at or 8 for c in pruned.candidates)
    assert pruned.cost.denoiser_rows == rows < pruned.cost.denoiser_rows_full == full.cost.denoiser_rows == 64


def test_a_pruned_candidate_is_recorded(brightness):
    found = search(FakeRenderer(), brightness, "p", ["p"], n=4, seed=0, schedule=HalvingSchedule({3: 1}))
    pruned = [c for c in found.candidates if c.pruned_at is not None]
    assert [c.pruned_at for c in pruned] == [3, 3, 3]
    assert all(c.image is None and c.score is None and list(c.preview_scores) == [3] for c in pruned)
    assert found.cost.judge_calls == 4 + 1


def test_a_pruned_candidate_keeps_its_last_preview(brightness):
    shown = {}

    class Seen(HalvingSchedule):
        def keep(self, step, scores):
            shown.update({row: (step, score) for row, score in scores.items()})
            return super().keep(step, scores)

    found = search(FakeRenderer(), brightness, "p", ["p"], n=6, seed=0, schedule=Seen({2: 4, 4: 1}))
    for candidate in found.candidates:
        if candidate.pruned_at is None:
            assert candidate.preview is None
            continue
        step, score = shown[candidate.index]
        assert step == candidate.pruned_at and candidate.preview.mean().item() == pytest.approx(score)
    assert sorted(c.pruned_at or 0 for c in found.candidates) == [0, 2, 2, 4, 4, 4]
