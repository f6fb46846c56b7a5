"""Means with 95 % intervals, bootstrapped over prompts.

A prompt's seeds are not independent, so the unit that is resampled is the prompt. The overall value is
the unweighted mean of the task means, as in GenEval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Interval = list[float]  # [mean, low, high]
RESAMPLES = 4000


def task_intervals(by_task: Mapping[str, Sequence[float]],
                   seed: int = 0) -> tuple[Interval, dict[str, Interval]]:
    """Per-prompt values of each task -> (overall, per task), each [mean, low, high]."""
    rng = np.random.default_rng(seed)
    draws, tasks, means = [], {}, []
    for task, values in by_task.items():
        data = np.asarray(values, dtype=float)
        resampled = data[rng.integers(0, len(data), (RESAMPLES, len(data)))].mean(1)
        draws.append(resampled)
        means.append(data.mean())
        tasks[task] = _interval(data.mean(), resampled)
    return _interval(float(np.mean(means)), np.mean(draws, 0)), tasks


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of per-prompt values with its 95 % interval."""
    return task_intervals({"all": values}, seed)[0]


def _interval(mean: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return [round(float(v), 4) for v in (mean, low, high)]
