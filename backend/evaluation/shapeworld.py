"""What each part of the chain adds on ShapeWorld's held-out prompts.

Rows, each the share of strictly right pictures by the detector: terse (the prompt as typed); template;
rewriter (one sample); + best of N, full; + best of N, pruned; + reflection; and the oracle, whose prompt
spells out a layout sampled from the prompt's metadata.

From "best of N" on, rows select with the same detector that measures; they are labelled "oracle judge". The
full and the pruned row come from one rendering of all candidates, previews included: the pruned row applies
the schedule to the recorded preview scores. Surviving pictures are the same either way, which other tests
verify; `reprise lab bench parm` times real pruning.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UnknownName
from ..core.interfaces import Renderer, Reward, Rewriter
from ..core.scoring import image_scores, judge_for_previews, reward_fingerprint
from ..core.types import Candidate, Job, Rewrite
from ..search.best_of_n import SearchResult, best_index, search
from ..search.pruning import HalvingSchedule, PruningSchedule, schedule_from
from ..search.reflection import reflect
from ..shapeworld.captions import spelled_out
from ..shapeworld.prompts import TASKS, PromptCase, sample_layout, sample_prompts
from ..storage.files import read_text, write_whole
from ..storage.outputs import set_aside
from .journal import Journal
from .statistics import task_intervals

log = logging.getLogger(__name__)

SEED_STRIDE = 100_000  # between the seeds of two repetitions; far more than one search can use
BATCH = 32  # (prompt, seed) pairs drawn at once in rows without a search
REWRITE_BATCH = 8  # prompts rewritten at once

Result = dict[str, Any]  # {"method", "prompt", "seed", "right", "rows", "calls"}


class RecordingSchedule:
    """A schedule that looks at previews after the same steps as `schedule`, and keeps every candidate."""

    def __init__(self, schedule: PruningSchedule):
        self.preview_steps, self.needs_clarity = schedule.preview_steps, schedule.needs_clarity

    def keep(self, step: int, scores: dict[int, float]) -> list[int]:
        return list(scores)


def replay(candidates: Sequence[Candidate], schedule: PruningSchedule) -> list[int | None]:
    """What `schedule` would have pruned, by recorded preview scores: of each candidate the step, or None.

    A preview that was not clear has no score; its candidate continues.
    """
    pruned: list[int | None] = [None] * len(candidates)
    for step in sorted(schedule.preview_steps):
        judged = {
            i: candidates[i].preview_scores[step]
            for i, at in enumerate(pruned)
            if at is None and step in candidates[i].preview_scores
        }
        kept = set(schedule.keep(step, judged)) if judged else set()
        for i in judged:
            if i not in kept:
                pruned[i] = step
    return pruned


def replayed_rows(pruned: Sequence[int | None], steps: int, rows_each: float) -> float:
    """Denoiser rows of a search with these prune steps; `rows_each` is rows per candidate and step."""
    return rows_each * sum(steps if at is None else at for at in pruned)


class ChainEvaluation:
    """One evaluation: the roles, the settings, and the results so far, which are written to `journal`."""

    def __init__(
        self,
        rewriter: Rewriter,
        template: Rewriter,
        renderer: Renderer,
        judge: Reward,
        *,
        best_of: int,
        prune: str,
        rounds: int,
        variants: int,
        seed: int,
        journal: Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.rewriter, self.template, self.renderer, self.judge = rewriter, template, renderer, judge
        self.best_of, self.prune, self.rounds = best_of, prune, rounds
        self.variants, self.seed, self.progress = variants, seed, progress
        self.journal = Journal(journal)
        self.results: list[Result] = self.journal.rows
        self.done = {(r["method"], r["prompt"], r["seed"]) for r in self.results}

    def run(self, cases: Sequence[PromptCase], seeds: int) -> list[Result]:
        bases = [self.seed + repetition * SEED_STRIDE for repetition in range(seeds)]
        pairs = [(case, base) for base in bases for case in cases]
        self.singles("terse", pairs, lambda case, base: case.prompt)
        self.singles("template", pairs, lambda case, base: self.template.rewrite([case.prompt])[0][0].prompt)
        self.singles("spelled-out oracle", pairs, oracle_prompt)
        self.chain(pairs)
        asked = {(case.prompt, base) for case, base in pairs}
        return [r for r in self.results if (r["prompt"], r["seed"]) in asked]

    def singles(self, method: str, pairs: Sequence[tuple[PromptCase, int]], text) -> None:
        """One picture for each prompt and seed. `text(case, seed)` is the prompt to draw."""
        import torch

        todo = [(c, base) for c, base in pairs if (method, c.prompt, base) not in self.done]
        for start in range(0, len(todo), BATCH):
            part = todo[start : start + BATCH]
            drawn = self.renderer.render([Job(text(case, base), base) for case, base in part])
            images = torch.stack([image for image in drawn.images if image is not None])
            scores = image_scores(self.judge, images, [case.prompt for case, _ in part])
            rows = drawn.denoiser_rows_full / len(part)
            self.journal.add(
                _result(method, case, base, score, rows, 0)
                for (case, base), score in zip(part, scores, strict=True)
            )
            self._progress(method, start + len(part), len(todo))

    def chain(self, pairs: Sequence[tuple[PromptCase, int]]) -> None:
        """The rows rewriter, best of N full and pruned, and reflection, from one search of each pair."""
        names = self.chain_methods()
        todo = [(c, base) for c, base in pairs if (names[-1], c.prompt, base) not in self.done]
        schedule = self.schedule(self.best_of)
        for number, (case, base, rewrites) in enumerate(self.rewritten(todo), start=1):
            full = search(
                self.renderer,
                self.judge,
                case.prompt,
                [r.prompt for r in rewrites],
                n=self.best_of,
                seed=base,
                schedule=RecordingSchedule(schedule),
            )
            steps, n = self.renderer.steps, self.best_of
            rows_each = full.cost.denoiser_rows_full / (steps * n)
            pruned_at = replay(full.candidates, schedule)
            # The candidates as a pruned search leaves them.
            left = [
                c if at is None else replace(c, image=None, score=None, pruned_at=at)
                for c, at in zip(full.candidates, pruned_at, strict=True)
            ]
            looked = sum(
                at is None or step <= at
                for c, at in zip(left, pruned_at, strict=True)
                for step in c.preview_scores
            )
            calls_pruned = looked + pruned_at.count(None)
            pruned = SearchResult(left, best_index(left, self.judge), full.cost)
            pruned_rows = replayed_rows(pruned_at, steps, rows_each)
            mended = reflect(
                pruned,
                case.prompt,
                rewriter=self.rewriter,
                renderer=self.renderer,
                judge=self.judge,
                rounds=self.rounds,
                n=n,
                seed=base,
                variants=self.variants,
                schedule=self.schedule,
            )
            score = [
                full.candidates[0].score,
                full.candidates[full.best].score,
                full.candidates[pruned.best].score,
                mended.candidates[mended.best].score,
            ]
            rows = [
                rows_each * steps,
                rows_each * steps * n,
                pruned_rows,
                pruned_rows + mended.cost.denoiser_rows,
            ]
            calls = [0, n, calls_pruned, calls_pruned + mended.cost.judge_calls]
            self.journal.add(
                _result(name, case, base, s, r, c)
                for name, s, r, c in zip(names, score, rows, calls, strict=True)
            )
            self._progress("chain", number, len(todo))

    def rewritten(
        self, todo: Sequence[tuple[PromptCase, int]]
    ) -> Iterator[tuple[PromptCase, int, list[Rewrite]]]:
        """The pairs with their rewrites. Prompts of one seed are rewritten in batches."""
        for base, group in itertools.groupby(todo, key=lambda pair: pair[1]):
            cases = [case for case, _ in group]
            for start in range(0, len(cases), REWRITE_BATCH):
                part = cases[start : start + REWRITE_BATCH]
                answers = self.rewriter.rewrite([case.prompt for case in part], self.variants, seed=base)
                yield from ((case, base, found) for case, found in zip(part, answers, strict=True))

    def schedule(self, n: int) -> PruningSchedule:
        return schedule_from(self.prune, n, self.renderer.steps, judge_for_previews(self.judge))

    def chain_methods(self) -> list[str]:
        best = f"+ best of {self.best_of}"
        return ["rewriter", f"{best}, full", f"{best}, pruned", "+ reflection"]

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(stage, done, total)


def oracle_prompt(case: PromptCase, base: int) -> str:
    """The oracle's prompt: a layout, another one for each drawing seed, spelled out."""
    return spelled_out(sample_layout(case, random.Random(f"{case.prompt} {base}")))


