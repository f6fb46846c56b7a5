"""Intervals by hand: no spread, known spread, tasks weighted alike."""

import pytest

from reprise.backend.benchmarks.statistics import mean_interval, task_intervals


def test_no_spread_no_width():
    assert mean_interval([0.5] * 10) == [0.5, 0.5, 0.5]


def test_interval_of_a_known_spread():
    # 400 coin flips: standard error sqrt(.25 / 400) = .025, so 95 % is .5 ± .049
    mean, low, high = mean_interval([0.0, 1.0] * 200)
    assert mean == 0.5
    assert low == pytest.approx(0.451, abs=0.006) and high == pytest.approx(0.549, abs=0.006)


def test_overall_is_the_mean_of_task_means_whatever_their_sizes():
    overall, tasks = task_intervals({"a": [1.0] * 100, "b": [0.0, 0.0]})
    assert overall[0] == 0.5 and tasks["a"][0] == 1.0 and tasks["b"][0] == 0.0


def test_same_seed_same_interval():
    values = [0.1, 0.9, 0.4, 0.3]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
