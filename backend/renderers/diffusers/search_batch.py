"""All jobs of one search, drawn in as few calls of the pipeline as possible, and shown to one watcher.

Jobs share a call where their prompts' embeddings have one shape and the pipeline's rows can be masked.
Otherwise they are drawn by several calls in step with each other (`lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed
from ...core.types import Job, RenderResult
from .drawing import Drawing
from .lockstep import Strand, run_in_step
from .prompts import Ragged

if TYPE_CHECKING:
    from ...core.interfaces import Watcher
    from .renderer import DiffusersRenderer

Shown = tuple[int, list[int], Any]  # a step, the rows alive of a batch, latents of the whole batch


class SearchBatch:
    """One call of `DiffusersRenderer.render`. `error` is what the watcher or `progress` raised."""

    def __init__(
        self,
        renderer: DiffusersRenderer,
        jobs: Sequence[Job],
        watcher: Watcher | None,
        progress: Callable[[int, int], None] | None,
    ):
        self.renderer, self.jobs, self.watcher, self.progress = renderer, jobs, watcher, progress
        self.watched = frozenset(watcher.steps) if watcher else frozenset()
        self.error: BaseException | None = None
        self._reported = 0

    def draw(self) -> RenderResult:
        groups = self._first_groups()
        while True:
            drawings = self._drawings(groups)
            try:
                if len(drawings) == 1:
                    with drawings[0].mask:
                        drawings[0].run()
                else:
                    self._run_in_step(drawings, groups)
                break
            except Ragged as ragged:  # raised before the first step
                groups = self._split(groups, ragged)
        return self._result(drawings, groups)

    def _first_groups(self) -> list[list[int]]:
        """Indices of jobs that are drawn by one call, unless their prompts turn out to be ragged."""
        rows = range(len(self.jobs))
        if self.renderer.layout is None:
            return [[i] for i in rows]
        if self.renderer.prompts.joins:
            return [list(rows)]
        prompts = dict.fromkeys(job.prompt for job in self.jobs)
        return [[i for i in rows if self.jobs[i].prompt == prompt] for prompt in prompts]

    def _split(self, groups: list[list[int]], ragged: Ragged) -> list[list[int]]:
        """The groups, with the one whose prompts are ragged split by the shapes of their embeddings."""
        prompts = {self.jobs[i].prompt: kind for i, kind in zip(ragged.rows, ragged.kinds, strict=True)}
        split: list[list[int]] = []
        for group in groups:
            kinds: dict[Any, list[int]] = {}
            for i in group:
                kinds.setdefault(prompts.get(self.jobs[i].prompt), []).append(i)
            split += kinds.values()
        if len(split) == len(groups):
            raise RenderFailed("the pipeline encodes a prompt differently at each call")
        return split

    def _drawings(self, groups: list[list[int]]) -> list[Drawing]:
        done = [0] * len(groups)
        drawings: list[Drawing] = []

        def progress(number: int, step: int, steps: int) -> None:
            done[number] = step
            self._report(sum(done) // len(done), steps)

        for number, group in enumerate(groups):
            drawings.append(
                Drawing(
                    self.renderer,
                    [self.jobs[i] for i in group],
                    group,
                    self.watched,
                    lambda step, rows, clean, number=number: self._look(
                        [drawings[number]], [groups[number]], [(step, rows, clean)]
                    )[0],
                    lambda step, steps, number=number: progress(number, step, steps),
                )
            )
        return drawings

    def _run_in_step(self, drawings: list[Drawing], groups: list[list[int]]) -> None:
        import torch

        def strand(drawing: Drawing) -> Strand[Shown]:
            def work(pause: Callable[[Shown], list[int]]) -> None:
                drawing.sampling.look = lambda step, rows, clean: pause((step, rows, clean))
                with torch.no_grad():
                    drawing.run()

            one = Strand(work, lambda: drawing.mask)
            progress = drawing.sampling.progress
            assert progress is not None

            def checked(step: int, steps: int) -> None:
                one.check()
                progress(step, steps)

            drawing.sampling.progress = checked
            return one

        def answer(looks: list[Shown | None]) -> list[list[int]]:
            showing = [i for i, look in enumerate(looks) if look is not None]
            kept = self._look(
                [drawings[i] for i in showing],
                [groups[i] for i in showing],
                [look for look in looks if look is not None],
            )
            by_strand = dict(zip(showing, kept, strict=True))
            return [by_strand.get(i, []) for i in range(len(looks))]

        run_in_step([strand(drawing) for drawing in drawings], answer)

    def _look(
        self, drawings: Sequence[Drawing], groups: Sequence[list[int]], looks: Sequence[Shown]
    ) -> list[list[int]]:
        """Show the watcher the rows of all batches together; the rows of each batch that it keeps."""
        import torch

        assert self.watcher is not None
        step = looks[0][0]
        tiny = self.renderer.preview_decoder
        shown = [
            (group[row], picture)
            for drawing, group, (_, rows, clean) in zip(drawings, groups, looks, strict=True)
            for row, picture in zip(rows, drawing.decode(clean, rows, tiny), strict=True)
        ]
        shown.sort(key=lambda one: one[0])
        rows = [row for row, _ in shown]
        try:
            kept = set(self.watcher.look(step, list(rows), torch.stack([picture for _, picture in shown])))
            if not kept <= set(rows):
                strange = sorted(kept - set(rows))
                raise RenderFailed(f"the watcher kept rows {strange} that were not shown to it")
        except BaseException as error:
            self.error = error
            raise
        return [
            [row for row in rows if group[row] in kept]
            for group, (_, rows, _) in zip(groups, looks, strict=True)
        ]

    def _report(self, step: int, steps: int) -> None:
        if self.progress is not None and step > self._reported:
            self._reported = step
            try:
                self.progress(step, steps)
            except BaseException as error:
                self.error = error
                raise

    def _result(self, drawings: list[Drawing], groups: list[list[int]]) -> RenderResult:
        count = len(self.jobs)
        result = RenderResult([None] * count, [None] * count, 0, 0)
        for drawing, group in zip(drawings, groups, strict=True):
            result.denoiser_rows += drawing.mask.rows
            result.denoiser_rows_full += drawing.rows_full
            for row, i in enumerate(group):
                result.pruned_at[i] = drawing.sampling.pruned_at[row]
            if drawing.mask.alive:
                pictures = drawing.decode(drawing.result, drawing.mask.alive).mul(255).round() / 255
                for row, picture in zip(drawing.mask.alive, pictures, strict=True):
                    result.images[group[row]] = picture
        return result
