"""Rewriters compared on ShapeWorld's held-out prompts, each method with its training seeds.

Rows: the prompt as typed; each method, which is one rewriter or several that differ only in their training
seed; and the oracle, whose prompt spells out a layout sampled from the prompt's metadata. A row's figure is
the judge's mean score. With the detector's strict verdicts that is the share of right pictures.

There is no search and no reflection: one picture for each prompt, drawing seed and rewriter, of its greedy
rewrite. If an answer cannot be parsed, the prompt is drawn as typed, as in normal use. All rows share prompts
and drawing seeds, so differences are paired.

Rewrites, pictures and scores are stored by a hash of their content. So a stopped call continues, rows with
the same rewrite share its pictures, and a call with another row draws only the new pictures.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import BadInput, RenderFailed, UnknownName
from ..core.interfaces import Renderer, Reward, Rewriter
from ..core.scoring import image_scores, reward_fingerprint
from ..core.types import Job
from ..rewards.text import count_words
from ..shapeworld.prompts import PromptCase
from ..storage.cache import Cache, picture_key, round_to_8_bits
from .journal import Journal
from .shapeworld import SEED_STRIDE, means_by_prompt, oracle_prompt, select_cases, select_tasks
from .statistics import TrainingValues, training_intervals

if TYPE_CHECKING:
    from torch import Tensor

TYPED, ORACLE = "as typed", "spelled-out oracle"  # rows of every table
REWRITE_BATCH = 16  # prompts rewritten at once
BATCH = 48  # pictures drawn at once

T = TypeVar("T")
Rewriters = Mapping[str, Callable[[], Rewriter]]  # name -> the function that loads it
JudgedJob = tuple[Job, str]  # a picture to draw, and the user's prompt that it is judged by
PromptOf = Callable[[PromptCase, int], str]  # (case, drawing seed) -> the prompt to draw


def check_rows(methods: Mapping[str, Sequence[str]], baseline: str | None) -> None:
    """Raises BadInput for a row named like one of every table, UnknownName for an unknown baseline."""
    for name in methods:
        if name in (TYPED, ORACLE):
            raise BadInput(f"the row {name!r} is always in the table; call yours something else")
    if baseline is not None and baseline not in (TYPED, *methods, ORACLE):
        raise UnknownName("baseline", baseline, (TYPED, *methods, ORACLE))


class RewriterComparison:
    """The rewrites and scores of a comparison: read from `folder` if they are there, else made and stored."""

    def __init__(
        self,
        cases: Sequence[PromptCase],
        bases: Sequence[int],
        renderer: Renderer,
        judge: Reward,
        folder: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.cases, self.bases, self.renderer, self.judge = cases, bases, renderer, judge
        self.progress = progress or (lambda stage, done, total: None)
        self.pictures = Cache(folder / "pictures")
        self.rewrite_journal = Journal(folder / "rewrites.jsonl")
        self.score_journal = Journal(folder / "scores.jsonl")
        self.rewrites = {(row["rewriter"], row["prompt"]): row for row in self.rewrite_journal.rows}
        self.scores = {
            (row["picture"], row["prompt"]): row
            for row in self.score_journal.rows
            if row["judge"] == reward_fingerprint(judge)
        }

    def rewrite(self, rewriters: Rewriters, fingerprints: Mapping[str, str]) -> None:
        """Rewrite all prompts with each rewriter, one in memory at a time. `fingerprints` are by name."""
        todo = {
            fingerprint: [
                case.prompt for case in self.cases if (fingerprint, case.prompt) not in self.rewrites
            ]
            for fingerprint in fingerprints.values()
        }
        done, total = 0, sum(map(len, todo.values()))
        for name, fingerprint in fingerprints.items():
            prompts = todo.pop(fingerprint, [])  # two names may stand for the same rewriter
            if prompts:
                _use_and_free(rewriters[name], partial(self._ask, fingerprint, prompts, done, total))
            done += len(prompts)

    def _ask(
        self, fingerprint: str, prompts: Sequence[str], done: int, total: int, rewriter: Rewriter
    ) -> None:
        for start in range(0, len(prompts), REWRITE_BATCH):
            part = prompts[start : start + REWRITE_BATCH]
            answers = [row[0] for row in rewriter.rewrite(part)]
            fresh = [
                {
                    "rewriter": fingerprint,
                    "prompt": prompt,
                    "reason": answer.reason,
                    "rewrite": answer.prompt,
                    "unreadable": answer.fallback,
                }
                for prompt, answer in zip(part, answers, strict=True)
            ]
            self.rewrite_journal.add(fresh)
            self.rewrites |= {(fingerprint, row["prompt"]): row for row in fresh}
            self.progress("rewrite", done + start + len(part), total)

    def score(self, texts: Iterable[PromptOf]) -> None:
        """Draw and judge the pictures of all `texts`, each once."""
        import torch

        asked = dict.fromkeys(view for text in texts for view in self.judged_jobs(text))
        todo = [view for view in asked if (self.key(view[0]), view[1]) not in self.scores]
        for start in range(0, len(todo), BATCH):
            part = todo[start : start + BATCH]
            drawn = self._draw([job for job, _ in part])
            images = torch.stack([drawn[job][0] for job, _ in part])
            scores = image_scores(self.judge, images, [prompt for _, prompt in part])
            name = reward_fingerprint(self.judge)
            fresh = [
                {
                    "judge": name,
                    "picture": self.key(job),
                    "prompt": prompt,
                    "score": score,
                    "rows": drawn[job][1],
                }
                for (job, prompt), score in zip(part, scores, strict=True)
            ]
            self.score_journal.add(fresh)
            self.scores |= {(row["picture"], row["prompt"]): row for row in fresh}
            self.progress("draw", start + len(part), len(todo))

    def _draw(self, jobs: Iterable[Job]) -> dict[Job, tuple[Tensor, int]]:
        """Each job's picture (H, W, 3) and denoiser rows, from the cache if they are there."""
        found: dict[Job, tuple[Tensor, int]] = {}
        for job in jobs:
            entry = self.pictures.get_image(self.key(job))
            if entry is not None and entry[1].get("rows", "").isdigit():
                found[job] = entry[0], int(entry[1]["rows"])
        todo = [job for job in dict.fromkeys(jobs) if job not in found]
        if todo:
            drawn = self.renderer.render(todo)
            rows = drawn.denoiser_rows_full // len(todo)
            for job, image in zip(todo, drawn.images, strict=True):
                if image is None:
                    raise RenderFailed(f"{self.renderer.name} gave no picture for {job.prompt[:80]!r}")
                image = round_to_8_bits(image)
                self.pictures.put_image(self.key(job), image, {"rows": rows})
                found[job] = image, rows
        return found

    def key(self, job: Job) -> str:
        """A picture's name in the cache: a hash of what determines its pixels."""
        return picture_key(self.renderer.fingerprint, job)

    def judged_jobs(self, text: PromptOf) -> list[JudgedJob]:
        """The pictures to judge: for each drawing seed, all prompts in their order."""
        return [(Job(text(case, base), base), case.prompt) for base in self.bases for case in self.cases]

    def results(self, text: PromptOf) -> list[dict[str, Any]]:
        """Score, denoiser rows and task of the pictures of `text`, in the order of `judged_jobs`."""
        tasks = [case.task for case in self.cases] * len(self.bases)
        return [
            {"task": task, **self.scores[self.key(job), prompt]}
            for task, (job, prompt) in zip(tasks, self.judged_jobs(text), strict=True)
        ]

    def rewrite_of(self, fingerprint: str) -> PromptOf:
        return lambda case, base: self.rewrites[fingerprint, case.prompt]["rewrite"]


