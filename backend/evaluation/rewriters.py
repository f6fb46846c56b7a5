"""Rewriters compared on ShapeWorld's held-out prompts, each method with its training seeds.

Rows: the prompt as typed; every method, that is one or more rewriters which differ in their training seed
alone; and the oracle, whose prompt spells out a layout drawn from the metadata. A row's figure is the judge's
mean score; of the detector's strict verdicts, the share of right pictures.

Nothing is searched or mended: one picture for each prompt, drawing seed and rewriter, of its greedy rewrite.
An answer that cannot be read is drawn as the user typed it, as in use. All rows share prompts and drawing
seeds, so that differences are paired.

Rewrites, pictures and scores are kept by their content. A stopped call goes on, rows with the same rewrite
share its pictures, and a call with one more row draws what is new alone, whatever else is asked for.
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

TYPED, ORACLE = "as typed", "spelled-out oracle"  # the rows that are always there
REWRITE = 16  # prompts rewritten at once
BATCH = 48  # pictures drawn at once

T = TypeVar("T")
Rewriters = Mapping[str, Callable[[], Rewriter]]  # what makes each, by name
View = tuple[Job, str]  # a picture, and the user's prompt that it is judged by
Text = Callable[[PromptCase, int], str]  # what is drawn for a prompt and a drawing seed


def check_rows(methods: Mapping[str, Sequence[str]], baseline: str | None) -> None:
    """Raises BadInput for a row whose name is taken, UnknownName for a baseline that is no row."""
    for name in methods:
        if name in (TYPED, ORACLE):
            raise BadInput(f"the row {name!r} is always in the table; call yours something else")
    if baseline is not None and baseline not in (TYPED, *methods, ORACLE):
        raise UnknownName("baseline", baseline, (TYPED, *methods, ORACLE))


class RewriterComparison:
    """What is known of rewriters and pictures, and how to find out the rest; kept in `folder`."""

    def __init__(
        self,
        cases: Sequence[PromptCase],
        bases: Sequence[int],
        renderer: Renderer,
        judge: Reward,
        folder: Path,
        tell: Callable[[str, int, int], None] | None = None,
    ):
        self.cases, self.bases, self.renderer, self.judge = cases, bases, renderer, judge
        self.tell = tell or (lambda stage, done, total: None)
        self.pictures = Cache(folder / "pictures")
        self.kept_rewrites = Journal(folder / "rewrites.jsonl")
        self.kept_scores = Journal(folder / "scores.jsonl")
        self.rewrites = {(row["rewriter"], row["prompt"]): row for row in self.kept_rewrites.rows}
        self.scores = {
            (row["picture"], row["prompt"]): row
            for row in self.kept_scores.rows
            if row["judge"] == reward_fingerprint(judge)
        }

    def write(self, rewriters: Rewriters, marks: Mapping[str, str]) -> None:
        """Have all prompts rewritten, one rewriter in memory at a time; `marks`: their fingerprints."""
        todo = {
            mark: [case.prompt for case in self.cases if (mark, case.prompt) not in self.rewrites]
            for mark in marks.values()
        }
        done, total = 0, sum(map(len, todo.values()))
        for name, mark in marks.items():
            prompts = todo.pop(mark, [])  # two names may be one rewriter
            if prompts:
                _once(rewriters[name], partial(self._ask, mark, prompts, done, total))
            done += len(prompts)

    def _ask(self, mark: str, prompts: Sequence[str], done: int, total: int, rewriter: Rewriter) -> None:
        for start in range(0, len(prompts), REWRITE):
            part = prompts[start : start + REWRITE]
            answers = [row[0] for row in rewriter.rewrite(part)]
            fresh = [
                {
                    "rewriter": mark,
                    "prompt": prompt,
                    "reason": answer.reason,
                    "rewrite": answer.prompt,
                    "unreadable": answer.fallback,
                }
                for prompt, answer in zip(part, answers, strict=True)
            ]
            self.kept_rewrites.add(fresh)
            self.rewrites |= {(mark, row["prompt"]): row for row in fresh}
            self.tell("rewrite", done + start + len(part), total)

    def look(self, texts: Iterable[Text]) -> None:
        """Have the pictures of all texts drawn and judged, each once."""
        import torch

        asked = dict.fromkeys(view for text in texts for view in self.views(text))
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
            self.kept_scores.add(fresh)
            self.scores |= {(row["picture"], row["prompt"]): row for row in fresh}
            self.tell("draw", start + len(part), len(todo))

    def _draw(self, jobs: Iterable[Job]) -> dict[Job, tuple[Tensor, int]]:
        """Each job's picture (H, W, 3) and denoiser rows, from the cache where it has them."""
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
        """A picture's name: what decides its pixels."""
        return picture_key(self.renderer.fingerprint, job)

    def views(self, text: Text) -> list[View]:
        """Drawing seed by drawing seed, the prompts in their order."""
        return [(Job(text(case, base), base), case.prompt) for base in self.bases for case in self.cases]

    def results(self, text: Text) -> list[dict[str, Any]]:
        """The scores of the pictures of `text`, as `views` has them, with their tasks."""
        tasks = [case.task for case in self.cases] * len(self.bases)
        return [
            {"task": task, **self.scores[self.key(job), prompt]}
            for task, (job, prompt) in zip(tasks, self.views(text), strict=True)
        ]

    def rewrite_of(self, mark: str) -> Text:
        return lambda case, base: self.rewrites[mark, case.prompt]["rewrite"]


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
    tell: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The table as design.md 5's object: {"name", "rows", "settings"}; versions are added by the caller. A
    row of `methods` has "trainings" too: each rewriter's fingerprint and its own mean.

    `methods`: a row's name -> the names of its rewriters, one for each training seed; `rewriters`: what makes
    each. `folder` keeps what is known between calls. Differences are
    from the row `baseline`, by default the best of `methods`. Raises BadInput for the same weights twice in
    a row: as two trainings they would pass for certainty.
    """
    assert methods and per_task > 0 and seeds > 0
    check_rows(methods, baseline)
    # All are opened before the first one writes: a folder that is none costs no work.
    marks = {name: _once(make, rewriter_fingerprint) for name, make in rewriters.items()}
    for name, given in methods.items():
        _check_different(name, given, marks)
    tasks = select_tasks(tasks)
    cases = select_cases(split, per_task, seed, tasks)
    bases = [seed + repetition * SEED_STRIDE for repetition in range(seeds)]
    work = RewriterComparison(cases, bases, renderer, judge, folder, tell)
    work.write(rewriters, marks)
    texts: dict[str, list[Text]] = {
        TYPED: [lambda case, base: case.prompt],
        **{name: [work.rewrite_of(marks[one]) for one in given] for name, given in methods.items()},
        ORACLE: [oracle_prompt],
    }
    work.look(text for row in texts.values() for text in row)
    results = {name: [work.results(text) for text in row] for name, row in texts.items()}
    values = {name: values_by_task(row) for name, row in results.items()}
    rows = {name: table_row(name, row, values[name]) for name, row in results.items()}
    for name in (TYPED, ORACLE):
        rows[name]["rewrites"] = {"words": _mean_words(job.prompt for job, _ in work.views(*texts[name]))}
    for name, given in methods.items():
        answers = [work.rewrites[marks[one], case.prompt] for one in given for case in cases]
        readable = [answer["rewrite"] for answer in answers if answer["unreadable"] is None]
        rows[name]["rewrites"] = {
            "words": _mean_words(readable),
            "unreadable": round(1 - len(readable) / len(answers), 4),
        }
        rows[name]["trainings"] = [
            {"rewriter": one, "fingerprint": marks[one], "overall": training_mean(values[name], number)}
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


def _once(make: Callable[[], Rewriter], use: Callable[[Rewriter], T]) -> T:
    """What `use` makes of the rewriter, which is let go of before the next is made."""
    import torch

    found = use(make())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def rewriter_fingerprint(rewriter: Rewriter) -> str:
    """What decides its rewrites, for keys of what is kept."""
    return getattr(rewriter, "fingerprint", None) or rewriter.name


def _check_different(name: str, given: Sequence[str], marks: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for one in given:
        if marks[one] in first:
            raise BadInput(
                f"row {name!r} has the same weights twice, {first[marks[one]]} and {one}; give each training "
                "seed's own"
            )
        first[marks[one]] = one


def values_by_task(trainings: Sequence[Sequence[dict[str, Any]]]) -> TrainingValues:
    """Task -> mean score over the drawing seeds, (training seeds, prompts)."""
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
    """The mean of training `number` alone, tasks weighted alike."""
    means = [sum(of[number]) / len(of[number]) for of in values.values()]
    return round(sum(means) / len(means), 4)


def _mean_words(texts: Iterable[str]) -> float | None:
    counts = [count_words(text) for text in texts]
    return round(sum(counts) / len(counts), 1) if counts else None
