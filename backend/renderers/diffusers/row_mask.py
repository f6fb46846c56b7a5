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
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

# Position ids that all rows share; their length may happen to equal the batch size.
SHARED = frozenset({"txt_ids", "img_ids"})


class RowMask:
    """A context in which `module.forward` evaluates only the rows of the candidates in `alive`.

    A forward's batch holds the `count` candidates once (FLUX makes two calls per step for true CFG) or
    several times (pipelines that concatenate [negative; positive]): row r is candidate r % count. Call
    `next_step` after each step of the sampler: pruned rows are filled from the same call of the step before.
    `rows` counts evaluated rows, `rows_full` requested rows.
    """

    def __init__(self, module: nn.Module, count: int, chunk: int):
        assert count >= 1 and chunk >= 1
        self.module, self.count, self.chunk = module, count, chunk
        self.alive = list(range(count))
        self.rows = self.rows_full = 0
        self._call = 0  # number of calls since the sampler's last step
        self._last: dict[int, Tensor] = {}  # {call: output of the step before}
        self._returns_tensor = False

    def __enter__(self) -> RowMask:
        # An offload hook may already have put its own forward on the instance.
        self._hooked = "forward" in self.module.__dict__
        self._forward = self.module.forward

        @functools.wraps(self._forward)
        def masked(*args, **kwargs):
            return self._masked(args, kwargs)

        self.module.forward = masked
        return self

    def __exit__(self, *_: object) -> None:
        if self._hooked:
            self.module.forward = self._forward
        else:
            del self.module.forward
        self._last.clear()

    def next_step(self) -> None:
        self._call = 0

    def _masked(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor] | Tensor:
        # The first argument is `sample` for UNets and `hidden_states` for transformers; some pass it by name.
        name = "hidden_states" if "hidden_states" in kwargs else "sample"
        hidden: Tensor = args[0] if args else kwargs[name]
        batch = len(hidden)
        if batch % self.count:
            raise RenderFailed(
                f"the pipeline asked its {type(self.module).__name__} for {batch} rows, which is no "
                f"multiple of the {self.count} candidates; this guidance mode cannot be masked"
            )
        call, self._call = self._call, self._call + 1
        alive = set(self.alive)
        rows = [row for row in range(batch) if row % self.count in alive]
        self.rows += len(rows)
        self.rows_full += batch
        output = self._evaluate(args, kwargs, rows, batch)
        if len(rows) < batch:
            whole = self._last[call].clone() if call in self._last else _zeros(output, batch, hidden)
            if output is not None:
                whole[rows] = output
            output = whole
        assert output is not None
        self._last[call] = output
        return output if self._returns_tensor else (output,)

    def _evaluate(self, args: tuple, kwargs: dict, rows: list[int], batch: int) -> Tensor | None:
        """The rows' outputs (len(rows), …), evaluated in micro-batches that halve when memory runs out."""
        import torch

        parts: list[Tensor] = []
        done = 0
        while done < len(rows):
            part = rows[done : done + self.chunk]
            try:
                if len(part) == batch:
                    result = self._forward(*args, **kwargs)
                else:
                    result = self._forward(*_take(args, part, batch), **_take(kwargs, part, batch))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise RenderFailed(
                        "not enough memory for one row of the denoiser; use a smaller size, "
                        "offload='sequential' or a smaller dtype"
                    ) from error
                self.chunk = len(part) // 2
                continue
            self._returns_tensor = not isinstance(result, tuple)  # aMUSEd's transformer returns a tensor
            parts.append(result if self._returns_tensor else result[0])
            done += len(part)
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None


def _zeros(output: Tensor | None, batch: int, hidden: Tensor) -> Tensor:
    """Output for pruned rows in a call that has no earlier output. Its values are never used."""
    like = hidden if output is None else output
    return like.new_zeros((batch, *like.shape[1:]))


def _take(value: Any, rows: list[int], batch: int) -> Any:
    """`value`, in which every tensor with a batch dimension is reduced to `rows`."""
    if isinstance(value, dict):
        return {k: v if k in SHARED else _take(v, rows, batch) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_take(item, rows, batch) for item in value)
    if hasattr(value, "ndim") and hasattr(value, "shape") and value.ndim and value.shape[0] == batch:
        return value[rows]
    return value
