"""Reliability diagrams."""

import pytest

from reprise.backend.reports.reliability import reliability_figures


def test_dots_are_placed_by_their_bins():
    (figure,) = reliability_figures({"match": [[0.0, 0.0, 3], [1.0, 0.5, 1]]})
    low, high = figure["dots"]
    assert (low["x"], low["y"]) == (8, 172) and (high["x"], high["y"]) == (172, 90)
    assert low["r"] > high["r"] and figure["of"] == 4
    assert float(figure["error"]) == pytest.approx(0.5 / 4, abs=1e-3)
    assert figure["points"] == "8.0,172.0 172.0,90.0"
