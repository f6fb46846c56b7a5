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
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from .previews import check_scheduler, predict_x0, reports_x0
from .tokens import mask_rows, step_rows, uses_masked_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .row_mask import RowMask


class Leave(BaseException):
    """Leaves the pipeline, after its last step or when no row is alive. No Exception, so that no pipeline
    logs it."""


class Sampling:
    """The hooked scheduler of one call (`scheduler`): previews, pruning and progress after each step.

    After each of the `watched` steps, `look(step, rows, x0)` is called with x0 of the whole batch and the
    rows alive, and returns those to keep. At the last step it gets the scheduler's `result` instead of x0.
    """

    def __init__(
        self,
        scheduler: Any,
        mask: RowMask,
        steps: int,
        generators: list[torch.Generator],
        watched: frozenset[int],
        look: Callable[[int, list[int], Any], Collection[int]],
        progress: Callable[[int, int], None] | None,
    ):
        check_scheduler(scheduler, watched=bool(watched))
        self.mask, self.steps, self.generators = mask, steps, generators
        self.watched, self.look, self.progress = watched, look, progress
        self.result: Any = None  # what the last step returned: latents first, in the pipeline's own layout
        self.pruned_at: list[int | None] = [None] * mask.count
        # Image to image skips the first calls; the number is known only once the pipeline has started.
        self.skipped_calls: Callable[[], int] = lambda: 0
        self.first_call = self.calls = 0
        self.callback_error: BaseException | None = None  # raised by look or progress, passed on unchanged
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
        # SCM's last timestep is the end, where no step starts.
        return len(self.scheduler.timesteps) - (type(self.scheduler).__name__ == "SCMScheduler")

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
        is_watched = ends and step in self.watched
        clean: Any = None
        if uses_masked_tokens(self.scheduler):
            result = step_rows(self._step, model_output, timestep, sample, self.mask.alive, self.generators)
            clean = result.pred_original_sample
        else:
            reported = reports_x0(self.scheduler)
            if is_watched and not reported:
                clean = predict_x0(self.scheduler, model_output, timestep, sample)
            result = self._step(model_output, timestep, sample, *args, **{**self._extra, **kwargs})
            if is_watched and reported:
                clean = result[1]
        if step >= self.steps:
            # The picture itself. In half precision, and for schedulers that end before all noise is gone, the
            # predicted x0 differs from it.
            clean = result
        self.mask.next_step()
        self.result = result
        try:
            if is_watched:
                self._look(step, clean)
            if ends and self.progress is not None:
                self.progress(step, self.steps)
        except BaseException as error:
            self.callback_error = error
            raise
        if not self.mask.alive or self.calls >= self.total_calls:
            raise Leave
        return result

    def _look(self, step: int, clean: Any) -> None:
        rows = list(self.mask.alive)
        kept = set(self.look(step, rows, clean))
        for row in rows:
            if row not in kept:
                self.pruned_at[row] = step
        self.mask.alive = [row for row in rows if row in kept]
