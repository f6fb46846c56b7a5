"""Calibration: values by hand."""

import math
import random

import pytest

from reprise.backend.rewards.vlm.calibration import (
    BINS,
    IDENTITY,
    Calibration,
    bin_of,
    calibration_error,
    fit_calibration,
    reliability,
)


def test_bins_are_of_equal_width():
    assert [bin_of(p) for p in (0.0, 0.066, 0.067, 0.5, 0.999, 1.0)] == [0, 0, 1, 7, 14, BINS - 1]


def test_the_error_equals_the_hand_calculation():
    """Two bins: .2 and .2 with one yes of two (off by .3), .9 with a yes (off by .1): (2 * .3 + .1) / 3."""
    likely, right = [0.2, 0.2, 0.9], [True, False, True]
    assert calibration_error(likely, right) == pytest.approx(0.7 / 3)
    assert reliability(likely, right) == [[0.2, 0.5, 2], [0.9, 1.0, 1]]
    assert calibration_error([0.0, 1.0], [False, True]) == 0
    assert calibration_error([1.0, 1.0], [False, False]) == 1
    with pytest.raises(ValueError, match="no predictions"):
        calibration_error([], [])


def test_a_calibration_equals_the_hand_calculation():
    assert Calibration(2.0)(0.9) == pytest.approx(3 / 4)  # odds 9 -> 3
    assert Calibration(bias=math.log(0.25))(0.8) == pytest.approx(1 / 2)  # odds 4 -> 1
    assert [Calibration(3.0)(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert Calibration(0.5)(1e-9) == pytest.approx(1e-18) and IDENTITY(0.3) == 0.3
    row = [Calibration(0.3, -2.0)(p / 20) for p in range(21)]
    assert row == sorted(row)


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize("bias", [0.0, -1.5])
def test_the_fit_recovers_the_generating_calibration(bias):
    """A judge too sure, and one that learned from more yes than there is."""
    draw = random.Random(0)
    honest = [draw.random() for _ in range(4000)]
    right = [draw.random() < p for p in honest]
    loud = [1 / (1 + math.exp(-2.5 * (logit(p) - bias))) for p in honest]
    found = fit_calibration(loud, right)
    assert found.temperature == pytest.approx(2.5, rel=0.1) and found.bias == pytest.approx(bias, abs=0.15)
    calmed = [found(p) for p in loud]
    assert calibration_error(calmed, right) < 0.03 < calibration_error(loud, right)


def test_equal_labels_give_the_identity():
    assert fit_calibration([0.9, 0.2], [True, True]) == fit_calibration([], []) == IDENTITY


def test_the_fit_stays_within_bounds_for_perfect_answers():
    found = fit_calibration([0.9, 0.8, 0.3, 0.1] * 5, [True, True, False, False] * 5)
    assert found.in_range and found(0.9) > 0.99
