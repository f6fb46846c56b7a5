"""Renderers, judges and searches compared on ShapeWorld's held-out prompts, one row for each combination.

The table of PARM (Guo et al. 2025, arXiv 2501.13926): alignment, search and reflection, alone and together.
Departs from it: every row has an interval and its denoiser rows as cost; trained parts have several training
seeds; and the reward that measures (`metric`, the detector) need not be the one that selects.

A row names a rewriter, a renderer's LoRA, and the settings of a search. A part that was trained from several
seeds is a list. All rows share prompts and drawing seeds, so differences are paired. Results are stored, so a
stopped call continues, and a call with another row computes only that row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from ..core.config import Config, parse_config
from ..core.errors import BadInput, RenderFailed, UnknownName
from ..core.interfaces import Renderer, Reward, Rewriter
from ..core.parsing import parse_yaml
from ..core.scoring import image_scores, reward_fingerprint
from ..core.types import Job, Rewrite
from ..search.chain import Chain
from ..search.pruning import read_pruning
from ..search.reflection import Correction
from ..shapeworld.prompts import PromptCase
from ..storage.cache import Cache
from ..storage.files import read_text
from .journal import Journal
from .rewriters import rewriter_fingerprint, table_row, training_mean, values_by_task
from .shapeworld import SEED_STRIDE, select_cases, select_tasks
from .statistics import training_intervals

BATCH = 48  # pictures drawn at once in rows without a search
SEVERAL = ("rewriter", "lora", "judge", "previews", "corrector")  # may be lists, with a value for each seed


class TableRow(Config):
    """One row of the table."""

    rewriter: str | list[str] = "none"
    """What rewrites, named as for --rewriter of `reprise render`."""
    lora: str | list[str] | None = None
    """A LoRA file for the renderer."""
    best_of: PositiveInt = 1
    """Candidates of a search."""
    judge: str | list[str] = "shapeworld"
    """What selects the best picture and criticises it, named as for --judge of `reprise render`."""
    prune: str = "none"
    """How candidates are stopped early: none, halving or potential."""
    previews: str | list[str] | None = None
    """What judges the previews that pruning looks at; null: the judge."""
    reflect: int = Field(0, ge=0)
    """Most rounds of reflection."""
    correction: str = Correction.DRAW_AGAIN.value
    """How a round corrects the picture: `draw again`, or `image to image` over the best picture so far."""
    corrector: str | list[str] | None = None
    """What corrects prompts, named like a rewriter; null: the rewriter. `none` keeps the prompt."""
    use_critique: bool = True
    """Whether the corrector reads the judge's critique; false is the control."""
    strength: float = Field(0.75, gt=0, le=1)
    """How much of the picture image to image may change; 1 keeps nothing."""
    variants: PositiveInt = 1
    """Rewrites of a prompt, which the candidates share."""

    @model_validator(mode="after")
    def _possible(self) -> TableRow:
        try:
            read_pruning(self.prune)
        except BadInput as error:
            raise ValueError(str(error)) from error
        if self.previews is not None and self.prune == "none":
            raise ValueError("previews are judged for pruning only; give prune, or leave previews out")
        if self.corrector is not None and not self.reflect:
            raise ValueError("a corrector works in rounds of reflection; give reflect, or leave it out")
        if not (self.use_critique or self.reflect):
            raise ValueError("use_critique is for rounds of reflection; give reflect, or leave it out")
        corrections = [correction.value for correction in Correction]
        if self.correction not in corrections:
            raise ValueError(f"correction is one of {', '.join(corrections)}")
        lengths = {len(value) for name in SEVERAL if isinstance(value := getattr(self, name), list)}
        if 0 in lengths or len(lengths - {1}) > 1:
            raise ValueError(f"expected lists of one length, a value for each seed, got {sorted(lengths)}")
        return self

    @property
    def searched(self) -> bool:
        return self.best_of > 1 or self.reflect > 0

    def trainings(self) -> list[Training]:
        """The row's settings for each of its training seeds."""
        given = {name: getattr(self, name) for name in SEVERAL}
        count = max(len(value) if isinstance(value, list) else 1 for value in given.values())
        one = [
            {
                name: value[i % len(value)] if isinstance(value, list) else value
                for name, value in given.items()
            }
            for i in range(count)
        ]
        return [Training(**each, row=self) for each in one]


@dataclass(frozen=True)
class Training:
    """One training seed of a row."""

    rewriter: str
    lora: str | None
    judge: str
    previews: str | None
    corrector: str | None
    row: TableRow = field(hash=False)  # it holds lists

    @property
    def name(self) -> str:
        parts = [self.lora, self.rewriter if self.rewriter != "none" else None]
        parts += [self.judge, self.previews, self.corrector] if self.row.searched else []
        return ", ".join(filter(None, parts)) or "the renderer alone"


