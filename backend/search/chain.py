"""The main job: rewrite, search with pruning, judge, reflect. One prompt in, one `Outcome` out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.interfaces import Renderer, Reward, Rewriter
from ..core.scoring import judge_for_previews
from ..core.types import Outcome, check_strength
from .best_of_n import check_search, search
from .pruning import PruningSchedule, ShiftedSchedule, schedule_from
from .reflection import Correction, check_critic, reflect

Progress = Callable[[str, int, int], None]  # stage, done, total; may raise Interrupted


@dataclass
class Chain:
    """Rewriter, renderer and judge, with the settings of a search.

    - `best_of` candidates are drawn from `variants` rewrites in turn.
    - `prune` names a schedule, in the form that `pruning.read_pruning` parses. `preview_reward` (default: the
      judge) scores the previews, through its `judge_for_previews`.
    - `reflect` is the maximum number of reflection rounds. Each draws up to `best_of` more candidates, by
      `correction`; `strength` is that of image to image.
    - `corrector` (default: the rewriter) writes the corrected prompts. If it ignores critiques, its words
      stay the same.
    """

    rewriter: Rewriter
    renderer: Renderer
    judge: Reward
    best_of: int = 8
    prune: str = "halving"
    reflect: int = 1
    seed: int = 0
    variants: int = 4
    preview_reward: Reward | None = None
    correction: Correction | str = Correction.DRAW_AGAIN
    strength: float = 0.75
    corrector: Rewriter | None = None

    def __post_init__(self):
        # The candidates of all rounds need seeds, so the range is checked for all of them.
        check_search(self.best_of, self.seed)
        check_search(self.best_of * (1 + max(0, self.reflect)), self.seed)
        self.preview_reward = judge_for_previews(self.preview_reward or self.judge)
        self.schedule(self.best_of)
        if self.prune != "none" and not self.renderer.capabilities.previews:
            raise Unsupported(
                f"pruning by {self.prune!r} needs previews, which renderer "
                f"{self.renderer.name!r} does not give; prune by 'none'"
            )
        if self.reflect < 0:
            raise BadInput(f"reflect must be 0 or more rounds, got {self.reflect}")
        corrections = [correction.value for correction in Correction]
        if self.correction not in corrections:
            raise UnknownName("correction", self.correction, corrections)
        self.correction = Correction(self.correction)
        if self.reflect:
            check_critic(self.judge)
            if self.correction is Correction.IMAGE_TO_IMAGE:
                self._check_image_to_image()
        if self.variants < 1:
            raise BadInput(f"variants must be at least 1, got {self.variants}")

    def _check_image_to_image(self) -> None:
        if not self.renderer.capabilities.image_to_image:
            raise Unsupported(
                f"renderer {self.renderer.name!r} cannot draw over a picture; "
                f"correct by {Correction.DRAW_AGAIN.value!r}"
            )
        check_strength(self.strength, self.renderer.steps)

    def schedule(self, n: int) -> PruningSchedule:
        return schedule_from(self.prune, n, self.renderer.steps, self.preview_reward)

    def _correction_schedule(self, n: int) -> PruningSchedule:
        """The pruning of a reflection round. Image to image skips the first steps, so its schedule is
        shifted."""
        if self.correction is Correction.DRAW_AGAIN:
            return self.schedule(n)
        steps = int(self.renderer.steps * self.strength)
        return ShiftedSchedule(
            schedule_from(self.prune, n, steps, self.preview_reward), self.renderer.steps - steps
        )

    def run(self, prompt: str, progress: Progress | None = None) -> Outcome:
        """Draws `prompt`. The stages that `progress` gets are rewrite, render, judge, reflect."""

        def report(stage: str, done: int, total: int) -> None:
            if progress:
                progress(stage, done, total)

        started = time.perf_counter()
        report("rewrite", 0, 1)
        rewrites = self.rewriter.rewrite([prompt], min(self.variants, self.best_of), seed=self.seed)[0]
        rewrite_seconds = time.perf_counter() - started
        report("rewrite", 1, 1)
        result = search(
            self.renderer,
            self.judge,
            prompt,
            [r.prompt for r in rewrites],
            n=self.best_of,
            seed=self.seed,
            schedule=self.schedule(self.best_of),
            preview_reward=self.preview_reward,
            progress=lambda done, total: report("render", done, total),
        )
        report("judge", 1, 1)
        outcome = Outcome(prompt, list(rewrites), result.candidates, result.best, [], result.cost)
        if self.reflect:
            reflection = reflect(
                result,
                prompt,
                rewriter=self.corrector or self.rewriter,
                renderer=self.renderer,
                judge=self.judge,
                rounds=self.reflect,
                n=self.best_of,
                seed=self.seed,
                variants=min(self.variants, self.best_of),
                schedule=self._correction_schedule,
                preview_reward=self.preview_reward,
                correction=self.correction,
                strength=self.strength,
                progress=lambda done, total: report("reflect", done, total),
            )
            outcome.candidates, outcome.best = reflection.candidates, reflection.best
            outcome.reflection, outcome.rewrites = reflection.rounds, [*rewrites, *reflection.rewrites]
            outcome.cost += reflection.cost
        outcome.cost.add_seconds("rewrite", rewrite_seconds)
        outcome.cost.add_seconds("total", time.perf_counter() - started)
        return outcome
