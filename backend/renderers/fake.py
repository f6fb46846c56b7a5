"""A renderer without a model, for tests of searches, nodes and pages, in this project and in others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..core.errors import BadInput, RenderFailed
from ..core.types import Job, RendererCapabilities, RenderResult
from .diffusers.renderer import check_jobs

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.interfaces import Watcher


class FakeRenderer:
    """Draws 8 x 8 coloured squares that depend on (prompt, seed) alone.

    `draw(prompt, seed)` may give other pictures, (H, W, 3) in 0..1. The preview after step k is a mix of
    noise and k / steps of the picture. With an init image, the result is a mix with `strength` of the new
    picture. `rows_per_step=2` counts like a pipeline with classifier-free guidance. `calls` holds the jobs of
    the last 1,000 calls, for assertions.
    """

    name = "fake"
    capabilities = RendererCapabilities(
        image_to_image=True, shapeworld=True, settings=frozenset({"steps", "size"})
    )
    model = None

    def __init__(
        self,
        steps: int = 8,
        size: int = 64,
        rows_per_step: int = 1,
        draw: Callable[[str, int], Tensor] | None = None,
    ):
        for name, value in (("steps", steps), ("rows_per_step", rows_per_step)):
            if value < 1:
                raise BadInput(f"{name} is 1 or more; got {value}")
        if size < 8 or size % 8:
            raise BadInput(f"size is a multiple of 8 pixels; got {size}")
        self.steps, self.size, self.rows_per_step = steps, size, rows_per_step
        self._draw = draw or self._squares
        self.fingerprint = f"fake-{steps}-{size}-{getattr(draw, '__qualname__', 'squares')}"
        self.calls: list[list[Job]] = []

    def render(
        self,
        jobs: Sequence[Job],
        watcher: Watcher | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderResult:
        """Draws all jobs. Calls the watcher, prunes, counts and reports progress as a real renderer does."""
        import torch

        check_jobs(jobs, watcher, self.steps)
        self.calls.append(list(jobs))
        del self.calls[:-1000]  # memory does not grow in a run of many prompts
        init = jobs[0].init if jobs else None
        skipped = self.steps - int(self.steps * init.strength) if init else 0
        finals = [self._final(job).mul(255).round() / 255 for job in jobs]
        noise = [
            torch.rand(image.shape, generator=_generator("noise", job.prompt, job.seed))
            for job, image in zip(jobs, finals, strict=True)
        ]
        alive = list(range(len(jobs)))
        pruned_at: list[int | None] = [None] * len(jobs)
        rows = 0
        for step in range(skipped + 1, self.steps + 1):
            if not alive:
                break
            rows += len(alive) * self.rows_per_step
            if watcher is not None and step in watcher.steps:
                part = step / self.steps
                previews = torch.stack([torch.lerp(noise[row], finals[row], part) for row in alive])
                kept = set(watcher.look(step, list(alive), previews))
                if not kept <= set(alive):
                    raise RenderFailed(f"the watcher kept rows {sorted(kept - set(alive))} not shown to it")
                for row in alive:
                    if row not in kept:
                        pruned_at[row] = step
                alive = [row for row in alive if row in kept]
            if progress is not None:
                progress(step, self.steps)
        images = [image if row in alive else None for row, image in enumerate(finals)]
        return RenderResult(images, pruned_at, rows, len(jobs) * (self.steps - skipped) * self.rows_per_step)

    def _final(self, job: Job) -> Tensor:
        import torch

        drawn = self._draw(job.prompt, job.seed)
        return torch.lerp(job.init.image, drawn, job.init.strength) if job.init else drawn

    def _squares(self, prompt: str, seed: int) -> Tensor:
        import torch

        squares = torch.rand(8, 8, 3, generator=_generator("picture", prompt, seed))
        side = self.size // 8
        return squares.repeat_interleave(side, 0).repeat_interleave(side, 1)


def _generator(*parts: object):
    import torch

    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
