"""Intervals computed by hand: no spread, known spread, equal weights of tasks, trainings, differences."""

import pytest

from reprise.backend.evaluation.statistics import mean_interval, task_intervals, training_intervals


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5] * 10) == [0.5, 0.5, 0.5]


def test_the_interval_of_a_known_spread():
    # 400 coin flips: standard error sqrt(.25 / 400) = .025, so 95 % is .5 ± .049
    mean, low, high = mean_interval([0.0, 1.0] * 200)
    assert mean == 0.5
    assert low == pytest.approx(0.451, abs=0.006) and high == pytest.approx(0.549, abs=0.006)


def test_overall_is_the_unweighted_mean_of_task_means():
    overall, tasks = task_intervals({"a": [1.0] * 100, "b": [0.0, 0.0]})
    assert overall[0] == 0.5 and tasks["a"][0] == 1.0 and tasks["b"][0] == 0.0


def test_the_same_seed_gives_the_same_interval():
    values = [0.1, 0.9, 0.4, 0.3]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_one_training_gives_the_interval_over_prompts():
    values = {"a": [0.1, 0.9, 0.4, 0.3], "b": [0.0, 1.0]}
    assert training_intervals({task: [of] for task, of in values.items()}) == task_intervals(values)


def test_with_equal_prompts_the_interval_spans_the_two_trainings():
    # Of two trainings one is drawn: half of the resamples have the value .2, half .6.
    overall, tasks = training_intervals({"a": [[0.2] * 5, [0.6] * 5], "b": [[0.2] * 3, [0.6] * 3]})
    assert overall == tasks["a"] == [0.4, 0.2, 0.6], "a training is resampled for all tasks at once"


def test_the_spread_of_nine_trainings_equals_that_computed_by_hand():
    # Nine trainings, .1 apart: two standard errors are 2 * sqrt(.075 / 9) = .183, .172 had nine been drawn.
    mean, low, high = training_intervals({"a": [[i / 10] * 4 for i in range(9)]})[0]
    assert mean == 0.4
    assert low == pytest.approx(0.4 - 1.96 * (0.075 / 9) ** 0.5, abs=0.012)
    assert high == pytest.approx(0.4 + 1.96 * (0.075 / 9) ** 0.5, abs=0.012)


def test_prompts_are_resampled_for_all_trainings_together():
    # Three trainings that agree on every prompt have the interval of one of them.
    values = [0.0, 1.0] * 20
    agreeing, alone = training_intervals({"a": [values] * 3})[0], mean_interval(values)
    assert agreeing == pytest.approx(alone, abs=0.01)


def test_differences_are_paired_by_prompt():
    values = [[0.0, 1.0, 0.2, 0.7]]
    assert training_intervals({"a": values}, over={"a": values})[0] == [0.0, 0.0, 0.0]
    better = [[value + 0.1 for value in values[0]]]
    assert training_intervals({"a": better}, over={"a": values})[0] == [0.1, 0.1, 0.1]


def test_the_trainings_of_two_methods_are_resampled_independently():
    # .2 or .6 minus 0 or .4: from -.2 to .6, each end in a quarter of the resamples.
    difference = training_intervals({"a": [[0.2], [0.6]]}, over={"a": [[0.0], [0.4]]})[0]
    assert difference == [0.2, -0.2, 0.6]
