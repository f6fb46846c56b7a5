"""Calibration of P(yes): how far it is from the frequency of yes, and a transform that corrects it.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599): expected calibration
error (eq. 3, 15 bins of equal width) and, for two classes, Platt scaling (section 4.1): temperature and bias.
Departs from it: the confidence is P(yes) itself, 0..1, not that of the more likely answer, because P(yes) is
what ranks and prunes. The bias is needed because judges learn from equally many yes and no, while pictures
are not right half of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # range of the fit
MAX_BIAS = 20.0  # largest absolute bias, in logits
EPSILON = 1e-7  # P(yes) is clipped this far from 0 and 1 before its logit is computed


def bin_of(p_yes: float) -> int:
    """The index of a P(yes)'s bin; BINS bins of equal width cover 0..1."""
    return min(BINS - 1, int(p_yes * BINS))


def reliability(p_yes: Sequence[float], labels: Sequence[bool]) -> list[list[float]]:
    """The reliability curve: [mean P(yes), share of yes, count] of each bin that is not empty."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, yes in zip(p_yes, labels, strict=True):
        bins[bin_of(p)].append((p, yes))
    return [
        [sum(p for p, _ in one) / len(one), sum(yes for _, yes in one) / len(one), len(one)]
        for one in bins
        if one
    ]


def calibration_error(p_yes: Sequence[float], labels: Sequence[bool]) -> float:
    """The expected calibration error, 0..1: the curve's distance from the diagonal, weighted by its counts.

    Raises ValueError without predictions.
    """
    if not p_yes:
        raise ValueError("no predictions")
    curve = reliability(p_yes, labels)
    return sum(count * abs(share - mean) for mean, share, count in curve) / len(p_yes)


class Calibration(NamedTuple):
    """P(yes) -> sigmoid(logit / temperature + bias). Monotone: rankings do not change."""

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, p_yes: float) -> float:
        """The calibrated P(yes), 0..1; 0 and 1 are unchanged."""
        if self == IDENTITY or p_yes in (0.0, 1.0):
            return p_yes
        logit = (math.log(p_yes) - math.log1p(-p_yes)) / self.temperature + self.bias
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    @property
    def in_range(self) -> bool:
        return MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE and abs(self.bias) <= MAX_BIAS


IDENTITY = Calibration()


def fit_calibration(p_yes: Sequence[float], labels: Sequence[bool]) -> Calibration:
    """The maximum-likelihood calibration for these labels; IDENTITY if they are all equal."""
    import numpy as np
    from scipy.optimize import minimize

    yes = np.asarray(labels, dtype=float)
    if not len(yes) or yes.min() == yes.max():
        return IDENTITY
    p = np.clip(np.asarray(p_yes, dtype=float), EPSILON, 1 - EPSILON)
    logits = np.log(p) - np.log1p(-p)

    def loss(at: np.ndarray) -> float:  # at = (log temperature, bias); unimodal in the logarithm
        scaled = logits / math.exp(at[0]) + at[1]
        return float(np.mean(np.logaddexp(0, scaled) - yes * scaled))

    bounds = [(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), (-MAX_BIAS, MAX_BIAS)]
    fit: Any = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    return Calibration(round(math.exp(fit.x[0]), 6), round(float(fit.x[1]), 6))
