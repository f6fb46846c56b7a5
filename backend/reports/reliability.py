"""Reliability diagrams: the share of right answers "yes" over the P(yes) that a judge gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDE, EDGE = 180, 8  # width and height of a figure, and its margin
LEAST, MOST = 1.6, 6.0  # radius of a bin's dot, by its share of the answers


def reliability_figures(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """{name: [[mean P(yes), share of yes, count], …]} -> the data of `reliability.html.jinja`."""
    figures = []
    for name, bins in curves.items():
        of = sum(count for _, _, count in bins)
        error = sum(count * abs(share - mean) for mean, share, count in bins) / of
        dots = [
            {
                "x": _along(mean),
                "y": _up(share),
                "r": round(LEAST + (MOST - LEAST) * (count / of) ** 0.5, 1),
                "title": f"P(yes) {mean:.2f}: yes in {share:.2f} of {int(count)}",
            }
            for mean, share, count in bins
        ]
        points = " ".join(f"{dot['x']},{dot['y']}" for dot in dots)
        figures.append({"name": name, "dots": dots, "points": points, "error": f"{error:.3f}", "of": int(of)})
    return figures


def _along(value: float) -> float:
    return round(EDGE + (SIDE - 2 * EDGE) * value, 1)


def _up(value: float) -> float:
    return round(SIDE - EDGE - (SIDE - 2 * EDGE) * value, 1)