@dataclass(frozen=True)
class RoleLoaders:
    """Functions that load the roles by their names."""

    renderer: Callable[[str | None, Cache], Renderer]  # by its LoRA file, None: without; pictures go there
    rewriter: Callable[[str], Rewriter]
    judge: Callable[[str], Reward]
    judge_fingerprint: Callable[[str], str]  # changes when its scores do; found without loading it


def read_rows(path: Path) -> dict[str, TableRow]:
    """The rows of a YAML file, `NAME: {setting: value, …}`. Raises BadInput and UnknownName."""
    try:
        found = parse_yaml(read_text(path, "rows", "are"))
    except ValueError as error:
        raise BadInput(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict) or not found:
        raise BadInput(f"{path}: expected rows, NAME: {{best_of: 8, …}}, got {str(found)[:60]!r}")
    for name, row in found.items():
        if not isinstance(row, dict):
            raise BadInput(f"{path}: expected settings of {name!r}, such as {{best_of: 8}}; {{}} for none")
    return {str(name): parse_config(TableRow, row, f"{path}: {name}") for name, row in found.items()}


class ResultTable:
    """The results of rows: read from `folder` if they are there, else computed and stored."""

    def __init__(
        self,
        cases: Sequence[PromptCase],
        bases: Sequence[int],
        loaders: RoleLoaders,
        metric: Reward,
        folder: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.cases, self.bases, self.loaders, self.metric = cases, bases, loaders, metric
        self.progress = progress or (lambda stage, done, total: None)
        self.pictures = Cache(folder / "pictures")
        self.journal = Journal(folder / "pictures.jsonl")
        self.known = {(row["what"], row["prompt"], row["seed"]): row for row in self.journal.rows}
        self.fingerprints: dict[Training, str] = {}
        self.steps = 0

    def fill(self, trainings: Sequence[Training]) -> None:
        """Compute the missing results of all `trainings`, with one renderer in memory at a time."""
        by_lora: dict[str | None, list[Training]] = defaultdict(list)
        for training in dict.fromkeys(trainings):
            by_lora[training.lora].append(training)
        total = len(dict.fromkeys(trainings)) * len(self.cases) * len(self.bases)
        done = 0
        for lora, of in by_lora.items():
            # With a cache: rows that search among the same candidates draw them once.
            renderer = self.loaders.renderer(lora, self.pictures)
            self.steps = renderer.steps
            for training in of:
                rewriter = self.loaders.rewriter(training.rewriter)
                corrector = self.loaders.rewriter(training.corrector) if training.corrector else None
                self.fingerprints[training] = fingerprint = self._fingerprint(
                    training, renderer, rewriter, corrector
                )
                for rows in self._drawn(training, renderer, rewriter, corrector, fingerprint):
                    self.journal.add(rows)
                    self.known |= {(row["what"], row["prompt"], row["seed"]): row for row in rows}
                    self.progress("draw", done + sum(key[0] == fingerprint for key in self.known), total)
                done += len(self.cases) * len(self.bases)

    def results(self, training: Training) -> list[dict[str, Any]]:
        """A training's results: for each drawing seed, all prompts in their order."""
        return [
            {"task": case.task, **self.known[self.fingerprints[training], case.prompt, base]}
            for base in self.bases
            for case in self.cases
        ]

    def _fingerprint(
        self, training: Training, renderer: Renderer, rewriter: Rewriter, corrector: Rewriter | None
    ) -> str:
        """A hash of what determines a training's results."""
        row = training.row
        judges = [one and self.loaders.judge_fingerprint(one) for one in (training.judge, training.previews)]
        searched = [row.best_of, row.prune, row.reflect, row.variants, *judges]
        if row.reflect and row.correction == Correction.IMAGE_TO_IMAGE:
            searched += [row.correction, row.strength]
        searched += [rewriter_fingerprint(corrector)] if corrector else []
        searched += [] if row.use_critique else ["untold"]
        return Cache.key(
            "chain",
            renderer.fingerprint,
            rewriter_fingerprint(rewriter),
            reward_fingerprint(self.metric),
            searched if row.searched else None,
        )

    def _drawn(
        self,
        training: Training,
        renderer: Renderer,
        rewriter: Rewriter,
        corrector: Rewriter | None,
        fingerprint: str,
    ) -> Iterator[list[dict[str, Any]]]:
        todo = [
            (case, base)
            for base in self.bases
            for case in self.cases
            if (fingerprint, case.prompt, base) not in self.known
        ]
        if not training.row.searched:
            for start in range(0, len(todo), BATCH):
                yield self._singles(todo[start : start + BATCH], renderer, rewriter, fingerprint)
            return
        row, judge = training.row, self.loaders.judge(training.judge) if todo else None
        looks = self.loaders.judge(training.previews) if todo and training.previews else None
        for case, base in todo:
            assert judge is not None
            blind = None if row.use_critique else UncritiquedRewriter(corrector or rewriter)
            chain = Chain(
                rewriter,
                renderer,
                judge,
                row.best_of,
                row.prune,
                row.reflect,
                base,
                min(row.variants, row.best_of),
                looks,
                row.correction,
                row.strength,
                blind or corrector,
            )
            found = chain.run(case.prompt)
            image, cost = found.candidates[found.best].image, found.cost
            assert image is not None, "the best is one that was finished"
            (score,) = image_scores(self.metric, image[None], [case.prompt])
            # Without pruning, candidates from the cache count as if they had been drawn.
            rows = cost.denoiser_rows_full if row.prune == "none" else cost.denoiser_rows
            yield [
                {
                    "what": fingerprint,
                    "prompt": case.prompt,
                    "seed": base,
                    "score": score,
                    "rows": rows,
                    "calls": cost.judge_calls,
                }
            ]

    def _singles(
        self, part: Sequence[tuple[PromptCase, int]], renderer: Renderer, rewriter: Rewriter, fingerprint: str
    ) -> list[dict[str, Any]]:
        import torch

        prompts = [case.prompt for case, _ in part]
        texts = [row[0].prompt for row in rewriter.rewrite(prompts)]
        drawn = renderer.render([Job(text, base) for text, (_, base) in zip(texts, part, strict=True)])
        for prompt, image in zip(prompts, drawn.images, strict=True):
            if image is None:
                raise RenderFailed(f"{renderer.name} gave no picture for {prompt[:80]!r}")
        images = torch.stack([image for image in drawn.images if image is not None])
        scores = image_scores(self.metric, images, prompts)
        return [
            {
                "what": fingerprint,
                "prompt": case.prompt,
                "seed": base,
                "score": score,
                "rows": drawn.denoiser_rows_full // len(part),
                "calls": 0,
            }
            for (case, base), score in zip(part, scores, strict=True)
        ]


class UncritiquedRewriter:
    """Wraps a rewriter and withholds the critiques from it."""

    def __init__(self, rewriter: Rewriter):
        self.rewriter, self.name = rewriter, rewriter.name
        self.fingerprint = rewriter.fingerprint
        self.capabilities = replace(rewriter.capabilities, reads_critiques=False)

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
    ) -> list[list[Rewrite]]:
        return self.rewriter.rewrite(prompts, variants, seed)


