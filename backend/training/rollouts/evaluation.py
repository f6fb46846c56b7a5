"""Evaluations while training: fixed prompts, paraphrases, a reward that is not trained on, and when to stop.

The rewriter writes greedily and every prompt has its own fixed seed, so that two evaluations differ by the
weights alone. An answer that cannot be read is drawn as the user typed it, as in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RewardFailed
from ...core.interfaces import Reward
from ...core.seeds import seed_of
from ...core.types import Job, Rewrite
from ...reports.training import write_report
from ...rewards.text import count_words
from ...storage.files import read_lines
from ..common import distributed
from ..common.run_folder import append_lines
from .prompts import TrainingPrompt, read_prompts
from .rewrites import Rollouts
from .scoring import PictureScores

if TYPE_CHECKING:
    from ..ppo.rollouts import PpoRollouts


SHOWN = 6  # prompts of an evaluation whose pictures the report shows


def evaluate(
    rollouts: Rollouts | PpoRollouts, sets: Mapping[str, Sequence[TrainingPrompt]], unchanged: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(figures "set/reward" of every set, samples of the first set for the report).

    With `unchanged` the prompts of the first set are drawn as typed, too. Raises RewardFailed for a reward
    that scored nothing.
    """
    figures: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    for number, (name, asked) in enumerate(sets.items()):
        judged = _judged(rollouts, asked)
        rewrites = [rewrite for rewrite, _ in judged]
        figures |= _means(rollouts, name, judged)
        figures[f"{name}/unparsable"] = sum(r.fallback is not None for r in rewrites) / len(rewrites)
        figures[f"{name}/words"] = sum(count_words(r.prompt) for r in rewrites) / len(rewrites)
        if number == 0:
            seen = [_sample(one, *pair) for one, pair in zip(asked, judged, strict=True)]
            samples = [seen[i * len(seen) // SHOWN] for i in range(SHOWN)] if len(seen) > SHOWN else seen
            if unchanged:
                figures |= _means(rollouts, "unchanged", _judged(rollouts, asked, as_typed=True))
    return figures, samples


def _judged(
    rollouts: Rollouts | PpoRollouts, asked: Sequence[TrainingPrompt], as_typed: bool = False
) -> list[tuple[Rewrite, PictureScores]]:
    """What became of each prompt; several processes deal them out."""

    def work(part: Sequence[tuple[int, TrainingPrompt]]) -> list[tuple[Rewrite, PictureScores]]:
        if as_typed:
            rewrites = [Rewrite("", one.prompt, "none") for _, one in part]
        else:
            with rollouts.timer("write"):
                rewrites = [row[0] for row in rollouts.rewriter.rewrite([one.prompt for _, one in part])]
        jobs = [Job(rewrite.prompt, seed_of("evaluate", i)) for (i, _), rewrite in zip(part, rewrites)]
        return list(
            zip(rewrites, rollouts.scorer.score(jobs, [one.judge_prompt for _, one in part]), strict=True)
        )

    return distributed.scatter(list(enumerate(asked)), work)


def _means(
    rollouts: Rollouts | PpoRollouts, name: str, judged: Sequence[tuple[Rewrite, PictureScores]]
) -> dict[str, float]:
    figures = {}
    for reward in rollouts.scorer.rewards:
        scores = [view.scores[reward] for _, view in judged if reward in view.scores]
        if not scores:
            raise RewardFailed(reward, f"it scored nothing of an evaluation: {judged[0][1].failed[reward]}")
        figures[f"{name}/{reward}"] = sum(scores) / len(scores)
    return figures


def _sample(asked: TrainingPrompt, rewrite: Rewrite, view: PictureScores) -> dict[str, Any]:
    return {
        "prompt": asked.prompt,
        "reason": rewrite.reason,
        "rewrite": rewrite.prompt,
        "fallback": rewrite.fallback,
        "picture": view.picture,
        "scores": view.scores,
    }


def evaluation_prompts(
    trained: Sequence[TrainingPrompt], held_out: str | None, paraphrases: str | None = None
) -> dict[str, list[TrainingPrompt]]:
    """The sets of prompts to evaluate on, read from where the settings say. Raises BadInput where one of them
    is trained on."""
    sources = {"held-out": (held_out, "evaluate"), "paraphrases": (paraphrases, "paraphrase")}
    sets = {name: read_prompts(source, use) for name, (source, use) in sources.items() if source}
    known = {one.prompt for one in trained}
    for name, asked in sets.items():
        shared = next((one.prompt for one in asked if one.prompt in known), None)
        if shared is not None:
            raise BadInput(f"the {name} prompt {shared!r} is trained on, too; take it out of one of them")
    return sets


def selection_metric(
    held_out: Iterable[str], trained: Iterable[str], looking: Mapping[str, Reward]
) -> tuple[str, bool]:
    """(figure, whether more of it is better): the first held-out reward that looks at pictures, or else the
    first trained one, on the held-out prompts."""
    name = next(name for name in (*held_out, *trained) if name in looking)
    return f"held-out/{name}", looking[name].spec.higher_is_better


def record_evaluation(
    run: Path,
    row: Mapping[str, Any],
    selection_metric: str,
    higher: bool,
    patience: int,
    export: Callable[[], None],
    log: Callable[[str], None],
) -> bool:
    """Add an evaluation to the run's, `export` the weights where they are the best so far; whether training
    should stop."""
    earlier = read_lines(run / "evaluations.jsonl")
    append_lines(run / "evaluations.jsonl", [json.dumps(row)])
    main = {key: value for key, value in row.items() if "/" in key and not key.endswith("/words")}
    log(f"evaluation at step {row['step']}: " + " ".join(f"{k} {v:.3f}" for k, v in main.items()))
    if selection_metric in row and all(
        is_better(row[selection_metric], old[selection_metric], higher) for old in earlier
    ):
        export()
    write_report(run)
    stop = looks_like_reward_hacking(
        [*earlier, row], selection_metric, higher, patience if selection_metric in row else 0
    )
    if stop:
        log(
            f"stopped at step {row['step']}: over {patience} evaluations training reward rose and "
            f"{selection_metric} fell, which looks like reward hacking; best/ holds the best weights so far"
        )
    return stop


def is_better(value: float, than: float, higher: bool) -> bool:
    return value > than if higher else value < than


def looks_like_reward_hacking(
    evaluations: Sequence[Mapping[str, Any]], selection_metric: str, higher: bool, patience: int
) -> bool:
    """Whether over the last `patience` evaluations training reward rose and the
    `selection_metric` fell each time.

    `evaluations` carry `training_reward`, the mean since the one before (None before the first step).
    """
    recent = evaluations[-patience - 1 :]
    if patience < 1 or len(recent) <= patience:
        return False
    training = [row["training_reward"] for row in recent if row["training_reward"] is not None]
    held = [row[selection_metric] for row in recent]
    falls = all(is_better(before, after, higher) for before, after in zip(held, held[1:]))
    return falls and len(training) > 1 and training[-1] > training[0]
