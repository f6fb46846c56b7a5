"""Whether a probability of yes is how often the answer is yes, and a calibration that makes it so.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599): expected calibration
error (eq. 3, 15 bins of equal width) and, of two answers, Platt scaling (section 4.1): temperature and bias.
Departs from it: the confidence is P(yes) itself, 0..1, and not that of the likelier answer, for that number
is what ranks and prunes. The bias is needed because judges learn from as much yes as no, which is not how
often pictures are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at
STRONGEST = 20.0  # bias to either side, in logits
EDGE = 1e-7  # P(yes) is kept this far from 0 and 1 where its logit is taken


def bin_of(likely: float) -> int:
    """The bin of a P(yes), of BINS of equal width over 0..1."""
    return min(BINS - 1, int(likely * BINS))


def reliability(likely: Sequence[float], right: Sequence[bool]) -> list[list[float]]:
    """Of each bin that is not empty [mean P(yes), share of yes, count]: the reliability curve."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, yes in zip(likely, right, strict=True):
        bins[bin_of(p)].append((p, yes))
    return [
        [sum(p for p, _ in one) / len(one), sum(yes for _, yes in one) / len(one), len(one)]
        for one in bins
        if one
    ]


def calibration_error(likely: Sequence[float], right: Sequence[bool]) -> float:
    """The expected calibration error, 0..1: the curve's distance from the diagonal, weighted by its counts.
    Raises ValueError for no predictions."""
    if not likely:
        raise ValueError("no predictions")
    curve = reliability(likely, right)
    return sum(count * abs(share - mean) for mean, share, count in curve) / len(likely)


class Calibration(NamedTuple):
    """P(yes) -> sigmoid(logit / temperature + bias); the order of answers stays."""

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, likely: float) -> float:
        """A calibrated P(yes), 0..1; 0 and 1 stay as they are."""
        if self == PLAIN or likely in (0.0, 1.0):
            return likely
        logit = (math.log(likely) - math.log1p(-likely)) / self.temperature + self.bias
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    @property
    def possible(self) -> bool:
        return COLDEST <= self.temperature <= HOTTEST and abs(self.bias) <= STRONGEST


PLAIN = Calibration()


def fit_calibration(likely: Sequence[float], right: Sequence[bool]) -> Calibration:
    """The calibration under which these answers are likeliest; PLAIN for answers all alike, of which nothing
    can be learned."""
    import numpy as np
    from scipy.optimize import minimize

    yes = np.asarray(right, dtype=float)
    if not len(yes) or yes.min() == yes.max():
        return PLAIN
    p = np.clip(np.asarray(likely, dtype=float), EDGE, 1 - EDGE)
    logits = np.log(p) - np.log1p(-p)

    def loss(at: np.ndarray) -> float:  # of the temperature's logarithm, over which it has one valley
        scaled = logits / math.exp(at[0]) + at[1]
        return float(np.mean(np.logaddexp(0, scaled) - yes * scaled))

    bounds = [(math.log(COLDEST), math.log(HOTTEST)), (-STRONGEST, STRONGEST)]
    found: Any = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    return Calibration(round(math.exp(found.x[0]), 6), round(float(found.x[1]), 6))
