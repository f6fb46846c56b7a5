"""Calibration: values by hand."""

import math
import random

import pytest

from reprise.backend.calibration import (
    BINS,
    bin_of,
    calibration_error,
    fit_temperature,
    reliability,
    tempered,
)


def test_bins_are_of_equal_width():
    assert [bin_of(p) for p in (0.0, 0.066, 0.067, 0.5, 0.999, 1.0)] == [0, 0, 1, 7, 14, BINS - 1]


def test_the_error_by_hand():
    """Two bins: .2 and .2 with one yes of two (off by .3), .9 with a yes (off by .1): (2 * .3 + .1) / 3."""
    likely, right = [0.2, 0.2, 0.9], [True, False, True]
    assert calibration_error(likely, right) == pytest.approx(0.7 / 3)
    assert reliability(likely, right) == [[0.2, 0.5, 2], [0.9, 1.0, 1]]
    assert calibration_error([0.0, 1.0], [False, True]) == 0
    assert calibration_error([1.0, 1.0], [False, False]) == 1
    with pytest.raises(ValueError, match="no predictions"):
        calibration_error([], [])


def test_a_temperature_keeps_order_and_verdict():
    assert tempered(0.9, 2.0) == pytest.approx(3 / 4)  # odds 9 -> 3
    assert [tempered(p, 3.0) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert tempered(1e-9, 0.5) == pytest.approx(1e-18) and tempered(0.3, 1.0) == 0.3
    row = [tempered(p / 20, 0.3) for p in range(21)]
    assert row == sorted(row)


def test_the_temperature_that_made_the_answers_is_found():
    draw = random.Random(0)
    honest = [draw.random() for _ in range(4000)]
    right = [draw.random() < p for p in honest]
    loud = [1 / (1 + math.exp(-2.5 * math.log(p / (1 - p)))) for p in honest]
    heat = fit_temperature(loud, right)
    assert heat == pytest.approx(2.5, rel=0.1)
    calmed = [tempered(p, heat) for p in loud]
    assert calibration_error(calmed, right) < 0.03 < calibration_error(loud, right)


def test_answers_all_alike_teach_no_temperature():
    assert fit_temperature([0.9, 0.2], [True, True]) == fit_temperature([], []) == 1.0
