"""One training in several processes, as torchrun and `accelerate launch` start them, one for each GPU.

Every process holds the whole model and has all settings. Rollouts and evaluations are dealt out, and their
results are gathered in all processes, which then go on alike. Only the main process writes into the run's
folder. In a run of one process each function here is a plain call.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

from ...core.errors import BadInput, RepriseError, Unsupported

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and MPI's
# How long a process waits for another that still draws. Launchers end those that wait for a dead one.
PATIENCE = timedelta(days=1)
BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "remote process exit")  # gloo's, and NCCL's

T = TypeVar("T")
R = TypeVar("R")


class PeerFailed(RepriseError):
    """Another process of the run failed; `exit_code` is that process's."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(f"another process of this run failed: {message}")
        self.exit_code = exit_code


def is_distributed() -> bool:
    """Whether a launcher started more processes than this one."""
    return any(int(os.environ.get(name) or 1) > 1 for name in SIZES)


def require_one_process(
    trainer: str = "this trainer", without: str = "accelerate launch and torchrun"
) -> None:
    """Raises Unsupported where a launcher started several processes of a trainer that is one process."""
    if is_distributed():
        raise Unsupported(f"{trainer} is one process; start it without {without}")


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was to start several processes, and started only this one."""
    return not is_distributed() and _flag("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ


def join() -> None:
    """Connect to the other processes, once. The functions below do it, too, where nothing has before.

    Raises Unsupported for ways to launch that do not work here.
    """
    import torch
    from torch import distributed

    if not is_distributed() or distributed.is_initialized():
        return
    from accelerate import PartialState

    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if _flag(f"ACCELERATE_USE_{name}"):
            raise Unsupported(
                f"here every process holds the whole model, which {name} would split; "
                "start it without, with accelerate launch --multi_gpu or torchrun"
            )
    if torch.cuda.is_available() and not _flag("ACCELERATE_USE_CPU"):
        # What is gathered here stays in main memory, gradients stay on the GPUs.
        PartialState(timeout=PATIENCE, backend="cpu:gloo,cuda:nccl")
    else:
        PartialState(cpu=True, timeout=PATIENCE)
    if not distributed.is_initialized():
        raise Unsupported("these processes cannot find each other; start them with torchrun")


def world_size() -> int:
    """The number of processes of this run."""
    if not is_distributed():
        return 1
    from torch import distributed

    join()
    return distributed.get_world_size()


def rank() -> int:
    """The number of this process, from 0."""
    if not is_distributed():
        return 0
    from torch import distributed

    join()
    return distributed.get_rank()


def is_main() -> bool:
    """Whether this process is the one that writes and logs."""
    return rank() == 0


def main_only(log: Callable[[str], None]) -> Callable[[str], None]:
    """`log` in the main process; in the others a function that does nothing."""
    return log if is_main() else lambda line: None


def use_gpu(device: str) -> bool:
    """Whether weights go to the GPU of this process; `device` is "auto" or "cpu". Raises Unsupported."""
    import torch

    found = device == "auto" and torch.cuda.is_available() and not _flag("ACCELERATE_USE_CPU")
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if found and here > torch.cuda.device_count():
        raise Unsupported(
            f"{here} processes want a GPU each, and this machine has "
            f"{torch.cuda.device_count()}; start as many, or set device=cpu"
        )
    return found


def local_share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items: contiguous, and as long as those of the others, or one longer."""
    if not is_distributed():
        return items
    number, of = rank(), world_size()
    return items[len(items) * number // of : len(items) * (number + 1) // of]


def per_process(batch_size: int) -> int:
    """Rows of a batch for each process. Raises BadInput where they are no whole number."""
    if batch_size % world_size():
        raise BadInput(
            f"batch_size={batch_size} is for all processes together, and {world_size()} processes cannot "
            f"share it evenly; set it to a multiple of {world_size()}"
        )
    return batch_size // world_size()


def scatter(
    items: Sequence[T],
    work: Callable[[Sequence[T]], list[R]],
    waiting: AbstractContextManager[Any] | None = None,
) -> list[R]:
    """Do `work` on `items`, each process on its share; returns all results, in their order, in every process.

    `waiting` is a context for the time in which this process waits. What fails in one process fails in all.
    """
    if not is_distributed():
        return work(items)
    mine = local_share(items)
    return [one for part in _gather(lambda: work(mine) if mine else [], waiting) for one in part]


def run_on_main(work: Callable[[], R]) -> R:
    """Do `work` in the main process; returns its result in all, which wait for it and fail where it fails."""
    if not is_distributed():
        return work()
    return _gather(lambda: work() if is_main() else None)[0]


def all_sum(*counts: int) -> tuple[int, ...]:
    """The sums over all processes."""
    return counts if not is_distributed() else tuple(map(sum, zip(*_gather(lambda: counts))))


def _gather(work: Callable[[], Any], waiting: AbstractContextManager[Any] | None = None) -> list[Any]:
    """Do `work` in every process; returns the results of all, in the order of their numbers, in each."""
    from accelerate.utils import gather_object

    join()
    value, error, failure = None, None, None
    try:
        value = work()
    except Exception as raised:
        error, failure = raised, (str(raised), getattr(raised, "exit_code", 1))
    with waiting or nullcontext():
        results = gather_object([(value, failure)])
    if error is not None:
        raise error
    for _, failure in results:
        if failure is not None:
            raise PeerFailed(*failure)
    return [value for value, _ in results]


# How a run of several ends


def first_to_fail() -> bool:
    """Whether this is the first process of the run to call this: the one that says why the run ends."""
    from torch.distributed import distributed_c10d

    try:
        return distributed_c10d._get_default_store().add("reprise/failed", 1) == 1
    except Exception:  # the process that held the store is gone, maybe without a message
        return True


def is_peer_loss(error: BaseException) -> bool:
    """Whether the error only means that another process is gone."""
    broken = isinstance(error, RuntimeError) and any(words in str(error) for words in BROKEN)
    return broken and is_distributed()


def exit_now(code: int) -> None:
    """End this process at once with `code`, if it is one of several; a single process goes on.

    Python's own way to end would destroy threads of gloo that still wait for other processes, and sometimes
    abort with another exit code (pytorch/pytorch pull request 179291).
    """
    if is_distributed():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def leave() -> None:
    """Disconnect from the other processes at the end of a run."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