def evaluate_rows(
    *,
    rows: Mapping[str, TableRow],
    loaders: RoleLoaders,
    metric: Reward,
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

    `metric` measures all rows. Gains are over the row `baseline`, by default the first. `folder` stores the
    results. Raises BadInput if a row has the same weights twice: as two trainings they would make its
    interval too narrow.
    """
    assert rows and per_task > 0 and seeds > 0
    base = baseline or next(iter(rows))
    if base not in rows:
        raise UnknownName("baseline", base, rows)
    tasks = select_tasks(tasks)
    cases = select_cases(split, per_task, seed, tasks)
    bases = [seed + repetition * SEED_STRIDE for repetition in range(seeds)]
    for name, row in rows.items():
        if row.best_of * (1 + row.reflect) > SEED_STRIDE:
            raise BadInput(f"{name!r} has more candidates than there are seeds between two repetitions")
    table = ResultTable(cases, bases, loaders, metric, folder, progress)
    trainings = {name: row.trainings() for name, row in rows.items()}
    table.fill([one for of in trainings.values() for one in of])
    for name, of in trainings.items():
        if len({table.fingerprints[one] for one in of}) < len(of):
            raise BadInput(f"row {name!r} has the same weights twice; give each training seed's own")
    results = {name: [table.results(one) for one in of] for name, of in trainings.items()}
    values = {name: values_by_task(of) for name, of in results.items()}
    made = {name: table_row(name, of, values[name]) for name, of in results.items()}
    for name, row in made.items():
        drawn = [result["calls"] for of in results[name] for result in of]
        row["cost"]["judge_calls"] = round(sum(drawn) / len(drawn), 1)
        row["trainings"] = [
            {"with": one.name, "overall": training_mean(values[name], number)}
            for number, one in enumerate(trainings[name])
        ]
        if name != base:
            interval, by_task = training_intervals(values[name], over=values[base])
            row["gain"] = {"over": base, "interval": interval, "tasks": by_task}
    settings = {
        "split": split,
        "tasks": tasks,
        "prompts": len(cases),
        "seeds": seeds,
        "seed": seed,
        "baseline": base,
        "steps": table.steps,
        "judge": metric.spec.name,
        "rows": {name: row.model_dump(exclude_defaults=True) for name, row in rows.items()},
    }
    listed = [[name, *one.values()] for name, row in made.items() for one in row["trainings"]]
    shown = {"title": "training seeds", "columns": ["", "with", "overall"], "rows": listed}
    return {"name": "search", "rows": list(made.values()), "tables": [shown], "settings": settings}
