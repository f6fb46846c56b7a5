"""One training in several processes, as torchrun and `accelerate launch` start them, one for each GPU.

Every process holds the whole model and knows all settings. Rollouts and evaluations are dealt out, and what
comes of them is gathered on all, so that all go on alike; the folder of a run is the main process's to
write. In a run of one process each function here is the plain call.
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
# Of one that waits for another which still draws. Launchers end those that wait for a dead one.
PATIENCE = timedelta(days=1)
BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "remote process exit")  # gloo's, and NCCL's

T = TypeVar("T")
R = TypeVar("R")


class PeerFailed(RepriseError):
    """Another process of the run failed; `exit_code` is that process's."""

    def __init__(self, said: str, exit_code: int):
        super().__init__(f"another process of this run failed: {said}")
        self.exit_code = exit_code


def is_distributed() -> bool:
    """Whether a launcher started more processes than this one."""
    return any(int(os.environ.get(name) or 1) > 1 for name in SIZES)


def require_one_process(who: str = "this trainer", without: str = "accelerate launch and torchrun") -> None:
    """Raises Unsupported where a launcher started several processes of what is one."""
    if is_distributed():
        raise Unsupported(f"{who} is one process; start it without {without}")


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes, and has started this one alone."""
    return not is_distributed() and _flag("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ


def join() -> None:
    """Meet the other processes, once; the first of the functions below does it, too.

    Raises Unsupported for launchers' ways of which this package knows nothing.
    """
    import torch
    from torch import distributed

    if not is_distributed() or distributed.is_initialized():
        return
    from accelerate import PartialState

    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if _flag(f"ACCELERATE_USE_{name}"):
            raise Unsupported(
                f"here every process holds the whole model, which {name} would cut in parts; "
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
    """Processes of this run."""
    if not is_distributed():
        return 1
    from torch import distributed

    join()
    return distributed.get_world_size()


def rank() -> int:
    """Which of them this is, from 0."""
    if not is_distributed():
        return 0
    from torch import distributed

    join()
    return distributed.get_rank()


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def main_only(log: Callable[[str], None]) -> Callable[[str], None]:
    """`log` in the main process, and silence in the others."""
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
    """This process's part of what all have: contiguous, and as long as the others' within one."""
    if not is_distributed():
        return items
    number, of = rank(), world_size()
    return items[len(items) * number // of : len(items) * (number + 1) // of]


def per_process(batch_size: int) -> int:
    """Rows of a batch that are one process's. Raises BadInput where that is no whole number."""
    if batch_size % world_size():
        raise BadInput(
            f"batch_size={batch_size} is for all processes together, and {world_size()} of them do not "
            f"divide it; set it to a multiple of {world_size()}"
        )
    return batch_size // world_size()


def scatter(
    items: Sequence[T],
    work: Callable[[Sequence[T]], list[R]],
    waiting: AbstractContextManager[Any] | None = None,
) -> list[R]:
    """`work` on `items`, each process on its share: the results of all, in their order, in every process.

    `waiting` is entered while the others are waited for. What fails in one process fails in all.
    """
    if not is_distributed():
        return work(items)
    mine = local_share(items)
    return [one for part in _gather(lambda: work(mine) if mine else [], waiting) for one in part]


def run_on_main(work: Callable[[], R]) -> R:
    """What `work` gives in the main process, in all; they wait for it, and fail where it fails."""
    if not is_distributed():
        return work()
    return _gather(lambda: work() if is_main() else None)[0]


def all_sum(*counts: int) -> tuple[int, ...]:
    """The sums over all processes."""
    return counts if not is_distributed() else tuple(map(sum, zip(*_gather(lambda: counts))))


def _gather(work: Callable[[], Any], waiting: AbstractContextManager[Any] | None = None) -> list[Any]:
    """What `work` gives in each process, by their order, in all of them."""
    from accelerate.utils import gather_object

    join()
    value, failed, said = None, None, None
    try:
        value = work()
    except Exception as error:
        failed, said = error, (str(error), getattr(error, "exit_code", 1))
    with waiting or nullcontext():
        found = gather_object([(value, said)])
    if failed is not None:
        raise failed
    for _, said in found:
        if said is not None:
            raise PeerFailed(*said)
    return [value for value, _ in found]


# How a run of several ends


def first_to_fail() -> bool:
    """Whether no other process of the run asked this before: the one that did says why the run ends."""
    from torch.distributed import distributed_c10d

    try:
        return distributed_c10d._get_default_store().add("reprise/failed", 1) == 1
    except Exception:  # it was kept by a process that is gone, and may have had no time to speak
        return True


def is_peer_loss(error: BaseException) -> bool:
    """Whether it says no more than that another process is gone."""
    broken = isinstance(error, RuntimeError) and any(words in str(error) for words in BROKEN)
    return broken and is_distributed()


def exit_now(code: int) -> None:
    """End this process at once, with `code`, where it is one of several and the run failed; alone, nothing.

    Python's own end would take threads of gloo's apart that still wait for the others, and now and then
    abort with another exit code (pytorch/pytorch pull request 179291).
    """
    if is_distributed():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def leave() -> None:
    """Part from the others at the end of a run."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
