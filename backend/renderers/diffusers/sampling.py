"""A scheduler's own copy for one call, hooked at `step`: counting, previews, pruning, progress.

`scheduler.step` is where every pipeline hands over the same three things, whatever its family: the
model's output with guidance applied, the timestep, and the sample.

Steps are counted as the user asked for them. A second-order scheduler (Heun, KDPM2) takes two calls per
step, the last step one; PNDM takes one call more to warm up. A step ends with its last call, and the
preview comes from that call, the better of the estimates.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed
from .previews import check_scheduler, predicted_clean
from .tokens import fills_in_tokens, hide_rows, step_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core.interfaces import Watcher
    from .row_mask import RowMask


class AllPruned(Exception):
    """No row is alive: leave the pipeline early. Never seen by a caller of the renderer."""


class Sampling:
    """One call's scheduler (`scheduler`) and what happens after each of its steps."""

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
        self.begin: Callable[[], int] = lambda: 0  # how many calls are left out, once that is known
        self.first = self.calls = 0  # `first`: those left out
        self.raised: BaseException | None = None  # what a watcher or progress raised, to pass on as it is
        # A copy: its history starts empty, and the pipeline's own is never touched, also on an error.
        self.scheduler = copy.deepcopy(scheduler)
        self._step = self.scheduler.step
        accepted = inspect.signature(self._step).parameters
        # FLUX and SD3 pass no generators to stochastic schedulers; each row has its own.
        self._extra = {"generator": generators} if "generator" in accepted else {}

        @functools.wraps(self._step)  # pipelines inspect the signature of `step`
        def hooked(model_output, timestep, sample, *args, **kwargs):
            return self._hooked(model_output, timestep, sample, *args, **kwargs)

        self.scheduler.step = hooked
        if fills_in_tokens(scheduler):
            add_noise, mask_token = self.scheduler.add_noise, scheduler.config.mask_token_id
            self.scheduler.add_noise = lambda sample, timesteps, generator=None: hide_rows(
                add_noise, sample, timesteps, mask_token, generators
            )

    @property
    def total_calls(self) -> int:
        return len(self.scheduler.timesteps)

    def _steps_done(self, calls: int) -> int:
        """Whole steps behind us after so many calls."""
        if calls >= self.total_calls:
            return self.steps
        order = self.scheduler.order
        warmup = max(self.total_calls - self.steps * order, 0)
        return max(calls - warmup, 0) // order

    def _hooked(self, model_output: Tensor, timestep: Any, sample: Tensor, *args, **kwargs):
        if self.calls == self.first == 0:
            self.first = self.calls = self.begin()
        before, self.calls = self._steps_done(self.calls), self.calls + 1
        step = self._steps_done(self.calls)
        ends = step > before
        looks = ends and self.watcher is not None and step in self.watcher.steps
        clean: Any = None
        if fills_in_tokens(self.scheduler):
            result = step_rows(self._step, model_output, timestep, sample, self.mask.alive, self.generators)
            clean = result.pred_original_sample
        else:
            if looks:
                clean = predicted_clean(self.scheduler, model_output, timestep, sample)
            result = self._step(model_output, timestep, sample, *args, **{**self._extra, **kwargs})
        self.mask.next_step()
        try:
            if looks:
                self._look(step, clean)
            if ends and self.progress is not None:
                self.progress(step, self.steps)
        except BaseException as error:
            self.raised = error
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
