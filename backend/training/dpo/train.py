"""DPO of a rewriter on pairs of rewrites, of which one led to better pictures, by TRL's DPOTrainer.

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. `reprise preferences mine` finds the pairs in the
records of any run: the best and the worst rewrite of a prompt, by the mean score of their pictures. Drawing
and training are apart, so that training draws no picture. The reference is the rewriter that the run starts
from. `rounds` draws, pairs and trains several times; the same can be done by hand with `final/`. Departs from
TRL: prompts and answers are built by the functions that inference uses, token for token.

The run folder is that of `sft`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import DpoConfig

CONFIG = DpoConfig
SEVERAL = False  # processes may share the work


def train(config: DpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a rewriter, and return its folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process()

    def begin():
        if config.rounds is not None:
            from .rounds import DpoRounds

            return DpoRounds(config, config.rounds, run, log)
        from .loop import DpoLoop

        return DpoLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
