"""Evaluations while training: fixed prompts, paraphrases, a reward that is not trained on, and when to stop.

The rewriter writes greedily and every prompt has its own fixed seed, so that two evaluations differ by the
weights alone. An answer that cannot be read is drawn as the user typed it, as in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from .scoring import PictureScorer, PictureScores
from .settings import PolicySettings

SHOWN = 6  # prompts of an evaluation whose pictures the report shows
PromptSets = Mapping[str, Sequence[TrainingPrompt]]
Result = tuple[Rewrite, PictureScores]


class EvaluatedRewriter(Protocol):
    """What an evaluation needs of a rewriter."""

    def rewrite(self, prompts: Sequence[str]) -> list[list[Rewrite]]:
        """The rewrites of each prompt; the first is the best single one, without sampling."""
        ...


def evaluate(
    rewriter: EvaluatedRewriter, scorer: PictureScorer, sets: PromptSets, unchanged: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(figures "set/reward" of every set, samples of the first set for the report).

    With `unchanged` the prompts of the first set are drawn as typed, too. Raises RewardFailed for a reward
    that scored nothing.
    """
    figures: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    for number, (name, prompts) in enumerate(sets.items()):
        results = _results(scorer, prompts, lambda texts: _rewrites(rewriter, scorer, texts))
        rewrites = [rewrite for rewrite, _ in results]
        figures |= _means(scorer, name, results)
        figures[f"{name}/unparsable"] = sum(r.fallback is not None for r in rewrites) / len(rewrites)
        figures[f"{name}/words"] = sum(count_words(r.prompt) for r in rewrites) / len(rewrites)
        if number == 0:
            seen = [_sample(one, *result) for one, result in zip(prompts, results, strict=True)]
            samples = [seen[i * len(seen) // SHOWN] for i in range(SHOWN)] if len(seen) > SHOWN else seen
            if unchanged:
                typed = _results(scorer, prompts, lambda texts: [Rewrite("", text, "none") for text in texts])
                figures |= _means(scorer, "unchanged", typed)
    return figures, samples


def _rewrites(rewriter: EvaluatedRewriter, scorer: PictureScorer, prompts: list[str]) -> list[Rewrite]:
    with scorer.timer("write"):
        return [row[0] for row in rewriter.rewrite(prompts)]


def _results(
    scorer: PictureScorer,
    prompts: Sequence[TrainingPrompt],
    rewrites: Callable[[list[str]], list[Rewrite]],
) -> list[Result]:
    """The rewrite of each prompt, and its picture's scores; several processes deal them out."""

    def work(part: Sequence[tuple[int, TrainingPrompt]]) -> list[Result]:
        written = rewrites([one.prompt for _, one in part])
        jobs = [Job(rewrite.prompt, seed_of("evaluate", i)) for (i, _), rewrite in zip(part, written)]
        return list(zip(written, scorer.score(jobs, [one.judge_prompt for _, one in part]), strict=True))

    return distributed.scatter(list(enumerate(prompts)), work)


def _means(scorer: PictureScorer, name: str, results: Sequence[Result]) -> dict[str, float]:
    figures = {}
    for reward in scorer.rewards:
        scores = [one.scores[reward] for _, one in results if reward in one.scores]
        if not scores:
            why = results[0][1].failed[reward]
            raise RewardFailed(reward, f"it scored nothing of an evaluation: {why}")
        figures[f"{name}/{reward}"] = sum(scores) / len(scores)
    return figures


def _sample(prompt: TrainingPrompt, rewrite: Rewrite, result: PictureScores) -> dict[str, Any]:
    return {
        "prompt": prompt.prompt,
        "reason": rewrite.reason,
        "rewrite": rewrite.prompt,
        "fallback": rewrite.fallback,
        "picture": result.picture,
        "scores": result.scores,
    }


def evaluation_prompts(
    trained: Sequence[TrainingPrompt], held_out: str | None, paraphrases: str | None = None
) -> dict[str, list[TrainingPrompt]]:
    """The sets of prompts to evaluate on, read from where the settings say. Raises BadInput where one of them
    is trained on."""
    sources = {"held-out": (held_out, "evaluate"), "paraphrases": (paraphrases, "paraphrase")}
    sets = {name: read_prompts(source, use) for name, (source, use) in sources.items() if source}
    known = {one.prompt for one in trained}
    for name, prompts in sets.items():
        shared = next((one.prompt for one in prompts if one.prompt in known), None)
        if shared is not None:
            raise BadInput(f"the {name} prompt {shared!r} is trained on, too; take it out of one of them")
    return sets


def selection_metric(
    held_out: Iterable[str], trained: Iterable[str], rewards: Mapping[str, Reward]
) -> tuple[str, bool]:
    """(figure, whether more of it is better): the first held-out reward that looks at pictures, or else the
    first trained one, on the held-out prompts. `rewards` are all that look at pictures."""
    name = next(name for name in (*held_out, *trained) if name in rewards)
    return f"held-out/{name}", rewards[name].spec.higher_is_better


class Evaluator:
    """The evaluations of a policy: its best weights are exported, and it stops where it hacks rewards."""

    def __init__(
        self, rewriter: EvaluatedRewriter, scorer: PictureScorer, sets: PromptSets, settings: PolicySettings
    ):
        self.rewriter, self.scorer, self.sets = rewriter, scorer, sets
        self.metric, self.higher = selection_metric(settings.held_out, settings.rewards, scorer.rewards)
        self.patience = settings.patience if settings.held_out else 0
        self.recent: list[float] = []  # training rewards since the last evaluation

    def evaluate(self, step: int) -> tuple[dict[str, float], dict[str, Any]] | None:
        """(figures, what else is recorded); None without prompts for evaluations."""
        if not self.sets:
            return None
        figures, samples = evaluate(self.rewriter, self.scorer, self.sets, unchanged=step == 0)
        reward = sum(self.recent) / len(self.recent) if self.recent else None
        self.recent = []
        return figures, {"training_reward": reward, "samples": samples}

    def record(
        self, run: Path, row: Mapping[str, Any], export: Callable[[], object], log: Callable[[str], None]
    ) -> bool:
        """Put an evaluation on record; `export` the weights if they are the best so far; whether to stop."""
        earlier = read_lines(run / "evaluations.jsonl", needs={"step": int})
        append_lines(run / "evaluations.jsonl", [json.dumps(row)])
        log(f"evaluation at step {row['step']}: {shown_figures(row)}")
        metric = self.metric
        if metric in row and all(is_better(row[metric], old[metric], self.higher) for old in earlier):
            export()
        write_report(run)
        patience = self.patience if metric in row else 0
        stop = looks_like_reward_hacking([*earlier, row], metric, self.higher, patience)
        if stop:
            log(
                f"stopped at step {row['step']}: over {patience} evaluations training reward rose and "
                f"{metric} fell, which looks like reward hacking; best/ holds the best weights so far"
            )
        return stop


def shown_figures(row: Mapping[str, Any]) -> str:
    """The figures of an evaluation that the log shows."""
    return " ".join(f"{k} {v:.3f}" for k, v in row.items() if "/" in k and not k.endswith("/words"))


def is_better(value: float, than: float, higher: bool) -> bool:
    return value > than if higher else value < than


def looks_like_reward_hacking(
    evaluations: Sequence[Mapping[str, Any]], metric: str, higher: bool, patience: int
) -> bool:
    """Whether over the last `patience` evaluations training reward rose and the `metric` fell each time.

    `evaluations` carry `training_reward`, the mean since the one before (None before the first step).
    """
    recent = evaluations[-patience - 1 :]
    if patience < 1 or len(recent) <= patience:
        return False
    training = [row["training_reward"] for row in recent if row["training_reward"] is not None]
    held_out = [row[metric] for row in recent]
    falls = all(is_better(before, after, higher) for before, after in zip(held_out, held_out[1:]))
    return falls and len(training) > 1 and training[-1] > training[0]
