"""The main job: rewrite, search with pruning, judge, reflect. One prompt in, one Outcome out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import BadInput, UnknownName, Unsupported
from ..core.interfaces import Renderer, Reward, Rewriter
from ..core.scoring import judge_for_previews
from ..core.types import Outcome
from ..renderers.diffusers.img2img import check_strength
from .best_of_n import check_search, search
from .pruning import PruningSchedule, ShiftedSchedule, schedule_from
from .reflection import CORRECTIONS, check_critic, reflect

Progress = Callable[[str, int, int], None]  # stage, done, total; may raise Interrupted


@dataclass
class Chain:
    """Rewriter, renderer and judge with the settings of a search.

    `best_of` candidates share `variants` rewrites in turn; `prune` is a schedule as `parm.read_pruning` reads
    it, and `previews` or, by default, the judge scores the previews for it (see `judge_for_previews`);
    `reflect` is the most rounds of reflection, each drawing `best_of` more candidates at most, by
    `correction`, one of CORRECTIONS, with `strength` where that is image to image. `corrector` writes the
    corrected prompts, by default the rewriter; of one that ignores critiques they are the same words again.
    """

    rewriter: Rewriter
    renderer: Renderer
    judge: Reward
    best_of: int = 8
    prune: str = "halving"
    reflect: int = 1
    seed: int = 0
    variants: int = 4
    previews: Reward | None = None
    correction: str = CORRECTIONS[0]
    strength: float = 0.75
    corrector: Rewriter | None = None

    def __post_init__(self):
        # All candidates of all rounds must have a seed, so the range is checked for all of them.
        check_search(self.best_of, self.seed)
        check_search(self.best_of * (1 + max(0, self.reflect)), self.seed)
        self.previews = judge_for_previews(self.previews or self.judge)
        self.schedule(self.best_of)
        if self.prune != "none" and not getattr(self.renderer, "previews", True):
            raise Unsupported(
                f"pruning by {self.prune!r} needs previews, which renderer "
                f"{self.renderer.name!r} does not give; prune by 'none'"
            )
        if self.reflect < 0:
            raise BadInput(f"reflect must be 0 or more rounds, got {self.reflect}")
        if self.correction not in CORRECTIONS:
            raise UnknownName("correction", self.correction, CORRECTIONS)
        if self.reflect:
            check_critic(self.judge)
            if self.correction == CORRECTIONS[1]:
                self._check_img2img()
        if self.variants < 1:
            raise BadInput(f"variants must be at least 1, got {self.variants}")

    def _check_img2img(self) -> None:
        if not getattr(self.renderer, "img2img", False):
            raise Unsupported(
                f"renderer {self.renderer.name!r} cannot draw over a picture; correct by {CORRECTIONS[0]!r}"
            )
        check_strength(self.strength, self.renderer.steps)

    def schedule(self, n: int) -> PruningSchedule:
        return schedule_from(self.prune, n, self.renderer.steps, self.previews)

    def _mending(self, n: int) -> PruningSchedule:
        """The pruning of a round: over the steps that image to image draws, where it is that."""
        if self.correction == CORRECTIONS[0]:
            return self.schedule(n)
        drawn = int(self.renderer.steps * self.strength)
        return ShiftedSchedule(
            schedule_from(self.prune, n, drawn, self.previews), self.renderer.steps - drawn
        )

    def run(self, prompt: str, progress: Progress | None = None) -> Outcome:
        """Draw `prompt`. Stages in `progress`: rewrite, render, judge, reflect."""

        def tell(stage: str, done: int, total: int) -> None:
            if progress:
                progress(stage, done, total)

        started = time.perf_counter()
        tell("rewrite", 0, 1)
        rewrites = self.rewriter.rewrite([prompt], min(self.variants, self.best_of), seed=self.seed)[0]
        rewriting = time.perf_counter() - started
        tell("rewrite", 1, 1)
        found = search(
            self.renderer,
            self.judge,
            prompt,
            [r.prompt for r in rewrites],
            n=self.best_of,
            seed=self.seed,
            schedule=self.schedule(self.best_of),
            previews=self.previews,
            progress=lambda done, total: tell("render", done, total),
        )
        tell("judge", 1, 1)
        outcome = Outcome(prompt, list(rewrites), found.candidates, found.best, [], found.cost)
        if self.reflect:
            mended = reflect(
                found,
                prompt,
                rewriter=self.corrector or self.rewriter,
                renderer=self.renderer,
                judge=self.judge,
                rounds=self.reflect,
                n=self.best_of,
                seed=self.seed,
                variants=min(self.variants, self.best_of),
                schedule=self._mending,
                previews=self.previews,
                correction=self.correction,
                strength=self.strength,
                progress=lambda done, total: tell("reflect", done, total),
            )
            outcome.candidates, outcome.best = mended.candidates, mended.best
            outcome.reflection, outcome.rewrites = mended.rounds, [*rewrites, *mended.rewrites]
            outcome.cost += mended.cost
        outcome.cost.add_seconds("rewrite", rewriting)
        outcome.cost.add_seconds("total", time.perf_counter() - started)
        return outcome