def compare_rewriters(
    *,
    methods: Mapping[str, Sequence[str]],
    rewriters: Rewriters,
    renderer: Renderer,
    judge: Reward,
    folder: Path,
    per_task: int = 66,
    seeds: int = 4,
    seed: int = 0,
    split: str = "held-out",
    tasks: Sequence[str] = (),
    baseline: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5): {"name", "rows", "settings"}, without versions, which the caller adds.

    `methods`: row name -> names of its rewriters, one for each training seed. `rewriters` loads each by its
    name. A row's "trainings" are its rewriters' fingerprints and own means. `folder` stores rewrites,
    pictures and scores between calls. Gains are over the row `baseline`, by default the best of `methods`.
    Raises BadInput if a row has the same weights twice: as two trainings they would make its interval too
    narrow.
    """
    assert methods and per_task > 0 and seeds > 0
    check_rows(methods, baseline)
    # All are loaded once before the first rewrite, so that a wrong folder is found before any work.
    fingerprints = {name: _use_and_free(make, rewriter_fingerprint) for name, make in rewriters.items()}
    for name, given in methods.items():
        _check_different(name, given, fingerprints)
    tasks = select_tasks(tasks)
    cases = select_cases(split, per_task, seed, tasks)
    bases = [seed + repetition * SEED_STRIDE for repetition in range(seeds)]
    work = RewriterComparison(cases, bases, renderer, judge, folder, progress)
    work.rewrite(rewriters, fingerprints)
    texts: dict[str, list[PromptOf]] = {
        TYPED: [lambda case, base: case.prompt],
        **{name: [work.rewrite_of(fingerprints[one]) for one in given] for name, given in methods.items()},
        ORACLE: [oracle_prompt],
    }
    work.score(text for row in texts.values() for text in row)
    results = {name: [work.results(text) for text in row] for name, row in texts.items()}
    values = {name: values_by_task(row) for name, row in results.items()}
    rows = {name: table_row(name, row, values[name]) for name, row in results.items()}
    for name in (TYPED, ORACLE):
        rows[name]["rewrites"] = {
            "words": _mean_words(job.prompt for job, _ in work.judged_jobs(*texts[name]))
        }
    for name, given in methods.items():
        answers = [work.rewrites[fingerprints[one], case.prompt] for one in given for case in cases]
        readable = [answer["rewrite"] for answer in answers if answer["unreadable"] is None]
        rows[name]["rewrites"] = {
            "words": _mean_words(readable),
            "unreadable": round(1 - len(readable) / len(answers), 4),
        }
        rows[name]["trainings"] = [
            {
                "rewriter": one,
                "fingerprint": fingerprints[one],
                "overall": training_mean(values[name], number),
            }
            for number, one in enumerate(given)
        ]
    base = baseline or max(methods, key=lambda name: rows[name]["overall"][0])
    for name, row in rows.items():
        if name != base:
            interval, by_task = training_intervals(values[name], over=values[base])
            row["gain"] = {"over": base, "interval": interval, "tasks": by_task}
    settings = {
        "split": split,
        "tasks": tasks,
        "prompts": len(cases),
        "seeds": seeds,
        "seed": seed,
        "rewrites": "greedy",
        "baseline": base,
        "steps": renderer.steps,
        "renderer": renderer.fingerprint,
        "judge": judge.spec.name,
    }
    trainings = {
        "title": "training seeds",
        "columns": ["", "rewriter", "fingerprint", "overall"],
        "rows": [[name, *one.values()] for name in methods for one in rows[name]["trainings"]],
    }
    return {"name": "rewriters", "rows": list(rows.values()), "tables": [trainings], "settings": settings}


def _use_and_free(make: Callable[[], Rewriter], use: Callable[[Rewriter], T]) -> T:
    """The result of `use` on the rewriter, whose memory is then freed before the next is loaded."""
    import torch

    found = use(make())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def rewriter_fingerprint(rewriter: Rewriter) -> str:
    """What determines its rewrites, for keys of stored results: its fingerprint, or its name."""
    return rewriter.fingerprint or rewriter.name


def _check_different(name: str, given: Sequence[str], fingerprints: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for one in given:
        if fingerprints[one] in first:
            raise BadInput(
                f"row {name!r} has the same weights twice, {first[fingerprints[one]]} and {one}; give each "
                "training seed's own"
            )
        first[fingerprints[one]] = one


def values_by_task(trainings: Sequence[Sequence[dict[str, Any]]]) -> TrainingValues:
    """Task -> values (training seeds, prompts): each prompt's mean score over the drawing seeds."""
    means = [means_by_prompt(results, "score") for results in trainings]
    return {task: [list(mean[task].values()) for mean in means] for task in means[0]}


def table_row(
    name: str, trainings: Sequence[Sequence[dict[str, Any]]], values: TrainingValues
) -> dict[str, Any]:
    overall, tasks = training_intervals(values)
    drawn = [result["rows"] for results in trainings for result in results]
    cost = {"denoiser_rows": round(sum(drawn) / len(drawn), 1)}
    return {"name": name, "overall": overall, "tasks": tasks, "cost": cost}


def training_mean(values: TrainingValues, number: int) -> float:
    """The mean score of training `number` alone, each task with the same weight."""
    means = [sum(of[number]) / len(of[number]) for of in values.values()]
    return round(sum(means) / len(means), 4)


def _mean_words(texts: Iterable[str]) -> float | None:
    counts = [count_words(text) for text in texts]
    return round(sum(counts) / len(counts), 1) if counts else None
