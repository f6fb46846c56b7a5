"""Whether a probability of yes is how often the answer is yes, and a temperature that makes it so.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599): expected calibration
error (eq. 3, 15 bins of equal width) and temperature scaling (section 4.2). Departs from it: of two answers
the confidence is P(yes) itself, 0..1, and not that of the likelier answer, for that number is what ranks and
prunes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at
EDGE = 1e-7  # P(yes) is kept this far from 0 and 1 where its logit is taken


def bin_of(likely: float) -> int:
    """The bin of a P(yes), of BINS of equal width over 0..1."""
    return min(BINS - 1, int(likely * BINS))


def reliability(likely: Sequence[float], right: Sequence[bool]) -> list[list[float]]:
    """Of each bin that is not empty [mean P(yes), share of yes, count]: the reliability curve."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, yes in zip(likely, right, strict=True):
        bins[bin_of(p)].append((p, yes))
    return [[sum(p for p, _ in one) / len(one), sum(yes for _, yes in one) / len(one), len(one)]
            for one in bins if one]  # fmt: skip


def calibration_error(likely: Sequence[float], right: Sequence[bool]) -> float:
    """The expected calibration error, 0..1: the curve's distance from the diagonal, weighted by its counts.
    Raises ValueError for no predictions."""
    if not likely:
        raise ValueError("no predictions")
    curve = reliability(likely, right)
    return sum(count * abs(share - mean) for mean, share, count in curve) / len(likely)


def tempered(likely: float, temperature: float) -> float:
    """P(yes) whose logit is divided by a temperature; order and verdict stay. 0 and 1 stay as they are."""
    if temperature == 1.0 or likely in (0.0, 1.0):
        return likely
    logit = (math.log(likely) - math.log1p(-likely)) / temperature
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def fit_temperature(likely: Sequence[float], right: Sequence[bool]) -> float:
    """The temperature under which these answers are likeliest, COLDEST to HOTTEST; 1 for answers all alike,
    of which nothing can be learned."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    yes = np.asarray(right, dtype=float)
    if not len(yes) or yes.min() == yes.max():
        return 1.0
    p = np.clip(np.asarray(likely, dtype=float), EDGE, 1 - EDGE)
    logits = np.log(p) - np.log1p(-p)

    def loss(cold: float) -> float:  # of the logarithm, over which it has one valley
        scaled = logits / math.exp(cold)
        return float(np.mean(np.logaddexp(0, scaled) - yes * scaled))

    found: Any = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))
