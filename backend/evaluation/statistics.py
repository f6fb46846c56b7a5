"""Means with 95 % intervals, bootstrapped over prompts, and over training seeds if there are several.

Pictures of one prompt are not independent, so whole prompts are resampled. The overall value is the
unweighted mean of the task means, as in GenEval.

A method that was trained several times also varies with the training. All its trainings answer the same
prompts, so the two are crossed, and each resample draws both: trainings, one draw for all tasks, and prompts
within each task, one draw for all trainings (the pigeonhole bootstrap, Owen 2007). Of S trainings S - 1 are
drawn, with replacement: drawing S would make the variance between them too small by a factor of (S - 1) / S
(Rao & Wu 1988). With one training only prompts are resampled. Such an interval says nothing about another
training of the same method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Interval = list[float]  # [mean, low, high]
TrainingValues = Mapping[str, Sequence[Sequence[float]]]  # task -> values (training seeds, prompts)
RESAMPLES = 4000


def task_intervals(
    by_task: Mapping[str, Sequence[float]], seed: int = 0
) -> tuple[Interval, dict[str, Interval]]:
    """Values of each task's prompts -> (overall interval, interval of each task), each [mean, low, high]."""
    return training_intervals({task: [values] for task, values in by_task.items()}, seed=seed)


def training_intervals(
    by_task: TrainingValues, over: TrainingValues | None = None, seed: int = 0
) -> tuple[Interval, dict[str, Interval]]:
    """Values of each task (training seeds, prompts) -> (overall interval, interval of each task).

    Each interval is [mean, low, high]. With `over`, another method's values of the same prompts, they are of
    the difference `by_task` - `over`. Prompts are paired; the trainings of the two methods are resampled
    independently.
    """
    rng = np.random.default_rng(seed)
    sides = [(1, by_task), (-1, over)] if over else [(1, by_task)]
    shares = [
        _training_weights(len(next(iter(values.values()))), seed + i) for i, (_, values) in enumerate(sides)
    ]
    draws, tasks, means = [], {}, []
    for task, rows in by_task.items():
        count = len(rows[0])
        chosen = rng.integers(0, count, (RESAMPLES, count))
        mean, resampled = 0.0, np.zeros(RESAMPLES)
        for (sign, values), share in zip(sides, shares):
            data = np.asarray(values[task], dtype=float)  # (training seeds, prompts)
            mean += sign * data.mean()
            resampled += sign * np.take_along_axis(share @ data, chosen, 1).mean(1)
        draws.append(resampled)
        means.append(mean)
        tasks[task] = percentile_interval(mean, resampled)
    return percentile_interval(float(np.mean(means)), np.mean(draws, 0)), tasks


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of values, one for each prompt, with its 95 % interval: [mean, low, high]."""
    return task_intervals({"all": values}, seed)[0]


def _training_weights(trainings: int, seed: int) -> np.ndarray:
    """The weight of each training in each resample, (RESAMPLES, trainings); rows sum to 1."""
    if trainings == 1:
        return np.ones((RESAMPLES, 1))
    drawn = np.random.default_rng([seed, trainings]).multinomial(
        trainings - 1, np.full(trainings, 1 / trainings), RESAMPLES
    )
    return drawn / (trainings - 1)


def prompt_weights(prompts: int, seed: int = 0) -> np.ndarray:
    """How often each prompt is drawn in each resample, (RESAMPLES, prompts).

    For ratios of sums, where prompts have different numbers of answers.
    """
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)


def percentile_interval(mean: float, resampled: np.ndarray) -> Interval:
    """[mean, low, high] from the values of the resamples (RESAMPLES,); NaN values are left out."""
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return [round(float(v), 4) for v in (mean, low, high)]


def format_interval(value: Interval) -> str:
    """[mean, low, high] -> "0.620 [0.580, 0.660]"."""
    mean, low, high = value
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