def _result(method: str, case: PromptCase, seed: int, score: float | None, rows: float, calls: int) -> Result:
    assert score is not None
    # ShapeWorldSoft is above .5 if and only if the strict verdict is "right".
    return {
        "method": method,
        "prompt": case.prompt,
        "task": case.task,
        "seed": seed,
        "right": score > 0.5,
        "rows": rows,
        "calls": calls,
    }


def select_tasks(names: Sequence[str]) -> list[str]:
    """The tasks called `names`, with hyphens or underscores, in the table's order; all for no names.

    Raises UnknownName.
    """
    asked = {name.replace("-", "_") for name in names}
    for name in names:
        if name.replace("-", "_") not in TASKS:
            raise UnknownName("task", name, TASKS)
    return [task for task in TASKS if task in asked or not asked]


def select_cases(split: str, per_task: int, seed: int, tasks: Sequence[str]) -> list[PromptCase]:
    """`per_task` prompts of each of `tasks`. A task's prompts do not depend on the other tasks."""
    return [case for case in sample_prompts(split, per_task, seed) if case.task in tasks]


def evaluate_chain(
    *,
    rewriter: Rewriter,
    template: Rewriter,
    renderer: Renderer,
    judge: Reward,
    per_task: int = 66,
    seeds: int = 4,
    best_of: int = 8,
    prune: str = "halving",
    rounds: int = 2,
    variants: int = 4,
    seed: int = 0,
    split: str = "held-out",
    tasks: Sequence[str] = (),
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5): {"name", "rows", "settings"}, without versions, which the caller adds.

    There are `per_task` prompts of each task (fewer if it has fewer), each with `seeds` drawing seeds.
    `tasks` selects some of the tasks. `judge` must be a ShapeWorld reward. `folder` stores the results, so
    that a stopped call continues. Raises BadInput and UnknownName.
    """
    counts = {"per-task": per_task, "seeds": seeds, "best-of": best_of, "variants": variants}
    for name, value in counts.items():
        if value < 1:
            raise BadInput(f"--{name} must be at least 1, got {value}")
    tasks = select_tasks(tasks)
    cases = select_cases(split, per_task, seed, tasks)
    settings = {
        "split": split,
        "tasks": tasks,
        "prompts": len(cases),
        "seeds": seeds,
        "best_of": best_of,
        "prune": prune,
        "rounds": rounds,
        "variants": min(variants, best_of),
        "seed": seed,
        "steps": renderer.steps,
        "renderer": renderer.fingerprint,
        "rewriter": rewriter.name,
        "rewriter_fingerprint": rewriter.fingerprint,
        "judge": judge.spec.name,
        **(
            {"judge_fingerprint": reward_fingerprint(judge)}
            if reward_fingerprint(judge) != judge.spec.name
            else {}
        ),
    }
    schedule = schedule_from(prune, best_of, renderer.steps, judge_for_previews(judge))
    if isinstance(schedule, HalvingSchedule):
        settings["cuts"] = {str(step): kept for step, kept in schedule.cuts.items()}
    journal = _journal_path(folder, settings) if folder else None
    run = ChainEvaluation(
        rewriter,
        template,
        renderer,
        judge,
        best_of=best_of,
        prune=prune,
        rounds=rounds,
        variants=min(variants, best_of),
        seed=seed,
        journal=journal,
        progress=progress,
    )
    results = run.run(cases, seeds)
    order = ["terse", "template", *run.chain_methods(), "spelled-out oracle"]
    rows = [_row(method, [r for r in results if r["method"] == method]) for method in order]
    for row in rows:
        row["judge"] = "oracle judge" if row["name"].startswith("+") else None
    plain, pasted, rewritten, *searched, _ = order
    baselines = {pasted: plain, rewritten: plain, **dict.fromkeys(searched, rewritten)}
    for row in rows:
        base = baselines.get(row["name"])
        if base:
            row["gain"] = {"over": base, "interval": _gain(results, row["name"], base)}
    return {"name": "shapeworld", "rows": rows, "settings": settings}


def _journal_path(folder: Path, settings: dict[str, Any]) -> Path:
    """The file of results so far in `folder`; one of other settings is moved aside.

    The numbers of prompts and seeds may differ: a second call with more continues.
    """
    stamp, lines = folder / "partial-settings.json", folder / "partial.jsonl"
    counted = ("prompts", "seeds", "tasks")
    text = json.dumps({k: v for k, v in settings.items() if k not in counted}, sort_keys=True)
    if not stamp.exists() or read_text(stamp, "settings", "are") != text:
        if aside := set_aside(folder, (lines.name, stamp.name)):
            log.warning("results of other settings were there; they are kept in %s", aside)
        write_whole(stamp, text)
    return lines


def means_by_prompt(results: Sequence[Result], figure: str = "right") -> dict[str, dict[str, float]]:
    """Task -> prompt -> mean of `figure`, a key of results, over its seeds."""
    found: dict[str, dict[str, list[float]]] = {task: defaultdict(list) for task in TASKS}
    for r in results:
        found[r["task"]][r["prompt"]].append(r[figure])
    return {task: {p: sum(v) / len(v) for p, v in by.items()} for task, by in found.items() if by}


def _row(method: str, results: Sequence[Result]) -> dict[str, Any]:
    shares = means_by_prompt(results)
    overall, tasks = task_intervals({task: list(by.values()) for task, by in shares.items()})
    cost = {
        "denoiser_rows": round(sum(r["rows"] for r in results) / len(results), 1),
        "judge_calls": round(sum(r["calls"] for r in results) / len(results), 1),
    }
    return {"name": method, "overall": overall, "tasks": tasks, "cost": cost}


def _gain(results: Sequence[Result], method: str, baseline: str) -> list[float]:
    """The paired difference of two rows, prompt by prompt, [mean, low, high]."""
    mine, base = (means_by_prompt([r for r in results if r["method"] == name]) for name in (method, baseline))
    paired = {task: [mine[task][p] - base[task][p] for p in mine[task]] for task in mine}
    return task_intervals(paired)[0]
