"""Evaluates only the rows of a denoiser that are alive, while the sampler keeps its whole batch.

A pruned row is not evaluated: it gets its last output again. So with every sampler, including multistep and
stochastic ones, the survivors follow exactly the path of the unpruned run. (Restarting with a smaller batch
would be exact only for samplers without history.)

The same wrapper splits the rows alive into micro-batches, so that one sampler and one call of a watcher can
span more rows than the device evaluates at once.

Exactness: a row's path does not depend on the other rows, but the choice of matrix kernels depends on the
number of rows. So results differ by rounding between micro-batches of different sizes. With `chunk=1` every
evaluation has the same shape, and pruned, unpruned and single runs are bit-identical.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed
from .batch_layout import Layout, batch_length, call_arguments, complete, select_rows

if TYPE_CHECKING:
    from torch import nn

# What holds for most denoisers, where nothing was found out about one: the sample is the first argument, or
# has one of these names, with a row in each entry of its first dimension.
_USUAL: Layout = {(0,): 0, ("hidden_states",): 0, ("sample",): 0}


class RowMask:
    """A context in which the `modules`' forward evaluates only the rows of the candidates in `alive`.

    A forward's batch holds the `count` candidates once (FLUX makes two calls per step for true CFG) or
    several times (pipelines that concatenate [negative; positive]): row r is candidate r % count. Call
    `next_step` after each step of the sampler: pruned rows are filled from the same call of the step before.
    `rows` counts evaluated rows, `rows_full` requested rows. `layout` says which arguments carry the batch.
    `whole` evaluates all rows of a call at once, whatever `chunk` says: where they depend on each other.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        count: int,
        chunk: int,
        layout: Layout | None = None,
        whole: bool = False,
    ):
        assert count >= 1 and chunk >= 1
        self.modules, self.count, self.chunk, self.whole = modules, count, chunk, whole
        self.layout = _USUAL if layout is None else layout
        self.alive = list(range(count))
        self.rows = self.rows_full = 0
        self._call = 0  # number of calls since the sampler's last step
        self._last: dict[int, Any] = {}  # {call: output of the step before}
        # {call: an output of one row}, which differs between two denoisers (Ideogram 4), and the function
        # that makes a forward's result of it.
        self._likes: dict[int, Any] = {}
        self._rebuild: Callable[[Any], Any] = lambda value: (value,)

    def __enter__(self) -> RowMask:
        self._patched = Forwards(self.modules, self._masked)
        return self

    def __exit__(self, *_: object) -> None:
        self._patched.restore()

    def forget(self) -> None:
        self._last.clear()

    def next_step(self) -> None:
        self._call = 0

    def unevaluated(self) -> Forwards:
        """A context in which a forward evaluates nothing: its output has the right shape and no meaning."""

        calls = itertools.cycle(sorted(self._likes))

        def forward(_: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
            batch, like = self._batch(call_arguments(args, kwargs)), self._likes[next(calls)]
            if isinstance(like, list):
                return self._rebuild(like * batch)
            return self._rebuild(like.expand(batch, *like.shape[1:]))

        return Forwards(self.modules, forward)

    def _batch(self, arguments: dict[Any, Any]) -> int:
        batch = batch_length(arguments, self.layout)
        if batch is None:
            raise RenderFailed(
                "the pipeline calls its denoiser in another way at this step than at its first"
            )
        return batch

    def _masked(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        arguments = call_arguments(args, kwargs)
        batch = self._batch(arguments)
        if batch % self.count:
            raise RenderFailed(
                f"the pipeline asked its denoiser for {batch} rows, which is no "
                f"multiple of the {self.count} candidates; this guidance mode cannot be masked"
            )
        call, self._call = self._call, self._call + 1
        alive = set(self.alive)
        rows = [row for row in range(batch) if row % self.count in alive]
        self.rows += len(rows)
        self.rows_full += batch
        output = self._evaluate(forward, args, kwargs, rows, batch, call)
        if len(rows) < batch:
            output = self._spread(output, rows, batch, call)
        self._last[call] = output
        return self._rebuild(output)

    def _evaluate(
        self,
        forward: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        rows: list[int],
        batch: int,
        call: int,
    ) -> Any:
        """The rows' outputs, in micro-batches that halve when memory runs out; None for no rows."""
        import torch

        parts: list[Any] = []
        layout: Layout | None = None
        done = 0
        while done < len(rows):
            part = rows if self.whole else rows[done : done + self.chunk]
            try:
                if len(part) == batch:
                    result = forward(*args, **kwargs)
                else:
                    arguments = call_arguments(args, kwargs)
                    layout = layout or complete(self.layout, arguments, batch)
                    chosen = select_rows(arguments, part, batch, layout)
                    positional = [chosen.pop(i) for i in range(len(args))]
                    result = forward(*positional, **chosen)
            except torch.OutOfMemoryError as error:
                if len(part) == 1 or self.whole:
                    raise RenderFailed(
                        "not enough memory for one row of the denoiser; use a smaller size, "
                        "--offload sequential or a smaller dtype"
                    ) from error
                self.chunk = len(part) // 2
                continue
            value, self._rebuild = _unwrap(result)
            if len(value) != len(part):
                raise RenderFailed(
                    f"the denoiser gave {len(value)} rows for {len(part)}; this pipeline cannot be "
                    "masked, but a ComfyUI workflow can draw with it (--renderer "
                    "comfyui:WORKFLOW.json@URL)"
                )
            self._likes[call] = value[:1]
            parts.append(value)
            done += len(part)
        if len(parts) < 2:
            return parts[0] if parts else None
        return [one for part in parts for one in part] if isinstance(parts[0], list) else torch.cat(parts)

    def _spread(self, output: Any, rows: list[int], batch: int, call: int) -> Any:
        """The rows' outputs in the whole batch. The other rows get those of the step before, or zeros, which
        are never used."""
        last, like = self._last.get(call), self._likes[call]
        if isinstance(like, list):
            whole = list(last) if last is not None else [like[0]] * batch
            for row, value in zip(rows, output or (), strict=True):
                whole[row] = value
            return whole
        whole = last.clone() if last is not None else like.new_zeros((batch, *like.shape[1:]))
        if output is not None:
            whole[rows] = output
        return whole


class Forwards:
    """Modules whose forward is replaced by `replacement(forward, args, kwargs)`, until `restore`.

    An offload hook may already have put its own forward on the instance; it is the one that is called and
    restored.
    """

    def __init__(
        self, modules: Sequence[nn.Module], replacement: Callable[[Callable[..., Any], tuple, dict], Any]
    ):
        self._own = [(module, module.__dict__.get("forward")) for module in modules]
        for module in modules:
            module.forward = self._replaced(module.forward, replacement)

    @staticmethod
    def _replaced(forward: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)  # pipelines inspect the signature of `forward`
        def replaced(*args, **kwargs):
            return replacement(forward, args, kwargs)

        return replaced

    def restore(self) -> None:
        for module, own in self._own:
            if own is None:
                del module.forward
            else:
                module.forward = own

    def __enter__(self) -> Forwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def _unwrap(result: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A forward's rows, a tensor or a list with an item for each, and how to make its result of them
    again."""
    if isinstance(result, tuple):
        return result[0], lambda value: (value,)
    if isinstance(result, dict):  # one of diffusers' output classes
        kind, name = type(result), next(iter(result))
        return result[name], lambda value: kind(**{name: value})
    return result, lambda value: value  # a tensor (aMUSEd)
