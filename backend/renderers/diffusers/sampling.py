"""A copy of the scheduler for one call, hooked at `step` for counting, previews, pruning and progress.

Pipelines of all families pass the same three things to `scheduler.step`: the model's output with guidance
applied, the timestep, and the sample.

Steps are counted as the user set them. A second-order scheduler (Heun, KDPM2) makes two calls per step and
one in the last step; PNDM makes one more call to warm up. A step ends with its last call, and the preview
comes from that call, which has the better estimate.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed
from .previews import check_scheduler, predict_x0
from .tokens import mask_rows, step_rows, uses_masked_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core.interfaces import Watcher
    from .row_mask import RowMask


class AllPruned(Exception):
    """Raised when no row is alive, to leave the pipeline early. The renderer catches it."""


class Sampling:
    """The hooked scheduler of one call (`scheduler`): previews, pruning and progress after each step."""

    def __init__(
        self,
        scheduler: Any,
        mask: RowMask,
        steps: int,
        generators: list[torch.Generator],
        watcher: Watcher | None,
        decode: Callable[[Tensor], Tensor],
        progress: Callable[[int, int], None] | None,
    ):
        check_scheduler(scheduler, watched=watcher is not None)
        self.mask, self.steps, self.generators = mask, steps, generators
        self.watcher, self.decode, self.progress = watcher, decode, progress
        self.pruned_at: list[int | None] = [None] * mask.count
        # Image to image skips the first calls; the number is known only once the pipeline has started.
        self.skipped_calls: Callable[[], int] = lambda: 0
        self.first_call = self.calls = 0
        self.callback_error: BaseException | None = None  # raised by watcher or progress, passed on unchanged
        # A copy: its history is empty, and the pipeline's own scheduler never changes, even on an error.
        self.scheduler = copy.deepcopy(scheduler)
        self._step = self.scheduler.step
        accepted = inspect.signature(self._step).parameters
        # FLUX and SD3 do not pass generators to stochastic schedulers; here each row gets its own.
        self._extra = {"generator": generators} if "generator" in accepted else {}

        @functools.wraps(self._step)  # pipelines inspect the signature of `step`
        def hooked(model_output, timestep, sample, *args, **kwargs):
            return self._hooked(model_output, timestep, sample, *args, **kwargs)

        self.scheduler.step = hooked
        if uses_masked_tokens(scheduler):
            add_noise, mask_token = self.scheduler.add_noise, scheduler.config.mask_token_id
            self.scheduler.add_noise = lambda sample, timesteps, generator=None: mask_rows(
                add_noise, sample, timesteps, mask_token, generators
            )

    @property
    def total_calls(self) -> int:
        return len(self.scheduler.timesteps)

    def _steps_done(self, calls: int) -> int:
        """Number of complete steps after `calls` calls."""
        if calls >= self.total_calls:
            return self.steps
        order = self.scheduler.order
        warmup = max(self.total_calls - self.steps * order, 0)
        return max(calls - warmup, 0) // order

    def _hooked(self, model_output: Tensor, timestep: Any, sample: Tensor, *args, **kwargs):
        if self.calls == self.first_call == 0:
            self.first_call = self.calls = self.skipped_calls()
        before, self.calls = self._steps_done(self.calls), self.calls + 1
        step = self._steps_done(self.calls)
        ends = step > before
        is_watched = ends and self.watcher is not None and step in self.watcher.steps
        clean: Any = None
        if uses_masked_tokens(self.scheduler):
            result = step_rows(self._step, model_output, timestep, sample, self.mask.alive, self.generators)
            clean = result.pred_original_sample
        else:
            if is_watched:
                clean = predict_x0(self.scheduler, model_output, timestep, sample)
            result = self._step(model_output, timestep, sample, *args, **{**self._extra, **kwargs})
        self.mask.next_step()
        try:
            if is_watched:
                self._look(step, clean)
            if ends and self.progress is not None:
                self.progress(step, self.steps)
        except BaseException as error:
            self.callback_error = error
            raise
        if not self.mask.alive:
            raise AllPruned
        return result

    def _look(self, step: int, clean: Tensor) -> None:
        assert self.watcher is not None
        rows = list(self.mask.alive)
        kept = set(self.watcher.look(step, list(rows), self.decode(clean[rows])))
        if not kept <= set(rows):
            raise RenderFailed(f"the watcher kept rows {sorted(kept - set(rows))} that were not shown to it")
        for row in rows:
            if row not in kept:
                self.pruned_at[row] = step
        self.mask.alive = [row for row in rows if row in kept]
