"""Scales by hand, and against the library's own figures."""

import json
import math
import random
import statistics

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.rewards.scales import (
    RunningNorm,
    ScoreSummary,
    normalise_group,
    summarise_groups,
    summarise_parts,
)


def test_group_normalisation_equals_the_hand_calculation():
    assert normalise_group([1.0, 2.0, 3.0]) == pytest.approx([-1.0, 0.0, 1.0])
    assert normalise_group([0.5, 0.5]) == [0.0, 0.0]  # a tie carries no signal, not a division by 0


def test_running_norm_equals_the_hand_calculation():
    norm = RunningNorm()
    norm.update([1.0])
    assert (norm.count, norm.mean, norm.std) == (1, 1.0, 0.0)
    norm.update([2.0, 3.0])
    assert (norm.mean, norm.std) == (2.0, 1.0)


def test_running_norm_equals_the_batch_figures_even_far_from_zero():
    rng = random.Random(3)
    scores = [1e6 + rng.gauss(0, 0.01) for _ in range(2000)]  # sums of squares would have lost this
    norm = RunningNorm()
    for start in range(0, 2000, 8):
        norm.update(scores[start : start + 8])
    assert norm.mean == pytest.approx(statistics.fmean(scores), abs=1e-8)
    assert norm.std == pytest.approx(statistics.stdev(scores), rel=1e-5)


def test_running_norm_resumes_bit_for_bit():
    rng = random.Random(4)
    scores = [rng.random() for _ in range(100)]
    whole, first = RunningNorm(), RunningNorm()
    whole.update(scores)
    first.update(scores[:37])
    second = RunningNorm.from_state(json.loads(json.dumps(first.state())))
    assert second == first
    second.update(scores[37:])
    assert second == whole


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_or_infinite_score_is_refused_and_changes_nothing(bad):
    norm = RunningNorm()
    norm.update([1.0, 2.0])
    before = norm.state()
    with pytest.raises(BadInput, match="finite"):
        norm.update([3.0, bad])
    assert norm.state() == before


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"count": 1},
        {"count": -1, "mean": 0, "squares": 0, "floor": 0},
        {"count": 2, "mean": math.nan, "squares": 0, "floor": 0},
        {"count": 2, "mean": 0, "squares": -1, "floor": 0},
        {"count": "x", "mean": 0, "squares": 0, "floor": 0},
    ],
)
def test_invalid_states_are_refused(state):
    with pytest.raises(BadInput, match="state of a running mean"):
        RunningNorm.from_state(state)


def test_summaries_equal_the_hand_calculation():
    assert summarise_groups([[0.0, 2.0], [1.0, 1.0]]) == ScoreSummary(
        1.0, pytest.approx((2 / 3) ** 0.5), 0.0, 2.0, 0.5
    )
    assert summarise_groups([[3.0]]) == ScoreSummary(3.0, 0.0, 3.0, 3.0, 1.0)
    found = summarise_parts({"a": [0.0, 2.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0, 1.0]}, size=2)
    assert found["a"].flat == 0.5 and found["b"] == ScoreSummary(1.0, 0.0, 1.0, 1.0, 1.0)
    with pytest.raises(BadInput, match="4 scores of 'a' are no groups of 3"):
        summarise_parts({"a": [0.0] * 4}, size=3)
    with pytest.raises(BadInput, match="at least one score"):
        summarise_groups([])
