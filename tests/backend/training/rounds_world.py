"""Rounds that are killed half-way, in a process of their own that needs not begin from nothing."""

from __future__ import annotations

import os
import signal


def killed_at(where: str, count: int, work) -> None:
    """Do `work` in a copy of this process, which SIGKILL ends at the so-manieth picture that is drawn and
    kept ("draw"), score that is kept ("judge"), or optimiser step ("learn")."""
    child = os.fork()
    if child == 0:
        try:
            _kill_at(where, count)
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "it got through, or failed"


def _kill_at(where: str, count: int) -> None:
    import torch

    from reprise.backend.storage.cache import Cache
    from reprise.backend.training.rollouts.scoring import PictureScorer

    owner, name = {
        "draw": (Cache, "put_image"),
        "judge": (Cache, "put_scores"),
        "learn": (torch.optim.AdamW, "step"),
    }[where]
    method, look, made, looking = getattr(owner, name), PictureScorer.score, [], []

    def looked(self, *arguments):
        looking.append(1)
        try:
            return look(self, *arguments)
        finally:
            looking.clear()

    def counted(self, *arguments, **options):
        found = method(self, *arguments, **options)
        if where == "learn" or looking:  # a preference store keeps pictures, too
            made.append(1)
        if len(made) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    PictureScorer.score = looked
    setattr(owner, name, counted)
