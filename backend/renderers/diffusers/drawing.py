"""One batch of candidates, drawn by one call of the pipeline: hooks on its denoiser, its scheduler and its
prompts.

Pictures are decoded by the pipeline's own tail. The pipeline is called once more for a single step, in which
the denoiser is not run and the scheduler hands over the latents that are to be decoded; whatever the pipeline
does after its last step (unpacking, denormalising, its VAE) makes the picture. So no table of latent layouts
is needed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed
from ...core.types import Job
from .call import check_size_drawn, decoder_name, invoke
from .img2img import accepted_arguments, img2img_pipeline, init_arguments, skipped_calls
from .pipelines import set_scheduler
from .prompts import Ragged
from .row_mask import RowMask
from .sampling import Leave, Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .renderer import DiffusersRenderer

Look = Callable[[int, list[int], Any], Collection[int]]


class Drawing:
    """The jobs of one call of the pipeline, `rows` of the search. `run` draws, `decode` makes pictures of
    latents."""

    def __init__(
        self,
        renderer: DiffusersRenderer,
        jobs: Sequence[Job],
        rows: Sequence[int],
        watched: frozenset[int],
        look: Look,
        progress: Callable[[int, int], None] | None,
    ):
        self.renderer, self.jobs, self.rows = renderer, jobs, rows
        self.generators = new_generators(jobs)
        alone = renderer.layout is None
        self.mask = RowMask(renderer.denoisers, len(jobs), renderer.chunk, renderer.layout, whole=alone)
        self.sampling = Sampling(
            renderer.pipeline.scheduler,
            self.mask,
            renderer.steps,
            self.generators,
            watched,
            look,
            progress,
        )

    def run(self) -> None:
        """Draw; the caller has entered `mask`. Afterwards `result` is what the last step returned."""
        pipe, arguments = self.renderer.prepare(self.jobs, self.generators)
        if self.jobs[0].init is not None:
            assert self.renderer.img2img is not None
            pipe = img2img_pipeline(pipe, self.renderer.img2img)
            self.renderer.prompts.install(pipe)
            arguments = accepted_arguments(pipe, {**arguments, **init_arguments(self.jobs)})
            self.sampling.skipped_calls = lambda: skipped_calls(pipe, self.jobs, self.sampling.total_calls)
        set_scheduler(pipe, self.sampling.scheduler)
        with self.renderer.encoding():
            try:
                invoke(pipe, arguments)
            except Leave:
                return
            except Ragged as ragged:
                ragged.rows = list(self.rows)
                raise
        raise RenderFailed(f"{type(pipe).__name__} ended before its scheduler's last step")

    @property
    def result(self) -> Any:
        """What the scheduler's last step returned, of the whole batch."""
        assert self.sampling.result is not None
        return self.sampling.result

    @property
    def rows_full(self) -> int:
        """The denoiser rows of the run without pruning. All calls of a run request the same number of rows,
        so a run that ended early can be extrapolated."""
        sampling = self.sampling
        done = sampling.calls - sampling.first_call
        return self.mask.rows_full * (sampling.total_calls - sampling.first_call) // max(done, 1)

    def decode(self, latents: Any, rows: Sequence[int], tiny: Any = None) -> Tensor:
        """Latents of the whole batch -> pictures (len(rows), H, W, 3) in 0..1 of these rows, float32, on the
        CPU.

        `latents` is a tensor, or all that a step of the scheduler returned: some pipelines make their
        pictures of its prediction (LCM, SANA-Sprint). `tiny` decodes instead of the pipeline's VAE. Raises
        RenderFailed for latents that are not finite, BadInput for pictures of another size than asked for.
        """
        import torch

        result = self._as_result(latents)
        if not torch.isfinite(result[0][list(rows)]).all():
            raise RenderFailed(
                f"{type(self.renderer.pipeline).__name__} gave latents that are not finite; its weights are "
                "damaged, or its dtype is too narrow (try --dtype bfloat16 or float32)"
            )
        step = self.renderer.decode_chunk
        with self.mask.unevaluated(), torch.no_grad(), self.renderer.encoding():
            parts = [self._decode(result, rows[i : i + step], tiny) for i in range(0, len(rows), step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _as_result(self, latents: Any) -> Any:
        """`latents` as a step of the scheduler returns them, a tuple or an output class."""
        import torch

        if not isinstance(latents, torch.Tensor):
            return latents
        like = self.result
        if isinstance(like, tuple):
            return (latents,) * len(like)
        return type(like)(**{name: latents for name in like})

    def _decode(self, result: Any, rows: Sequence[int], tiny: Any) -> Tensor:
        jobs = [self.jobs[row] for row in rows]
        for cut in (True, False):
            pipe, arguments = self.renderer.prepare(jobs, new_generators(jobs))
            handing = _HandsOver(pipe.scheduler, result, rows, cut)
            set_scheduler(pipe, handing.scheduler)
            name = decoder_name(pipe)
            if tiny is not None and name is not None:
                setattr(pipe, name, tiny)
            try:
                pictures = invoke(pipe, arguments)
            except Exception:
                # Without a step there is nothing to decode (SANA-Sprint's last timestep starts none).
                if handing.called or not cut:
                    raise
                continue
            if handing.called:
                break
        assert pictures is not None
        if tiny is None:
            height, width = pictures.shape[1:3]
            check_size_drawn(pipe, (width, height), (self.renderer.width, self.renderer.height))
        return pictures.clamp(0, 1)


class _HandsOver:
    """A scheduler whose step returns the `rows` of `result`, whatever came. If `cut`, it has one timestep."""

    def __init__(self, scheduler: Any, result: Any, rows: Sequence[int], cut: bool):
        self.scheduler = copy.deepcopy(scheduler)
        self.called = False
        set_timesteps, step = self.scheduler.set_timesteps, self.scheduler.step

        @functools.wraps(set_timesteps)  # pipelines inspect the signatures
        def cut_timesteps(*args, **kwargs):
            set_timesteps(*args, **kwargs)
            self.scheduler.timesteps = self.scheduler.timesteps[-1:]

        @functools.wraps(step)
        def hand_over(model_output, timestep, sample, *args, **kwargs):
            self.called = True

            def handed(value: Any) -> Any:
                return value if value is None else value[list(rows)].to(sample.dtype)

            if isinstance(result, tuple):
                return tuple(map(handed, result))
            return type(result)(**{name: handed(value) for name, value in result.items()})

        self.scheduler.step = hand_over
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input = lambda sample, *_, **__: sample
        if cut:
            self.scheduler.set_timesteps = cut_timesteps


def new_generators(jobs: Sequence[Job]) -> list[torch.Generator]:
    """Each candidate's own noise, drawn on the CPU, so that it is the same on every device."""
    import torch

    return [torch.Generator().manual_seed(job.seed) for job in jobs]
